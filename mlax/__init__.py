"""mlax: neural-network layers as pairs of pure functions, on JAX."""

import importlib
from typing import TYPE_CHECKING

from mlax import functional, typed
from mlax.bridge import as_layer, as_module
from mlax.combinators.batched import batched
from mlax.combinators.branch import branch
from mlax.combinators.cast import cast
from mlax.combinators.composed import composed
from mlax.combinators.ensemble import ensemble
from mlax.combinators.join import add, concatenate
from mlax.combinators.parallel import parallel
from mlax.combinators.recurrent import recurrent
from mlax.combinators.remat import remat
from mlax.combinators.repeat import repeat
from mlax.combinators.residual import residual
from mlax.combinators.series import series
from mlax.combinators.shared import reuse, shared
from mlax.combinators.switch import switch
from mlax.layers.bias import bias
from mlax.layers.conv import conv
from mlax.layers.dropout import dropout
from mlax.layers.embed import embed
from mlax.layers.f import f, f_rng
from mlax.layers.linear import linear
from mlax.layers.pool import avg_pool, max_pool, pool, sum_pool
from mlax.layers.scaler import scaler
from mlax.layers.z_norm import z_norm
from mlax.module import (
    Module,
    Parameter,
    is_leaf_param,
    is_non_trainable_param,
    is_trainable_param,
)
from mlax.pair import Apply, AxisName, Init, Key, Layer, Pair, State, layer, needs_rng
from mlax.tree import combine, count, map_with_path, mask, nbytes, partition, paths

if TYPE_CHECKING:
    from mlax import nn
    from mlax.blocks.bidirectional import bidirectional
    from mlax.blocks.cells import gru_cell, lstm_cell, rnn_cell
    from mlax.blocks.conv import conv_transpose, depthwise_conv, separable_conv
    from mlax.blocks.dense import dense
    from mlax.blocks.norms import batch_norm, group_norm, instance_norm, layer_norm, rms_norm
    from mlax.blocks.pooling import adaptive_avg_pool, flatten, global_avg_pool
    from mlax.blocks.stochastic_depth import stochastic_depth
else:
    # What `import mlax` leaves to the first use: it would take a third of the time.
    _LATER = {
        "bidirectional": ("bidirectional",),
        "cells": ("gru_cell", "lstm_cell", "rnn_cell"),
        "conv": ("conv_transpose", "depthwise_conv", "separable_conv"),
        "dense": ("dense",),
        "norms": ("batch_norm", "group_norm", "instance_norm", "layer_norm", "rms_norm"),
        "pooling": ("adaptive_avg_pool", "flatten", "global_avg_pool"),
        "stochastic_depth": ("stochastic_depth",),
    }

    def __getattr__(name):
        """Return `nn` or a block."""
        if name == "nn":
            return importlib.import_module("mlax.nn")
        for module, names in _LATER.items():
            if name in names:
                value = getattr(importlib.import_module(f"mlax.blocks.{module}"), name)
                globals()[name] = value
                return value
        raise AttributeError(f"module 'mlax' has no attribute {name!r}")

    def __dir__():
        """Return all names, also of what is not imported yet."""
        return sorted({*globals(), *__all__})


__all__ = [
    "Apply",
    "AxisName",
    "Init",
    "Key",
    "Layer",
    "Module",
    "Pair",
    "Parameter",
    "State",
    "adaptive_avg_pool",
    "add",
    "as_layer",
    "as_module",
    "avg_pool",
    "batch_norm",
    "batched",
    "bias",
    "bidirectional",
    "branch",
    "cast",
    "combine",
    "composed",
    "concatenate",
    "conv",
    "conv_transpose",
    "count",
    "dense",
    "depthwise_conv",
    "dropout",
    "embed",
    "ensemble",
    "f",
    "f_rng",
    "flatten",
    "functional",
    "global_avg_pool",
    "group_norm",
    "gru_cell",
    "instance_norm",
    "is_leaf_param",
    "is_non_trainable_param",
    "is_trainable_param",
    "layer",
    "layer_norm",
    "linear",
    "lstm_cell",
    "map_with_path",
    "mask",
    "max_pool",
    "nbytes",
    "needs_rng",
    "nn",
    "parallel",
    "partition",
    "paths",
    "pool",
    "recurrent",
    "remat",
    "repeat",
    "residual",
    "reuse",
    "rms_norm",
    "rnn_cell",
    "scaler",
    "separable_conv",
    "series",
    "shared",
    "stochastic_depth",
    "sum_pool",
    "switch",
    "typed",
    "z_norm",
]
