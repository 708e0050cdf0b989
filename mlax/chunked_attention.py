"""Attention whose memory is linear in the length, forward and backward.

The softmax over all keys is computed chunk by chunk: with m the largest logit so far, the sums of
exp(logit - m) and of exp(logit - m) * value are kept, and rescaled by exp(m - m') when a chunk
raises m to m'. The gradient recomputes the chunks.

Source: Rabe and Staats, "Self-attention does not need O(n^2) memory", 2021; Dao et al.,
"FlashAttention", 2022.
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from mlax.arguments import read_size
from mlax.errors import expected, message

Sums: TypeAlias = tuple[jax.Array, jax.Array, jax.Array]
"""The largest logit of each query so far, and the sums of weights and of weighted values."""


def chunked_attention(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: jax.Array | None = None,
    mask: jax.Array | None = None, *, scale: float | None = None, is_causal: bool = False,
    query_seq_lengths: jax.Array | None = None, key_value_seq_lengths: jax.Array | None = None,
    local_window_size: int | tuple[int, int] | None = None, chunk_length: int = 512,
) -> jax.Array:
    """Return what `jax.nn.dot_product_attention` returns, without a (length, length) array.

    Chunks of keys that no query of a chunk attends to are skipped. A query that attends to no key
    gives 0.

    Args:
        query: (batch, length, heads, head_dim), or without the batch axis.
        key: (batch, memory_length, kv_heads, head_dim); kv_heads divides heads.
        value: like key.
        bias: broadcastable to (batch, heads, length, memory_length), added to the logits. (Unless
            it is broadcast, it is itself an array of that size.)
        mask: the same, True where a key takes part.
        scale: factor of q k^T, 1 / sqrt(head_dim) by default.
        is_causal: whether query i attends only to keys j <= i.
        query_seq_lengths: (batch,) number of real queries.
        key_value_seq_lengths: (batch,) number of real keys.
        local_window_size: (left, right), or one number for both: query i attends to keys from
            i - left to i + right.
        chunk_length: number of queries and of keys in a chunk.

    >>> import jax, jax.numpy as jnp
    >>> from mlax.functional import chunked_attention
    >>> x = jax.random.normal(jax.random.key(0), (1000, 2, 8))
    >>> y = chunked_attention(x, x, x, is_causal=True, chunk_length=128)
    >>> jnp.allclose(y, jax.nn.dot_product_attention(x, x, x, is_causal=True), atol=1e-5)
    Array(True, dtype=bool)
    """
    read_size("chunked_attention", "chunk_length", chunk_length)
    if mask is not None and mask.dtype != bool:
        got = jnp.dtype(mask.dtype).name
        raise TypeError(message("chunked_attention", "mask", "of dtype bool", got))
    bias, mask = (
        None if a is None else a.reshape(*(1,) * (4 - a.ndim), *a.shape) for a in (bias, mask)
    )
    if query.ndim == 3:
        lengths = [
            None if n is None else jnp.reshape(n, (1,))
            for n in (query_seq_lengths, key_value_seq_lengths)
        ]
        return chunked_attention(
            query[None], key[None], value[None], bias, mask, scale=scale, is_causal=is_causal,
            query_seq_lengths=lengths[0], key_value_seq_lengths=lengths[1],
            local_window_size=local_window_size, chunk_length=chunk_length,
        )[0]
    batch, length, heads, head_dim = query.shape
    memory_length, kv_heads = key.shape[1:3]
    fitting = (batch, memory_length, kv_heads, head_dim)
    if key.shape != fitting or value.shape != fitting:
        what = f"key and value of shape {fitting}, as the query has {query.shape}"
        raise ValueError(expected("chunked_attention", what, f"{key.shape} and {value.shape}"))
    if heads % kv_heads:
        what = f"heads to be a multiple of the {kv_heads} heads of keys"
        raise ValueError(expected("chunked_attention", what, heads))
    if 0 in (batch, length, memory_length):
        return jnp.zeros(query.shape, value.dtype)
    if isinstance(local_window_size, int):
        local_window_size = (local_window_size, local_window_size)
    factor = head_dim**-0.5 if scale is None else scale
    wide = jnp.promote_types(query.dtype, jnp.float32)
    q_chunk, k_chunk = min(chunk_length, length), min(chunk_length, memory_length)
    query = _padded(query, 1, q_chunk)
    key, value = (_padded(a, 1, k_chunk) for a in (key, value))
    query = query.reshape(*query.shape[:2], kv_heads, heads // kv_heads, head_dim)
    bias, mask = (
        None if a is None else _padded(_padded(a, 2, q_chunk), 3, k_chunk) for a in (bias, mask)
    )

    def part_of(array: jax.Array, i: Any, j: Any) -> jax.Array:
        """Return the chunk of an array (b, h, length, memory_length) as (b, kv_heads, g, ...)."""
        if array.shape[2] > 1:
            array = lax.dynamic_slice_in_dim(array, i * q_chunk, q_chunk, 2)
        if array.shape[3] > 1:
            array = lax.dynamic_slice_in_dim(array, j * k_chunk, k_chunk, 3)
        groups = (1, 1) if array.shape[1] == 1 else (kv_heads, heads // kv_heads)
        return array.reshape(array.shape[0], *groups, *array.shape[2:])

    def queries(i: Any) -> jax.Array:
        """Return the output of a chunk of queries."""
        q = lax.dynamic_slice_in_dim(query, i * q_chunk, q_chunk, 1)
        first_row, last_row = i * q_chunk, (i + 1) * q_chunk - 1
        rows = jnp.reshape(first_row + jnp.arange(q_chunk), (1, 1, 1, q_chunk, 1))

        def add(carry: Sums, j: Any) -> Sums:
            most, total, sums = carry
            k, v = (lax.dynamic_slice_in_dim(a, j * k_chunk, k_chunk, 1) for a in (key, value))
            logits = jnp.einsum("bqkgh,bskh->bkgqs", q, k, preferred_element_type=wide) * factor
            if bias is not None:
                logits += part_of(bias, i, j).astype(wide)
            columns = jnp.reshape(j * k_chunk + jnp.arange(k_chunk), (1, 1, 1, 1, k_chunk))
            allowed = _allowed(rows, columns, is_causal, local_window_size)
            allowed &= columns < memory_length
            if key_value_seq_lengths is not None:
                allowed &= columns < key_value_seq_lengths.reshape(batch, 1, 1, 1, 1)
            if query_seq_lengths is not None:
                allowed &= rows < query_seq_lengths.reshape(batch, 1, 1, 1, 1)
            if mask is not None:
                allowed &= part_of(mask, i, j)
            logits = jnp.where(allowed, logits, -jnp.inf)
            new_most = lax.stop_gradient(jnp.maximum(most, jnp.max(logits, -1)))
            base = jnp.where(new_most > -jnp.inf, new_most, 0)
            weights = jnp.exp(logits - base[..., None])
            kept = jnp.exp(most - base)
            added = jnp.einsum(
                "bkgqs,bskh->bkgqh", weights.astype(v.dtype), v, preferred_element_type=wide
            )
            return new_most, total * kept + weights.sum(-1), sums * kept[..., None] + added

        @jax.checkpoint
        def step(carry: Sums, j: Any) -> tuple[Sums, None]:
            first, last = j * k_chunk, (j + 1) * k_chunk - 1
            needed = jnp.asarray(True)
            if is_causal:
                needed &= first <= last_row
            if local_window_size is not None:
                left, right = local_window_size
                needed &= (last >= first_row - left) & (first <= last_row + right)
            return lax.cond(needed, lambda c: add(c, j), lambda c: c, carry), None

        shape = (batch, kv_heads, heads // kv_heads, q_chunk)
        start = (
            jnp.full(shape, -jnp.inf, wide), jnp.zeros(shape, wide),
            jnp.zeros((*shape, head_dim), wide),
        )
        (_, total, sums), _ = lax.scan(step, start, jnp.arange(key.shape[1] // k_chunk))
        y = sums / jnp.where(total > 0, total, 1)[..., None]
        return jnp.moveaxis(y, 3, 1).reshape(batch, q_chunk, heads, head_dim).astype(value.dtype)

    ys = lax.map(jax.checkpoint(queries), jnp.arange(query.shape[1] // q_chunk))
    return jnp.moveaxis(ys, 0, 1).reshape(batch, -1, heads, head_dim)[:, :length]


def _padded(array: jax.Array, axis: int, chunk: int) -> jax.Array:
    """Return the array with an axis padded to whole chunks; an axis of length 1 is broadcast."""
    if array.shape[axis] == 1:
        return array
    widths = [(0, 0)] * array.ndim
    widths[axis] = (0, -array.shape[axis] % chunk)
    return jnp.pad(array, widths)


def _allowed(
    rows: jax.Array, columns: jax.Array, is_causal: bool, window: tuple[int, int] | None
) -> jax.Array:
    """Return which keys causality and the window allow."""
    allowed = jnp.ones(jnp.broadcast_shapes(rows.shape, columns.shape), bool)
    if is_causal:
        allowed &= columns <= rows
    if window is not None:
        allowed &= (columns >= rows - window[0]) & (columns <= rows + window[1])
    return allowed
