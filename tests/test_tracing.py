"""Tests of `traced_once`: what is shared, and what is distinguished."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax.tracing import traced_once

X = jnp.array([1.0, -2.0])


class Counted(NamedTuple):
    """A function traced once, and the arguments by keyword of each of its runs."""

    function: Any
    runs: list[Any]


@pytest.fixture
def counted() -> Counted:
    """Return x * factor, counted."""
    runs: list[Any] = []

    def scaled(x: Any, *, factor: Any) -> Any:
        runs.append(factor)
        return x * factor

    return Counted(traced_once(scaled, "scaled"), runs)


def test_equal_arguments_are_traced_once_in_one_program_and_in_the_next(counted: Counted) -> None:
    def both(x: jax.Array) -> Any:
        return counted.function(counted.function(x, factor=2.0), factor=2.0)

    np.testing.assert_array_equal(jax.jit(both)(X), 4 * X)
    np.testing.assert_array_equal(jax.grad(lambda x: both(x).sum())(X), [4.0, 4.0])
    assert counted.runs == [2.0]


@pytest.mark.parametrize(("one", "other"), [(2, 2.0), (0.0, -0.0), (1.0, np.nan)])
def test_keywords_are_compared_by_type_and_sign(counted: Counted, one: Any, other: Any) -> None:
    x = jnp.array([1, 2])
    y = jax.jit(lambda x: [counted.function(x, factor=f) for f in (one, other)])(x)
    assert len(counted.runs) == 2
    for actual, factor in zip(y, (one, other), strict=True):
        expected = x * factor
        np.testing.assert_array_equal(actual, expected, strict=True)
        np.testing.assert_array_equal(np.signbit(actual), np.signbit(expected))


@pytest.mark.parametrize("x", [X, np.ones(2), 3.0])
def test_what_has_values_is_passed_as_it_is(counted: Counted, x: Any) -> None:
    for _ in range(2):
        np.testing.assert_array_equal(counted.function(x, factor=2.0), 2 * x)
    assert counted.runs == [2.0, 2.0]


def test_what_is_no_array_is_passed_as_it_is() -> None:
    seen: list[Any] = []

    def kept(pair: Any) -> Any:
        seen.append(pair[1])
        return pair[0]

    jax.jit(lambda x: traced_once(kept, "kept")((x, np.int64(2**40))))(X)
    assert seen == [2**40]


def test_each_config_flag_of_jax_has_its_own_trace(counted: Counted) -> None:
    def traced(x: jax.Array) -> Any:
        return jax.jit(lambda x: counted.function(x, factor=2.0))(x)

    traced(X)
    with jax.numpy_dtype_promotion("strict"):
        traced(X)
    with jax.default_matmul_precision("highest"):
        traced(X)
    assert len(counted.runs) == 3


def test_the_name_is_that_of_the_layer_in_the_lowered_program() -> None:
    model = mlax.series(*[mlax.dense(2)] * 3)
    params, state = model.init(jax.random.key(0), X)
    text = jax.jit(model.apply).lower(params, state, X).as_text()
    assert text.count("func.func private @dense(") == 1
    assert text.count("call @dense(") == 3
    assert text.count("dot_general") == 1


def test_a_users_layer_may_be_traced_once() -> None:
    runs: list[Any] = []

    def apply(params: jax.Array, config: Any, x: jax.Array) -> jax.Array:
        runs.append(config)
        return params * x

    @mlax.stateless(apply, traced_once=True)
    def gain(rng: mlax.Key, x: mlax.Shaped) -> jax.Array:
        return jnp.full(x.shape, 2.0)

    params, state = mlax.series(gain(), gain()).init(jax.random.key(0), X)
    y, _ = jax.jit(mlax.series(gain(), gain()).apply)(params, state, X)
    np.testing.assert_array_equal(y, 4 * X)
    assert len(runs) == 1
