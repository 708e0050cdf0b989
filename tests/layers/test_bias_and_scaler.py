"""Tests of `mlax.bias` and `mlax.scaler` against NumPy: what holds for one holds for the other."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from jax.typing import DTypeLike

import mlax
from mlax.types import InFeatures

KEY = jax.random.key(0)


class Kind(NamedTuple):
    """One of the two pairs."""

    name: str
    pair: Any
    """Any: the two have parameters of different types."""
    parameter: str
    """The name of the parameter."""
    initializer: str
    """The name of the argument that makes it."""
    first: float
    """What it begins with."""
    combined: Callable[[Any, Any], Any]
    """y of x and the parameter."""

    def value(self, params: Any) -> Any:
        return getattr(params, self.parameter)


BIAS = Kind("bias", mlax.bias, "bias", "bias_initializer", 0, np.add)
SCALER = Kind("scaler", mlax.scaler, "scale", "scaler_initializer", 1, np.multiply)


@pytest.fixture(params=[BIAS, SCALER], ids=lambda kind: kind.name)
def kind(request: pytest.FixtureRequest) -> Kind:
    made: Kind = request.param
    return made


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
        ((2, 3, 4), np.array([0, -1, 0]), (3,), (1, 3, 1)),
        ((2, 3, 4), (None, 3, 1), (3, 1), (1, 3, 1)),
        ((2, 3, 4), [2, 1, -1], (2, 1, 4), (2, 1, 4)),
        ((2, 3, 4), (-1, None, -1), (2, 4), (2, 1, 4)),
    ],
)
def test_values(
    kind: Kind,
    shape: tuple[int, ...],
    in_features: InFeatures,
    parameter_shape: tuple[int, ...],
    broadcast_shape: tuple[int, ...],
) -> None:
    x = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    params, state = kind.pair.init(KEY, jnp.asarray(x), in_features, drawn)
    y, _ = kind.pair.apply(params, state, jnp.asarray(x))
    assert kind.value(params).shape == parameter_shape
    expected = kind.combined(x, np.asarray(kind.value(params)).reshape(broadcast_shape))
    np.testing.assert_allclose(y, expected, rtol=1e-6, strict=True)


def test_first_value(kind: Kind) -> None:
    params, _ = kind.pair.init(KEY, jnp.ones((2, 3)), (0, -1))
    first = np.full(3, kind.first, np.float32)
    np.testing.assert_array_equal(kind.value(params), first, strict=True)


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
def test_parameter_is_cast_to_the_dtype_of_x(
    kind: Kind, x_dtype: DTypeLike, dtype: DTypeLike
) -> None:
    x = jnp.array([1.5, -0.25], x_dtype)
    params, state = kind.pair.init(KEY, x, -1, jax.nn.initializers.constant(3), dtype)
    y, _ = kind.pair.apply(params, state, x)
    assert kind.value(params).dtype == dtype
    assert y.dtype == x_dtype
    np.testing.assert_array_equal(exact(y), kind.combined(np.array([1.5, -0.25]), 3))


def test_integers_with_an_integer_parameter(kind: Kind) -> None:
    x = jnp.array([1, 2])
    params, state = kind.pair.init(KEY, x, -1, jax.nn.initializers.constant(3), jnp.int32)
    y, _ = kind.pair.apply(params, state, x)
    expected = kind.combined(np.array([1, 2], np.int32), np.int32(3))
    np.testing.assert_array_equal(y, expected, strict=True)


def test_integers_with_a_floating_parameter_raise(kind: Kind) -> None:
    wanted = f"^{kind.name}: expected x to be of a floating dtype.*float32.*got int32"
    with pytest.raises(TypeError, match=wanted):
        kind.pair.init(KEY, jnp.array([1, 2]), -1)
    with pytest.raises(TypeError, match=wanted):
        kind.pair.apply(*kind.pair.init(KEY, jnp.ones(2), -1), jnp.array([1, 2]))


def test_initializer_gets_key_shape_and_dtype(kind: Kind) -> None:
    calls: list[tuple[object, ...]] = []

    def initializer(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        calls.append((key, shape, jnp.dtype(dtype)))
        return jnp.full(shape, 2, dtype)

    x = jax.ShapeDtypeStruct((2, 3, 4), jnp.float32)
    params, _ = kind.pair.init(KEY, x, (-1, 0, 1), initializer, "float16")
    assert calls == [(KEY, (2, 1), jnp.dtype("float16"))]
    np.testing.assert_array_equal(kind.value(params), np.full((2, 1), 2, np.float16), strict=True)


def test_gradients(kind: Kind) -> None:
    x = jnp.array([[0.5, -1.0, 2.0], [1.0, 0.25, -0.5]])
    params, state = kind.pair.init(KEY, x, (0, -1), drawn)
    weights = np.arange(6.0).reshape(2, 3)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(kind.pair.apply(params, state, x)[0] * weights)

    by_params, by_x = jax.grad(loss, (0, 1))(params, x)
    factor, wanted_by_x = (1, weights) if kind is BIAS else (x, weights * exact(params.scale))
    np.testing.assert_allclose(kind.value(by_params), (weights * factor).sum(0), rtol=1e-5)
    np.testing.assert_allclose(by_x, wanted_by_x, rtol=1e-5)


@pytest.mark.parametrize(
    ("hparams", "error", "text"),
    [
        ({"in_features": -2}, ValueError, "in_features to be .*, got -2"),
        ({"in_features": 1.0}, TypeError, "in_features to be .*, got 1.0"),
        ({"in_features": "all"}, TypeError, "in_features to be .*, got 'all'"),
        ({"in_features": (0, True)}, TypeError, "in_features to be .*, got True"),
        ({"dtype": "float99"}, TypeError, "dtype to be a dtype, got 'float99'"),
    ],
)
def test_wrong_argument_raises(
    kind: Kind,
    hparams: dict[str, Any],  # wrong types on purpose
    error: type[Exception],
    text: str,
) -> None:
    hparams = {"in_features": (0, -1)} | hparams
    with pytest.raises(error, match=f"^{kind.name}: expected {text}"):
        kind.pair(**hparams)
    with pytest.raises(error, match=f"^{kind.name}: expected {text}"):
        kind.pair.init(KEY, jnp.ones((2, 3)), **hparams)


def test_an_initializer_that_is_no_function_raises(kind: Kind) -> None:
    wanted = f"^{kind.name}: expected {kind.initializer} to be a function, got 0"
    with pytest.raises(TypeError, match=wanted):
        kind.pair(-1, **{kind.initializer: 0})


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
def test_in_features_that_do_not_fit_raise(kind: Kind, in_features: InFeatures, got: str) -> None:
    init, _ = kind.pair(in_features)
    wanted = rf"^{kind.name}: expected in_features .*\(2, 3\).*, got {got}"
    with pytest.raises(ValueError, match=wanted):
        init(KEY, jnp.ones((2, 3)))


def test_initializer_that_returns_another_shape_raises(kind: Kind) -> None:
    wanted = rf"^{kind.name}: .*{kind.initializer} .*\(3,\), got \(2,\)"
    with pytest.raises(ValueError, match=wanted):
        kind.pair.init(KEY, jnp.ones(3), -1, lambda key, shape, dtype: jnp.ones(2))


@pytest.mark.parametrize("shape", [(2, 4), (2, 1)])
def test_input_of_another_width_raises(kind: Kind, shape: tuple[int, ...]) -> None:
    params, state = kind.pair.init(KEY, jnp.ones((2, 3)), (0, -1))
    got = str(shape).replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(ValueError, match=rf"^{kind.name}: expected x .*\(3,\).*, got shape {got}"):
        kind.pair.apply(params, state, jnp.ones(shape))


def test_input_of_another_rank_raises(kind: Kind) -> None:
    params, state = kind.pair.init(KEY, jnp.ones((2, 3)), (0, -1))
    with pytest.raises(ValueError, match=rf"^{kind.name}: .*\(3,\)"):
        kind.pair.apply(params, state, jnp.ones(3))
