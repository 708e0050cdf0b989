"""A step of decoding as a script writes it, for the params of the model in `decode`."""

from typing import Any

import jax
import jax.numpy as jnp


def empty(blocks: int, length: int, heads: int, head_dim: int) -> Any:
    """Return caches without tokens, and their number."""
    shape = 1, length, heads, head_dim
    keys, values = ([jnp.zeros(shape) for _ in range(blocks)] for _ in range(2))
    return keys, values, jnp.zeros((), jnp.int32)


def norm(params: Any, x: jax.Array) -> jax.Array:
    """Return the layer norm of x."""
    centred = x - x.mean(-1, keepdims=True)
    variance = jnp.square(centred).mean(-1, keepdims=True)
    y: jax.Array = centred * jax.lax.rsqrt(variance + 1e-5) * params.scale + params.bias
    return y


def dense(params: Any, x: jax.Array) -> jax.Array:
    """Return x @ kernel + bias."""
    y: jax.Array = x @ params.kernel + params.bias
    return y


def step(params: Any, state: Any, token: jax.Array) -> tuple[jax.Array, Any]:
    """Return the logits of the next token, and the caches with this one."""
    keys, values, count = state
    x = params["embed"].embedding[token]
    next_keys, next_values = [], []
    for key, value, block in zip(keys, values, params["body"], strict=True):
        length, heads, head_dim = key.shape[1:]
        attention, y = block["attention"], norm(block["attention_norm"], x)
        query, new_key, new_value = (
            dense(p, y).reshape(1, 1, heads, head_dim)
            for p in (attention.query, attention.key, attention.value)
        )
        key = jax.lax.dynamic_update_slice(key, new_key, (0, count, 0, 0))
        value = jax.lax.dynamic_update_slice(value, new_value, (0, count, 0, 0))
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) * head_dim**-0.5
        logits = jnp.where(jnp.arange(length) <= count, logits, -1e30)
        y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), value)
        x = x + dense(attention.output, y.reshape(x.shape))
        y = jax.nn.gelu(dense(block["mlp"]["up"], norm(block["mlp_norm"], x)))
        x = x + dense(block["mlp"]["down"], y)
        next_keys.append(key)
        next_values.append(value)
    x = norm(params["norm"], x)
    return dense(params["head"], x), (next_keys, next_values, count + 1)
