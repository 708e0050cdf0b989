"""Tests of `mlax.tap`: the outputs of the layers inside, by path."""

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import Layer
from mlax.types import Sublayers

KEY = jax.random.key(0)
X = jnp.array([1.0, -2.0, 0.5])
# Any: layers of all kinds side by side.
AnyLayer = Layer[Any, Any, Any, Any]
MODEL: AnyLayer = mlax.series(
    stem=mlax.dense(4),
    body=mlax.series(mlax.f(jnp.tanh), mlax.dropout(0.5, 0), mlax.dense(2)),
)


def test_values_against_plain_jax() -> None:
    params, state = MODEL.init(KEY, X)
    (y, values), after = mlax.tap(MODEL).apply(params, state, X, inference_mode=True)
    stem = np.asarray(X) @ np.asarray(params["stem"].kernel)
    head = np.tanh(stem) @ np.asarray(params["body"][2].kernel)
    wanted = {
        "stem": stem,
        "body": head,
        "body.0": np.tanh(stem),
        "body.1": np.tanh(stem),
        "body.2": head,
    }
    assert values.keys() == wanted.keys()
    for path, value in values.items():
        np.testing.assert_allclose(value, wanted[path], rtol=1e-5)
    np.testing.assert_array_equal(y, values["body"])
    assert after == state


def test_params_state_and_output_are_those_of_the_model() -> None:
    tapped = mlax.tap(MODEL)
    params, state = MODEL.init(KEY, X)
    again = tapped.init(KEY, X)
    assert jax.tree.structure(again) == jax.tree.structure((params, state))
    for leaf, other in zip(jax.tree.leaves(again), jax.tree.leaves((params, state)), strict=True):
        np.testing.assert_array_equal(leaf, other)
    assert tapped.needs_rng and mlax.needs_rng(jax.jit(tapped.apply))
    expected, _ = MODEL.apply(params, state, X, KEY)
    for apply in (tapped.apply, jax.jit(tapped.apply)):
        (y, values), after = apply(params, state, X, KEY)
        np.testing.assert_allclose(y, expected, rtol=1e-6)
        assert set(values) == {"stem", "body", "body.0", "body.1", "body.2"}
        assert jax.tree.structure(after) == jax.tree.structure(state)
    with pytest.raises(ValueError, match="^dropout: expected rng to be a PRNG key"):
        tapped.apply(params, state, X)


@pytest.mark.parametrize(
    ("where", "paths"),
    [
        ("stem", ["stem"]),
        ("body.*", ["body.0", "body.1", "body.2"]),
        (["stem", "*.1"], ["stem", "body.1"]),
        (lambda path, _: path.endswith("2"), ["body.2"]),
        (lambda path, _: False, []),
    ],
    ids=["name", "star", "list", "predicate", "nothing"],
)
def test_where(where: Any, paths: list[str]) -> None:
    params, state = MODEL.init(KEY, X)
    (_, values), _ = mlax.tap(MODEL, where).apply(params, state, X, KEY)
    assert sorted(values) == sorted(paths)


