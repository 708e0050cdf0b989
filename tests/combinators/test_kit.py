"""Tests of the author's kit: users' combinators work like ours."""

import copy
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import Key, Layer, combinators
from mlax.combinators import Child, init_only_child, transform
from mlax.types import Size

# The models normalise over a batch, and most tests run them on one example.
pytestmark = pytest.mark.filterwarnings("ignore:z_norm. expected more than one element:UserWarning")

KEY = jax.random.key(0)
X = jnp.array([1.0, -2.0, 0.5])
# Any: layers of all kinds side by side.
AnyLayer = Layer[Any, Any, Any, Any]


@mlax.combinator
def alternate(x: Any, a: mlax.Sublayer, b: mlax.Sublayer, n: Size) -> Any:
    """Two layers in turn, n times."""
    for _ in range(n):
        x = b(a(x))
    return x


@mlax.combinator
def weighted(x: Any, *layers: mlax.Sublayer, by: float = 2.0) -> Any:
    """The sum of the outputs of layers, times a number."""
    return by * sum(layer(x) for layer in layers)


@mlax.combinator
def routed(x: Any, /, **named: mlax.Sublayer) -> dict[str, Any]:
    """The outputs of layers by name."""
    return {name: layer(x) for name, layer in named.items()}


@mlax.combinator
def optional(x: Any, layer: mlax.Sublayer, last: mlax.Sublayer | None = None) -> Any:
    """A layer, and another one if there is one."""
    return layer(x) if last is None else last(layer(x))


class RecomputeConfig(NamedTuple):
    """Configuration of `recompute`."""

    layer: Child
    """The layer."""


def apply_recompute(call: Any, config: RecomputeConfig, params: Any, variables: Any, x: Any) -> Any:
    """Return the output of the layer."""

    def run(params: Any, variables: Any, x: Any, rng: Key | None) -> Any:
        return call(config.layer, params, variables, x, rng)

    return jax.checkpoint(run)(params, variables, x, call.rng)


@transform(apply_recompute, RecomputeConfig)
def recompute(rng: Key, x: Any, layer: mlax.Layer[Any, Any, Any, Any]) -> Any:
    """A layer whose activations are recomputed in the backward pass."""
    return init_only_child("recompute", layer, rng, x)


def notes(error: pytest.ExceptionInfo[BaseException]) -> list[str]:
    """Return the paths noted on an error."""
    return [n for n in getattr(error.value, "__notes__", []) if n.startswith("in ")]


NORM: AnyLayer = mlax.series(mlax.z_norm(()), mlax.dropout(0.5, 0))
MODELS: dict[str, AnyLayer] = {
    "alternate": alternate(mlax.linear(3), NORM, 2),
    "weighted": weighted(mlax.linear(3), NORM, by=3.0),
    "routed": routed(a=mlax.linear(3), b=NORM),
    "optional": optional(mlax.linear(3), NORM),
    "recompute": recompute(mlax.series(mlax.linear(3), NORM)),
}
PATHS = {
    "alternate": "alternate > a > linear",
    "weighted": "weighted[0] > linear",
    "routed": "routed > a > linear",
    "optional": "optional > layer > linear",
    "recompute": "recompute > series[0] > linear",
}


def plain(name: str, kernel: Any, x: Any, kept: list[Any]) -> Any:
    """Return the output of a model for a batch, written out."""

    def norm(x: Any, i: int = 0) -> Any:
        return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) * kept[i] * 2

    if name == "alternate":
        return norm(norm(x @ kernel) @ kernel, 1)
    if name == "weighted":
        return 3 * (x @ kernel + norm(x))
    if name == "routed":
        return {"a": x @ kernel, "b": norm(x)}
    return norm(x @ kernel)


