"""Tests of `mlax.ensemble` against a loop over its members."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import AxisName, Key, Layer

KEY = jax.random.key(0)
RNG = jax.random.key(1)
X = jnp.array([1.0, -2.0, 0.5])
# Any: layers of all kinds side by side.
AnyLayer = Layer[Any, Any, Any, Any]


def number(rng: Key) -> jax.Array:
    """Return a number in [0, 1) that differs from key to key, and is cheap to compile."""
    return jax.random.key_data(rng)[-1] % 997 / 997


def member_init(rng: Key, x: Any) -> tuple[dict[str, jax.Array], jax.Array]:
    """Make a matrix, and a running mean of the output."""
    return {"w": number(rng) * jnp.arange(1.0, 7).reshape(3, 2)}, jnp.zeros(2)


def member_apply(
    params: dict[str, jax.Array],
    state: jax.Array,
    x: jax.Array,
    rng: Key,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Return x @ w with noise in training."""
    y = x @ params["w"]
    if inference_mode:
        return {"y": y}, state
    y = y + number(rng)
    return {"y": y}, 0.9 * state + 0.1 * y


MEMBER: AnyLayer = Layer(member_init, member_apply)


@pytest.mark.parametrize("n", [1, 3])
def test_equals_a_loop(n: int) -> None:
    model: AnyLayer = mlax.ensemble(MEMBER, n)
    params, state = model.init(KEY, X)
    keys = [RNG] if n == 1 else [jax.random.fold_in(RNG, i) for i in range(n)]

    def loss(params: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        y, after = model.apply(params, state, x, RNG)
        return jnp.sum(y["y"] ** 2), (y, after)

    def written_out(params: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        results = [
            member_apply({"w": params["w"][i]}, jnp.zeros(2), x, keys[i]) for i in range(n)
        ]
        return jnp.sum(jnp.stack([y["y"] for y, _ in results]) ** 2), results

    grad, (y, after) = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, X)
    expected, results = jax.jit(jax.grad(written_out, (0, 1), has_aux=True))(params, X)
    for i, (out, statistics) in enumerate(results):
        np.testing.assert_allclose(y["y"][i], out["y"], rtol=1e-5)
        np.testing.assert_allclose(after.variables[i], statistics, rtol=1e-5)
        made, _ = member_init(jax.random.fold_in(KEY, i), X)
        np.testing.assert_array_equal(params["w"][i], made["w"])
    np.testing.assert_allclose(grad[0]["w"], expected[0]["w"], rtol=1e-5)
    np.testing.assert_allclose(grad[1], expected[1], rtol=1e-5)


def test_members_differ_and_their_gradients_are_apart() -> None:
    model = mlax.ensemble(mlax.linear(2), 3)
    params, state = model.init(KEY, X)
    grads = jax.jit(jax.grad(lambda p: model.apply(p, state, X)[0][1].sum()))(params)
    np.testing.assert_array_equal(grads.kernel[0], np.zeros((3, 2)))
    np.testing.assert_allclose(grads.kernel[1], np.stack([X, X], 1))
    assert len(set(np.asarray(params.kernel[:, 0, 0]).tolist())) == 3


def test_layers_without_parameters_and_keys() -> None:
    model = mlax.ensemble(mlax.f(jnp.negative), 2)
    params, state = model.init(KEY, X)
    assert params == ()
    np.testing.assert_array_equal(model.apply(params, state, X)[0], -np.stack([X, X]))
    assert not mlax.needs_rng(model.apply)
    assert mlax.needs_rng(mlax.ensemble(MEMBER, 2).apply)


def test_inference_keeps_the_state_and_needs_no_key() -> None:
    model = mlax.ensemble(MEMBER, 2)
    params, state = model.init(KEY, X)
    y, after = model.apply(params, state, X, inference_mode=True)
    expected = np.einsum("i,nij->nj", np.asarray(X), np.asarray(params["w"]))
    np.testing.assert_allclose(y["y"], expected, rtol=1e-5)
    np.testing.assert_array_equal(after.variables, state.variables)


def test_statistics_over_the_batch_and_an_ensemble_in_a_repeat() -> None:
    x = np.random.default_rng(0).normal(3, 2, (8, 3)).astype(np.float32)
    members: AnyLayer = mlax.ensemble(mlax.series(mlax.linear(3), mlax.z_norm(())), 2)
    model: AnyLayer = mlax.batched(members)
    params, state = model.init(KEY, jnp.asarray(x))
    y, after = model.apply(params, state, jnp.asarray(x))
    for i in range(2):
        z = x @ np.asarray(params[0].kernel[i])
        expected = (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5)
        np.testing.assert_allclose(y[:, i], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(after.variables[1].mean[i], 0.1 * z.mean(0), rtol=1e-4)
    mean: AnyLayer = mlax.series(mlax.ensemble(mlax.linear(3), 2), mlax.f(lambda y: y.mean(0)))
    deep: AnyLayer = mlax.repeat(mean, 3)
    params, state = deep.init(KEY, X)
    expected = np.asarray(X)
    for kernels in np.asarray(params[0].kernel):
        expected = np.mean([expected @ kernel for kernel in kernels], 0)
    np.testing.assert_allclose(deep.apply(params, state, X)[0], expected, rtol=1e-4)


@pytest.mark.parametrize(("n", "error"), [(0, ValueError), (-1, ValueError), ("3", TypeError)])
def test_wrong_numbers_raise_at_once(n: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"^ensemble: expected n to be a positive integer, got {n!r}"):
        mlax.ensemble(mlax.linear(3), n)
