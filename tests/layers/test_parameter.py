"""Tests of `mlax.parameter`: a trained array."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import DTypeLike

import mlax
from mlax.types import Sublayers

KEY = jax.random.key(0)


def drawn(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """Initialize with normal numbers."""
    return jax.random.normal(key, shape, dtype)


@pytest.mark.parametrize("x", [None, 1.0, jnp.ones(3), {"a": (jnp.ones(2),)}])
@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((), ()), ((2, 3), (2, 3)), ([np.int64(4)], (4,)), (5, (5,)), ((0, 2), (0, 2))],
)
def test_value(x: Any, shape: Any, wanted: tuple[int, ...]) -> None:
    params, state = mlax.parameter(shape, drawn).init(KEY, x)
    y, after = mlax.parameter.apply(params, state, x)
    assert mlax.paths(params) == ["value"]
    np.testing.assert_array_equal(y, drawn(KEY, wanted, jnp.float32), strict=True)
    assert after == state
    assert jax.tree.leaves(state) == []


def test_zeros_in_a_dtype() -> None:
    params, state = mlax.parameter.init(KEY, None, (2,), dtype=jnp.bfloat16)
    y, _ = mlax.parameter.apply(params, state, None)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, np.zeros(2))


def test_a_class_token_and_positions() -> None:
    @mlax.block(token=mlax.parameter((1, 4), drawn), positions=mlax.parameter((10, 4), drawn))
    def tokens(sub: Sublayers, patches: Any) -> Any:
        return jnp.concatenate([sub.token(), patches]) + sub.positions()

    patches = jnp.ones((9, 4))
    params, state = tokens.init(KEY, patches)
    y, _ = tokens.apply(params, state, patches)
    positions = np.asarray(params["positions"].value)
    wanted = np.concatenate([params["token"].value, patches]) + positions
    np.testing.assert_array_equal(y, wanted)
    weights = jnp.arange(40.0).reshape(10, 4)
    grads = jax.grad(lambda p: jnp.sum(weights * tokens.apply(p, state, patches)[0]))(params)
    np.testing.assert_array_equal(grads["token"].value, weights[:1])
    np.testing.assert_array_equal(grads["positions"].value, weights)


def test_wrong_arguments_raise() -> None:
    wrong: Any
    for wrong in ("3", 2.5, (2, None)):
        with pytest.raises(TypeError, match="^parameter: expected shape to be "):
            mlax.parameter(wrong)
    with pytest.raises(ValueError, match="^parameter: expected shape to be .*, got "):
        mlax.parameter((2, -1))
    wrong = 3
    with pytest.raises(TypeError, match="^parameter: expected initializer to be a function, got 3"):
        mlax.parameter((2,), wrong)
    with pytest.raises(ValueError, match=r"^parameter: .*initializer.*\(2,\).*\(3,\)"):
        mlax.parameter((2,), lambda key, shape, dtype: jnp.ones(3)).init(KEY, None)
    _, state = mlax.parameter((2,)).init(KEY, None)
    with pytest.raises(TypeError, match=r"^parameter: expected params to be a ParameterParams"):
        mlax.parameter.apply(jnp.ones(2), state, None)  # type: ignore[arg-type]  # wrong on purpose
