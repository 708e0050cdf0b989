"""Initializers: functions `(key, shape, dtype) -> array`, as `jax.nn.initializers` makes them.

The defaults of mlax are functions at the top level of this module, so that whatever holds
them can be pickled and compares equal. They draw from the same distributions as the
initializers of jax, but draw rows of a few fixed lengths and cut them to shape: most of the
time to initialise a model goes into compiling the random generator, once for every length.
"""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Protocol

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mlax.errors import expected
from mlax.layer import Key

__all__ = ["Initializer", "embedding_normal", "glorot_uniform", "initialize"]


class Initializer(Protocol):
    """A function that returns the initial value of a parameter."""

    def __call__(self, key: Key, shape: tuple[int, ...], dtype: DTypeLike, /) -> jax.Array:
        """Return an array of the given shape and dtype, drawn with `key`."""
        ...


def glorot_uniform(key: Key, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Draw from U(-a, a) with a = sqrt(6 / (fan_in + fan_out)).

    The last axis of `shape` counts the outputs, the one before it the inputs; all other axes
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
    draw: Callable[..., jax.Array], key: Key, shape: tuple[int, ...], dtype: DTypeLike, scale: float
) -> jax.Array:
    """Return scale * draw(key, shape), cut from a row of the next length 4096 * 4^n."""
    length = _SHORTEST
    while length < math.prod(shape):
        length *= 4
    value: jax.Array = _scaled(draw(key, (length,), dtype), scale, shape)
    return value


@functools.partial(jax.jit, static_argnames="shape")
def _scaled(row: jax.Array, scale: float, shape: tuple[int, ...]) -> jax.Array:
    return jnp.reshape(row[: math.prod(shape)] * jnp.asarray(scale, row.dtype), shape)


def initialize(
    owner: str, name: str, initializer: Initializer, rng: Key, shape: tuple[int, ...],
    dtype: DTypeLike,
) -> jax.Array:
    """Return the initial value of a parameter, and require that it has the given shape."""
    try:
        value = jnp.asarray(initializer(rng, shape, dtype), dtype)
    except Exception as error:
        dtype_name = jnp.dtype(dtype).name
        error.add_note(f"{owner}: {name} was called for shape {shape} and dtype {dtype_name}")
        raise
    if value.shape != shape:
        raise ValueError(expected(owner, f"{name} to return shape {shape}", value.shape))
    return value
