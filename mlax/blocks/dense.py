"""Dense layer: y = x @ kernel + bias, over the last axis of x.

    x       (..., in_features)
    kernel  (in_features, features)
    bias    (features,)
    y       (..., features)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mlax import arguments
from mlax.arguments import Shaped
from mlax.initializers import Initializer, glorot_uniform, initialize
from mlax.layers.linear import matmul
from mlax.pair import AxisName, Key, State, layer


class DenseParams(NamedTuple):
    """Parameters of `dense`."""

    kernel: jax.Array
    """(in_features, features)"""
    bias: jax.Array | None
    """(features,), or None where there is none."""


class DenseConfig(NamedTuple):
    """Configuration of `dense`."""

    absent: tuple[str, ...]
    """The names of the parameters that are not used."""


def apply(
    params: DenseParams,
    state: State[tuple[()], DenseConfig],
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, State[tuple[()], DenseConfig]]:
    """Return x @ kernel + bias: see `mlax.Apply` and `mlax.dense`."""
    config = arguments.config_of("dense", state, DenseConfig)
    arguments.require_params("dense", params, DenseParams, config.absent)
    y = matmul("dense", x, params.kernel)
    if params.bias is None:
        return y, state
    if params.bias.shape != y.shape[-1:]:
        raise ValueError(
            f"dense: expected bias to be of shape {y.shape[-1:]}, as the kernel has "
            f"{y.shape[-1]} features, got shape {params.bias.shape}"
        )
    arguments.require_castable("dense", x, params.bias.dtype)
    return y + params.bias.astype(y.dtype), state


@layer(
    apply,
    checks={
        "features": arguments.check_size,
        "use_bias": arguments.check_bool,
        "kernel_initializer": arguments.check_callable,
        "bias_initializer": arguments.check_callable,
        "dtype": arguments.check_dtype,
    },
)
def dense(
    rng: Key,
    x: Shaped,
    features: int,
    use_bias: bool = True,
    kernel_initializer: Initializer = glorot_uniform,
    bias_initializer: Initializer = jax.nn.initializers.zeros,
    dtype: DTypeLike = jnp.float32,
) -> tuple[DenseParams, State[tuple[()], DenseConfig]]:
    """Linear transformation of the last axis with a bias: y = x @ kernel + bias.

    (..., in_features) -> (..., features), any number of leading axes. It computes what
    series(linear(features), bias(-1)) does, as one layer.

    Args:
        features: length of the last axis of y.
        use_bias: whether there is a bias.
        kernel_initializer: called with (in_features, features).
        bias_initializer: called with (features,).
        dtype: dtype of the parameters. They are cast to that of x when they are used.

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
    params = DenseParams(kernel, bias)
    return params, State((), DenseConfig(arguments.absent_of(params)))
