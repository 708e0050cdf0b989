"""Initializers: functions `(key, shape, dtype) -> array`, as `jax.nn.initializers` makes them.

The defaults of mlax are functions at the top level of this module, so that whatever holds
them can be pickled and compares equal. They give the same bits as the initializers of jax in less
time and memory: compiling the random generator, once for every shape, takes most of the time
to initialise a model, and the generator needs several times the memory of what it draws. Here
an array is drawn chunk by chunk, and each chunk is put where it is kept, in a transposed kernel
too. All it takes is a key that counts from the start of a chunk: element i of an array depends on
the key and on i alone.
"""

import functools
import math
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any, Literal, Protocol, runtime_checkable

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


@runtime_checkable
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
    return _scaled(lecun_normal, [key], tuple(shape), dtype)


def embedding_normal(key: Key, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Draw from N(0, 1 / embed_dim) for `shape` (vocab_size, embed_dim): rows of length ~1.

    The bits are those of
    `jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)`.

    Raises:
        ValueError: `shape` has fewer than two axes.
    """
    return _scaled(embedding_normal, [key], tuple(shape), dtype)


_DISTRIBUTIONS: dict[Initializer, tuple[str, Literal["normal", "truncated_normal"], int]] = {
    lecun_normal: ("lecun_normal", "truncated_normal", -1),
    embedding_normal: ("embedding_normal", "normal", 0),
}
"""The name of an initializer, what it scales, and the axis that counts the outputs."""

_SHORTEST = 16384

DRAWS_AT_ONCE: ContextVar[bool] = ContextVar("draws_at_once", default=False)
"""Whether arrays are drawn without a loop, so that the compiler can split the work over devices."""


def _scaled(
    initializer: Initializer, keys: Sequence[Key], shape: tuple[int, ...], dtype: DTypeLike,
    axes: tuple[int, ...] | None = None,
) -> jax.Array:
    """Draw with variance 1 / fan_in, in chunks where that gives the same; see `_arranged`."""
    owner, distribution, out_axis = _DISTRIBUTIONS[initializer]
    if len(shape) < 2:
        wanted, way_out = "of at least two axes", "pass an initializer without fans, such as zeros"
        raise ValueError(message(owner, "shape", wanted, shape, way_out))
    if 0 in shape:
        return _arranged([jnp.zeros(shape, dtype)] * len(keys), axes)
    scaled = functools.partial(
        jax.nn.initializers.variance_scaling, mode="fan_in", distribution=distribution
    )
    is_staged = isinstance(jnp.asarray(0), Tracer)  # as under jax.jit, unlike jax.vmap
    if not _has_chunks(keys[0], shape, dtype, is_staged):
        return _arranged([scaled(1.0, out_axis=out_axis)(key, shape, dtype) for key in keys], axes)
    size = math.prod(shape)
    fan_in = shape[-2] * (size / (shape[-2] * shape[out_axis]))
    draw = scaled(1 / fan_in)  # for chunks of shape (1, length), whose own fan_in is 1
    length = 1024 * -(-size // 2**16) if is_staged else _SHORTEST
    while not is_staged and 512 * length <= size:
        length *= 16
    block, starts = _blocks(shape, length)
    counts: Any = np.ravel_multi_index(tuple(starts.T), shape).astype(np.uint32)

    def step(carry: tuple[jax.Array | None, jax.Array], at: Any) -> Any:
        (array, words), (count, place) = carry, at
        chunk = draw(_counting_from(count, words), (1, length), dtype)
        return (_put(array, chunk, place, (len(keys), *shape), block, axes), words), None

    array: jax.Array | None = None
    for i, words in enumerate(map(jax.random.key_data, keys)):
        at: Any = counts, np.insert(starts, 0, i, axis=1).astype(np.uint32)
        if array is None:
            (array, _), _ = step((None, words), (at[0][0], at[1][0]))
            at = at[0][1:], at[1][1:]
        if is_staged:
            (array, _), _ = lax.scan(step, (array, words), at)
        for one in zip(*at, strict=True) if not is_staged else ():
            (array, _), _ = jax.block_until_ready(step((array, words), one))  # or they pile up
    assert array is not None  # there is a key
    return array


def _arranged(draws: list[jax.Array], axes: tuple[int, ...] | None) -> jax.Array:
    """Return draws as they are kept: one transposed to `axes`, or several along the last axis."""
    return draws[0].transpose(axes) if axes else jnp.concatenate(draws, -1)


def _blocks(shape: tuple[int, ...], length: int) -> tuple[tuple[int, ...], np.ndarray[Any, Any]]:
    """Return the shape of contiguous blocks that cover an array, and the index where each starts.

    A block has at most `length` elements.
    """
    axis = next(i for i in range(len(shape)) if math.prod(shape[i + 1:]) <= length)
    count, inner = shape[axis], shape[axis + 1:]
    rows = min(count, length // math.prod(inner))
    starts = [
        (*outer, min(row, count - rows), *[0] * len(inner))
        for outer in np.ndindex(shape[:axis]) for row in range(0, count, rows)
    ]
    return (*[1] * axis, rows, *inner), np.array(starts)


def _has_chunks(key: Key, shape: tuple[int, ...], dtype: DTypeLike, is_staged: bool) -> bool:
    """Return whether drawing in chunks helps, and gives the bits that jax gives."""
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


@functools.partial(
    jax.jit, donate_argnames="array", static_argnames=("of_draws", "block", "axes")
)
def _put(
    array: jax.Array | None, chunk: jax.Array, place: jax.Array, of_draws: tuple[int, ...],
    block: tuple[int, ...], axes: tuple[int, ...] | None,
) -> jax.Array:
    """Write a block, the start of a chunk, to a place (draw, index...) among arranged draws."""
    count, *shape = of_draws
    last = len(shape)
    order = (0, *(1 + axis for axis in axes)) if axes else (*range(1, last), 0, last)
    kept = [shape[axis] for axis in axes] if axes else [*shape[:-1], count * shape[-1]]
    if array is None:
        array = jnp.zeros(kept, chunk.dtype)
    part = chunk[0, :math.prod(block)].reshape(1, *block).transpose(order)
    array = array.reshape([of_draws[axis] for axis in order])
    return lax.dynamic_update_slice(array, part, [place[axis] for axis in order]).reshape(kept)


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
    dtype: DTypeLike, *, axes: tuple[int, ...] | None = None, gates: int | None = None,
) -> jax.Array:
    """Return the initial value of a parameter, and require that the draw has the given shape.

    The draw is transposed to `axes`. For `gates`, there are as many, each with its own key, along
    the last axis.
    """
    keys = [rng] if gates is None else [jax.random.fold_in(rng, gate) for gate in range(gates)]
    try:
        if initializer is lecun_normal or initializer is embedding_normal:
            return _scaled(initializer, keys, shape, dtype, axes)
        draws = [jnp.asarray(initializer(key, shape, dtype), dtype) for key in keys]
    except Exception as error:
        dtype_name = jnp.dtype(dtype).name
        error.add_note(f"{owner}: {name} was called for shape {shape} and dtype {dtype_name}")
        raise
    for draw in draws:
        if draw.shape != shape:
            raise ValueError(expected(owner, f"{name} to return shape {shape}", draw.shape))
    return draws[0] if axes is None and len(draws) == 1 else _arranged(draws, axes)
