"""Bias: y = x + bias, broadcast along the other axes.

    x     any shape
    bias  one axis for each non-zero entry of `in_features`
    y     the shape of x
"""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from mlax import arguments
from mlax.arguments import DType, Rule, entries, is_sequence, read_integer
from mlax.errors import expected, message
from mlax.initializers import Initializer, initialize
from mlax.layer import Key, Shaped
from mlax.pair import stateless
from mlax.serialization import serializable


def read_in_features(owner: str, name: str, value: Any) -> int | tuple[int, ...]:
    """Require integers of at least -1, or None for 0."""
    features: list[int] = []
    for entry in entries(owner, name, value):
        wanted = "made of 0, 1, -1 and lengths of axes"
        features.append(0 if entry is None else read_integer(owner, name, entry, wanted))
        if features[-1] < -1:
            raise ValueError(message(owner, name, wanted, repr(value)))
    return tuple(features) if is_sequence(value) else features[0]


InFeatures: TypeAlias = Annotated[int | Sequence[int | None], Rule(read_in_features)]
"""For each axis of x: 0 or None, 1, -1 or the length of the axis; an integer is one entry."""


@serializable
class BiasParams(NamedTuple):
    """Parameters of `bias`."""

    bias: jax.Array
    """One axis for each non-zero entry of `in_features`."""


class BiasConfig(NamedTuple):
    """Configuration of `bias`."""

    in_features: int | tuple[int, ...]
    """For each axis of x: 0 for no bias axis, 1 for a shared term, -1 or the length for each."""


def apply(params: BiasParams, config: BiasConfig, x: jax.Array) -> jax.Array:
    """Return x + bias: see `mlax.bias`."""
    x = arguments.array("bias", x)
    return x + along_features("bias", params.bias, config.in_features, x)


@stateless(apply, BiasConfig, traced_once=True)
def bias(
    rng: Key, x: Shaped, in_features: InFeatures,
    bias_initializer: Initializer = jax.nn.initializers.zeros, dtype: DType = jnp.float32,
) -> BiasParams:
    """Addition of a trained term: y = x + bias.

    Args:
        in_features: one entry for each axis of x: 0 (or None) for no bias axis, 1 for one term
            that all elements share, -1 or the length of the axis for one term each. An integer
            stands for a sequence of one; the empty sequence makes a scalar.
        bias_initializer: called with one length for each non-zero entry.
        dtype: dtype of the bias. It is cast to the dtype of x when used.

    Raises:
        TypeError: an argument is of the wrong type, or x is not floating and the bias is.
        ValueError: `in_features` does not fit the shape of x.

    >>> import jax, jax.numpy as jnp, mlax
    >>> params, state = mlax.bias.init(jax.random.key(0), jnp.ones((5, 3)), in_features=(0, -1))
    >>> params.bias
    Array([0., 0., 0.], dtype=float32)
    """
    arguments.require_castable("bias", x, dtype)
    _, shape = feature_shape("bias", in_features, x)
    return BiasParams(initialize("bias", "bias_initializer", bias_initializer, rng, shape, dtype))


def feature_shape(
    owner: str, in_features: InFeatures, x: Shaped
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the axes of x that the parameter lacks, and the shape of the parameter.

    The empty sequence makes it a scalar.
    """
    arguments.require_array(owner, x)
    read = read_in_features(owner, "in_features", in_features)
    features = read if isinstance(read, tuple) else (read,)
    if features and len(features) != len(x.shape):
        wanted = f"one entry for each axis of x of shape {x.shape}, or empty"
        is_batch = len(x.shape) > len(features)
        way_out = "map a batch axis with mlax.batched or jax.vmap" if is_batch else ""
        raise ValueError(message(owner, "in_features", wanted, repr(in_features), way_out))
    pairs = list(zip(features, x.shape, strict=False))
    for entry, length in pairs:
        if entry not in (-1, 0, 1, length):
            wanted = f"0, 1, -1 or the length of each axis of x of shape {x.shape}"
            raise ValueError(message(owner, "in_features", wanted, repr(in_features)))
    without = tuple(axis for axis, entry in enumerate(features) if not entry)
    return without, tuple(1 if entry == 1 else length for entry, length in pairs if entry)


def along_features(
    owner: str, parameter: jax.Array, in_features: InFeatures, x: jax.Array
) -> jax.Array:
    """Return a parameter of this shape in the dtype of `x`, expanded to broadcast with it."""
    arguments.require_castable(owner, x, parameter.dtype)
    without, shape = feature_shape(owner, in_features, x)
    if parameter.shape != shape:
        what = f"x to fit parameters of shape {parameter.shape} (in_features {in_features})"
        raise ValueError(expected(owner, what, f"shape {x.shape}"))
    parameter = parameter.astype(x.dtype)
    return jnp.expand_dims(parameter, without) if without else parameter
