"""Initializers: functions `(key, shape, dtype) -> array`, as `jax.nn.initializers` makes them.

The defaults of mlax stand here as functions at the top level of a module, so that what
holds them can be pickled and compares equal.
"""

from collections.abc import Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mlax.pair import Key

__all__ = ["Initializer", "embedding_normal", "glorot_uniform", "initialize"]


class Initializer(Protocol):
    """What makes the first value of a parameter."""

    def __call__(self, key: Key, shape: tuple[int, ...], dtype: DTypeLike, /) -> jax.Array:
        """Return an array of that shape and dtype, drawn with `key`."""
        ...


def glorot_uniform(key: Key, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Draw from U(-a, a) with a = sqrt(6 / (fan_in + fan_out)).

    The last axis of `shape` counts the outputs, the one before it the inputs, any others
    belong to the receptive field. Source: Glorot and Bengio, "Understanding the difficulty
    of training deep feedforward neural networks", 2010.
    """
    return _glorot_uniform(key, tuple(shape), dtype)


def embedding_normal(key: Key, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Draw from N(0, 1 / embed_dim) for `shape` (vocab_size, embed_dim): rows of length ~1."""
    return _embedding_normal(key, tuple(shape), dtype)


_glorot_uniform = jax.nn.initializers.glorot_uniform()
_embedding_normal = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)


def initialize(
    owner: str,
    name: str,
    initializer: Initializer,
    rng: Key,
    shape: tuple[int, ...],
    dtype: DTypeLike,
) -> jax.Array:
    """Return the first value of a parameter, and require that it has the shape asked for."""
    value = jnp.asarray(initializer(rng, shape, dtype), dtype)
    if value.shape != shape:
        raise ValueError(f"{owner}: expected {name} to return shape {shape}, got {value.shape}")
    return value
