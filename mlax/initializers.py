"""Initializers: functions `(key, shape, dtype) -> array`, as `jax.nn.initializers` makes them.

The defaults of mlax stand here as functions at the top level of a module, so that what
holds them can be pickled and compares equal. They draw as those of jax do, but in rows of
a few lengths that are cut to shape: the random generator takes most of the time that it
takes to initialise a model, all of it compilation, once for every length.
"""

import functools
import math
from collections.abc import Callable, Sequence
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
    *field, inputs, outputs = shape
    fans = math.prod(field) * (inputs + outputs)
    draw = functools.partial(jax.random.uniform, minval=-1.0, maxval=1.0)
    return _cut(draw, key, tuple(shape), dtype, math.sqrt(6 / max(fans, 1)))


def embedding_normal(key: Key, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Draw from N(0, 1 / embed_dim) for `shape` (vocab_size, embed_dim): rows of length ~1."""
    return _cut(jax.random.normal, key, tuple(shape), dtype, 1 / math.sqrt(max(shape[-1], 1)))


_SHORTEST = 4096


def _cut(
    draw: Callable[..., jax.Array],
    key: Key,
    shape: tuple[int, ...],
    dtype: DTypeLike,
    scale: float,
) -> jax.Array:
    """Return scale * draw(key, shape): the row drawn is the next longer one of 4096 * 4^n."""
    length = _SHORTEST
    while length < math.prod(shape):
        length *= 4
    value: jax.Array = _scaled(draw(key, (length,), dtype), scale, shape)
    return value


@functools.partial(jax.jit, static_argnames="shape")
def _scaled(row: jax.Array, scale: float, shape: tuple[int, ...]) -> jax.Array:
    return jnp.reshape(row[: math.prod(shape)] * jnp.asarray(scale, row.dtype), shape)


def initialize(
    owner: str,
    name: str,
    initializer: Initializer,
    rng: Key,
    shape: tuple[int, ...],
    dtype: DTypeLike,
) -> jax.Array:
    """Return the first value of a parameter, and require that it has the shape asked for."""
    try:
        value = jnp.asarray(initializer(rng, shape, dtype), dtype)
    except Exception as error:
        dtype_name = jnp.dtype(dtype).name
        error.add_note(f"{owner}: {name} was called for shape {shape} and dtype {dtype_name}")
        raise
    if value.shape != shape:
        raise ValueError(f"{owner}: expected {name} to return shape {shape}, got {value.shape}")
    return value
