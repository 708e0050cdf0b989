"""mlax: neural-network layers as pairs of pure functions, on JAX."""

from mlax import functional, nn, typed
from mlax.bridge import as_layer, as_module
from mlax.combinators.parallel import parallel
from mlax.combinators.recurrent import recurrent
from mlax.combinators.series import series
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
    "as_layer",
    "as_module",
    "avg_pool",
    "bias",
    "conv",
    "dropout",
    "embed",
    "f",
    "f_rng",
    "functional",
    "is_leaf_param",
    "is_non_trainable_param",
    "is_trainable_param",
    "layer",
    "linear",
    "max_pool",
    "needs_rng",
    "nn",
    "parallel",
    "pool",
    "recurrent",
    "scaler",
    "series",
    "sum_pool",
    "typed",
    "z_norm",
]
