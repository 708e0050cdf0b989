"""Tests of `mlax.linear` against NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from jax import lax
from jax.typing import DTypeLike

import mlax
from mlax.layers.linear import LinearParams

KEY = jax.random.key(0)
X = jnp.array([[0.5, -1.0, 2.0], [1.0, 0.25, -0.5]])


def exact(x: jax.Array) -> npt.NDArray[np.float64]:
    return np.asarray(x, np.float64)


def drawn(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """Initialize without a compilation."""
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), dtype)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 1, 3), (0, 3), (2, 0, 3)])
def test_values(shape: tuple[int, ...], transposed: bool) -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)
    params, state = mlax.linear.init(
        KEY, x, 4, transposed_kernel=transposed, kernel_initializer=drawn
    )
    y, _ = mlax.linear.apply(params, state, x)
    assert params.kernel.shape == ((4, 3) if transposed else (3, 4))
    kernel = exact(params.kernel).T if transposed else exact(params.kernel)
    np.testing.assert_allclose(y, np.einsum("...i,io->...o", exact(x), kernel), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("x_dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_kernel_is_cast_to_the_dtype_of_x(x_dtype: DTypeLike, dtype: DTypeLike) -> None:
    x = X.astype(x_dtype)
    params, state = mlax.linear.init(KEY, x, 4, kernel_initializer=drawn, dtype=dtype)
    y, _ = mlax.linear.apply(params, state, x)
    assert params.kernel.dtype == dtype
    assert y.dtype == x_dtype
    expected = exact(x) @ exact(params.kernel.astype(x_dtype))
    tolerance = 4 * float(jnp.finfo(x_dtype).eps)
    np.testing.assert_allclose(exact(y), expected, rtol=tolerance, atol=tolerance)


def test_accum_dtype_is_that_of_the_sums_and_of_the_result() -> None:
    x = jnp.array([256, 1], jnp.bfloat16)  # their sum needs more bits than bfloat16 has
    ones = jax.nn.initializers.ones
    for accum_dtype, expected in ((None, 256), (jnp.float32, 257)):
        params, state = mlax.linear.init(
            KEY, x, 1, accum_dtype=accum_dtype, kernel_initializer=ones
        )
        y, _ = mlax.linear.apply(params, state, x)
        assert y.dtype == (accum_dtype or jnp.bfloat16)
        assert float(y[0]) == expected


@pytest.mark.parametrize(
    ("precision", "expected"),
    [
        (None, "[DEFAULT, DEFAULT]"),
        ("highest", "[HIGHEST, HIGHEST]"),
        (lax.Precision.HIGH, "[HIGH, HIGH]"),
        ((lax.Precision.DEFAULT, lax.Precision.HIGHEST), "[DEFAULT, HIGHEST]"),
    ],
)
def test_precision_is_that_of_the_product(precision: lax.PrecisionLike, expected: str) -> None:
    params, state = mlax.linear.init(KEY, X, 4, precision=precision)
    text = jax.jit(mlax.linear.apply).lower(params, state, X).as_text()
    assert f"precision = {expected}" in text


@pytest.mark.parametrize("key", [jax.random.key(7), jax.random.PRNGKey(7)], ids=["typed", "raw"])
def test_default_initializer_gets_the_key_as_it_is(key: jax.Array) -> None:
    params, _ = mlax.linear.init(key, X, 4)
    np.testing.assert_array_equal(
        params.kernel, jax.nn.initializers.lecun_normal()(key, (3, 4), jnp.float32)
    )


def test_default_initializer_of_a_transposed_kernel_has_the_same_fans() -> None:
    plain, _ = mlax.linear.init(KEY, X, 4)
    transposed, _ = mlax.linear.init(KEY, X, 4, transposed_kernel=True)
    np.testing.assert_array_equal(transposed.kernel, plain.kernel.T)


@pytest.mark.parametrize("transposed", [False, True])
def test_initializer_gets_the_fans_and_dtype(transposed: bool) -> None:
    calls: list[tuple[object, ...]] = []

    def initializer(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        calls.append((key, shape, jnp.dtype(dtype)))
        return drawn(key, shape, dtype)

    params, _ = mlax.linear.init(
        KEY, X, 4, transposed_kernel=transposed, kernel_initializer=initializer, dtype="float16"
    )
    assert calls == [(KEY, (3, 4), jnp.dtype("float16"))]
    expected = np.asarray(drawn(KEY, (3, 4), "float16"))
    np.testing.assert_array_equal(
        params.kernel, expected.T if transposed else expected, strict=True
    )


@pytest.mark.parametrize("size", [np.int64(4), np.uint8(4), np.array(4)])
def test_out_features_may_be_an_integer_of_numpy(size: Any) -> None:
    layer = mlax.linear(size, kernel_initializer=drawn)
    assert layer == mlax.linear(4, kernel_initializer=drawn)
    assert layer.init(KEY, X)[0].kernel.shape == (3, 4)


def test_gradients() -> None:
    params, state = mlax.linear.init(KEY, X, 4)
    weights = np.arange(8.0).reshape(2, 4)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(mlax.linear.apply(params, state, x)[0] * weights)

    by_params, by_x = jax.grad(loss, (0, 1))(params, X)
    np.testing.assert_allclose(by_params.kernel, exact(X).T @ weights, rtol=1e-5)
    np.testing.assert_allclose(by_x, weights @ exact(params.kernel).T, rtol=1e-5, atol=1e-5)


def test_integers_with_an_integer_kernel() -> None:
    x = jnp.array([1, 2, 3])
    ones = jax.nn.initializers.ones
    params, state = mlax.linear.init(KEY, x, 2, kernel_initializer=ones, dtype=jnp.int32)
    y, _ = mlax.linear.apply(params, state, x)
    np.testing.assert_array_equal(y, np.array([6, 6], np.int32), strict=True)


def test_integers_with_a_floating_kernel_raise() -> None:
    x = jnp.array([1, 2, 3])
    wanted = "^linear: expected x to be of a floating dtype.*float32.*got int32"
    with pytest.raises(TypeError, match=wanted):
        mlax.linear.init(KEY, x, 2)
    with pytest.raises(TypeError, match=wanted):
        mlax.linear.apply(*mlax.linear.init(KEY, x.astype(float), 2), x)


@pytest.mark.parametrize(
    ("hparams", "error", "text"),
    [
        ({"out_features": 0}, ValueError, "out_features to be a positive integer, got 0"),
        ({"out_features": -3}, ValueError, "out_features to be a positive integer, got -3"),
        ({"out_features": 2.0}, TypeError, "out_features to be a positive integer, got 2.0"),
        ({"out_features": True}, TypeError, "out_features to be a positive integer, got True"),
        ({"precision": 3}, TypeError, "precision to be .*, got 3"),
        ({"precision": "exact"}, ValueError, "precision to be .*, got 'exact'"),
        ({"accum_dtype": "float99"}, TypeError, "accum_dtype to be a dtype, got 'float99'"),
        ({"transposed_kernel": "no"}, TypeError, "transposed_kernel to be .*, got 'no'"),
        ({"kernel_initializer": 1.0}, TypeError, "kernel_initializer to be a function, got 1.0"),
        ({"dtype": "float99"}, TypeError, "dtype to be a dtype, got 'float99'"),
    ],
)
def test_wrong_argument_raises(
    hparams: dict[str, Any],  # wrong types on purpose
    error: type[Exception],
    text: str,
) -> None:
    hparams = {"out_features": 2} | hparams
    with pytest.raises(error, match=f"^linear: expected {text}"):
        mlax.linear(**hparams)
    with pytest.raises(error, match=f"^linear: expected {text}"):
        mlax.linear.init(KEY, X, **hparams)


def test_initializer_that_returns_another_shape_raises() -> None:
    with pytest.raises(ValueError, match=r"^linear: .*kernel_initializer .*\(3, 4\), got \(2,\)"):
        mlax.linear.init(KEY, X, 4, kernel_initializer=lambda key, shape, dtype: jnp.ones(2))


def test_scalar_raises() -> None:
    wanted = r"^linear: expected x with at least 1 axis, got shape \(\)"
    with pytest.raises(ValueError, match=wanted):
        mlax.linear.init(KEY, jnp.ones(()), 2)
    with pytest.raises(ValueError, match=wanted):
        mlax.linear.apply(*mlax.linear.init(KEY, X, 2), jnp.ones(()))


@pytest.mark.parametrize("transposed", [False, True])
def test_input_of_another_width_raises(transposed: bool) -> None:
    params, state = mlax.linear.init(KEY, X, 2, transposed_kernel=transposed)
    with pytest.raises(ValueError, match=r"^linear: expected x with 3 features .*got .*\(5, 2\)"):
        mlax.linear.apply(params, state, jnp.ones((5, 2)))


@pytest.mark.parametrize("shape", [(3, 3, 2), (3,), ()])
def test_a_kernel_of_another_rank_raises(shape: tuple[int, ...]) -> None:
    _, state = mlax.linear.init(KEY, X, 2)
    wrong = LinearParams(jnp.ones(shape))
    with pytest.raises(
        ValueError, match="^linear: expected params.kernel to be of 2 axes, got shape"
    ):
        mlax.linear.apply(wrong, state, X)


def test_an_initializer_that_raises_is_named() -> None:
    with pytest.raises(ValueError, match="float dtype") as error:
        mlax.linear.init(KEY, X, 2, dtype=jnp.int32)
    (note,) = error.value.__notes__
    assert note == "linear: kernel_initializer was called for shape (3, 2) and dtype int32"
