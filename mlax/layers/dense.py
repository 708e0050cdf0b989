"""Dense layer: y = x @ kernel + bias, over the last axis of x.

    x       (..., in_features)
    kernel  (in_features, features)
    bias    (features,)
    y       (..., features)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mlax import arguments
from mlax.arguments import DType, Sharding, Size
from mlax.errors import expected
from mlax.initializers import Initializer, initialize, lecun_normal
from mlax.layer import Key, Shaped
from mlax.layers.linear import matmul
from mlax.pair import stateless
from mlax.serialization import serializable


@serializable
class DenseParams(NamedTuple):
    """Parameters of `dense`."""

    kernel: jax.Array
    """(in_features, features)"""
    bias: jax.Array | None
    """(features,), or None without a bias."""


class DenseConfig(NamedTuple):
    """Configuration of `dense`."""

    use_bias: bool
    """Whether there is a bias."""
    out_sharding: PartitionSpec | None
    """Sharding of y over explicit mesh axes."""


def apply(params: DenseParams, config: DenseConfig, x: jax.Array) -> jax.Array:
    """Return x @ kernel + bias: see `mlax.dense`."""
    y = matmul("dense", x, params.kernel, out_sharding=config.out_sharding)
    if params.bias is None:
        return y
    if params.bias.shape != y.shape[-1:]:
        what = f"bias to be of shape {y.shape[-1:]}, as the kernel has {y.shape[-1]} features"
        raise ValueError(expected("dense", what, f"shape {params.bias.shape}"))
    arguments.require_castable("dense", x, params.bias.dtype)
    return y + jnp.expand_dims(params.bias.astype(y.dtype), tuple(range(y.ndim - 1)))


@stateless(apply, DenseConfig, traced_once=True)
def dense(
    rng: Key, x: Shaped, features: Size, *,
    use_bias: bool = True, kernel_initializer: Initializer = lecun_normal,
    bias_initializer: Initializer = jax.nn.initializers.zeros, dtype: DType = jnp.float32,
    out_sharding: Sharding | None = None,
) -> DenseParams:
    """Linear transformation of the last axis with a bias: y = x @ kernel + bias.

    (..., in_features) -> (..., features), with any number of leading axes. The same as
    series(linear(features), bias(-1)), as one layer.

    Args:
        features: length of the last axis of y.
        use_bias: whether there is a bias.
        kernel_initializer: called with (in_features, features).
        bias_initializer: called with (features,).
        dtype: dtype of the parameters. They are cast to the dtype of x when used.
        out_sharding: as in `mlax.linear`.

    Raises:
        TypeError: an argument is of the wrong type, or x is not floating and a parameter is.
        ValueError: `features` is not positive, or the last axis of x does not fit.

    >>> import jax, jax.numpy as jnp, mlax
    >>> params, state = mlax.dense.init(jax.random.key(0), jnp.ones(3), features=2)
    >>> params.kernel.shape, params.bias.shape
    ((3, 2), (2,))
    >>> y, state = mlax.dense.apply(params, state, jnp.ones((5, 3)))
    >>> y.shape
    (5, 2)
    """
    arguments.require_rank("dense", x, 1)
    arguments.require_castable("dense", x, dtype)
    shape = (x.shape[-1], features)
    keys = [jax.random.fold_in(rng, i) for i in range(2)]
    kernel = initialize("dense", "kernel_initializer", kernel_initializer, keys[0], shape, dtype)
    bias = None
    if use_bias:
        bias = initialize("dense", "bias_initializer", bias_initializer, keys[1], shape[1:], dtype)
    return DenseParams(kernel, bias)