def test_variables_are_updated_as_without_it() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(3, 2, (8, 3)), jnp.float32)
    model: AnyLayer = mlax.batched(mlax.series(a=mlax.z_norm(()), b=mlax.batch_norm()))
    params, state = model.init(KEY, x)
    y, expected = model.apply(params, state, x)
    (z, values), after = mlax.tap(model).apply(params, state, x)
    np.testing.assert_array_equal(z, y)
    assert jax.tree.structure(after) == jax.tree.structure(expected)
    for leaf, other in zip(jax.tree.leaves(after), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(leaf, other)
    assert {path: value.shape for path, value in values.items()} == {"a": (8, 3), "b": (8, 3)}
    np.testing.assert_allclose(values["a"], (x - x.mean(0)) / jnp.sqrt(x.var(0) + 1e-5), rtol=1e-3)


def test_values_inside_loops_and_maps_are_stacked() -> None:
    model: AnyLayer = mlax.series(
        body=mlax.repeat(mlax.residual(mlax.series(inner=mlax.linear(3))), 4),
        members=mlax.ensemble(mlax.series(last=mlax.linear(2)), 5),
    )
    params, state = model.init(KEY, X)
    (_, values), _ = mlax.tap(model, ["body.0.inner", "members.last"]).apply(params, state, X)
    x, inner = np.asarray(X), []
    for kernel in np.asarray(params["body"][0]["inner"].kernel):
        inner.append(x @ kernel)
        x = x + inner[-1]
    np.testing.assert_allclose(values["body.0.inner"], inner, rtol=1e-4)
    last = [x @ kernel for kernel in np.asarray(params["members"]["last"].kernel)]
    np.testing.assert_allclose(values["members.last"], last, rtol=1e-4)


def test_values_of_each_step() -> None:
    cell: AnyLayer = mlax.series(
        inner=mlax.f(lambda pair: (pair[0] + pair[1], pair[1] + 1)), last=mlax.f(lambda pair: pair)
    )
    model = mlax.recurrent(cell)
    x = (jnp.zeros(4), jnp.zeros(()))
    params, state = model.init(KEY, x)
    (_, values), _ = mlax.tap(model, "inner").apply(params, state, x)
    np.testing.assert_array_equal(values["inner"][0], np.arange(4.0))
    np.testing.assert_array_equal(values["inner"][1], 1 + np.arange(4.0))


def test_each_call_in_a_block_has_a_value() -> None:
    @mlax.block(a=mlax.series(mlax.linear(3)), b=mlax.f(jnp.sin))
    def model(sub: Sublayers, x: Any) -> Any:
        return sub.a(sub.b(sub.a(sub.a(x))))

    params, state = model.init(KEY, X)
    (y, values), _ = mlax.tap(model).apply(params, state, X)
    assert set(values) == {"a", "a:1", "a:2", "a.0", "a:1.0", "a:2.0", "b"}
    kernel = np.asarray(params["a"][0].kernel)
    once = np.asarray(X) @ kernel
    np.testing.assert_allclose(values["a"], once, rtol=1e-5)
    np.testing.assert_allclose(values["a:1.0"], once @ kernel, rtol=1e-5)
    np.testing.assert_allclose(values["b"], np.sin(once @ kernel), rtol=1e-5)
    np.testing.assert_array_equal(values["a:2"], y)


def test_gradients_of_values() -> None:
    model: AnyLayer = mlax.series(a=mlax.linear(3), b=mlax.linear(2))
    params, state = model.init(KEY, X)

    def penalty(params: Any) -> jax.Array:
        (_, values), _ = mlax.tap(model, "a").apply(params, state, X)
        return jnp.sum(values["a"])

    grads = jax.grad(penalty)(params)
    expected = np.repeat(np.asarray(X)[:, None], 3, 1)
    np.testing.assert_allclose(grads["a"].kernel, expected, rtol=1e-6)
    np.testing.assert_array_equal(grads["b"].kernel, np.zeros((3, 2)))


def test_as_a_layer_among_others() -> None:
    inner: AnyLayer = mlax.tap(mlax.series(a=mlax.f(jnp.sin), b=mlax.f(jnp.cos)), "a")
    model: AnyLayer = mlax.series(inner, mlax.f(lambda pair: pair[0] + pair[1]["a"]))
    params, state = model.init(KEY, X)
    y, _ = jax.jit(model.apply)(params, state, X)
    np.testing.assert_allclose(y, np.cos(np.sin(X)) + np.sin(X), rtol=1e-6)


def test_nothing_is_recorded_after_it() -> None:
    params, state = MODEL.init(KEY, X)
    mlax.tap(MODEL).apply(params, state, X, KEY)
    y, after = MODEL.apply(params, state, X, KEY)
    assert y.shape == (2,)
    assert after == state
    with pytest.raises(ValueError, match="^dropout"):
        mlax.tap(MODEL).apply(params, state, X)
    assert MODEL.apply(params, state, X, KEY)[1] == state


def test_pickle_and_repr() -> None:
    layer = mlax.tap(mlax.series(a=mlax.linear(3)), ["a"])
    assert pickle.loads(pickle.dumps(layer)) == layer
    assert repr(layer) == "tap(series(a=linear(3)), ('a',))"
    assert layer != mlax.tap(mlax.series(a=mlax.linear(3)), "*")


def test_wrong_arguments_raise() -> None:
    params, state = MODEL.init(KEY, X)
    with pytest.raises(ValueError, match="^tap: expected 'haed' to match a path, got none among"):
        mlax.tap(MODEL, ["stem", "haed"]).apply(params, state, X, KEY)
    wrong: Any = 3  # wrong types on purpose
    with pytest.raises(TypeError, match="^tap: expected where to be a pattern, a list of patterns"):
        mlax.tap(MODEL, wrong)
    with pytest.raises(TypeError, match="^tap: expected layer to be a layer, got <pair linear>"):
        mlax.tap(mlax.linear)  # type: ignore[arg-type]  # wrong types on purpose


def test_a_layer_without_layers_inside_and_a_later_call() -> None:
    layer: Any = mlax.dense(2)
    params, state = layer.init(KEY, X)
    (_, values), _ = mlax.tap(layer).apply(params, state, X)
    assert values == {}

    @mlax.block(a=mlax.dense(3))
    def twice(sub: Sublayers, x: Any) -> Any:
        return sub.a(sub.a(x))

    params, state = twice.init(KEY, X)
    (y, values), _ = mlax.tap(twice, "a:1").apply(params, state, X)
    np.testing.assert_array_equal(values["a:1"], y)
    assert list(values) == ["a:1"]


def test_a_state_serves_with_and_without_tap() -> None:
    model: Any = mlax.series(mlax.dense(3), mlax.z_norm(()))
    batch = jnp.stack([X, 2 * X])
    params, state = mlax.batched(model).init(KEY, batch)
    (y, values), after = mlax.batched(mlax.tap(model, "0")).apply(params, state, batch)
    expected, expected_state = mlax.batched(model).apply(params, state, batch)
    np.testing.assert_array_equal(y, expected)
    assert values["0"].shape == (2, 3)
    assert jax.tree.structure(after) == jax.tree.structure(expected_state)
