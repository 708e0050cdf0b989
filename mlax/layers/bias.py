"""Bias: y = x + bias, broadcast along the axes that have none of their own.

    x     any shape
    bias  one axis for each non-zero entry of `in_features`
    y     the shape of x
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mlax import arguments
from mlax.arguments import InFeatures, Shaped
from mlax.initializers import Initializer, initialize
from mlax.pair import AxisName, Key, State, layer


class BiasParams(NamedTuple):
    """Parameters of `bias`."""

    bias: jax.Array
    """One axis for each non-zero entry of `in_features`."""


class BiasConfig(NamedTuple):
    """Configuration of `bias`."""

    in_features: tuple[int, ...]
    """For each axis of x: 0 no bias along it, 1 one shared term, -1 one term each."""


def apply(
    params: BiasParams,
    state: State[tuple[()], BiasConfig],
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, State[tuple[()], BiasConfig]]:
    """Return x + bias: see `mlax.Apply` and `mlax.bias`."""
    config = arguments.config_of("bias", state, BiasConfig)
    arguments.require_params("bias", params, BiasParams)
    x = arguments.array("bias", x)
    return x + arguments.along_features("bias", params.bias, config.in_features, x), state


@layer(
    apply,
    checks={
        "in_features": arguments.check_in_features,
        "bias_initializer": arguments.check_callable,
        "dtype": arguments.check_dtype,
    },
)
def bias(
    rng: Key,
    x: Shaped,
    in_features: InFeatures,
    bias_initializer: Initializer = jax.nn.initializers.zeros,
    dtype: DTypeLike = jnp.float32,
) -> tuple[BiasParams, State[tuple[()], BiasConfig]]:
    """Addition of a trained term: y = x + bias.

    Args:
        in_features: one entry for each axis of x: 0 (or None) for no bias along the axis,
            1 for one term that all share, -1 or the length of the axis for one term each.
            An integer is a sequence of one; the empty sequence is a single scalar.
        bias_initializer: called with one length for each non-zero entry.
        dtype: dtype of the bias. It is cast to that of x when it is used.

    Raises:
        TypeError: an argument is of the wrong type, or x is not floating and the bias is.
        ValueError: `in_features` does not fit the shape of x.

    >>> import jax, jax.numpy as jnp, mlax
    >>> params, state = mlax.bias.init(jax.random.key(0), jnp.ones((5, 3)), in_features=(0, -1))
    >>> params.bias
    Array([0., 0., 0.], dtype=float32)
    """
    arguments.require_castable("bias", x, dtype)
    kinds, shape = arguments.feature_shape("bias", in_features, x)
    value = initialize("bias", "bias_initializer", bias_initializer, rng, shape, dtype)
    return BiasParams(value), State((), BiasConfig(kinds))
