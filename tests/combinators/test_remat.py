"""Tests of `mlax.remat`: results and gradients stay the same, and the program recomputes."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import Key, Layer

KEY = jax.random.key(0)
RNG = jax.random.key(1)
X = jnp.array([1.0, -2.0, 0.5])
# Any: layers of all kinds side by side.
AnyLayer = Layer[Any, Any, Any, Any]


def number(rng: Key) -> jax.Array:
    """Return a number in [0, 1) that differs from key to key, and is cheap to compile."""
    return jax.random.key_data(rng)[-1] % 997 / 997


def noisy(x: jax.Array, rng: jax.Array) -> jax.Array:
    """Return x with noise."""
    return x + number(rng)


LAYER: AnyLayer = mlax.series(
    mlax.linear(4), mlax.f_rng(noisy), mlax.f(jnp.tanh), mlax.z_norm(0), mlax.linear(2)
)


def plain(kernels: tuple[jax.Array, jax.Array], x: jax.Array) -> jax.Array:
    """Return the output of the layer for x."""
    hidden = jnp.tanh(noisy(x @ kernels[0], RNG))
    spread = jnp.sqrt(hidden.var() + 1e-5)
    return jnp.matmul((hidden - hidden.mean()) / spread, kernels[1])


@pytest.mark.parametrize("policy", [None, jax.checkpoint_policies.dots_saveable])
def test_results_and_gradients(policy: Any) -> None:
    model = mlax.remat(LAYER, policy=policy)
    params, state = model.init(KEY, X)
    kernels = (params[0].kernel, params[4].kernel)

    def loss(params: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        y, after = model.apply(params, state, x, RNG)
        return jnp.sum(y**2), after

    (value, after), grads = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, X)
    expected, expected_grads = jax.jit(
        jax.value_and_grad(lambda kernels, x: jnp.sum(plain(kernels, x) ** 2), (0, 1))
    )(kernels, X)
    np.testing.assert_allclose(value, expected, rtol=1e-4)
    for leaf, other in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-3, atol=1e-5)
    hidden = np.tanh(np.asarray(noisy(X @ kernels[0], RNG)))
    np.testing.assert_allclose(after.variables[3].mean, 0.1 * hidden.mean(), rtol=1e-4)


def test_the_layer_has_the_parameters_of_an_only_child() -> None:
    params, _ = mlax.remat(mlax.linear(2)).init(KEY, X)
    expected, _ = mlax.linear(2).init(jax.random.fold_in(KEY, 0), X)
    np.testing.assert_array_equal(params.kernel, expected.kernel)
    assert mlax.needs_rng(mlax.remat(LAYER).apply)
    assert not mlax.needs_rng(mlax.remat(mlax.linear(2)).apply)


def test_the_backward_pass_computes_again() -> None:
    def program(layer: AnyLayer) -> str:
        params, state = layer.init(KEY, X)
        grad = jax.grad(lambda p: layer.apply(p, state, X, RNG)[0].sum())
        return str(jax.make_jaxpr(grad)(params))

    asked: list[str] = []

    def policy(primitive: Any, *_: Any, **__: Any) -> bool:
        asked.append(str(primitive))
        return str(primitive) == "tanh"

    assert program(LAYER).count("tanh") == 1
    assert program(mlax.remat(LAYER)).count("tanh") == 2
    assert program(mlax.remat(LAYER, policy=policy)).count("tanh") == 1
    assert "dot_general" in asked
    assert "remat" in program(mlax.remat(LAYER))
    assert "remat" not in program(LAYER)


def test_inference_and_inputs_that_are_pytrees() -> None:
    layer: AnyLayer = mlax.remat(mlax.parallel(a=mlax.linear(2), b=mlax.dropout(0.5, 0)))
    x = {"a": X, "b": X}
    params, state = layer.init(KEY, x)
    y, after = layer.apply(params, state, x, inference_mode=True)
    np.testing.assert_allclose(y["a"], np.asarray(X) @ np.asarray(params["a"].kernel), rtol=1e-5)
    np.testing.assert_array_equal(y["b"], X)
    assert after == state


def test_a_policy_is_a_function() -> None:
    wrong: Any = "dots"  # wrong types on purpose
    with pytest.raises(TypeError, match="^remat: expected policy to be a function, got 'dots'"):
        mlax.remat(mlax.linear(2), policy=wrong)
