"""Tests of weights in int8: the stated error, and layers that run with them."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax.types import Int8

KEY = jax.random.key(0)
TOKENS = jnp.arange(6)
MODEL = mlax.series(
    embed=mlax.embed(11, 8),
    body=mlax.repeat(mlax.transformer_block(mlax.attention(2, causal=True), mlax.mlp(16)), 3),
    head=mlax.dense(11),
)


def small(**params: Any) -> Any:
    """Return the weights in int8 of a layer with these params."""
    layer = mlax.quantized(mlax.Layer(lambda rng, x: (params, ()), lambda p, s, x, *_: (x, s)))
    return layer.init(KEY, TOKENS)[1].variables.weights


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("shape", [(64, 5), (3, 64, 5), (1, 1), (0, 4)])
def test_the_error_is_half_a_step(dtype: Any, shape: tuple[int, ...]) -> None:
    kernel = (5 * jax.random.normal(KEY, shape)).astype(dtype)
    weight = small(kernel=kernel)["kernel"]
    assert weight.values.dtype == jnp.int8 and weight.scale.dtype == dtype
    assert weight.values.shape == shape and weight.scale.shape == (*shape[:-2], 1, shape[-1])
    exact = np.asarray(kernel, np.float64)
    found = np.asarray(weight.values, np.float64) * np.asarray(weight.scale, np.float64)
    most = np.max(abs(exact), -2, keepdims=True, initial=0)
    assert (abs(found - exact) <= most * (1 / 254 + float(jnp.finfo(dtype).eps))).all()


def test_each_row_of_an_embedding_has_a_scale() -> None:
    rows = jnp.array([[1.0, -2.0], [0.0, 0.0], [1e-3, 5e-4]])
    weight = small(embedding=rows)["embedding"]
    np.testing.assert_array_equal(weight.values, [[64, -127], [0, 0], [127, 64]])
    np.testing.assert_allclose(weight.scale[:, 0], [2 / 127, 1, 1e-3 / 127], rtol=1e-6)


def test_a_layer_runs_with_weights_in_8_bits() -> None:
    params, state = MODEL.init(KEY, TOKENS)
    layer = mlax.quantized(MODEL)
    others, own = mlax.init_quantized(layer, TOKENS, params, state)
    assert mlax.nbytes((others, own)) < 0.5 * mlax.nbytes(params)
    assert isinstance(own.variables.weights["body"]["mlp"]["up"].kernel, Int8)
    assert others["head"].bias is params["head"].bias and others["head"].kernel is None
    y, after = jax.jit(layer.apply)(others, own, TOKENS)
    assert jax.tree.structure(after) == jax.tree.structure(own)
    merged, inner = mlax.merge_quantized(others, own)
    np.testing.assert_allclose(y, MODEL.apply(merged, inner, TOKENS)[0], rtol=1e-5, atol=1e-5)
    exact, _ = MODEL.apply(params, state, TOKENS)
    assert 0 < jnp.abs(y - exact).max() < 0.1 * jnp.abs(exact).max()


def test_what_is_left_can_be_trained() -> None:
    layer = mlax.quantized(MODEL, ["body.mlp.*.kernel", "embed.embedding"])
    params, state = layer.init(KEY, TOKENS)
    assert isinstance(state.variables.weights["embed"].embedding, Int8)
    grads = jax.grad(lambda params: jnp.sum(layer.apply(params, state, TOKENS)[0] ** 2))(params)
    assert (grads["head"].kernel != 0).any() and grads["embed"].embedding is None


def test_what_it_refuses() -> None:
    params, state = MODEL.init(KEY, TOKENS)
    with pytest.raises(ValueError, match="'tail.kernel' to match a path"):
        mlax.quantized(MODEL, "tail.kernel").init(KEY, TOKENS)
    with pytest.raises(ValueError, match="head.bias to be of two axes or more"):
        mlax.quantized(MODEL, "head.bias").init(KEY, TOKENS)
    with pytest.raises(TypeError, match="kernel to be of a floating dtype"):
        small(kernel=jnp.ones((2, 2), int))
    with pytest.raises(TypeError, match="layer to be one made by mlax.quantized"):
        mlax.init_quantized(MODEL, TOKENS, params, state)
    with pytest.raises(ValueError, match="init_quantized: expected params.head.kernel"):
        wrong = params | {"head": mlax.dense(5).init(KEY, jnp.ones(8))[0]}
        mlax.init_quantized(mlax.quantized(MODEL), TOKENS, wrong, state)
    with pytest.raises(TypeError, match="state to be that of mlax.quantized"):
        mlax.merge_quantized(params, state)
