"""mlax: neural-network layers as pairs of pure functions, on JAX."""

import importlib
from typing import TYPE_CHECKING

from mlax import functional, typed
from mlax.arguments import Rule
from mlax.combinators import Sublayer, combinator
from mlax.combinators.batched import batched
from mlax.combinators.block import block
from mlax.combinators.branch import branch
from mlax.combinators.cast import cast
from mlax.combinators.composed import composed
from mlax.combinators.frozen import frozen
from mlax.combinators.join import add, concatenate, multiply
from mlax.combinators.parallel import parallel
from mlax.combinators.recurrent import recurrent
from mlax.combinators.remat import remat
from mlax.combinators.repeat import repeat
from mlax.combinators.residual import residual
from mlax.combinators.series import series
from mlax.layer import Apply, AxisName, Init, Key, Layer, Shaped, State, needs_rng
from mlax.layers.bias import bias
from mlax.layers.conv import conv
from mlax.layers.dense import dense
from mlax.layers.dropout import dropout
from mlax.layers.embed import embed
from mlax.layers.f import f, f_rng
from mlax.layers.linear import linear
from mlax.layers.parameter import parameter
from mlax.layers.pool import avg_pool, max_pool, pool, sum_pool
from mlax.layers.scaler import scaler
from mlax.layers.z_norm import z_norm
from mlax.module import Module, Parameter
from mlax.module import is_leaf_param, is_non_trainable_param, is_trainable_param
from mlax.pair import Pair, layer, stateless
from mlax.tree import combine, count, map_with_path, mask, nbytes, partition, paths

if TYPE_CHECKING:
    from mlax import nn, testing, types
    from mlax.blocks.conv import conv_transpose, depthwise_conv, separable_conv
    from mlax.bridge import as_layer, as_module
    from mlax.combinators.bidirectional import bidirectional
    from mlax.combinators.ensemble import ensemble
    from mlax.combinators.stochastic_depth import stochastic_depth
    from mlax.combinators.switch import switch
    from mlax.combinators.tap import tap
    from mlax.layers.cells import gru_cell, lstm_cell, rnn_cell
    from mlax.layers.global_pool import adaptive_avg_pool, flatten, global_avg_pool
    from mlax.layers.norms import batch_norm, group_norm, instance_norm, layer_norm, rms_norm
else:
    # What `import mlax` leaves to the first use: it would take a third of the time.
    _LATER = {
        "mlax.nn": "nn",
        "mlax.testing": "testing",
        "mlax.types": "types",
        "mlax.blocks.conv": "conv_transpose depthwise_conv separable_conv",
        "mlax.bridge": "as_layer as_module",
        "mlax.combinators.bidirectional": "bidirectional",
        "mlax.combinators.ensemble": "ensemble",
        "mlax.combinators.stochastic_depth": "stochastic_depth",
        "mlax.combinators.switch": "switch",
        "mlax.combinators.tap": "tap",
        "mlax.layers.cells": "gru_cell lstm_cell rnn_cell",
        "mlax.layers.global_pool": "adaptive_avg_pool flatten global_avg_pool",
        "mlax.layers.norms": "batch_norm group_norm instance_norm layer_norm rms_norm",
    }

    def __getattr__(name):
        """Return what is imported at its first use."""
        for path, names in _LATER.items():
            if name in names.split():
                module = importlib.import_module(path)
                value = module if path == f"mlax.{name}" else getattr(module, name)
                globals()[name] = value
                return value
        raise AttributeError(f"module 'mlax' has no attribute {name!r}")

    def __dir__():
        """Return all names, also of what is not imported yet."""
        return sorted({*globals(), *__all__})


# fmt: off
__all__ = [
    "Apply", "AxisName", "Init", "Key", "Layer", "Module", "Pair", "Parameter", "Rule", "Shaped",
    "State", "Sublayer", "adaptive_avg_pool", "add", "as_layer", "as_module", "avg_pool",
    "batch_norm", "batched", "bias", "bidirectional", "block", "branch", "cast", "combinator",
    "combine", "composed", "concatenate", "conv", "conv_transpose", "count", "dense",
    "depthwise_conv", "dropout", "embed", "ensemble", "f", "f_rng", "flatten", "frozen",
    "functional", "global_avg_pool", "group_norm", "gru_cell", "instance_norm", "is_leaf_param",
    "is_non_trainable_param", "is_trainable_param", "layer", "layer_norm", "linear", "lstm_cell",
    "map_with_path", "mask", "max_pool", "multiply", "nbytes", "needs_rng", "nn", "parallel",
    "parameter", "partition", "paths", "pool", "recurrent", "remat", "repeat", "residual",
    "rms_norm", "rnn_cell", "scaler", "separable_conv", "series", "stateless", "stochastic_depth",
    "sum_pool", "switch", "tap", "testing", "typed", "types", "z_norm",
]
