"""Scaler: y = x * scale, broadcast along the axes that have no factor of their own.

    x      any shape
    scale  one axis for each non-zero entry of `in_features`
    y      the shape of x
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mlax import arguments
from mlax.arguments import InFeatures, Shaped
from mlax.initializers import Initializer, initialize
from mlax.pair import AxisName, Key, State, layer


class ScalerParams(NamedTuple):
    """Parameters of `scaler`."""

    scale: jax.Array
    """One axis for each non-zero entry of `in_features`."""


class ScalerConfig(NamedTuple):
    """Configuration of `scaler`."""

    in_features: tuple[int, ...]
    """For each axis of x: 0 no factor along it, 1 one shared factor, -1 one each."""


def apply(
    params: ScalerParams,
    state: State[tuple[()], ScalerConfig],
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, State[tuple[()], ScalerConfig]]:
    """Return x * scale: see `mlax.Apply` and `mlax.scaler`."""
    config = arguments.config_of("scaler", state, ScalerConfig)
    arguments.require_params("scaler", params, ScalerParams)
    x = arguments.array("scaler", x)
    scale = arguments.along_features("scaler", params.scale, config.in_features, x)
    return x * scale, state


@layer(
    apply,
    checks={
        "in_features": arguments.check_in_features,
        "scaler_initializer": arguments.check_callable,
        "dtype": arguments.check_dtype,
    },
)
def scaler(
    rng: Key,
    x: Shaped,
    in_features: InFeatures,
    scaler_initializer: Initializer = jax.nn.initializers.ones,
    dtype: DTypeLike = jnp.float32,
) -> tuple[ScalerParams, State[tuple[()], ScalerConfig]]:
    """Multiplication by a trained factor: y = x * scale.

    Args:
        in_features: one entry for each axis of x: 0 (or None) for no factor along the
            axis, 1 for one factor that all share, -1 or the length of the axis for one each.
            An integer is a sequence of one; the empty sequence is a single scalar.
        scaler_initializer: called with one length for each non-zero entry.
        dtype: dtype of the scale. It is cast to that of x when it is used.

    Raises:
        TypeError: an argument is of the wrong type, or x is not floating and the scale is.
        ValueError: `in_features` does not fit the shape of x.

    >>> import jax, jax.numpy as jnp, mlax
    >>> params, state = mlax.scaler.init(jax.random.key(0), jnp.ones((5, 3)), in_features=(0, -1))
    >>> params.scale
    Array([1., 1., 1.], dtype=float32)
    """
    arguments.require_castable("scaler", x, dtype)
    kinds, shape = arguments.feature_shape("scaler", in_features, x)
    value = initialize("scaler", "scaler_initializer", scaler_initializer, rng, shape, dtype)
    return ScalerParams(value), State((), ScalerConfig(kinds))