@pytest.mark.parametrize("name", MODELS)
def test_values_keys_batch_axes_and_statistics(name: str) -> None:
    x = np.random.default_rng(0).normal(3, 2, (64, 3)).astype(np.float32)
    model = mlax.batched(MODELS[name])
    assert model.needs_rng
    params, state = model.init(KEY, jnp.asarray(x))
    kernel = np.asarray(jax.tree.leaves(params)[0])
    y, after = jax.jit(model.apply)(params, state, jnp.asarray(x), KEY)
    keys = jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(64))
    if name == "alternate":  # its second layer is called twice
        fold: Any = jax.vmap(jax.random.fold_in, (0, None))
        calls = [fold(keys, i) for i in range(2)]
    else:
        calls = [keys]
    kept = [jax.vmap(lambda key: jax.random.bernoulli(key, 0.5, (3,)))(k) for k in calls]
    expected = plain(name, kernel, x, [np.asarray(mask) for mask in kept])
    for leaf, wanted in zip(jax.tree.leaves(y), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, wanted, rtol=1e-2, atol=1e-3)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    changed = zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True)
    assert all(not np.array_equal(new, old) for new, old in changed)
    z, same = model.apply(params, after, jnp.asarray(x), inference_mode=True)
    for new, old in zip(jax.tree.leaves(same), jax.tree.leaves(after), strict=True):
        np.testing.assert_array_equal(new, old)
    assert jax.tree.structure(z) == jax.tree.structure(y)


@pytest.mark.parametrize("name", MODELS)
def test_layers_params_and_states_survive_copies_and_pickle(name: str) -> None:
    model = MODELS[name]
    params, state = model.init(KEY, X)
    y, _ = model.apply(params, state, X, KEY)
    dumped = pickle.dumps((model, params, state))
    for other, other_params, other_state in (
        copy.deepcopy((model, params, state)),
        pickle.loads(dumped),
    ):
        assert other == model
        assert hash(other) == hash(model)
        assert jax.tree.structure(other_params) == jax.tree.structure(params)
        assert jax.tree.structure(other_state) == jax.tree.structure(state)
        z, _ = other.apply(other_params, other_state, X, KEY)
        for leaf, expected in zip(jax.tree.leaves(z), jax.tree.leaves(y), strict=True):
            np.testing.assert_array_equal(leaf, expected)


@pytest.mark.parametrize("name", MODELS)
def test_paths_in_errors(name: str) -> None:
    model = mlax.series(body=MODELS[name])
    with pytest.raises(ValueError, match="^linear: expected x with at least 1 axis") as init:
        MODELS[name].init(KEY, jnp.ones(()))
    assert notes(init) == [f"in {PATHS[name]}"]
    params, state = model.init(KEY, X)
    with pytest.raises(ValueError, match="^linear: expected x with 3 features") as apply:
        model.apply(params, state, jnp.ones(2), KEY)
    inside = PATHS[name].removeprefix(name)
    assert notes(apply) == [f"in series > body{inside}"]
    with pytest.raises(ValueError, match="^dropout: expected rng to be a PRNG key") as key:
        model.apply(params, state, X)
    assert notes(key)[0].startswith("in series > body")


@pytest.mark.parametrize("name", MODELS)
def test_one_trace_for_a_loop(name: str) -> None:
    traces: list[None] = []

    @jax.jit
    def step(params: Any, state: Any, x: Any) -> Any:
        traces.append(None)
        return MODELS[name].apply(params, state, x, KEY)

    params, state = MODELS[name].init(KEY, X)
    for _ in range(3):
        _, state = step(params, state, X)
    assert len(traces) == 1


@pytest.mark.parametrize("name", ["alternate", "weighted", "optional", "recompute"])
def test_in_our_combinators(name: str) -> None:
    model = mlax.series(mlax.repeat(mlax.remat(MODELS[name]), 2), mlax.ensemble(MODELS[name], 3))
    params, state = model.init(KEY, X)
    y, after = jax.jit(model.apply)(params, state, X, KEY)
    assert y.shape == (3, 3)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    grads = jax.grad(lambda params: jnp.sum(model.apply(params, state, X, KEY)[0]))(params)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    (_, values), _ = mlax.tap(model).apply(params, state, X, KEY)
    assert values


