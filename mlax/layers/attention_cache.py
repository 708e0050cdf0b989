"""The cache of decoding attention: the keys, values and positions of all tokens so far.

Each chunk of tokens is written after those before it. The head axis comes before the token axis, so
that the products with a whole cache, (heads, length, head_dim), read contiguous memory.
"""

from typing import Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.experimental import checkify
from jax.typing import DTypeLike

from mlax.errors import expected
from mlax.positions import of_rank, with_padding
from mlax.serialization import serializable

CachePolicy: TypeAlias = Literal["error", "nan", "wrap"]
"""What happens when the cache is full."""


@serializable
class AttentionCache(NamedTuple):
    """Variables of `attention` with a cache: the tokens decoded so far."""

    key: jax.Array
    """(..., num_kv_heads, cache_length, head_dim)."""
    value: jax.Array
    """(..., num_kv_heads, cache_length, head_dim)."""
    positions: jax.Array
    """(..., cache_length), negative in empty slots."""
    length: jax.Array
    """The number of tokens decoded so far, padding included."""


def empty_cache(
    lead: tuple[int, ...], length: int, heads: int, head_dim: int, dtype: DTypeLike
) -> AttentionCache:
    """Return a cache without tokens."""
    nothing = jnp.zeros((*lead, heads, length, head_dim), dtype)
    nowhere = jnp.full((*lead, length), -1, jnp.int32)
    return AttentionCache(nothing, nothing, nowhere, jnp.zeros((), jnp.int32))


def positions_after(
    cache: AttentionCache, shape: tuple[int, ...], positions: jax.Array | None,
    lengths: jax.Array | None,
) -> jax.Array:
    """Return the positions of a chunk, (..., length); they continue from the cache unless given."""
    if positions is None:
        after = jnp.max(cache.positions, -1, keepdims=True) + 1
        positions = after + of_rank(jnp.arange(shape[-1]), after.ndim)
    positions = of_rank(positions, len(shape))
    if lengths is not None:
        positions = with_padding(positions, lengths)
    return jnp.broadcast_to(positions, shape).astype(cache.positions.dtype)


def extended(
    cache: AttentionCache, key: jax.Array, value: jax.Array, positions: jax.Array,
    policy: CachePolicy, window: int | None,
) -> tuple[AttentionCache, Any]:
    """Return the cache with a chunk in it, and whether that overflows.

    Keys and values are (..., length, heads, head_dim), positions (..., length).
    """
    size, new_tokens = cache.positions.shape[-1], positions.shape[-1]
    length = cache.length + new_tokens
    key, value = (
        jnp.swapaxes(new, -2, -3).astype(old.dtype)
        for new, old in ((key, cache.key), (value, cache.value))
    )
    if policy == "wrap":
        assert window is not None
        most = size - window + 1
        if new_tokens > most:
            wanted = f"at most {most} tokens at once with this cache and window"
            raise ValueError(expected("attention", wanted, new_tokens, "make cache_length larger"))
        # By position, so that padding takes no slot and evicts nothing from the window.
        slots = jnp.where(positions < 0, size, positions % size)

        def written(old: jax.Array, new: jax.Array, slots: jax.Array) -> jax.Array:
            return old.at[..., slots, :].set(new, mode="drop")

        for _ in positions.shape[:-1]:
            written = jax.vmap(written)
        key, value = written(cache.key, key, slots), written(cache.value, value, slots)
        places = written(cache.positions[..., None], positions[..., None], slots)[..., 0]
        return AttentionCache(key, value, places, length), None
    is_known = not isinstance(length, Tracer)
    if new_tokens > size or is_known and int(length) > size:
        taken = f", of which {int(cache.length)} are taken" if is_known else ""
        wanted = f"a chunk that fits into a cache of {size} tokens{taken}"
        way_out = "make cache_length larger, or start with a new state"
        raise ValueError(expected("attention", wanted, f"{new_tokens} tokens", way_out))
    overflows = length > size
    if policy == "error":
        checkify.debug_check(~overflows, f"attention: the cache of {size} tokens is full")

    def updated(old: jax.Array, new: jax.Array, axis: int) -> jax.Array:
        return lax.dynamic_update_slice_in_dim(old, new, cache.length, axis)

    return AttentionCache(
        updated(cache.key, key, -2), updated(cache.value, value, -2),
        updated(cache.positions, positions, -1), length,
    ), overflows
