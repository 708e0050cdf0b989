"""Tests of `mlax.dropout`; the function is tested in test_functional."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import DTypeLike

import mlax
from mlax.arguments import Axes

KEY = jax.random.key(0)
X = jnp.ones((40, 50))


@pytest.mark.parametrize(
    ("axis", "drawn"), [(0, (40, 1)), (-1, (1, 50)), ([1], (1, 50)), ((0, -1), (40, 50))]
)
def test_values(axis: Axes, drawn: tuple[int, ...]) -> None:
    key = jax.random.PRNGKey(7) if axis == 0 else jax.random.key(7)  # raw or typed
    params, state = mlax.dropout.init(KEY, X, 0.2, axis)
    y, after = mlax.dropout.apply(params, state, X, key)
    kept = jax.random.bernoulli(key, 0.8, drawn)
    np.testing.assert_allclose(y, np.broadcast_to(np.where(kept, 1.25, 0), X.shape), rtol=1e-6)
    assert params == ()
    assert after == state


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_dtype_of_x_is_kept(dtype: DTypeLike) -> None:
    x = X.astype(dtype)
    params, state = mlax.dropout.init(KEY, x, 0.5, (0, 1))
    for inference_mode in (False, True):
        y, _ = mlax.dropout.apply(params, state, x, KEY, inference_mode)
        assert y.dtype == dtype


def test_rate_zero_is_the_identity() -> None:
    params, state = mlax.dropout.init(KEY, X, 0, 0)
    np.testing.assert_array_equal(mlax.dropout.apply(params, state, X, KEY)[0], X)


def test_inference_is_the_identity_and_takes_no_key() -> None:
    params, state = mlax.dropout.init(KEY, X, 0.5, 0)
    y, after = mlax.dropout.apply(params, state, X, inference_mode=True)
    np.testing.assert_array_equal(y, X)
    assert after == state


def test_missing_key_in_training_raises() -> None:
    params, state = mlax.dropout.init(KEY, X, 0.5, 0)
    with pytest.raises(ValueError, match="^dropout: expected rng to be a PRNG key .*, got None"):
        mlax.dropout.apply(params, state, X)
    assert mlax.needs_rng(mlax.dropout(0.5, 0).apply)


@pytest.mark.parametrize(
    ("hparams", "error", "text"),
    [
        ({"rate": 1}, ValueError, r"rate to be in \[0, 1\), got 1"),
        ({"rate": -0.1}, ValueError, r"rate to be in \[0, 1\), got -0.1"),
        ({"rate": float("nan")}, ValueError, r"rate to be in \[0, 1\), got nan"),
        ({"rate": "half"}, TypeError, r"rate to be a number in \[0, 1\), got 'half'"),
        ({"rate": None}, TypeError, r"rate to be a number in \[0, 1\), got None"),
        ({"axis": 0.0}, TypeError, "axis to be .*, got 0.0"),
        ({"axis": "all"}, TypeError, "axis to be .*, got 'all'"),
    ],
)
def test_wrong_argument_raises(
    hparams: dict[str, Any],  # wrong types on purpose
    error: type[Exception],
    text: str,
) -> None:
    hparams = {"rate": 0.5, "axis": 0} | hparams
    with pytest.raises(error, match=f"^dropout: expected {text}"):
        mlax.dropout(**hparams)
    with pytest.raises(error, match=f"^dropout: expected {text}"):
        mlax.dropout.init(KEY, X, **hparams)


@pytest.mark.parametrize(
    ("axis", "text"),
    [
        (2, r"in \[-2, 2\) for x with 2 axes, got 2"),
        ((0, -3), r"in \[-2, 2\) for x with 2 axes, got \(0, -3\)"),
        ((0, -2), r"distinct axes, got \(0, -2\)"),
    ],
)
def test_axis_that_does_not_fit_raises(axis: Axes, text: str) -> None:
    init, _ = mlax.dropout(0.5, axis)
    with pytest.raises(ValueError, match=f"^dropout: expected axis to be {text}"):
        init(KEY, X)


def test_input_of_another_rank_raises() -> None:
    params, state = mlax.dropout.init(KEY, X, 0.5, 1)
    with pytest.raises(ValueError, match=r"^dropout: expected x with 2 axes, .*\(3,\); .*batched"):
        mlax.dropout.apply(params, state, jnp.ones(3), KEY)


def test_integers_raise() -> None:
    with pytest.raises(TypeError, match="^dropout: expected x to be of a floating dtype.*int32"):
        mlax.dropout.init(KEY, jnp.array([1, 2]), 0.5, 0)