def test_gradients_of_recomputed_activations() -> None:
    layer: AnyLayer = mlax.series(mlax.linear(3), mlax.f(jnp.tanh), mlax.linear(3))
    params, state = layer.init(jax.random.fold_in(KEY, 0), X)
    again = recompute(layer)
    same, own_state = again.init(KEY, X)

    def loss(apply: Any, state: Any) -> Any:
        return jax.grad(lambda params: jnp.sum(apply(params, state, X)[0] ** 2))

    for leaf, other in zip(
        jax.tree.leaves(loss(layer.apply, state)(params)),
        jax.tree.leaves(loss(again.apply, own_state)(same)),
        strict=True,
    ):
        np.testing.assert_allclose(leaf, other, rtol=1e-5)
    text = str(jax.make_jaxpr(loss(again.apply, own_state))(same))
    assert text.count("tanh") == 2
    assert str(jax.make_jaxpr(loss(layer.apply, state))(params)).count("tanh") == 1


def test_params_variables_and_repr() -> None:
    params, state = MODELS["alternate"].init(KEY, X)
    assert mlax.paths(params) == ["a.kernel"]
    assert list(state.variables) == ["a", "b"]
    assert isinstance(MODELS["weighted"].init(KEY, X)[0], tuple)
    assert list(MODELS["routed"].init(KEY, X)[0]) == ["a", "b"]
    first = jax.random.fold_in(KEY, 0)
    expected = mlax.linear(3).init(first, X)[0].kernel
    np.testing.assert_array_equal(params["a"].kernel, expected)
    linear = mlax.linear(3)
    assert repr(alternate(linear, linear, 2)) == "alternate(linear(3), linear(3), 2)"
    assert repr(alternate(a=linear, b=linear, n=2)) == "alternate(linear(3), linear(3), 2)"
    assert repr(weighted(linear, linear)) == "weighted(linear(3), linear(3))"
    assert repr(recompute(linear)) == "recompute(linear(3))"
    assert repr(optional(linear)) == "optional(linear(3))"


def test_the_state_of_another_one_raises() -> None:
    linear = mlax.linear(3)
    two, three = alternate(linear, linear, 2), alternate(linear, linear, 3)
    params, state = two.init(KEY, X)
    with pytest.raises(ValueError, match="^alternate: expected state.config.n to be 3, .* got 2; "):
        three.apply(params, state, X)
    with pytest.raises(ValueError, match="^weighted: expected state.config.by to be 2.0, .*got 3"):
        weighted(linear).apply(*weighted(linear, by=3.0).init(KEY, X), X)
    assert weighted(linear).init(KEY, X)[1] == weighted(linear, by=2.0).init(KEY, X)[1]
    with pytest.raises(TypeError, match="^recompute: expected .* bias, got that of linear"):
        recompute(mlax.bias(-1)).apply(*recompute(linear).init(KEY, X), X)


def test_wrong_hyperparameters_raise_at_once() -> None:
    wrong: Any = 0  # wrong on purpose
    with pytest.raises(ValueError, match="^alternate: expected n to be a positive integer, got 0"):
        alternate(mlax.linear(3), mlax.linear(3), wrong)
    with pytest.raises(TypeError, match="^alternate: expected b to be a layer, got <pair linear>"):
        alternate(mlax.linear(3), mlax.linear, 2)
    with pytest.raises(TypeError, match="^alternate: missing a required argument: 'n'"):
        alternate(mlax.linear(3), mlax.linear(3))
    with pytest.raises(TypeError, match="^weighted: expected layers to be a layer, got 'linear'"):
        weighted("linear")
    with pytest.raises(TypeError, match="^recompute: expected layer to be a layer, got a list"):
        recompute([mlax.linear(3)])


