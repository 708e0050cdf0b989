"""Tests of weights in int8: the stated error, and layers that run with them."""

from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import mlax
from mlax.types import Quantized

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


FLOATS = [jnp.float32, jnp.bfloat16, jnp.float16]


def restored(weight: Quantized) -> Any:
    """Return the weights multiplied out."""
    values, scale = (np.asarray(part).astype(np.float64) for part in (weight.values, weight.scale))
    with np.errstate(invalid="ignore"):  # where the scale is not finite
        product: Any = values * scale
    return product


@pytest.mark.parametrize("size", [5, 1e-5, 1e-7, 1e4])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(64, 5), (1, 1), (0, 4)])
def test_the_error_is_half_a_step(dtype: Any, shape: tuple[int, ...], size: float) -> None:
    """Also where the scale itself would be no number of the dtype."""
    kernel = (size * jax.random.normal(KEY, shape)).astype(dtype)
    layer = mlax.quantized(mlax.Layer(lambda rng, x: ({"kernel": kernel}, ()), lambda *_: ((), ())))
    others, state = layer.init(KEY, TOKENS)
    weight = state.variables.weights["kernel"]
    assert weight.values.dtype == jnp.int8 and weight.scale.dtype == jnp.float32
    assert weight.values.shape == shape and weight.scale.shape == (1, shape[-1])
    exact = np.asarray(kernel, np.float64)
    bound = np.max(abs(exact), -2, keepdims=True, initial=0) / 254 * (1 + 1e-5)
    assert (abs(restored(weight) - exact) <= bound).all()
    merged = mlax.merge_quantized(others, state)[0]["kernel"]
    assert merged.dtype == dtype
    limits = jnp.finfo(dtype)
    rounding = abs(exact) * float(limits.eps) + float(limits.smallest_subnormal)
    assert (abs(np.asarray(merged, np.float64) - exact) <= bound + rounding).all()


def test_extreme_weights() -> None:
    """A column each: float16 at its ends, subnormals, zeros, NaN, infinity."""
    half = np.array([[65504, 3e-6, 0, np.nan, np.inf, 1], [-65504, 2e-6, 0, 1, 1, -1],
                     [3e-6, -3e-6, 0, 1, 1, 0.5]], np.float16)
    weight = small(kernel=jnp.asarray(half))["kernel"]
    exact, found = half.astype(np.float64), restored(weight)
    np.testing.assert_allclose(found[:, [0, 1, 5]], exact[:, [0, 1, 5]], rtol=0, atol=65504 / 254)
    np.testing.assert_allclose(found[:, 1], exact[:, 1], rtol=0, atol=3e-6 / 253)
    np.testing.assert_array_equal(found[:, 2], 0)
    assert np.isnan(found[:, 3:5]).all() and np.isfinite(weight.array[:, [0, 1, 2, 5]]).all()
    tiny = small(kernel=jnp.array([[1e-36], [-5e-37]]))["kernel"]
    np.testing.assert_allclose(restored(tiny), [[1e-36], [-5e-37]], rtol=0, atol=2e-38)


@pytest.mark.parametrize("dtype", FLOATS)
def test_the_error_of_float8(dtype: Any) -> None:
    """Against ml_dtypes, and the bound for numbers with 4 significant bits."""
    kernel = jax.random.normal(KEY, (64, 5)).astype(dtype)
    layer = mlax.quantized(
        mlax.Layer(lambda rng, x: ({"kernel": kernel}, ()), lambda *_: ((), ())),
        dtype=jnp.float8_e4m3fn,
    )
    weight = layer.init(KEY, TOKENS)[1].variables.weights["kernel"]
    assert weight.values.dtype == jnp.float8_e4m3fn and weight.array.dtype == dtype
    exact = np.asarray(kernel, np.float32)
    scale = np.max(abs(exact), -2, keepdims=True) / np.float32(448)
    np.testing.assert_allclose(weight.scale, scale, rtol=1e-6)
    rounded = (exact / np.asarray(weight.scale)).astype(ml_dtypes.float8_e4m3fn)
    same = np.asarray(weight.values).astype(np.float32) == rounded.astype(np.float32)
    assert same.mean() > 0.98  # ties, where XLA and NumPy divide differently
    bound = np.maximum(abs(exact) / 16, scale / 1024) * (1 + 1e-5)
    assert (abs(restored(weight) - exact) <= bound).all()
    assert (abs(restored(weight) - exact) > bound / 2).any()
    columns = np.where(np.arange(5) == 1, np.nan, exact).astype(np.float32)
    bad = mlax.quantized(mlax.dense(5), dtype="float8_e4m3fn")
    params, state = mlax.dense(5).init(KEY, jnp.ones(64))
    _, own = mlax.init_quantized(
        bad, jnp.ones(64), params._replace(kernel=jnp.asarray(columns)), state
    )
    found = restored(own.variables.weights.kernel)
    assert np.isnan(found[:, 1]).all() and np.isfinite(np.delete(found, 1, 1)).all()


