"""Tests of `mlax.embed` against NumPy."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import DTypeLike

import mlax

KEY = jax.random.key(0)
INDEX = jax.ShapeDtypeStruct((), jnp.int32)


def drawn(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """Initialize without a compilation."""
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), dtype)


@pytest.mark.parametrize("shape", [(), (2, 3), (0,)])
def test_values(shape: tuple[int, ...]) -> None:
    x = np.random.default_rng(0).integers(0, 5, shape)
    params, state = mlax.embed.init(KEY, INDEX, 5, 3, drawn)
    y, _ = mlax.embed.apply(params, state, jnp.asarray(x))
    assert params.embedding.shape == (5, 3)
    np.testing.assert_array_equal(y, np.asarray(params.embedding)[x], strict=True)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint32, jnp.int32])
def test_an_index_outside_gives_nan_and_a_negative_one_counts_from_the_end(
    dtype: DTypeLike,
) -> None:
    signed = jnp.issubdtype(dtype, jnp.signedinteger)
    bounds = jnp.iinfo(dtype)
    x = [0, 4, 5, 100, bounds.max] + ([-1, -5, -6, -100, bounds.min] if signed else [])
    params, state = mlax.embed.init(KEY, INDEX, 5, 2, drawn)
    y, _ = mlax.embed.apply(params, state, jnp.array(x, dtype))
    embedding = np.asarray(params.embedding)
    expected = [embedding[i] if -5 <= i < 5 else np.full(2, np.nan, np.float32) for i in x]
    np.testing.assert_array_equal(y, np.array(expected), strict=True)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8])
def test_indices_whose_dtype_is_smaller_than_the_embedding(dtype: DTypeLike) -> None:
    params, state = mlax.embed.init(KEY, INDEX, 300, 2, drawn)
    x = np.array([0, 5, 127, *([200, 255] if dtype == jnp.uint8 else [-1, -128])])
    y, _ = mlax.embed.apply(params, state, jnp.asarray(x, dtype))
    np.testing.assert_array_equal(y, np.asarray(params.embedding)[x], strict=True)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_dtype_is_that_of_the_embedding_and_of_the_result(dtype: DTypeLike) -> None:
    params, state = mlax.embed.init(KEY, INDEX, 5, 2, drawn, dtype)
    y, _ = mlax.embed.apply(params, state, jnp.array([1, 9]))
    assert params.embedding.dtype == y.dtype == dtype
    np.testing.assert_array_equal(
        np.asarray(y, np.float32), [np.asarray(params.embedding[1], np.float32), [np.nan] * 2]
    )


def test_default_initializer() -> None:
    params, _ = mlax.embed.init(KEY, INDEX, 50, 400)
    expected = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)
    np.testing.assert_array_equal(params.embedding, expected(KEY, (50, 400), jnp.float32))
    lengths = np.linalg.norm(np.asarray(params.embedding), axis=1)
    np.testing.assert_allclose(lengths, 1, atol=0.2)


def test_initializer_gets_key_shape_and_dtype() -> None:
    calls: list[tuple[object, ...]] = []

    def initializer(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        calls.append((key, shape, jnp.dtype(dtype)))
        return jnp.full(shape, 2, dtype)

    params, _ = mlax.embed.init(KEY, INDEX, 5, 2, initializer, "float16")
    assert calls == [(KEY, (5, 2), jnp.dtype("float16"))]
    np.testing.assert_array_equal(params.embedding, np.full((5, 2), 2, np.float16), strict=True)


def test_gradients_are_added_up_in_the_rows_that_were_read() -> None:
    params, state = mlax.embed.init(KEY, INDEX, 4, 2, drawn)
    x = jnp.array([1, 3, 1, -1, 7])  # 7 is out of range and reads no row
    weights = np.arange(10.0).reshape(5, 2)

    def loss(params: Any) -> jax.Array:
        return jnp.sum(mlax.embed.apply(params, state, x)[0] * weights)

    expected = np.zeros((4, 2))
    for row, weight in zip([1, 3, 1, 3], weights, strict=False):
        expected[row] += weight
    np.testing.assert_array_equal(jax.grad(loss)(params).embedding, expected)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bool_])
def test_indices_that_are_not_integers_raise(dtype: DTypeLike) -> None:
    name = jnp.dtype(dtype).name
    wanted = f"^embed: expected x to be of an integer dtype, got {name}"
    with pytest.raises(TypeError, match=wanted):
        mlax.embed.init(KEY, jax.ShapeDtypeStruct((), dtype), 5, 2)
    with pytest.raises(TypeError, match=wanted):
        mlax.embed.apply(*mlax.embed.init(KEY, INDEX, 5, 2), jnp.zeros((), dtype))


@pytest.mark.parametrize(
    ("hparams", "error", "text"),
    [
        ({"vocab_size": 0}, ValueError, "vocab_size to be a positive integer, got 0"),
        ({"vocab_size": 2.5}, TypeError, "vocab_size to be a positive integer, got 2.5"),
        ({"embed_dim": -1}, ValueError, "embed_dim to be a positive integer, got -1"),
        ({"embed_dim": None}, TypeError, "embed_dim to be a positive integer, got None"),
        ({"embed_initializer": "x"}, TypeError, "embed_initializer to be a function, got 'x'"),
        ({"dtype": "float99"}, TypeError, "dtype to be a dtype, got 'float99'"),
    ],
)
def test_wrong_argument_raises(
    hparams: dict[str, Any],  # wrong types on purpose
    error: type[Exception],
    text: str,
) -> None:
    hparams = {"vocab_size": 5, "embed_dim": 2} | hparams
    with pytest.raises(error, match=f"^embed: expected {text}"):
        mlax.embed(**hparams)
    with pytest.raises(error, match=f"^embed: expected {text}"):
        mlax.embed.init(KEY, INDEX, **hparams)


def test_initializer_that_returns_another_shape_raises() -> None:
    with pytest.raises(ValueError, match=r"^embed: .*embed_initializer .*\(5, 2\), got \(2, 5\)"):
        mlax.embed.init(KEY, INDEX, 5, 2, lambda key, shape, dtype: jnp.ones((2, 5)))


@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
@pytest.mark.parametrize("x64", [False, True])
@pytest.mark.parametrize("convert", [np.asarray, jnp.asarray], ids=["numpy", "jax"])
def test_indices_of_more_than_32_bits_are_out_of_range(dtype: Any, x64: bool, convert: Any) -> None:
    if convert is jnp.asarray and not x64:
        return  # jax itself has cut them off
    bounds = np.iinfo(dtype)
    rows = [0, 4, 5, 2**31, 2**32, 2**32 + 1, 2**33 + 4, bounds.max, bounds.max - 4]
    rows += [-1, -5, -6, -(2**31), -(2**32), -(2**32) + 1, bounds.min] if bounds.min else []
    with jax.enable_x64(x64):
        params, state = mlax.embed.init(KEY, INDEX, 5, 2, drawn)
        y, _ = mlax.embed.apply(params, state, convert(np.array(rows, dtype)))
    embedding = np.asarray(params.embedding)
    expected = [embedding[i] if -5 <= i < 5 else np.full(2, np.nan, np.float32) for i in rows]
    np.testing.assert_array_equal(y, np.array(expected), strict=True)


@pytest.mark.parametrize(
    "around",
    [
        mlax.batched, functools.partial(mlax.ensemble, n=2), mlax.remat,
        lambda embed: mlax.switch(lambda x: jnp.array(0), embed, embed),
    ],
    ids=["batched", "ensemble", "remat", "switch"],
)
def test_indices_of_more_than_32_bits_inside_of_transformations(around: Any) -> None:
    layer = around(mlax.embed(5, 2))
    x: Any = np.array([2**32 + 1, -(2**32) + 1, 1])
    params, state = layer.init(KEY, x)
    y = np.atleast_3d(layer.apply(params, state, x)[0]).reshape(-1, 3, 2)
    assert np.isnan(y[:, :2]).all()
    assert np.isfinite(y[:, 2]).all()


def test_one_index_of_more_than_32_bits() -> None:
    params, state = mlax.embed.init(KEY, INDEX, 5, 2, drawn)
    far: Any = np.uint64(2**32)  # NumPy's numbers serve too
    last: Any = np.int64(-1)
    assert jnp.isnan(mlax.embed.apply(params, state, far)[0]).all()
    y, _ = mlax.embed.apply(params, state, last)
    np.testing.assert_array_equal(y, params.embedding[4])


@pytest.mark.parametrize(
    ("dtype", "fill"), [(np.int8, -128), (np.int32, -(2**31)), (np.uint8, 255)]
)
def test_an_embedding_of_integers_is_filled_with_an_extreme(dtype: Any, fill: int) -> None:
    table = jnp.arange(10).reshape(5, 2)
    params, state = mlax.embed.init(KEY, INDEX, 5, 2, lambda key, shape, dtype: table, dtype)
    x: Any = np.array([3, 5, 2**32 + 3, -6])
    y, _ = mlax.embed.apply(params, state, x)
    expected = np.array([[6, 7], *[[fill, fill]] * 3], dtype)
    np.testing.assert_array_equal(y, expected, strict=True)
