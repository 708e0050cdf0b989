"""Tests of `mlax.bias` against NumPy."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from jax.typing import DTypeLike

import mlax
from mlax.arguments import InFeatures

KEY = jax.random.key(0)


def exact(x: jax.Array) -> npt.NDArray[np.float64]:
    return np.asarray(x, np.float64)


def drawn(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """Initialize without a compilation."""
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), dtype)


@pytest.mark.parametrize(
    ("shape", "in_features", "parameter_shape", "broadcast_shape"),
    [
        ((3,), -1, (3,), (3,)),
        ((3,), 3, (3,), (3,)),
        ((3,), np.int64(3), (3,), (3,)),
        ((3,), 1, (1,), (1,)),
        ((3,), 0, (), ()),
        ((3,), [None], (), ()),
        ((3,), [], (), ()),
        ((), (), (), ()),
        ((2, 3), (), (), ()),
        ((1,), -1, (1,), (1,)),
        ((1,), 1, (1,), (1,)),
        ((0,), -1, (0,), (0,)),
        ((2, 3, 4), (0, -1, 0), (3,), (1, 3, 1)),
        ((2, 3, 4), (None, 3, 1), (3, 1), (1, 3, 1)),
        ((2, 3, 4), [2, 1, -1], (2, 1, 4), (2, 1, 4)),
        ((2, 3, 4), (-1, None, -1), (2, 4), (2, 1, 4)),
    ],
)
def test_values(
    shape: tuple[int, ...],
    in_features: InFeatures,
    parameter_shape: tuple[int, ...],
    broadcast_shape: tuple[int, ...],
) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    params, state = mlax.bias.init(KEY, jnp.asarray(x), in_features, drawn)
    y, _ = mlax.bias.apply(params, state, jnp.asarray(x))
    assert params.bias.shape == parameter_shape
    expected = x + np.asarray(params.bias).reshape(broadcast_shape)
    np.testing.assert_allclose(y, expected, rtol=1e-6, strict=True)


def test_starts_at_zero() -> None:
    params, _ = mlax.bias.init(KEY, jnp.ones((2, 3)), (0, -1))
    np.testing.assert_array_equal(params.bias, np.zeros(3, np.float32), strict=True)


@pytest.mark.parametrize(
    ("x_dtype", "dtype"),
    [
        (jnp.float32, jnp.float16),
        (jnp.float16, jnp.float32),
        (jnp.bfloat16, jnp.float32),
        (jnp.bfloat16, jnp.bfloat16),
        (jnp.float32, jnp.int32),
    ],
)
def test_bias_is_cast_to_the_dtype_of_x(x_dtype: DTypeLike, dtype: DTypeLike) -> None:
    x = jnp.array([1.5, -0.25], x_dtype)
    params, state = mlax.bias.init(KEY, x, -1, jax.nn.initializers.constant(3), dtype)
    y, _ = mlax.bias.apply(params, state, x)
    assert params.bias.dtype == dtype
    assert y.dtype == x_dtype
    np.testing.assert_array_equal(exact(y), np.array([1.5, -0.25]) + 3)


def test_integers_with_an_integer_bias() -> None:
    x = jnp.array([1, 2])
    params, state = mlax.bias.init(KEY, x, -1, jax.nn.initializers.constant(3), jnp.int32)
    y, _ = mlax.bias.apply(params, state, x)
    np.testing.assert_array_equal(y, np.array([1, 2], np.int32) + np.int32(3), strict=True)


def test_integers_with_a_floating_bias_raise() -> None:
    wanted = "^bias: expected x to be of a floating dtype.*float32.*got int32"
    with pytest.raises(TypeError, match=wanted):
        mlax.bias.init(KEY, jnp.array([1, 2]), -1)
    with pytest.raises(TypeError, match=wanted):
        mlax.bias.apply(*mlax.bias.init(KEY, jnp.ones(2), -1), jnp.array([1, 2]))


def test_initializer_gets_key_shape_and_dtype() -> None:
    calls: list[tuple[object, ...]] = []

    def initializer(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        calls.append((key, shape, jnp.dtype(dtype)))
        return jnp.full(shape, 2, dtype)

    x = jax.ShapeDtypeStruct((2, 3, 4), jnp.float32)
    params, _ = mlax.bias.init(KEY, x, (-1, 0, 1), initializer, "float16")
    assert calls == [(KEY, (2, 1), jnp.dtype("float16"))]
    np.testing.assert_array_equal(params.bias, np.full((2, 1), 2, np.float16), strict=True)


def test_gradients() -> None:
    x = jnp.array([[0.5, -1.0, 2.0], [1.0, 0.25, -0.5]])
    params, state = mlax.bias.init(KEY, x, (0, -1), drawn)
    weights = np.arange(6.0).reshape(2, 3)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(mlax.bias.apply(params, state, x)[0] * weights)

    by_params, by_x = jax.grad(loss, (0, 1))(params, x)
    np.testing.assert_allclose(by_params.bias, weights.sum(0), rtol=1e-5)
    np.testing.assert_allclose(by_x, weights, rtol=1e-5)


@pytest.mark.parametrize(
    ("hparams", "error", "text"),
    [
        ({"in_features": -2}, ValueError, "in_features to be .*, got -2"),
        ({"in_features": 1.0}, TypeError, "in_features to be .*, got 1.0"),
        ({"in_features": "all"}, TypeError, "in_features to be .*, got 'all'"),
        ({"in_features": (0, True)}, TypeError, "in_features to be .*, got True"),
        ({"bias_initializer": 0}, TypeError, "bias_initializer to be a function, got 0"),
        ({"dtype": "float99"}, TypeError, "dtype to be a dtype, got 'float99'"),
    ],
)
def test_wrong_argument_raises(
    hparams: dict[str, Any],  # wrong types on purpose
    error: type[Exception],
    text: str,
) -> None:
    hparams = {"in_features": (0, -1)} | hparams
    with pytest.raises(error, match=f"^bias: expected {text}"):
        mlax.bias(**hparams)
    with pytest.raises(error, match=f"^bias: expected {text}"):
        mlax.bias.init(KEY, jnp.ones((2, 3)), **hparams)


@pytest.mark.parametrize(
    ("in_features", "got"),
    [
        (-1, "-1"),
        ((0,), r"\(0,\)"),
        ((0, 0, -1), r"\(0, 0, -1\)"),
        ((0, 2), r"\(0, 2\)"),
        ((3, 2), r"\(3, 2\)"),
    ],
)
def test_in_features_that_do_not_fit_raise(in_features: InFeatures, got: str) -> None:
    init, _ = mlax.bias(in_features)
    with pytest.raises(ValueError, match=rf"^bias: expected in_features .*\(2, 3\).*, got {got}"):
        init(KEY, jnp.ones((2, 3)))


def test_initializer_that_returns_another_shape_raises() -> None:
    with pytest.raises(ValueError, match=r"^bias: .*bias_initializer .*\(3,\), got \(2,\)"):
        mlax.bias.init(KEY, jnp.ones(3), -1, lambda key, shape, dtype: jnp.ones(2))


@pytest.mark.parametrize("shape", [(2, 4), (2, 1)])
def test_input_of_another_width_raises(shape: tuple[int, ...]) -> None:
    params, state = mlax.bias.init(KEY, jnp.ones((2, 3)), (0, -1))
    got = str(shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"^bias: expected x .*\(3,\).*, got shape {got}"):
        mlax.bias.apply(params, state, jnp.ones(shape))


def test_input_of_another_rank_raises() -> None:
    params, state = mlax.bias.init(KEY, jnp.ones((2, 3)), (0, -1))
    with pytest.raises(ValueError, match=r"^bias: .*\(3,\)"):
        mlax.bias.apply(params, state, jnp.ones(3))
