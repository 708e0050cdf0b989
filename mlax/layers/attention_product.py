"""The product of attention: softmax(q k^T * scale + bias) v, by a fused function or step by step.

    query       (..., length, num_heads, head_dim)
    key, value  (..., memory_length, num_kv_heads, head_dim)
    weights     (..., num_heads, length, memory_length)
    y           like query

Masks and biases are broadcastable to the weights, with as many axes.
"""

from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeAlias

import jax
import jax.numpy as jnp

from mlax.arguments import Rule
from mlax.errors import message
from mlax.positions import of_rank

Product: TypeAlias = Callable[..., jax.Array]
"""A function with the signature of `jax.nn.dot_product_attention`."""


def _read_implementation(owner: str, name: str, value: Any) -> Any:
    if callable(value) or isinstance(value, str) and value in ("xla", "cudnn"):
        return value
    wanted = '"xla", "cudnn" or a function like jax.nn.dot_product_attention'
    raise ValueError(message(owner, name, wanted, repr(value)))


Implementation: TypeAlias = Annotated[Literal["xla", "cudnn"] | Product, Rule(_read_implementation)]
"""What computes the product."""

# `jax.nn.dot_product_attention` computes the softmax of float64 in float32, and does not compile
# for float16 on CPUs.
NOT_BY_XLA = (jnp.float64, jnp.float16)


def product(
    query: jax.Array, key: jax.Array, value: jax.Array, bias: Any, mask: Any, lengths: Any,
    order: dict[str, Any], *, scale: float | None, implementation: Implementation | None,
) -> jax.Array:
    """Return the weighted sums of values by `implementation`.

    `lengths` is the number of real keys, and `order` the causal mask and the window, as arguments.
    """
    lead = query.shape[:-3]
    if bias is not None:
        wide = jnp.promote_types(query.dtype, jnp.float32)
        bias = bias.astype(query.dtype if implementation == "cudnn" else wide)
    if lengths is not None:
        lengths = jnp.broadcast_to(of_rank(lengths, len(lead)), lead).astype(jnp.int32)

    def batch(q: Any, k: Any, v: Any, bias: Any, mask: Any, lengths: Any) -> jax.Array:
        """Return the same for arrays with one batch axis."""
        y: jax.Array
        more = order if lengths is None else order | {"key_value_seq_lengths": lengths}
        if callable(implementation):
            y = implementation(q, k, v, bias, mask, scale=scale, **more)
            return y
        with jax.numpy_dtype_promotion("standard"):  # in bfloat16, JAX relies on promotion
            y = jax.nn.dot_product_attention(
                q, k, v, bias, mask, scale=scale, implementation=implementation, **more
            )
        return y

    arrays = query, key, value, bias, mask, lengths
    if not lead:
        return batch(*(a if a is None else a[None] for a in arrays))[0]
    for _ in lead[1:]:
        batch = jax.vmap(batch)
    outer = lead[:-1]
    return batch(*(
        a if a is None else jnp.broadcast_to(a, (*outer, *a.shape[len(outer) :])) for a in arrays
    ))


def weights_of(
    query: jax.Array, key: jax.Array, bias: Any, mask: Any, *, scale: float | None,
    softcap: float | None,
) -> jax.Array:
    """Return the weights in float32 or better."""
    *lead, length, heads, head_dim = query.shape
    memory_length, kv_heads = key.shape[-3:-1]
    wide = jnp.promote_types(query.dtype, jnp.float32)
    query = query.reshape(*lead, length, kv_heads, heads // kv_heads, head_dim)
    logits = jnp.einsum("...qkgh,...skh->...kgqs", query, key, preferred_element_type=wide)
    logits = logits.reshape(*lead, heads, length, memory_length)
    logits = logits * (head_dim**-0.5 if scale is None else scale)
    if softcap is not None:
        logits = softcap * jnp.tanh(logits / softcap)
    if bias is not None:
        logits += bias.astype(wide)
    if mask is not None:
        logits = jnp.where(mask, logits, jnp.finfo(wide).min)
    return jax.nn.softmax(logits)


def weighted(weights: jax.Array, value: jax.Array) -> jax.Array:
    """Return the weighted sums of values."""
    *lead, heads, length, memory_length = weights.shape
    kv_heads, head_dim = value.shape[-2:]
    grouped = weights.reshape(*lead, kv_heads, heads // kv_heads, length, memory_length)
    y = jnp.einsum("...kgqs,...skh->...qkgh", grouped.astype(value.dtype), value)
    return y.reshape(*lead, length, heads, head_dim)
