"""mlax: neural-network layers as pairs of pure functions, on JAX."""

from mlax import functional, nn, typed
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
    "add",
    "as_layer",
    "as_module",
    "avg_pool",
    "batched",
    "bias",
    "branch",
    "cast",
    "combine",
    "composed",
    "concatenate",
    "conv",
    "count",
    "dropout",
    "embed",
    "ensemble",
    "f",
    "f_rng",
    "functional",
    "is_leaf_param",
    "is_non_trainable_param",
    "is_trainable_param",
    "layer",
    "linear",
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
    "scaler",
    "series",
    "shared",
    "sum_pool",
    "switch",
    "typed",
    "z_norm",
]