@pytest.mark.parametrize("spec", ["OHWI", "OIHW", "HWIO"])
def test_each_output_channel_of_a_convolution_has_a_scale(spec: str) -> None:
    layer = mlax.conv(6, (2, 3), data_format=("HWC", spec, "HWC"))
    copies = mlax.quantized(mlax.batched(mlax.ensemble(layer, 2)))
    params, state = mlax.batched(mlax.ensemble(layer, 2)).init(KEY, jnp.ones((2, 5, 5, 8)))
    _, own = mlax.init_quantized(copies, jnp.ones((2, 5, 5, 8)), params, state)
    weight = own.variables.weights.kernel
    shared = tuple(1 + i for i in range(4) if spec[i] != "O")
    most = np.max(abs(np.asarray(params.kernel)), shared, keepdims=True)
    np.testing.assert_allclose(weight.scale, most / 127, rtol=1e-6)
    assert (abs(restored(weight) - np.asarray(params.kernel)) <= most / 253).all()


def test_a_transposed_kernel_has_a_scale_for_each_output() -> None:
    layer = mlax.quantized(mlax.linear(3, transposed_kernel=True))
    _, state = layer.init(KEY, jnp.ones(5))
    assert state.variables.weights.kernel.scale.shape == (3, 1)


@pytest.mark.parametrize(
    "around",
    [
        mlax.batched, mlax.remat, lambda layer: mlax.cast(layer, compute_dtype=jnp.float32),
        lambda layer: mlax.batched(mlax.repeat(layer, 2)),
    ],
)
def test_combinators_of_one_layer_may_be_around_it(around: Any) -> None:
    x = jnp.ones((3, 8))
    plain, layer = around(mlax.dense(8)), around(mlax.quantized(mlax.dense(8)))
    params, state = plain.init(KEY, x)
    others, own = mlax.init_quantized(layer, x, params, state)
    fresh = jax.tree.map(jnp.shape, layer.init(KEY, x))
    assert jax.tree.map(jnp.shape, (others, own)) == fresh
    merged, inner = mlax.merge_quantized(others, own)
    assert jax.tree.structure(inner) == jax.tree.structure(state)
    y, _ = layer.apply(others, own, x)
    np.testing.assert_allclose(y, plain.apply(merged, inner, x)[0], rtol=1e-5, atol=1e-5)


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
    assert isinstance(own.variables.weights["body"]["mlp"]["up"].kernel, Quantized)
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
    assert isinstance(state.variables.weights["embed"].embedding, Quantized)
    grads = jax.grad(lambda params: jnp.sum(layer.apply(params, state, TOKENS)[0] ** 2))(params)
    assert (grads["head"].kernel != 0).any() and grads["embed"].embedding is None


def test_an_exported_program_takes_its_state() -> None:
    layer, x = mlax.quantized(mlax.dense(3)), jnp.ones(4)
    params, state = layer.init(KEY, x)
    exported = jax.export.export(jax.jit(layer.apply))(params, state, x)
    loaded = jax.export.deserialize(exported.serialize())
    np.testing.assert_allclose(
        loaded.call(params, state, x)[0], layer.apply(params, state, x)[0], rtol=1e-6
    )


@pytest.mark.parametrize(
    "layer",
    [
        mlax.f(jnp.tanh), mlax.batched(mlax.batch_norm()), mlax.lora(mlax.dense(3), "*kernel", 1),
        mlax.quantized(mlax.dense(3)),
    ],
)
def test_a_layer_without_weights_is_refused(layer: Any) -> None:
    with pytest.raises(ValueError, match="quantized: expected where to select a leaf, got none of"):
        mlax.quantized(layer).init(KEY, jnp.ones((3, 4)))


def test_what_it_refuses() -> None:
    params, state = MODEL.init(KEY, TOKENS)
    with pytest.raises(ValueError, match="quantized: expected 'tail.kernel' to match a path"):
        mlax.quantized(MODEL, ["*.kernel", "tail.kernel"]).init(KEY, TOKENS)
    for where, path in (("head.bias", "head.bias"), ("body.*", "body.attention.query.bias")):
        with pytest.raises(ValueError, match=rf"where to select leaves \(.*\), got {path} of"):
            mlax.quantized(MODEL, where).init(KEY, TOKENS)
    with pytest.raises(ValueError, match=r"quantized: .* got kernel of shape \(2, 3, 4\)"):
        small(kernel=jnp.ones((2, 3, 4)))
    with pytest.raises(TypeError, match="kernel to be of a floating dtype"):
        small(kernel=jnp.ones((2, 2), int))
    with pytest.raises(ValueError, match="dtype to be jnp.int8 or jnp.float8_e4m3fn, got int4"):
        mlax.quantized(MODEL, dtype=jnp.int4)
    others: list[Any] = [MODEL, mlax.series(mlax.quantized(mlax.embed(11, 8)))]
    for other in others:
        with pytest.raises(TypeError, match="layer to be one made by mlax.quantized"):
            mlax.init_quantized(other, TOKENS, params, state)
    with pytest.raises(ValueError, match="init_quantized: expected params.head.kernel"):
        wrong = params | {"head": mlax.dense(5).init(KEY, jnp.ones(8))[0]}
        mlax.init_quantized(mlax.quantized(MODEL), TOKENS, wrong, state)
    with pytest.raises(TypeError, match="same structure .* got one at extra.kernel"):
        wrong = params | {"extra": mlax.linear(5).init(KEY, jnp.ones(8))[0]}
        mlax.init_quantized(mlax.quantized(MODEL), TOKENS, wrong, state)
    with pytest.raises(TypeError, match="init_quantized: expected state to be what init returned"):
        mlax.init_quantized(mlax.quantized(MODEL), TOKENS, params, None)
    with pytest.raises(TypeError, match="state to be that of mlax.quantized, got that of series"):
        mlax.merge_quantized(params, state)
