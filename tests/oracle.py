"""Comparing a layer with the same thing written out plainly, gradients included."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mlax import Layer

KEY = jax.random.key(0)


def normal(*shape: int, seed: int = 0) -> jax.Array:
    """Return numbers of both signs."""
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def randomized(tree: Any) -> Any:
    """Return the tree with different numbers, so that no scale is 1 and no bias 0."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype), tree)


def assert_close(got: Any, wanted: Any) -> None:
    """Require two trees of numbers to agree to 1e-5."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def outputs_and_gradients(function: Callable[..., Any], *arguments: Any) -> tuple[Any, Any]:
    """Return the value, and the gradients of a weighted sum of it."""

    def weighted(*arguments: Any) -> tuple[jax.Array, Any]:
        y = function(*arguments)
        leaves = jax.tree.leaves(y)
        total = sum((jnp.sum(leaf * normal(*leaf.shape, seed=2)) for leaf in leaves), jnp.zeros(()))
        return total, y

    positions = tuple(range(len(arguments)))
    (_, y), gradients = jax.jit(jax.value_and_grad(weighted, positions, has_aux=True))(*arguments)
    return y, gradients


def assert_layer_equals(
    layer: Layer[Any, Any, Any, Any], oracle: Callable[[Any, Any], Any], x: Any
) -> None:
    """Require that apply agrees with `oracle(params, x)`, and so do their gradients."""
    params, state = layer.init(KEY, x)
    params = randomized(params)
    got = outputs_and_gradients(lambda params, x: layer.apply(params, state, x)[0], params, x)
    assert_close(got, outputs_and_gradients(oracle, params, x))


def cast(tree: Any, dtype: Any) -> Any:
    """Return the tree in another dtype."""
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tree)