@mlax.combinator
def with_default(x: Any, inner: mlax.Sublayer = mlax.dense(2)) -> Any:  # type: ignore[assignment]  # a layer stands for its sublayer
    """Call a layer that has a default."""
    return inner(x)


def test_a_layer_as_default() -> None:
    params, state = with_default().init(KEY, X)
    assert params["inner"].kernel.shape == (3, 2)
    assert with_default().apply(params, state, X)[0].shape == (2,)
    assert with_default(mlax.dense(4)).init(KEY, X)[0]["inner"].kernel.shape == (3, 4)


def test_a_list_of_layers_where_one_is_wanted() -> None:
    @mlax.combinator
    def untyped(x: Any, layer: Any) -> Any:
        return layer(x)

    with pytest.raises(TypeError, match=r"^untyped: expected layer to be a layer, .*\*layers"):
        untyped([mlax.dense(3), mlax.dense(3)])


def test_our_combinators_are_made_of_the_kit_alone() -> None:
    rooms = {"child", "making", "transforms", "wiring"}  # what the kit is made of
    for file in Path(combinators.__path__[0]).glob("*.py"):
        if file.stem not in rooms | {"__init__", "owners", "types"}:
            text = file.read_text("utf-8")
            assert not [room for room in rooms if f"combinators.{room} " in text], file


def test_what_the_functions_of_a_transform_forget() -> None:
    def forgetful(call: Any, config: RecomputeConfig, params: Any, variables: Any, x: Any) -> Any:
        return call(config.layer, params, variables, x)[0]

    @transform(forgetful, RecomputeConfig)
    def outputs(rng: Key, x: Any, layer: AnyLayer) -> Any:
        return init_only_child("outputs", layer, rng, x)

    rows = jnp.ones((2, 3))
    params, state = outputs(mlax.dense(3)).init(KEY, rows)
    with pytest.raises(TypeError, match=r"^outputs: .* to be \(y, variables\), got an array"):
        outputs(mlax.dense(3)).apply(params, state, rows)

    @transform(apply_recompute, RecomputeConfig)
    def unmade(rng: Key, x: Any, layer: AnyLayer) -> Any:
        return layer.init(rng, x)

    with pytest.raises(TypeError, match="^unmade: expected what init returns to be a Made"):
        unmade(mlax.dense(3)).init(KEY, rows)


class LoopConfig(NamedTuple):
    """Configuration of the loop of the docstring of the kit."""

    layer: combinators.Child
    n: int


def loop_apply(call: Any, config: LoopConfig, params: Any, variables: Any, x: Any) -> Any:
    """Run the layer n times."""

    def step(carry: Any, rng: Any) -> Any:
        x, before = carry
        y, after = call(config.layer, params, before, x, rng)
        after, values = combinators.separated(after, before)
        return (y, after), values

    rngs = None if call.rng is None else jax.random.split(call.rng, config.n)
    (x, variables), values = jax.lax.scan(step, (x, variables), rngs, config.n)
    return x, combinators.rejoined(variables, values)


@combinators.transform(loop_apply, LoopConfig)
def loop(rng: Key, x: Any, layer: Layer[Any, Any, Any, Any], n: Size) -> combinators.Made:
    """Run a layer n times."""
    return combinators.init_only_child("loop", layer, rng, x)


def test_a_loop_can_be_tapped() -> None:
    body = mlax.series(mlax.dense(3), mlax.f(jnp.tanh))
    params, state = loop(body, 2).init(KEY, X)
    (y, taps), _ = mlax.tap(loop(body, 2)).apply(params, state, X)
    np.testing.assert_array_equal(y, taps["1"][-1])
    np.testing.assert_allclose(taps["1"], np.tanh(taps["0"]), rtol=1e-6)
    mlax.testing.check_laws(loop(mlax.testing.spy(), 2), X)
