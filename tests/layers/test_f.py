"""Tests of `mlax.f` and `mlax.f_rng`."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import AxisName

KEY = jax.random.key(0)
X = jnp.array([1.0, 2.0])


def test_infer_fn_defaults_to_train_fn() -> None:
    params, state = mlax.f.init(KEY, X, jnp.negative)
    for inference_mode in (False, True):
        y, after = mlax.f.apply(params, state, X, None, inference_mode)
        np.testing.assert_array_equal(y, [-1, -2])
        assert after == state
    assert params == ()


def test_infer_fn_is_called_in_inference_only() -> None:
    params, state = mlax.f.init(KEY, X, jnp.negative, jnp.square)
    np.testing.assert_array_equal(mlax.f.apply(params, state, X)[0], [-1, -2])
    inference, _ = mlax.f.apply(params, state, X, inference_mode=True)
    np.testing.assert_array_equal(inference, [1, 4])


def test_any_pytree_goes_in_and_out() -> None:
    params, state = mlax.f.init(KEY, {"a": X}, lambda x: (x["a"], [x["a"] + 1]))
    (first, [second]), _ = mlax.f.apply(params, state, {"a": X})
    np.testing.assert_array_equal(first, [1, 2])
    np.testing.assert_array_equal(second, [2, 3])


def test_a_function_with_axis_name_gets_the_batch_axis_name() -> None:
    def seen(x: jax.Array, *, axis_name: AxisName) -> AxisName:
        return axis_name

    params, state = mlax.f.init(KEY, X, seen, lambda x, axis_name="none": (axis_name,))
    assert mlax.f.apply(params, state, X)[0] == ()
    assert mlax.f.apply(params, state, X, batch_axis_name=("a", "b"))[0] == ("a", "b")
    assert mlax.f.apply(params, state, X, None, True, "a")[0] == ("a",)


def test_a_mean_over_the_batch() -> None:
    params, state = mlax.f.init(KEY, X[0], jax.lax.pmean)
    y = jax.vmap(
        lambda x: mlax.f.apply(params, state, x, batch_axis_name="batch")[0], axis_name="batch"
    )(X)
    np.testing.assert_array_equal(y, [1.5, 1.5])


def test_builtins_without_a_signature() -> None:
    params, state = mlax.f.init(KEY, X, max)
    assert mlax.f.apply(params, state, X)[0] == 2


def test_equal_partials_make_equal_states() -> None:
    one, same, other = (
        mlax.f.init(KEY, X, functools.partial(jax.nn.leaky_relu, negative_slope=slope))[1]
        for slope in (0.1, 0.1, 0.2)
    )
    assert one == same
    assert not one != same
    assert hash(one) == hash(same)
    assert one != other
    assert not one == other


def test_an_axis_name_that_is_bound_stays() -> None:
    """Statistics over the axis "i" that the user bound, not over the batch axis."""
    mean = mlax.f(functools.partial(jax.lax.pmean, axis_name="i"))
    params, state = mean.init(KEY, jnp.ones(()))
    x = jnp.arange(6.0).reshape(2, 3)

    def example(x: jax.Array) -> Any:
        return mean.apply(params, state, x, batch_axis_name="batch")[0]

    y = jax.vmap(jax.vmap(example, axis_name="i"), axis_name="batch")(x)
    np.testing.assert_array_equal(y, [[1, 1, 1], [4, 4, 4]])
    free = mlax.f(jax.lax.pmean)
    z = jax.vmap(
        lambda x: free.apply((), free.init(KEY, x)[1], x, batch_axis_name="batch")[0],
        axis_name="batch",
    )(x)
    np.testing.assert_array_equal(z, [[1.5, 2.5, 3.5]] * 2)


def test_f_rng_gets_the_key_as_it_is() -> None:
    params, state = mlax.f_rng.init(KEY, X, lambda x, rng: (x, rng))
    key = jax.random.key(3)
    (x, rng), after = mlax.f_rng.apply(params, state, X, key)
    np.testing.assert_array_equal(x, X)
    assert rng == key
    assert (params, after) == ((), state)


def test_f_rng_in_inference_works_without_a_key_and_hands_on_one() -> None:
    params, state = mlax.f_rng.init(KEY, X, lambda x, rng: x, lambda x, rng: rng)
    assert mlax.f_rng.apply(params, state, X, inference_mode=True)[0] is None
    assert mlax.f_rng.apply(params, state, X, KEY, True)[0] == KEY


def test_f_rng_hands_on_the_batch_axis_name() -> None:
    def seen(x: jax.Array, rng: jax.Array, axis_name: AxisName) -> AxisName:
        return axis_name

    params, state = mlax.f_rng.init(KEY, X, seen)
    for inference_mode in (False, True):
        assert mlax.f_rng.apply(params, state, X, KEY, inference_mode, "a")[0] == "a"


def test_f_rng_without_a_key_in_training_raises() -> None:
    params, state = mlax.f_rng.init(KEY, X, lambda x, rng: x)
    with pytest.raises(ValueError, match="^f_rng: expected rng to be a PRNG key .*, got None"):
        mlax.f_rng.apply(params, state, X)


def test_which_needs_a_key() -> None:
    assert not mlax.needs_rng(mlax.f(jnp.sin).apply)
    assert mlax.needs_rng(mlax.f_rng(lambda x, rng: x).apply)


@pytest.mark.parametrize("pair", [mlax.f, mlax.f_rng])
@pytest.mark.parametrize(
    ("hparams", "text"),
    [
        ({"train_fn": 3}, "train_fn to be a function, got 3"),
        ({"train_fn": None}, "train_fn to be a function, got None"),
        ({"infer_fn": "relu"}, "infer_fn to be a function, got 'relu'"),
    ],
)
def test_wrong_argument_raises(
    pair: Any,  # one of two types of pairs, given wrong types on purpose
    hparams: dict[str, Any],
    text: str,
) -> None:
    hparams = {"train_fn": jnp.sin} | hparams
    with pytest.raises(TypeError, match=f"^{pair.__name__}: expected {text}"):
        pair(**hparams)
    with pytest.raises(TypeError, match=f"^{pair.__name__}: expected {text}"):
        pair.init(KEY, X, **hparams)
