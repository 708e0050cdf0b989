"""Tests of the pooling layers against `jax.lax`; the functions are tested in test_functional."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mlax

KEY = jax.random.key(0)
X = jnp.asarray(np.random.default_rng(0).normal(size=(6, 5, 2)), jnp.float32)


class Pool(NamedTuple):
    """A pair, its own hyperparameters, and its reduction."""

    pair: Any  # four pairs of different types
    hparams: dict[str, Any]  # values of many types
    init_value: float
    reduce_fn: Callable[[Any, Any], Any]
    mean: bool


POOLS = {
    "max_pool": Pool(mlax.max_pool, {}, -np.inf, lax.max, False),
    "sum_pool": Pool(mlax.sum_pool, {}, 0.0, lax.add, False),
    "avg_pool": Pool(mlax.avg_pool, {}, 0.0, lax.add, True),
    "pool": Pool(mlax.pool, {"init_value": 1.0, "reduce_fn": lax.mul}, 1.0, lax.mul, False),
}


@pytest.mark.parametrize(
    ("hparams", "window", "strides", "padding", "dilations"),
    [
        ({"window_shape": 2}, (2, 2, 1), (1, 1, 1), "VALID", ((1, 1, 1), (1, 1, 1))),
        (
            {"window_shape": (3, 2), "strides": 2, "padding": "SAME"},
            (3, 2, 1),
            (2, 2, 1),
            "SAME",
            ((1, 1, 1), (1, 1, 1)),
        ),
        (
            {"window_shape": [1, 3], "strides": [2, 1], "padding": "SAME_LOWER"},
            (1, 3, 1),
            (2, 1, 1),
            "SAME_LOWER",
            ((1, 1, 1), (1, 1, 1)),
        ),
        (
            {"window_shape": 2, "padding": (1, (0, 2)), "input_dilation": 2, "window_dilation": 3},
            (2, 2, 1),
            (1, 1, 1),
            ((1, 1), (0, 2), (0, 0)),
            ((2, 2, 1), (3, 3, 1)),
        ),
        (
            {
                "window_shape": 2,
                "padding": 1,
                "input_dilation": (1, 2),
                "window_dilation": (2, 1),
                "data_format": "channel_first",
            },
            (1, 2, 2),
            (1, 1, 1),
            ((0, 0), (1, 1), (1, 1)),
            ((1, 1, 2), (1, 2, 1)),
        ),
        (
            {"window_shape": (3, 2), "strides": (2, 1), "data_format": "HCW"},
            (3, 1, 2),
            (2, 1, 1),
            "VALID",
            ((1, 1, 1), (1, 1, 1)),
        ),
    ],
    ids=["plain", "same", "same_lower", "dilated", "channel_first", "HCW"],
)
@pytest.mark.parametrize("name", POOLS)
def test_values(
    name: str,
    hparams: dict[str, Any],  # values of many types
    window: tuple[int, ...],
    strides: tuple[int, ...],
    padding: str | Sequence[tuple[int, int]],
    dilations: tuple[tuple[int, ...], tuple[int, ...]],
) -> None:
    pair, own, init_value, reduce_fn, mean = POOLS[name]
    params, state = pair.init(KEY, X, **own, **hparams)
    expected = lax.reduce_window(X, init_value, reduce_fn, window, strides, padding, *dilations)
    expected = expected / np.prod(window) if mean else expected
    for inference_mode in (False, True):
        y, after = pair.apply(params, state, X, None, inference_mode)
        np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
        assert (params, after) == ((), state)


def test_order_of_the_hyperparameters() -> None:
    by_order = mlax.pool.init(KEY, X, 0, lax.add, 2, 3, 1, 2, (1, 2), "channel_first")
    by_name = mlax.pool.init(
        KEY,
        X,
        data_format="channel_first",
        window_dilation=(1, 2),
        input_dilation=2,
        padding=1,
        strides=3,
        window_shape=2,
        reduce_fn=lax.add,
        init_value=0,
    )
    assert by_order == by_name
    for pair in (mlax.max_pool, mlax.sum_pool, mlax.avg_pool):
        assert pair.init(KEY, X, 2, 3, 1, 2, (1, 2), "channel_first") == pair.init(
            KEY,
            X,
            data_format="channel_first",
            window_dilation=(1, 2),
            input_dilation=2,
            padding=1,
            strides=3,
            window_shape=2,
        )


@pytest.mark.parametrize(
    "init_value", [1, 1.0, np.float32(1), np.array(1.0), jnp.ones(())], ids=type
)
def test_init_value_is_any_scalar(init_value: Any) -> None:  # anything that jax takes as a scalar
    params, state = mlax.pool.init(KEY, X, init_value, lax.mul, 2)
    assert hash(state.config) is not None
    y, _ = mlax.pool.apply(params, state, jnp.full((2, 2, 1), 3.0))
    np.testing.assert_allclose(y, [[[81]]])


def test_integers() -> None:
    x = jnp.array([[-5], [-7], [-6]])
    y, _ = mlax.max_pool.apply(*mlax.max_pool.init(KEY, x, 2), x)
    np.testing.assert_array_equal(y, np.array([[-5], [-6]], np.int32), strict=True)


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize(
    ("hparams", "error", "text"),
    [
        ({"window_shape": 0}, ValueError, "window_shape to be a positive integer, got 0"),
        ({"window_shape": (2, None)}, TypeError, "window_shape to be .*, got None"),
        ({"strides": -2}, ValueError, "strides to be a positive integer, got -2"),
        ({"strides": "2"}, TypeError, "strides to be .*, got '2'"),
        ({"padding": "FULL"}, ValueError, "padding to be one of .*, got 'FULL'"),
        ({"padding": 0.5}, TypeError, "padding to be .*, got 0.5"),
        ({"input_dilation": 0}, ValueError, "input_dilation to be .*, got 0"),
        ({"input_dilation": 1.0}, TypeError, "input_dilation to be .*, got 1.0"),
        ({"window_dilation": (1, -1)}, ValueError, "window_dilation to be .*, got -1"),
        ({"window_dilation": "x"}, TypeError, "window_dilation to be .*, got 'x'"),
        ({"data_format": "channels"}, ValueError, "data_format to be .*, got 'channels'"),
        ({"data_format": "HWC "}, ValueError, "data_format to be .*, got 'HWC '"),
        ({"data_format": 3}, TypeError, "data_format to be .*, got 3"),
    ],
)
def test_wrong_argument_raises(
    name: str,
    hparams: dict[str, Any],  # wrong types on purpose
    error: type[Exception],
    text: str,
) -> None:
    pair, own, *_ = POOLS[name]
    hparams = {"window_shape": 2} | own | hparams
    with pytest.raises(error, match=f"^{name}: expected {text}"):
        pair(**hparams)
    with pytest.raises(error, match=f"^{name}: expected {text}"):
        pair.init(KEY, X, **hparams)


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize(
    ("hparams", "text"),
    [
        ({"window_shape": (2,)}, r"window_shape to be .* 2 of them.*, got \(2,\)"),
        ({"strides": (1, 1, 1)}, r"strides to be .* 2 of them.*, got \(1, 1, 1\)"),
        ({"padding": [1, 2, 3]}, r"padding to be .* 2 integers or pairs.*, got \(1, 2, 3\)"),
        ({"input_dilation": ()}, r"input_dilation to be .*, got \(\)"),
        ({"window_dilation": [1]}, r"window_dilation to be .*, got \(1,\)"),
        ({"data_format": "HWDC"}, r"data_format to be .*\(6, 5, 2\), got 'HWDC'"),
    ],
)
def test_argument_that_does_not_fit_raises(
    name: str,
    hparams: dict[str, Any],  # values of many types
    text: str,
) -> None:
    pair, own, *_ = POOLS[name]
    init, _ = pair(**({"window_shape": 2} | own | hparams))
    with pytest.raises(ValueError, match=f"^{name}: expected {text}"):
        init(KEY, X)


@pytest.mark.parametrize(
    ("hparams", "text"),
    [
        ({"init_value": "low"}, "init_value to be a number, got 'low'"),
        ({"init_value": (0, 1)}, r"init_value to be a number, got \(0, 1\)"),
        ({"reduce_fn": "max"}, "reduce_fn to be a function, got 'max'"),
    ],
)
def test_wrong_reduction_raises(
    hparams: dict[str, Any],  # wrong types on purpose
    text: str,
) -> None:
    hparams = dict[str, Any](init_value=0, reduce_fn=lax.add, window_shape=2) | hparams
    with pytest.raises(TypeError, match=f"^pool: expected {text}"):
        mlax.pool(**hparams)
    with pytest.raises(TypeError, match=f"^pool: expected {text}"):
        mlax.pool.init(KEY, X, **hparams)


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize("shape", [(5, 2), (2, 6, 5, 2)])
def test_input_of_another_rank_raises(name: str, shape: tuple[int, ...]) -> None:
    pair, own, *_ = POOLS[name]
    params, state = pair.init(KEY, X, window_shape=2, **own)
    with pytest.raises(ValueError, match=f"^{name}: expected"):
        pair.apply(params, state, jnp.ones(shape))


@pytest.mark.parametrize("pair", [mlax.max_pool, mlax.avg_pool, mlax.sum_pool], ids=repr)
def test_a_window_that_fits_nowhere_raises(pair: Any) -> None:
    """It raises in `init`, and in `apply` for a smaller x than that of `init`."""
    wanted = rf"^{pair.__name__}: expected a window that fits into x"
    with pytest.raises(ValueError, match=wanted):
        pair.init(KEY, X, 7)
    params, state = pair.init(KEY, X, 2)
    with pytest.raises(ValueError, match=wanted):
        pair.apply(params, state, X[:1])
