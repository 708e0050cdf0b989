"""Scaler: y = x * scale, broadcast along the other axes.

    x      any shape
    scale  one axis for each non-zero entry of `in_features`
    y      the shape of x
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mlax import arguments
from mlax.arguments import DType
from mlax.initializers import Initializer, initialize
from mlax.layer import Key, Shaped
from mlax.layers.bias import InFeatures, along_features, feature_shape
from mlax.pair import stateless
from mlax.serialization import serializable


@serializable
class ScalerParams(NamedTuple):
    """Parameters of `scaler`."""

    scale: jax.Array
    """One axis for each non-zero entry of `in_features`."""


class ScalerConfig(NamedTuple):
    """Configuration of `scaler`."""

    in_features: int | tuple[int, ...]
    """For each axis of x: 0 for no scale axis, 1 for a shared factor, -1 or the length for each."""


def apply(params: ScalerParams, config: ScalerConfig, x: jax.Array) -> jax.Array:
    """Return x * scale: see `mlax.scaler`."""
    x = arguments.array("scaler", x)
    return x * along_features("scaler", params.scale, config.in_features, x)


@stateless(apply, ScalerConfig, traced_once=True)
def scaler(
    rng: Key, x: Shaped, in_features: InFeatures,
    scaler_initializer: Initializer = jax.nn.initializers.ones, dtype: DType = jnp.float32,
) -> ScalerParams:
    """Multiplication by a trained factor: y = x * scale.

    Args:
        in_features: as in `mlax.bias`, with a factor in place of the term.
        scaler_initializer: called with one length for each non-zero entry.
        dtype: dtype of the scale. It is cast to the dtype of x when used.

    Raises:
        TypeError: an argument is of the wrong type, or x is not floating and the scale is.
        ValueError: `in_features` does not fit the shape of x.

    >>> import jax, jax.numpy as jnp, mlax
    >>> params, state = mlax.scaler.init(jax.random.key(0), jnp.ones((5, 3)), in_features=(0, -1))
    >>> params.scale
    Array([1., 1., 1.], dtype=float32)
    """
    arguments.require_castable("scaler", x, dtype)
    _, shape = feature_shape("scaler", in_features, x)
    return ScalerParams(
        initialize("scaler", "scaler_initializer", scaler_initializer, rng, shape, dtype)
    )
