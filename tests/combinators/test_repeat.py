"""Tests of `mlax.repeat` against n layers written out, and of costs that do not grow with n."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

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


def block_init(rng: Key, x: Any) -> tuple[dict[str, jax.Array], jax.Array]:
    """Make a matrix, and a running mean of the output."""
    return {"w": number(rng) * jnp.sin(jnp.arange(9.0)).reshape(3, 3)}, jnp.zeros(3)


def block_apply(
    params: dict[str, jax.Array],
    state: jax.Array,
    x: jax.Array,
    rng: Key,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, jax.Array]:
    """Return tanh(x @ w), with noise in training."""
    y = checkpoint_name(jnp.tanh(x @ params["w"]), "hidden")
    if inference_mode:
        return y, state
    y = y + 0.1 * number(rng)
    return y, 0.9 * state + 0.1 * y


BLOCK: AnyLayer = Layer(block_init, block_apply)


def written_out(params: Any, state: Any, x: jax.Array, n: int) -> tuple[jax.Array, Any]:
    """Return the output of n blocks in series."""
    after = []
    for i in range(n):
        key = RNG if n == 1 else jax.random.fold_in(RNG, i)
        x, s = block_apply({"w": params["w"][i]}, state[i], x, key)
        after.append(s)
    return x, jnp.stack(after)


def loss_of(outputs: Callable[..., tuple[Any, Any]], *args: Any) -> Callable[..., Any]:
    """Return the function from params and x to (loss, state)."""

    def loss(params: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        y, state = outputs(params, *args[:1], x, *args[1:])
        return jnp.sum(y**2), state

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


@functools.cache
def expected_of(n: int) -> Any:
    """Return ((loss, state), gradients) of n blocks written out."""
    params, state = mlax.repeat(BLOCK, n).init(KEY, X)
    return loss_of(written_out, state.variables, n)(params, X)


@pytest.mark.parametrize(
    ("n", "options"),
    [
        (1, {"unroll": 4}),
        (3, {}),
        (3, {"unroll": 2, "remat": True}),
        (3, {"remat": True, "policy": jax.checkpoint_policies.save_only_these_names("hidden")}),
    ],
    ids=lambda value: str(value) if isinstance(value, int) else ",".join(value),
)
def test_equals_n_layers_written_out(n: int, options: dict[str, Any]) -> None:
    model: AnyLayer = mlax.repeat(BLOCK, n, **options)
    params, state = model.init(KEY, X)
    assert params["w"].shape == (n, 3, 3)
    (value, after), grads = loss_of(model.apply, state, RNG)(params, X)
    (expected, statistics), expected_grads = expected_of(n)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(after.variables, statistics, rtol=1e-5)
    np.testing.assert_allclose(grads[0]["w"], expected_grads[0]["w"], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(grads[1], expected_grads[1], rtol=1e-4, atol=1e-6)


def test_init_makes_what_n_layers_make() -> None:
    params, state = mlax.repeat(BLOCK, 3).init(KEY, X)
    for i in range(3):
        expected, statistics = block_init(jax.random.fold_in(KEY, i), X)
        np.testing.assert_array_equal(params["w"][i], expected["w"])
        np.testing.assert_array_equal(state.variables[i], statistics)
    single, _ = mlax.repeat(BLOCK, 1).init(KEY, X)
    np.testing.assert_array_equal(single["w"], params["w"][:1])


@pytest.mark.parametrize("key", [KEY, jax.random.PRNGKey(0)], ids=["typed", "raw"])
def test_equals_series_of_the_same_layer(key: Key) -> None:
    noisy = mlax.f_rng(lambda x, rng: x + number(rng))
    block: AnyLayer = mlax.residual(mlax.series(mlax.linear(3), noisy))
    unrolled: AnyLayer = mlax.series(block, block, block)
    looped: AnyLayer = mlax.repeat(block, 3)
    params, state = unrolled.init(key, X)
    stacked, loop_state = looped.init(key, X)
    for i, other in enumerate(params):
        for leaf, expected in zip(jax.tree.leaves(stacked), jax.tree.leaves(other), strict=True):
            np.testing.assert_array_equal(leaf[i], expected)
    y, _ = looped.apply(stacked, loop_state, X, key)
    expected_y, _ = unrolled.apply(params, state, X, key)
    np.testing.assert_allclose(y, expected_y, rtol=1e-6)


def test_inference_and_whether_a_key_is_needed() -> None:
    model = mlax.repeat(BLOCK, 2)
    assert mlax.needs_rng(model.apply)
    assert not mlax.needs_rng(mlax.repeat(mlax.linear(3), 2).apply)
    params, state = model.init(KEY, X)
    y, after = model.apply(params, state, X, inference_mode=True)
    w = np.asarray(params["w"])
    np.testing.assert_allclose(y, np.tanh(np.tanh(np.asarray(X) @ w[0]) @ w[1]), rtol=1e-5)
    np.testing.assert_array_equal(after.variables, state.variables)


def test_statistics_of_every_copy_are_taken_over_the_batch() -> None:
    x = np.random.default_rng(0).normal(3, 2, (8, 3)).astype(np.float32)
    model: AnyLayer = mlax.batched(
        mlax.repeat(mlax.series(mlax.z_norm(()), mlax.f(lambda x: 2 * x + 1)), 2)
    )
    params, state = model.init(KEY, jnp.asarray(x))
    y, after = model.apply(params, state, jnp.asarray(x))
    first = 2 * (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) + 1
    second = 2 * (first - first.mean(0)) / np.sqrt(first.var(0) + 1e-5) + 1
    np.testing.assert_allclose(y, second, rtol=1e-4, atol=1e-5)
    (statistics, _) = after.variables
    expected = np.stack([x.mean(0), first.mean(0)])
    np.testing.assert_allclose(statistics.mean, 0.1 * expected, rtol=1e-4)


def test_a_repeat_in_a_repeat_and_inputs_that_are_pytrees() -> None:
    inner: AnyLayer = mlax.parallel(a=mlax.linear(3), b=mlax.linear(2))
    model: AnyLayer = mlax.repeat(mlax.repeat(inner, 2), 3)
    x = {"a": X, "b": X[:2]}
    params, state = jax.jit(lambda: model.init(KEY, x))()
    assert params["a"].kernel.shape == (3, 2, 3, 3)
    y, _ = model.apply(params, state, x)
    for name in x:
        expected = np.asarray(x[name])
        for kernel in np.asarray(params[name].kernel).reshape(6, *params[name].kernel.shape[2:]):
            expected = expected @ kernel
        np.testing.assert_allclose(y[name], expected, rtol=1e-4)


def test_program_size_does_not_grow_with_n() -> None:
    sizes = set()
    traces: list[None] = []

    def counted(x: jax.Array) -> jax.Array:
        traces.append(None)
        return jnp.tanh(x)

    for n in (4, 16, 64, 256):
        model: AnyLayer = mlax.repeat(mlax.series(mlax.linear(3), mlax.f(counted)), n)
        traces.clear()
        initialised = jax.jit(lambda rng, m=model: m.init(rng, X)).trace(KEY)
        params, state = initialised.out_info
        step = jax.jit(jax.grad(lambda p, x, m=model, s=state: m.apply(p, s, x)[0].sum()))
        traced = step.trace(params, X)
        assert traces
        sizes.add(
            (
                len(str(initialised.jaxpr).splitlines()),
                len(initialised.lower().as_text().splitlines()),
                len(str(traced.jaxpr).splitlines()),
                len(traced.lower().as_text().splitlines()),
                len(traces),
            )
        )
    assert len(sizes) == 1


def test_remat_and_its_policy_appear_in_the_program() -> None:
    def program(**options: Any) -> str:
        model: AnyLayer = mlax.repeat(BLOCK, 4, **options)
        params, state = model.init(KEY, X)
        grad = jax.grad(lambda p: model.apply(p, state, X, RNG)[0].sum())
        return str(jax.make_jaxpr(grad)(params))

    asked: list[Any] = []

    def policy(primitive: Any, *_: Any, **__: Any) -> bool:
        asked.append(primitive)
        return False

    plain, remat, unrolled = program(), program(remat=True), program(unroll=2)
    assert program(remat=True, policy=policy).count("tanh") == remat.count("tanh") == 2
    assert program(policy=policy) == program(remat=True, policy=policy)
    assert plain.count("tanh") == 1
    assert any(str(primitive) == "tanh" for primitive in asked)
    assert "unroll=2" in unrolled
    assert "unroll=2" not in plain


def test_a_layer_that_changes_its_input_raises() -> None:
    for layer, got in (
        (mlax.linear(4), r"float32\[4\]"),
        (mlax.f(lambda x: x.astype(jnp.bfloat16)), r"bfloat16\[3\]"),
        (mlax.f(lambda x: (x,)), r".*float32\[3\].*"),
    ):
        model: AnyLayer = mlax.repeat(layer, 2)
        wanted = rf"^repeat: expected the output of the layer to be float32\[3\], got {got}"
        with pytest.raises(ValueError, match=wanted):
            model.init(KEY, X)


@pytest.mark.parametrize(
    ("arguments", "error", "wanted"),
    [
        ({"n": 0}, ValueError, "n to be a positive integer, got 0"),
        ({"n": 2.0}, TypeError, "n to be a positive integer, got 2.0"),
        ({"unroll": 0}, ValueError, "unroll to be a positive integer, got 0"),
        ({"remat": 1}, TypeError, "remat to be True or False, got 1"),
        ({"policy": 3}, TypeError, "policy to be a function, got 3"),
    ],
)
def test_wrong_hyperparameters_raise_at_once(
    arguments: Any,  # wrong types on purpose
    error: type[Exception],
    wanted: str,
) -> None:
    with pytest.raises(error, match=f"^repeat: expected {wanted}"):
        mlax.repeat(mlax.linear(3), **{"n": 2, **arguments})
