"""Tests of `mlax.residual`: values, gradients, keys, variables and errors."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import Key, Layer

KEY = jax.random.key(0)
X = jnp.array([1.0, -2.0, 0.5])
# Any: layers of all kinds side by side.
AnyLayer = Layer[Any, Any, Any, Any]


def notes(error: pytest.ExceptionInfo[BaseException]) -> list[str]:
    """Return the paths noted on an error."""
    return [n for n in getattr(error.value, "__notes__", []) if n.startswith("in ")]


def test_values() -> None:
    model = mlax.residual(mlax.series(mlax.linear(3), mlax.f(jnp.tanh)))
    params, state = model.init(KEY, X)
    ((linear, _),) = params
    y, after = model.apply(params, state, X)
    x = np.asarray(X)
    np.testing.assert_allclose(y, x + np.tanh(x @ np.asarray(linear.kernel)), rtol=1e-5)
    assert after == state


def test_values_with_a_shortcut() -> None:
    model = mlax.residual(mlax.linear(2), mlax.linear(2))
    params, state = model.init(KEY, X)
    y, _ = model.apply(params, state, X)
    main, around = (np.asarray(p.kernel) for p in params)
    assert not np.array_equal(main, around)
    np.testing.assert_allclose(y, np.asarray(X) @ around + np.asarray(X) @ main, rtol=1e-5)


def test_inputs_may_be_pytrees() -> None:
    inner: AnyLayer = mlax.f(lambda x: {"a": 2 * x["a"], "b": (x["b"][0] + 1,)})
    model = mlax.residual(inner, at="a")
    x = {"a": X, "b": (jnp.ones((2, 2)),)}
    params, state = model.init(KEY, x)
    y, _ = model.apply(params, state, x)
    np.testing.assert_allclose(y["a"], 3 * np.asarray(X))
    np.testing.assert_allclose(y["b"][0], np.full((2, 2), 2.0))
    with pytest.raises(TypeError, match=r"^residual: .* a dict; .*at="):
        mlax.residual(inner).init(KEY, x)


class Masked(NamedTuple):
    """Features and their mask."""

    x: jax.Array
    """The features."""
    mask: jax.Array
    """Whether each counts."""


def test_the_entry_that_is_added() -> None:
    mask = jnp.array([True, False, True])

    def double(pair: Any) -> Any:
        doubled = 2 * pair[0], pair[1]
        return Masked(*doubled) if isinstance(pair, Masked) else doubled

    model: AnyLayer = mlax.repeat(mlax.residual(mlax.f(double), at=0), 3)
    for x in ((X, mask), Masked(X, mask)):
        params, state = model.init(KEY, x)
        y, _ = model.apply(params, state, x)
        assert type(y) is type(x)
        np.testing.assert_allclose(y[0], 27 * np.asarray(X))
        np.testing.assert_array_equal(y[1], mask)
    with pytest.raises(TypeError, match="^residual: expected x to be .* the entry 2, got a tuple"):
        mlax.residual(mlax.f(double), at=2).init(KEY, (X, mask))
    with pytest.raises(TypeError, match="^residual: expected x to be .* the entry 'x', got an? "):
        mlax.residual(mlax.f(jnp.sin), at="x").init(KEY, X)


def test_a_mask_that_is_passed_on_is_not_added() -> None:
    model: AnyLayer = mlax.repeat(mlax.residual(mlax.f(lambda pair: (2 * pair[0], pair[1]))), 3)
    with pytest.raises(TypeError, match="^residual: .*at=0") as error:
        model.init(KEY, (X, jnp.ones(3)))
    assert notes(error) == ["in repeat > residual"]


def test_gradients_are_those_of_plain_jax() -> None:
    model = mlax.residual(mlax.linear(2), mlax.linear(2))
    params, state = model.init(KEY, X)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(model.apply(params, state, x)[0] ** 2)

    def plain(kernels: Any, x: jax.Array) -> jax.Array:
        return jnp.sum((x @ kernels[1] + x @ kernels[0]) ** 2)

    (main, around), dx = jax.jit(jax.grad(loss, (0, 1)))(params, X)
    kernels = (params[0].kernel, params[1].kernel)
    expected, expected_dx = jax.jit(jax.grad(plain, (0, 1)))(kernels, X)
    np.testing.assert_allclose(main.kernel, expected[0], rtol=1e-5)
    np.testing.assert_allclose(around.kernel, expected[1], rtol=1e-5)
    np.testing.assert_allclose(dx, expected_dx, rtol=1e-5)


def test_keys() -> None:
    seen: list[Any] = []

    def spy(x: jax.Array, rng: jax.Array) -> jax.Array:
        seen.append(rng)
        return x

    noisy: AnyLayer = mlax.f_rng(spy)
    folded = [jax.random.fold_in(KEY, i) for i in range(2)]
    models: list[tuple[AnyLayer, list[Key]]] = [
        (mlax.residual(noisy), [KEY]),
        (mlax.residual(mlax.bias(-1), noisy), [KEY]),
        (mlax.residual(noisy, noisy), folded),
    ]
    for model, expected in models:
        params, state = model.init(KEY, X)
        seen.clear()
        model.apply(params, state, X, KEY)
        assert seen == expected
        assert mlax.needs_rng(model.apply)
    assert not mlax.needs_rng(mlax.residual(mlax.bias(-1), mlax.linear(3)).apply)
    made = mlax.residual(mlax.linear(3), mlax.linear(3)).init(KEY, X)[0]
    for key, child in zip(folded, made, strict=True):
        np.testing.assert_array_equal(child.kernel, mlax.linear(3).init(key, X)[0].kernel)


def test_statistics_of_both_ways() -> None:
    x = np.random.default_rng(0).normal(3, 2, (8, 3)).astype(np.float32)
    model: AnyLayer = mlax.residual(
        mlax.series(mlax.f(lambda x: 2 * x), mlax.z_norm(())), mlax.z_norm(())
    )
    params, state = model.init(KEY, X)
    y, after = jax.vmap(
        lambda x: model.apply(params, state, x, batch_axis_name="batch"),
        axis_name="batch",
        out_axes=(0, None),
    )(jnp.asarray(x))
    centred = x - x.mean(0)
    expected = centred / np.sqrt(x.var(0) + 1e-5) + 2 * centred / np.sqrt(4 * x.var(0) + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    (_, main), around = after.variables
    np.testing.assert_allclose(main.mean, 0.1 * 2 * x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(around.mean, 0.1 * x.mean(0), rtol=1e-5)


@pytest.mark.parametrize(
    ("layers", "got"),
    [
        ((mlax.linear(2),), r"float32\[3\], got float32\[2\]"),
        ((mlax.linear(2), mlax.linear(4)), r"float32\[4\], got float32\[2\]"),
        ((mlax.f(lambda x: x.astype(jnp.bfloat16)),), r"float32\[3\], got bfloat16\[3\]"),
        ((mlax.f(lambda x: x[None]),), r"float32\[3\], got float32\[1, 3\]"),
    ],
)
def test_results_that_differ_raise(layers: Any, got: str) -> None:  # wrong types on purpose
    wanted = rf"^residual: expected the output .* {got}; .*residual\(layer, shortcut\)"
    with pytest.raises(ValueError, match=wanted):
        mlax.residual(*layers).init(KEY, X)


def test_an_input_that_would_broadcast_raises() -> None:
    model: AnyLayer = mlax.residual(mlax.f(lambda x: jnp.broadcast_to(x.sum(), (3,))))
    params, state = model.init(KEY, X)
    with pytest.raises(ValueError, match=r"^residual: .*float32\[1\], got float32\[3\]"):
        model.apply(params, state, X[:1])


def test_errors_have_the_path() -> None:
    with pytest.raises(ValueError, match="^linear: ") as error:
        mlax.residual(mlax.f(jnp.sin), mlax.linear(3)).init(KEY, jnp.ones(()))
    assert notes(error) == ["in residual[1] > linear"]
    with pytest.raises(ValueError, match="^residual: ") as error:
        mlax.series(mlax.bias(-1), mlax.residual(mlax.linear(2))).init(KEY, X)
    assert notes(error) == ["in series[1] > residual"]
