"""Tests of `mlax.add`, `mlax.multiply` and `mlax.concatenate`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import Layer

KEY = jax.random.key(0)
A, B = jnp.array([[1.0, 2.0], [3.0, 4.0]]), jnp.array([[10.0, 20.0], [30.0, 40.0]])
# Any: layers of all kinds side by side.
AnyLayer = Layer[Any, Any, Any, Any]


def run(layer: AnyLayer, x: Any) -> jax.Array:
    """Return the output of a layer that is initialised for x."""
    y, _ = layer.apply(*layer.init(KEY, x), x)
    assert isinstance(y, jax.Array)
    return y


@pytest.mark.parametrize("x", [(A, B, A), [A, B, A], {"z": A, "a": B, "m": A}], ids=type)
def test_add(x: Any) -> None:
    np.testing.assert_array_equal(run(mlax.add(), x), [[12, 24], [36, 48]])
    assert mlax.add().init(KEY, x)[0] == ()


def test_add_of_one_entry_and_of_half_precision() -> None:
    np.testing.assert_array_equal(run(mlax.add(), (A,)), A)
    assert run(mlax.add(), (A.astype(jnp.bfloat16), B.astype(jnp.bfloat16))).dtype == jnp.bfloat16


@pytest.mark.parametrize("x", [(A, B, A), [A, B, A], {"z": A, "a": B, "m": A}], ids=type)
def test_multiply(x: Any) -> None:
    np.testing.assert_array_equal(run(mlax.multiply(), x), [[10, 80], [270, 640]])
    assert mlax.multiply().init(KEY, x)[0] == ()


def test_multiply_of_one_entry_and_of_half_precision() -> None:
    np.testing.assert_array_equal(run(mlax.multiply(), (A,)), A)
    halves = (A.astype(jnp.bfloat16), B.astype(jnp.bfloat16))
    assert run(mlax.multiply(), halves).dtype == jnp.bfloat16


def test_a_gated_unit() -> None:
    layers: AnyLayer = mlax.branch(mlax.linear(3), mlax.series(mlax.linear(3), mlax.f(jnp.tanh)))
    model = mlax.series(layers, mlax.multiply())
    params, state = model.init(KEY, A)
    y, _ = jax.jit(model.apply)(params, state, A)
    value, (gate, _) = params[0]
    expected = (A @ value.kernel) * np.tanh(A @ gate.kernel)
    np.testing.assert_allclose(y, expected, rtol=1e-5)


@pytest.mark.parametrize("axis", [0, 1, -1, -2])
def test_concatenate(axis: int) -> None:
    expected = np.concatenate([A, B], axis)
    np.testing.assert_array_equal(run(mlax.concatenate(axis), (A, B)), expected)
    np.testing.assert_array_equal(run(mlax.concatenate(axis=axis), [A, B]), expected)


def test_concatenate_joins_the_last_axis_by_default() -> None:
    np.testing.assert_array_equal(run(mlax.concatenate(), (A, B[:, :1])), [[1, 2, 10], [3, 4, 30]])


def test_the_order_of_a_dict_is_the_same_wherever_it_comes_from() -> None:
    branch: AnyLayer = mlax.branch(z=mlax.f(lambda x: x), a=mlax.f(lambda x: 10 * x))
    join: AnyLayer = mlax.concatenate()
    x = jnp.array([1.0, 2.0])
    expected = run(mlax.series(branch, join), x)
    np.testing.assert_array_equal(run(mlax.series(mlax.remat(branch), join), x), expected)
    params, state = join.init(KEY, {"z": x, "a": 10 * x})
    eager, _ = join.apply(params, state, {"z": x, "a": 10 * x})
    jitted, _ = jax.jit(join.apply)(params, state, {"z": x, "a": 10 * x})
    np.testing.assert_array_equal(eager, expected)
    np.testing.assert_array_equal(jitted, eager)


@pytest.mark.parametrize(
    ("layer", "x", "error", "message"),
    [
        (mlax.add(), A, TypeError, "add: expected x to be a tuple or dict"),
        (mlax.add(), (), ValueError, "add: expected x to be at least one array"),
        (mlax.add(), (A, B[0]), ValueError, r"add: expected .*\(2, 2\), \(2,\)"),
        (mlax.add(), ((A, B), (A, B)), TypeError, "add: expected x .*, got a tuple among them"),
        (mlax.multiply(), A, TypeError, "multiply: expected x to be a tuple or dict"),
        (mlax.multiply(), {}, ValueError, "multiply: expected x to be at least one array"),
        (mlax.multiply(), (A, B[0]), ValueError, r"multiply: expected .*\(2, 2\), \(2,\)"),
        (mlax.concatenate(), A, TypeError, "concatenate: expected x to be a tuple or dict"),
        (mlax.concatenate(), {}, ValueError, "concatenate: expected x to be at least one"),
        (mlax.concatenate(0), (A, B[:, :1]), ValueError, r"concatenate: .*\(2, 2\), \(2, 1\)"),
        (mlax.concatenate(), (A, B[0]), ValueError, r"concatenate: .*\(2, 2\), \(2,\)"),
        (mlax.concatenate(2), (A, B), ValueError, r"concatenate: expected axis .* got 2"),
    ],
)
def test_what_does_not_fit_raises(
    layer: AnyLayer,
    x: Any,  # wrong types on purpose
    error: type[Exception],
    message: str,
) -> None:
    with pytest.raises(error, match=f"^{message}"):
        layer.init(KEY, x)
    _, state = layer.init(KEY, (A, A) if "concatenate(axis=2)" not in repr(layer) else (A[None],))
    with pytest.raises(error, match=f"^{message}|as in init"):
        layer.apply((), state, x)


def test_an_axis_is_an_integer() -> None:
    wrong: Any = 0.5  # wrong types on purpose
    with pytest.raises(TypeError, match="^concatenate: expected axis to be an integer, got 0.5"):
        mlax.concatenate(wrong)


def test_a_batch_is_not_concatenated_along_its_batch_axis() -> None:
    batch = (jnp.stack([A, A]), jnp.stack([B, B]))
    for layer in (mlax.concatenate(0), mlax.concatenate(1)):
        params, state = layer.init(KEY, (A, B))
        with pytest.raises(ValueError, match=r"^concatenate: expected x with 2, 2 axes, .*batched"):
            layer.apply(params, state, batch)
    _, state = mlax.concatenate().init(KEY, (A, B))
    assert mlax.concatenate().apply((), state, batch)[0].shape == (2, 2, 4)
