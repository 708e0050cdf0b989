"""`nn.Attention` and `nn.AttentionRng` against `jax.nn.dot_product_attention`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import nn
from tests.oracle import KEY

X = jax.random.normal(KEY, (6, 8))


def expected(module: Any, x: Any, memory: Any, kv_heads: int, **options: Any) -> Any:
    def projected(name: str, inputs: Any, heads: int) -> Any:
        kernel, bias = getattr(module, name).data
        return (inputs @ kernel + bias).reshape(len(inputs), heads, -1)

    q, k = projected("query", x, 4), projected("key", memory, kv_heads)
    attended = jax.nn.dot_product_attention(
        q, k, projected("value", memory, kv_heads), **options
    )
    kernel, bias = module.output.data
    return attended.reshape(len(x), -1) @ kernel + bias


@pytest.mark.parametrize("kv_heads", [4, 2, 1])
def test_numbers(kv_heads: int) -> None:
    y, attention = nn.Attention(KEY, 4, kv_heads, causal=True)(X, None)
    wanted = expected(attention, X, X, kv_heads, is_causal=True)
    np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-6)


def test_a_memory() -> None:
    memory = jax.random.normal(KEY, (5, 3))
    y, attention = nn.Attention(KEY, 4)(mlax.AttentionInputs(X, memory), None)
    np.testing.assert_allclose(y, expected(attention, X, memory, 4), rtol=1e-5, atol=1e-6)


def test_a_hyperparameter_that_is_set_later_takes_effect() -> None:
    _, attention = nn.Attention(KEY, 4)(X, None)
    call = jax.jit(lambda module: module(X, None)[0])
    call(attention)
    attention.causal = True
    wanted = expected(attention, X, X, 4, is_causal=True)
    np.testing.assert_allclose(call(attention), wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize(
    ("name", "value", "wanted"),
    [
        ("num_heads", 3, "a divisor of 8"), ("num_kv_heads", 1, "4"), ("head_dim", 3, "2"),
        ("out_features", 3, "8"), ("fused", None, ""), ("use_bias", False, "True"),
        ("use_output_bias", False, "True"), ("qk_norm", True, "False"),
    ],
)
def test_a_hyperparameter_that_contradicts_the_parameters_raises(
    fused: bool, name: str, value: Any, wanted: str
) -> None:
    _, attention = nn.Attention(KEY, 4, fused=fused)(X, None)
    if name == "fused":
        value, wanted = not fused, str(fused)
    setattr(attention, name, value)
    told = f"^Attention: expected {name} to be {wanted}, as its parameters say, got {value}; set"
    with pytest.raises(ValueError, match=told):
        attention(X, None)


def test_a_cache_is_for_pairs() -> None:
    attention = nn.Attention(KEY, 4)
    with pytest.raises(TypeError, match="^Attention: expected no cache_length, got 8; decode with"):
        setattr(attention, "cache_length", 8)


def test_only_what_the_hyperparameters_ask_for_is_a_parameter() -> None:
    _, attention = nn.Attention(KEY, 2, fused=True, qk_norm=True, use_bias=False)(X, None)
    names = {name for name, value in vars(attention).items() if getattr(value, "data", None)}
    assert names == {"query_key_value", "query_norm", "key_norm", "output"}
    trained, rest = attention.partition()
    assert len(jax.tree.leaves(trained)) == 4 and not jax.tree.leaves(rest)


def test_dropout_takes_a_key() -> None:
    model = nn.SeriesRng([nn.AttentionRng(KEY, 2, dropout_rate=0.5)])
    y, model = model(X, KEY)
    assert not jnp.allclose(y, model(X, jax.random.key(1))[0])
    np.testing.assert_array_equal(model(X, None, True)[0], model(X, KEY, True)[0])
    attention = nn.Attention(KEY, 2, dropout_rate=0.5)
    attention(X, None, True)
    with pytest.raises(ValueError, match="expected dropout_rate to be 0 in training, got 0.5; use"):
        attention(X, None)
