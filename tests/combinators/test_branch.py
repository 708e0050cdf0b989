"""Tests of `mlax.branch`: values, keys, variables and errors."""

from typing import Any

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
    model = mlax.branch(mlax.linear(2), mlax.f(jnp.negative), mlax.linear(4))
    params, state = model.init(KEY, X)
    y, after = model.apply(params, state, X)
    assert isinstance(y, tuple)
    assert len(y) == 3
    for out, made in ((y[0], params[0]), (y[2], params[2])):
        np.testing.assert_allclose(out, np.asarray(X) @ np.asarray(made.kernel), rtol=1e-5)
    np.testing.assert_array_equal(y[1], -np.asarray(X))
    assert params[1] == ()
    assert after == state


def test_bare_pair_and_no_layers() -> None:
    params, state = mlax.branch.init(KEY, X, mlax.linear(2), mlax.bias(-1))
    bound = mlax.branch(mlax.linear(2), mlax.bias(-1)).init(KEY, X)
    assert jax.tree.structure((params, state)) == jax.tree.structure(bound)
    y, _ = mlax.branch.apply(params, state, X)
    np.testing.assert_allclose(y[0], np.asarray(X) @ np.asarray(params[0].kernel), rtol=1e-5)
    none = mlax.branch()
    empty, state = none.init(KEY, X)
    assert empty == ()
    assert none.apply(empty, state, X)[0] == ()


def test_a_u_net_like_skip() -> None:
    down_up: AnyLayer = mlax.series(mlax.linear(2), mlax.f(jnp.tanh), mlax.linear(3))
    model = mlax.series(mlax.branch(mlax.f(jnp.copy), down_up), mlax.concatenate(), mlax.linear(1))
    params, state = model.init(KEY, X)

    def plain(kernels: Any, x: jax.Array) -> jax.Array:
        inner = jnp.tanh(x @ kernels[0]) @ kernels[1]
        return jnp.matmul(jnp.concatenate([x, inner]), kernels[2])

    kernels = jax.tree.leaves(params)
    assert [kernel.shape for kernel in kernels] == [(3, 2), (2, 3), (6, 1)]
    np.testing.assert_allclose(model.apply(params, state, X)[0], plain(kernels, X), rtol=1e-5)
    grads = jax.grad(lambda p: model.apply(p, state, X)[0].sum())(params)
    expected = jax.grad(lambda k: plain(k, X).sum())(kernels)
    for grad, other in zip(jax.tree.leaves(grads), expected, strict=True):
        np.testing.assert_allclose(grad, other, rtol=1e-5)


def test_gradients_of_the_input_are_summed() -> None:
    model = mlax.branch(mlax.f(lambda x: 2 * x), mlax.f(lambda x: 3 * x))
    params, state = model.init(KEY, X)
    grad = jax.grad(lambda x: sum(y.sum() for y in model.apply(params, state, x)[0]))(X)
    np.testing.assert_array_equal(grad, [5.0, 5.0, 5.0])


def test_keys() -> None:
    seen: list[Any] = []

    def spy(x: jax.Array, rng: jax.Array) -> jax.Array:
        seen.append(rng)
        return x

    noisy: AnyLayer = mlax.f_rng(spy)
    folded = [jax.random.fold_in(KEY, i) for i in range(2)]
    models: list[tuple[AnyLayer, list[Key]]] = [
        (mlax.branch(mlax.bias(-1), noisy), [KEY]),
        (mlax.branch(noisy, mlax.bias(-1), noisy), folded),
        (mlax.branch(z=noisy, a=noisy), folded),
    ]
    for model, expected in models:
        params, state = model.init(KEY, X)
        seen.clear()
        model.apply(params, state, X, KEY)
        assert seen == expected
    made = mlax.branch(mlax.linear(2), mlax.linear(2)).init(KEY, X)[0]
    for key, child in zip(folded, made, strict=True):
        np.testing.assert_array_equal(child.kernel, mlax.linear(2).init(key, X)[0].kernel)


def test_every_layer_keeps_its_own_statistics() -> None:
    x = np.random.default_rng(0).normal(3, 2, (8, 3)).astype(np.float32)
    model = mlax.branch(mlax.z_norm(0), mlax.f(jnp.sin), mlax.z_norm(1))
    params, state = model.init(KEY, jnp.zeros((8, 3)))
    y, after = model.apply(params, state, jnp.asarray(x))
    for i, axis in ((0, 0), (2, 1)):
        variables: Any = after.variables[i]
        np.testing.assert_allclose(variables.mean, 0.1 * x.mean(axis), rtol=1e-5)
        spread = np.sqrt(x.var(axis, keepdims=True) + 1e-5)
        expected = (x - x.mean(axis, keepdims=True)) / spread
        np.testing.assert_allclose(y[i], expected, rtol=1e-4, atol=1e-5)


def test_errors_have_the_path() -> None:
    model = mlax.branch(mlax.f(jnp.sin), mlax.linear(2))
    with pytest.raises(ValueError, match="^linear: ") as error:
        model.init(KEY, jnp.ones(()))
    assert notes(error) == ["in branch[1] > linear"]
    params, state = model.init(KEY, X)
    short: Any = params[:1]  # wrong types on purpose
    with pytest.raises(ValueError, match="^branch: expected params .* 2 entries.*, got 1 entries"):
        model.apply(short, state, X)
