"""Initializers: functions `(key, shape, dtype) -> array`, as `jax.nn.initializers` makes them.

The defaults of mlax are functions at the top level of this module, so that whatever holds
them can be pickled and compares equal. They give the bits of the initializers of jax for less
time and memory: compiling the random generator, once for every shape, takes most of the time
to initialise a model, and the generator needs several times the memory of what it draws. Here
an array is drawn chunk by chunk. All it takes is a key that counts from the start of a chunk:
element i of an array depends on the key and on i alone.
"""

import functools
import math
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.extend.random import define_prng_impl, threefry2x32_p
from jax.typing import ArrayLike, DTypeLike

from mlax.errors import expected, message
from mlax.layer import Key

__all__ = ["Initializer", "embedding_normal", "initialize", "lecun_normal"]


class Initializer(Protocol):
    """A function that returns the initial value of a parameter."""

    def __call__(self, key: Key, shape: tuple[int, ...], dtype: DTypeLike, /) -> jax.Array:
        """Return an array of the given shape and dtype, drawn with `key`."""
        ...


def lecun_normal(key: Key, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Draw from a normal distribution of variance 1 / fan_in, truncated at two deviations.

    The last axis of `shape` counts the outputs, the one before it the inputs; all other axes
    belong to the receptive field. The bits are those of `jax.nn.initializers.lecun_normal()`.
    Source: LeCun et al., "Efficient backprop", 1998.

    Raises:
        ValueError: `shape` has fewer than two axes.
    """
    return _scaled("lecun_normal", "truncated_normal", -1, key, tuple(shape), dtype)


def embedding_normal(key: Key, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Draw from N(0, 1 / embed_dim) for `shape` (vocab_size, embed_dim): rows of length ~1.

    The bits are those of
    `jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)`.

    Raises:
        ValueError: `shape` has fewer than two axes.
    """
    return _scaled("embedding_normal", "normal", 0, key, tuple(shape), dtype)


_SHORTEST = 16384

DRAWS_AT_ONCE: ContextVar[bool] = ContextVar("draws_at_once", default=False)
"""Whether arrays are drawn without a loop, so that the compiler can split the work over devices."""


def _scaled(
    owner: str, distribution: Literal["normal", "truncated_normal"], out_axis: int, key: Key,
    shape: tuple[int, ...], dtype: DTypeLike,
) -> jax.Array:
    """Draw from a distribution of variance 1 / fan_in, in chunks where that gives the same."""
    if len(shape) < 2:
        wanted, way_out = "of two or more axes", "pass an initializer without fans, such as zeros"
        raise ValueError(message(owner, "shape", wanted, shape, way_out))
    if 0 in shape:
        return jnp.zeros(shape, dtype)
    scaled = functools.partial(
        jax.nn.initializers.variance_scaling, mode="fan_in", distribution=distribution
    )
    is_staged = isinstance(jnp.asarray(0), Tracer)  # as under jax.jit, unlike jax.vmap
    if not _has_chunks(key, shape, dtype, is_staged):
        return scaled(1.0, out_axis=out_axis)(key, shape, dtype)
    size = math.prod(shape)
    fan_in = shape[-2] * (size / (shape[-2] * shape[out_axis]))
    draw = scaled(1 / fan_in)  # for chunks of shape (1, length), whose own fan_in is 1
    length = 1024 * -(-size // 2**16) if is_staged else _SHORTEST
    while not is_staged and 512 * length <= size:
        length *= 16
    starts = np.minimum(np.arange(0, size, length), max(size - length, 0)).astype(np.uint32)
    words = jax.random.key_data(key)

    def chunk(start: ArrayLike) -> jax.Array:
        return draw(_counting_from(start, words), (1, length), dtype)

    def step(array: jax.Array, start: ArrayLike) -> tuple[jax.Array, None]:
        return _overwritten(array, chunk(start), start), None

    array: jax.Array = _fitted(chunk(starts[0]), shape)
    if is_staged:
        array, _ = lax.scan(step, array.reshape(-1), jnp.asarray(starts[1:]))
        return array.reshape(shape)
    for start in starts[1:]:
        array = jax.block_until_ready(step(array, start)[0])  # or the chunks would pile up
    return array


def _has_chunks(key: Key, shape: tuple[int, ...], dtype: DTypeLike, is_staged: bool) -> bool:
    """Return whether chunks are of use, and have the bits that jax gives to the whole array."""
    if jax.random.key_impl(key) != "threefry2x32" or not jax.threefry_partitionable.value:
        return False
    if any(map(jax.export.is_symbolic_dim, shape)) or not jnp.issubdtype(dtype, jnp.floating):
        return False
    if jax.debug_key_reuse.value:  # the words of a key can be used again
        return False
    if is_staged and (DRAWS_AT_ONCE.get() or math.prod(shape) <= _SHORTEST):
        return False
    if is_staged and jax.default_backend() != "cpu":
        return False  # accelerators need no more memory than the array
    # XLA compiles loops over short rows to other instructions, which round differently.
    row = next((length for length in reversed(shape) if length > 1), 1)
    return (row == 1 or row > 8) and math.prod(shape) < 2**31


@jax.jit
def _counting_from(start: ArrayLike, words: jax.Array) -> Key:
    """Return a key whose draws are those of the key with these words from `start` on."""
    key: Key = jax.random.wrap_key_data(lax.pad(words, start, [(0, 1, 0)]), impl=_COUNTING)
    return key


@functools.partial(jax.jit, static_argnames="shape")
def _fitted(chunk: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Return the first elements of a chunk, followed by zeros as necessary."""
    rest = math.prod(shape) - chunk.size
    return lax.pad(chunk[0], np.zeros((), chunk.dtype), [(0, rest, 0)]).reshape(shape)


@functools.partial(jax.jit, donate_argnums=0)
def _overwritten(array: jax.Array, chunk: jax.Array, start: ArrayLike) -> jax.Array:
    flat = lax.dynamic_update_slice(array.reshape(-1), chunk[0], [start])
    return flat.reshape(array.shape)


def _random_bits(words: jax.Array, width: int, shape: tuple[int, ...]) -> jax.Array:
    """Return the bits that `jax.random` draws, for a key of three words: two and a start."""
    first, second, start = words
    counts = start + lax.iota(np.uint32, math.prod(shape)).reshape(shape)
    high, low = threefry2x32_p.bind(first, second, jnp.zeros_like(counts), counts)
    if width < 64:
        bits: jax.Array = (high ^ low).astype(f"uint{width}")
    else:
        bits = high.astype(np.uint64) << 32 | low.astype(np.uint64)
    return bits


def _never(*_: Any) -> Any:
    raise NotImplementedError


_COUNTING = define_prng_impl(
    key_shape=(3,), seed=_never, split=_never, random_bits=_random_bits, fold_in=_never,
    name="mlax_counting", tag="mlax",
)


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
