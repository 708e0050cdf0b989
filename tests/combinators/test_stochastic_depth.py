"""Tests of `mlax.stochastic_depth`."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax.combinators.stochastic_depth import stochastic_depth
from tests.oracle import KEY, assert_close, normal

KEYS = jax.random.split(jax.random.key(7), 256)


def test_examples_are_dropped_or_scaled() -> None:
    x = normal(4)
    layer = stochastic_depth(mlax.linear(3), 0.25)
    params, state = layer.init(KEY, x)
    y, _ = jax.vmap(lambda key: layer.apply(params, state, x, key))(KEYS)
    branch = x @ params.kernel
    kept = (y != 0).any(1)
    np.testing.assert_allclose(y[kept], jnp.tile(branch / 0.75, (kept.sum(), 1)), rtol=1e-5)
    assert (y[~kept] == 0).all()
    assert 0.65 < float(kept.mean()) < 0.85
    np.testing.assert_array_equal(kept, jax.vmap(lambda key: jax.random.bernoulli(key, 0.75))(KEYS))


def test_gradients_are_those_of_what_is_kept() -> None:
    x = normal(4)
    layer = stochastic_depth(mlax.linear(3), 0.5)
    params, state = layer.init(KEY, x)
    gradient_of = jax.grad(lambda x, key: layer.apply(params, state, x, key)[0].sum())
    gradient = jax.vmap(gradient_of, (None, 0))(x, KEYS[:16])
    kept = jax.vmap(jax.random.bernoulli)(KEYS[:16])
    assert kept.any() and not kept.all()
    assert_close(gradient, 2 * kept[:, None] * params.kernel.sum(1))


def test_inference_is_the_layer() -> None:
    x = normal(4)
    layer = stochastic_depth(mlax.linear(3), 0.9)
    params, state = layer.init(KEY, x)
    y, after = layer.apply(params, state, x, inference_mode=True)
    assert_close(y, x @ params.kernel)
    assert after == state
    y, _ = layer.apply(params, state, x, KEYS[0], inference_mode=True)
    assert_close(y, x @ params.kernel)


def noise(x: jax.Array, rng: jax.Array) -> jax.Array:
    """Return random numbers."""
    return jax.random.normal(rng, x.shape)


def test_keys() -> None:
    assert mlax.needs_rng(stochastic_depth(mlax.linear(3), 0.5).apply)
    layer = stochastic_depth(mlax.f_rng(noise), 0.5)
    params, state = layer.init(KEY, normal(2))
    for rng in KEYS[:8]:
        y, _ = layer.apply(params, state, normal(2), rng)
        kept = jax.random.bernoulli(jax.random.fold_in(rng, 1))
        assert_close(y, 2 * kept * jax.random.normal(jax.random.fold_in(rng, 0), (2,)))


def test_in_a_residual_of_a_batch() -> None:
    x = jnp.ones((64, 1))
    layer = mlax.batched(mlax.residual(stochastic_depth(mlax.f(jnp.negative), 0.5)))
    params, state = layer.init(KEY, x)
    y, _ = layer.apply(params, state, x, KEY)
    assert set(y.ravel().tolist()) == {1.0, -1.0}
    y, _ = layer.apply(params, state, x, inference_mode=True)
    assert (y == 0).all()


def test_variables_are_updated_all_the_same() -> None:
    x = normal(4)
    layer = stochastic_depth(mlax.z_norm("all"), 0.5)
    params, state = layer.init(KEY, x)
    for key in KEYS[:4]:
        _, after = layer.apply(params, state, x, key)
        assert float(after.variables.mean) == pytest.approx(0.1 * float(x.mean()), rel=1e-4)


def test_half_precision() -> None:
    x = normal(4).astype(jnp.bfloat16)
    layer = stochastic_depth(mlax.linear(3), 0.3)
    params, state = layer.init(KEY, x)
    assert layer.apply(params, state, x, KEY)[0].dtype == jnp.bfloat16


def test_a_rate_of_zero() -> None:
    x = normal(4)
    layer = stochastic_depth(mlax.linear(3), 0)
    params, state = layer.init(KEY, x)
    assert_close(layer.apply(params, state, x, KEY)[0], x @ params.kernel)


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"stochastic_depth: expected rate to be in \[0, 1\)"):
        stochastic_depth(mlax.linear(3), 1.0)
    with pytest.raises(TypeError, match="stochastic_depth: expected layer to be a layer"):
        stochastic_depth.bind(mlax.linear, 0.5)
    layer = stochastic_depth(mlax.linear(3), 0.5)
    params, state = layer.init(KEY, normal(4))
    with pytest.raises(ValueError, match="stochastic_depth: expected rng to be a PRNG key in tra"):
        layer.apply(params, state, normal(4))
    with pytest.raises(TypeError, match="linear: expected x to be of a floating") as info:
        layer.apply(params, state, jnp.ones(4, jnp.int32), KEY)
    assert any("stochastic_depth" in note for note in info.value.__notes__)
    integers = stochastic_depth(mlax.f(jnp.negative), 0.5)
    _, state = integers.init(KEY, jnp.ones(4, jnp.int32))
    with pytest.raises(TypeError, match="stochastic_depth: expected the output to be of"):
        integers.apply((), state, jnp.ones(4, jnp.int32), KEY)


def test_infinity_is_dropped() -> None:
    x = jnp.array([jnp.inf, jnp.nan])
    layer = stochastic_depth(mlax.f(jnp.negative), 0.5)
    params, state = layer.init(KEY, x)
    kept = {bool(jnp.isfinite(layer.apply(params, state, x, key)[0]).all()) for key in KEYS[:8]}
    assert kept == {True, False}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_where_promotion_is_strict(dtype: Any) -> None:
    x = normal(4).astype(dtype)
    layer = stochastic_depth(mlax.linear(3), 0.3)
    with jax.numpy_dtype_promotion("strict"):
        params, state = layer.init(KEY, x)
        assert layer.apply(params, state, x, KEY)[0].dtype == dtype


def test_a_batch_is_not_dropped_as_one() -> None:
    layer = stochastic_depth(mlax.dense(2), 0.5)
    params, state = layer.init(KEY, normal(3))
    with pytest.raises(ValueError, match="stochastic_depth: expected x with 1 axis, as in init, got"):
        layer.apply(params, state, normal(4, 3), KEY)
