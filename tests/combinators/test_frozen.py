"""Tests of `mlax.frozen`: inference inside training, and no gradient to the parameters."""

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import Layer

KEY = jax.random.key(0)
X = jnp.array([1.0, -2.0, 0.5])
# Any: layers of all kinds side by side.
AnyLayer = Layer[Any, Any, Any, Any]
BACKBONE: AnyLayer = mlax.series(
    mlax.linear(3), mlax.batch_norm(), mlax.f(jnp.tanh), mlax.dropout(0.5, 0)
)


def test_it_runs_in_inference_and_keeps_its_state() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (8, 3)), jnp.float32)
    model = mlax.batched(mlax.frozen(BACKBONE))
    assert not model.needs_rng
    params, state = model.init(KEY, x)
    y, after = model.apply(params, state, x)
    kernel = np.asarray(params[0].kernel)
    np.testing.assert_allclose(y, np.tanh(x @ kernel / np.sqrt(1 + 1e-5)), rtol=1e-4, atol=1e-5)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(old, new)
    for rng, inference_mode in ((KEY, False), (None, True)):
        z, _ = model.apply(params, state, x, rng, inference_mode)
        np.testing.assert_array_equal(z, y)


def test_parameters_and_variables_are_those_of_the_layer() -> None:
    params, state = mlax.frozen(BACKBONE).init(KEY, X)
    alone, state_alone = BACKBONE.init(jax.random.fold_in(KEY, 0), X)
    assert jax.tree.structure(params) == jax.tree.structure(alone)
    for leaf, other in zip(jax.tree.leaves(params), jax.tree.leaves(alone), strict=True):
        np.testing.assert_array_equal(leaf, other)
    assert jax.tree.structure(state.variables) == jax.tree.structure(state_alone.variables)


def test_gradients_stop_at_the_parameters_and_pass_to_x() -> None:
    model = mlax.series(mlax.frozen(mlax.dense(3)), mlax.dense(2))
    params, state = model.init(KEY, X)
    trained = params[1]._replace(kernel=params[1].kernel + 1)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(model.apply(params, state, x)[0])

    grads, grad_x = jax.grad(loss, (0, 1))((params[0], trained), X)
    for leaf in jax.tree.leaves(grads[0]):
        np.testing.assert_array_equal(leaf, np.zeros(leaf.shape))
    hidden = np.asarray(X) @ np.asarray(params[0].kernel)
    np.testing.assert_allclose(grads[1].kernel, np.stack([hidden, hidden], 1), rtol=1e-5)
    expected = np.asarray(params[0].kernel) @ np.asarray(trained.kernel).sum(1)
    np.testing.assert_allclose(grad_x, expected, rtol=1e-5)


def test_a_key_is_for_the_others_alone() -> None:
    model = mlax.series(mlax.frozen(mlax.dropout(0.5, 0)), mlax.dropout(0.5, 0))
    x = jnp.ones(64)
    params, state = model.init(KEY, x)
    y, _ = model.apply(params, state, x, KEY)
    drop = mlax.dropout(0.5, 0)
    expected, _ = drop.apply(*drop.init(KEY, x), x, KEY)
    np.testing.assert_array_equal(y, expected)


def test_pickle_repr_and_errors() -> None:
    layer = mlax.frozen(mlax.linear(3))
    assert repr(layer) == "frozen(linear(3))"
    assert pickle.loads(pickle.dumps(layer)) == layer
    params, state = layer.init(KEY, X)
    assert pickle.loads(pickle.dumps(state)) == state
    model = mlax.series(stem=layer)
    params_of_model, state_of_model = model.init(KEY, X)
    with pytest.raises(ValueError, match="^linear: expected x with 3 features") as error:
        model.apply(params_of_model, state_of_model, X[:2])
    assert "in series > stem > linear" in error.value.__notes__
