"""Tests of `mlax.series`: values, keys, state, errors, and what `init` does and does not do."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import DTypeLike

import mlax
from mlax import AxisName, Key, Layer

KEY = jax.random.key(0)
X = jnp.array([1.0, -2.0, 0.5])
# Any: layers of all kinds side by side.
AnyLayer = Layer[Any, Any, Any, Any]


def bits(key: jax.Array) -> list[int]:
    """Return a key, typed or raw, in comparable form."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return [int(word) for word in (jax.random.key_data(key) if typed else key)]


def key_spy(seen: list[Any]) -> AnyLayer:
    """Return a layer that needs a key and appends the one it gets to `seen`."""

    def spy(x: jax.Array, rng: jax.Array) -> jax.Array:
        seen.append(rng)
        return x

    return mlax.f_rng(spy)


def init_key_spy(seen: list[Any]) -> AnyLayer:
    """Return a layer that appends the key it is initialised with to `seen`."""

    def initializer(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        seen.append(key)
        return jnp.zeros(shape, dtype)

    return mlax.bias(-1, initializer)


def counter(make: Callable[[], Any] = lambda: {"calls": jnp.zeros((), jnp.int32)}) -> AnyLayer:
    """Return a user's layer with an array as params that counts its calls in any state."""

    def init(rng: Key, x: jax.Array) -> tuple[jax.Array, Any]:
        return jnp.full(x.shape, 2.0), make()

    def apply(
        params: jax.Array,
        state: Any,
        x: jax.Array,
        rng: Key | None = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> tuple[jax.Array, Any]:
        return params * x, jax.tree.map(lambda count: count + 1, state)

    return Layer(init, apply)


def users_rng(seen: list[Any]) -> AnyLayer:
    """Return a user's layer whose `apply` has a parameter `rng` without a default."""

    def init(rng: Key, x: jax.Array) -> tuple[tuple[()], tuple[()]]:
        return (), ()

    def apply(
        params: tuple[()],
        state: tuple[()],
        x: jax.Array,
        rng: Key,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> tuple[jax.Array, tuple[()]]:
        seen.append(rng)
        return x, state

    pair: tuple[Any, Any] = (init, apply)  # Any: the protocol gives `rng` a default
    return Layer(*pair)


def notes(error: pytest.ExceptionInfo[BaseException]) -> list[str]:
    """Return the paths noted on an error."""
    return [n for n in getattr(error.value, "__notes__", []) if n.startswith("in ")]


def test_values() -> None:
    init, apply = mlax.series(mlax.linear(4), mlax.bias(-1), mlax.f(jax.nn.relu), mlax.linear(2))
    params, state = init(KEY, X)
    y, after = apply(params, state, X)
    first, second = np.asarray(params[0].kernel), np.asarray(params[3].kernel)
    hidden = np.maximum(np.asarray(X) @ first + np.asarray(params[1].bias), 0)
    np.testing.assert_allclose(y, hidden @ second, rtol=1e-5)
    assert params[2] == ()
    assert after == state
    assert state.variables == ()


def test_bare_pair() -> None:
    layers = (mlax.linear(4), mlax.bias(-1))
    params, state = mlax.series.init(KEY, X, *layers)
    bound_params, bound_state = mlax.series(*layers).init(KEY, X)
    assert jax.tree.structure((params, state)) == jax.tree.structure((bound_params, bound_state))
    y, _ = mlax.series.apply(params, state, X)
    np.testing.assert_allclose(y, np.asarray(X) @ np.asarray(params[0].kernel), rtol=1e-5)


def test_no_layers_are_the_identity() -> None:
    init, apply = mlax.series()
    params, state = init(KEY, X)
    assert params == ()
    assert apply(params, state, X)[0] is X


@pytest.mark.parametrize("key", [KEY, jax.random.PRNGKey(0)], ids=["typed", "raw"])
def test_child_i_is_initialised_with_fold_in_of_i(key: jax.Array) -> None:
    seen: list[Any] = []
    spy = init_key_spy(seen)
    mlax.series(spy, mlax.f(jnp.sin), spy, mlax.series(spy, spy)).init(key, X)
    inner = jax.random.fold_in(key, 3)
    expected = [
        jax.random.fold_in(key, 0),
        jax.random.fold_in(key, 2),
        jax.random.fold_in(inner, 0),
        jax.random.fold_in(inner, 1),
    ]
    assert [bits(key) for key in seen] == [bits(key) for key in expected]


def test_a_single_needing_child_gets_the_key_itself() -> None:
    seen: list[Any] = []
    init, apply = mlax.series(mlax.linear(2), mlax.series(key_spy(seen)), mlax.bias(-1))
    params, state = init(KEY, X)
    seen.clear()
    apply(params, state, X, KEY)
    assert seen == [KEY]


@pytest.mark.parametrize("key", [KEY, jax.random.PRNGKey(0)], ids=["typed", "raw"])
def test_of_several_needing_children_the_jth_gets_fold_in_of_j(key: jax.Array) -> None:
    seen: list[Any] = []
    spy = key_spy(seen)
    init, apply = mlax.series(
        mlax.bias(-1), spy, mlax.f(jnp.sin), mlax.series(spy, mlax.bias(-1), spy), spy
    )
    params, state = init(key, X)
    seen.clear()
    apply(params, state, X, key)
    inner = jax.random.fold_in(key, 1)
    expected = [
        jax.random.fold_in(key, 0),
        jax.random.fold_in(inner, 0),
        jax.random.fold_in(inner, 1),
        jax.random.fold_in(key, 2),
    ]
    assert [bits(key) for key in seen] == [bits(key) for key in expected]


def test_children_that_need_no_key_get_none() -> None:
    seen: list[Any] = []

    def apply(
        params: tuple[()],
        state: tuple[()],
        x: jax.Array,
        rng: Key | None = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> tuple[jax.Array, tuple[()]]:
        seen.append(rng)
        return x, state

    layer = Layer(lambda rng, x: ((), ()), apply)
    model = mlax.series(layer, mlax.dropout(0.5, 0), layer)
    params, state = model.init(KEY, X)
    seen.clear()
    model.apply(params, state, X, KEY)
    assert seen == [None, None]


def test_a_users_apply_without_a_default_needs_a_key() -> None:
    seen: list[Any] = []
    model = mlax.series(mlax.bias(-1), users_rng(seen), users_rng(seen))
    assert mlax.needs_rng(model.apply)
    params, state = model.init(KEY, X)
    seen.clear()
    model.apply(params, state, X, KEY)
    assert seen == [jax.random.fold_in(KEY, 0), jax.random.fold_in(KEY, 1)]


@pytest.mark.parametrize(
    ("layers", "needed"),
    [
        ((), False),
        ((mlax.linear(3), mlax.f(jnp.sin)), False),
        ((mlax.linear(3), mlax.dropout(0.5, 0)), True),
        ((mlax.series(mlax.series(mlax.dropout(0.5, 0))),), True),
        ((mlax.parallel(mlax.bias(-1)), mlax.series(mlax.bias(-1))), False),
        ((users_rng([]),), True),
        ((counter(),), False),
    ],
)
def test_needs_a_key_if_a_child_does(layers: tuple[AnyLayer, ...], needed: bool) -> None:
    assert mlax.needs_rng(mlax.series(*layers).apply) == needed


@pytest.mark.parametrize(
    "make",
    [
        lambda: {"calls": jnp.zeros((), jnp.int32)},
        lambda: jnp.zeros((), jnp.int32),
        lambda: [jnp.zeros((), jnp.int32), (jnp.zeros(3),)],
        lambda: mlax.State(jnp.zeros(()), ("any", "config")),
        lambda: (),
        lambda: None,
    ],
    ids=["dict", "array", "list", "State", "tuple", "None"],
)
def test_a_users_pair_composes_with_any_pytree_as_its_state(make: Callable[[], Any]) -> None:
    model = mlax.series(mlax.bias(-1), counter(make), mlax.series(counter(make)))
    params, state = model.init(KEY, X)
    for calls in range(3):
        y, state = model.apply(params, state, X)
        np.testing.assert_array_equal(y, 4 * np.asarray(X))
        for count in jax.tree.leaves(state):
            np.testing.assert_array_equal(count, np.full(count.shape, calls + 1))
    assert len(jax.tree.leaves(state)) == 2 * len(jax.tree.leaves(make()))
    assert jax.tree.structure(state) == jax.tree.structure(model.init(KEY, X)[1])


def test_a_users_pair_initialised_under_jit_has_the_same_structure() -> None:
    model = mlax.series(counter(), counter(lambda: jnp.zeros(())), mlax.bias(-1))
    eager = model.init(KEY, X)
    traced = jax.jit(lambda key, x: model.init(key, x))(KEY, X)
    assert jax.tree.structure(eager) == jax.tree.structure(traced)
    params, state = traced
    y, _ = model.apply(params, state, X)
    np.testing.assert_array_equal(y, 4 * np.asarray(X))


def test_state_is_one_node() -> None:
    layers = [mlax.series(mlax.linear(3), mlax.bias(-1), mlax.f(jnp.sin)) for _ in range(30)]
    _, state = mlax.series(*layers).init(KEY, X)
    assert jax.tree.structure(state).num_nodes == 2  # the State and its empty variables
    _, state = mlax.series(mlax.linear(3), mlax.series(mlax.z_norm("all"))).init(KEY, X)
    # State, (linear's, series's), (), (z_norm's,), ZNormVariables, mean, var
    assert jax.tree.structure(state).num_nodes == 7
    assert isinstance(state, mlax.State)


def test_equal_layers_give_equal_structures() -> None:
    def build() -> Any:
        return mlax.series(mlax.linear(4), mlax.z_norm("all"), mlax.f(jnp.sin)).init(KEY, X)

    assert jax.tree.structure(build()) == jax.tree.structure(build())


def test_variables_and_modes_reach_the_children() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(5, 2, (8, 3)), jnp.float32)
    tripled = mlax.scaler((), lambda key, shape, dtype: jnp.full(shape, 3))
    model = mlax.series(tripled, mlax.z_norm(()))
    params, state = model.init(KEY, x[0])
    y, after = jax.vmap(
        lambda x: model.apply(params, state, x, None, False, "batch"),
        out_axes=(0, None),
        axis_name="batch",
    )(x)
    exact = np.asarray(x, np.float64) * 3
    expected = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    _, running = after.variables
    np.testing.assert_allclose(running.mean, 0.1 * exact.mean(0), rtol=1e-5)
    inference, unchanged = model.apply(params, after, x[0], inference_mode=True)
    expected = (exact[0] - running.mean) / np.sqrt(np.asarray(running.var) + 1e-5)
    np.testing.assert_allclose(inference, expected, rtol=1e-5)
    np.testing.assert_array_equal(jax.tree.leaves(unchanged), jax.tree.leaves(after))


def test_inference_needs_no_key() -> None:
    model = mlax.series(mlax.dropout(0.5, 0), mlax.series(mlax.dropout(0.9, 0), counter()))
    params, state = model.init(KEY, X)
    y, _ = model.apply(params, state, X, inference_mode=True)
    np.testing.assert_array_equal(y, 2 * np.asarray(X))


MODEL = mlax.series(
    mlax.linear(4), mlax.series(mlax.z_norm("all"), mlax.linear(2)), mlax.dropout(0.5, 0)
)


def test_init_takes_shapes_and_runs_under_transformations() -> None:
    params, state = MODEL.init(KEY, X)
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
    results = {
        "shapes": MODEL.init(KEY, shape),
        "jit": jax.jit(MODEL.init)(KEY, X),
        "jit of shapes": jax.jit(lambda key: MODEL.init(key, shape))(KEY),
    }
    for name, result in results.items():
        assert jax.tree.structure(result) == jax.tree.structure((params, state)), name
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), result, (params, state)
        )
    abstract = jax.eval_shape(MODEL.init, KEY, shape)
    assert jax.tree.structure(abstract) == jax.tree.structure((params, state))
    assert jax.tree.leaves(abstract) == jax.tree.leaves(jax.eval_shape(lambda: (params, state)))


def test_ensemble() -> None:
    def run(key: jax.Array, params: Any, state: Any) -> jax.Array:
        return MODEL.apply(params, state, X, key)[0]

    @jax.jit
    def run_all(keys: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
        params, state = jax.vmap(MODEL.init, (0, None))(keys, X)
        singles = [run(key, *MODEL.init(key, X)) for key in keys]
        return jax.vmap(run)(keys, params, state), singles

    y, singles = run_all(jax.random.split(KEY, 2))
    for i, single in enumerate(singles):
        np.testing.assert_allclose(y[i], single, rtol=1e-4, atol=1e-5)


def test_init_runs_no_forward_pass() -> None:
    traced: list[bool] = []
    run: list[Any] = []

    def watched(x: jax.Array) -> jax.Array:
        traced.append(isinstance(x, jax.core.Tracer))
        jax.debug.callback(run.append, x)
        return x[:2]

    params, state = mlax.series(mlax.f(watched), mlax.f(watched), mlax.linear(2)).init(KEY, X)
    jax.effects_barrier()
    assert traced == [True, True]
    assert run == []
    assert params[2].kernel.shape == (2, 2)
    mlax.series.apply(params, state, X)
    jax.effects_barrier()
    assert len(run) == 2


@pytest.mark.parametrize(
    ("layers", "got"),
    [
        ((mlax.linear,), r"<pair linear> .*; call it.*in linear\("),
        ((mlax.linear(3), jax.nn.relu), r"the function relu; .*mlax.f\(relu\)"),
        ((3,), r"3; .*mlax.Layer\(init, apply\)"),
        (((mlax.linear(3), mlax.bias(-1)),), r"a tuple; .* series\(\*layers\)"),
        (([mlax.linear(3), mlax.bias(-1)],), r"a list; .* series\(\*layers\)"),
        ((mlax.nn.Bias(KEY, -1),), r"a module; .*mlax.as_layer\(module\)"),
    ],
    ids=["pair", "function", "number", "tuple", "list", "module"],
)
def test_what_is_no_layer_raises(layers: Any, got: str) -> None:  # wrong types on purpose
    wanted = f"^series: expected layers to be a layer, got {got}"
    with pytest.raises(TypeError, match=wanted):
        mlax.series(*layers)
    with pytest.raises(TypeError, match=wanted):
        mlax.series.init(KEY, X, *layers)


def test_error_in_init_has_the_path_once() -> None:
    model = mlax.series(mlax.f(jnp.sum), mlax.series(mlax.linear(3)))
    with pytest.raises(ValueError, match="^linear: expected x with at least 1 axis") as error:
        model.init(KEY, X)
    assert notes(error) == ["in series[1] > series[0] > linear"]


def test_error_in_apply_has_the_path_once() -> None:
    model = mlax.series(mlax.bias([]), mlax.series(mlax.f(jnp.sin), mlax.linear(2)))
    params, state = model.init(KEY, X)
    for apply in (model.apply, jax.jit(model.apply)):
        with pytest.raises(ValueError, match=r"^linear: expected x with 3 .*\(5,\)") as error:
            apply(params, state, jnp.ones(5))
        assert notes(error) == ["in series[1] > series[1] > linear"]


def test_error_of_a_users_function_has_its_type_and_the_path() -> None:
    class Wrong(Exception):
        """An error of the user's own."""

    def fail(x: jax.Array) -> jax.Array:
        raise Wrong("so it is")

    model = mlax.series(mlax.bias(-1), mlax.f(fail), mlax.bias(-1))
    with pytest.raises(Wrong, match="^so it is") as error:
        model.init(KEY, X)
    assert notes(error) == ["in series[1] > f"]


def test_error_of_a_users_layer_has_the_name_of_its_init() -> None:
    def gate(rng: Key, x: Any) -> tuple[Any, Any]:
        raise ValueError("no")

    model = mlax.series(mlax.bias(-1), Layer(gate, mlax.bias(-1).apply))
    with pytest.raises(ValueError, match="^no") as error:
        model.init(KEY, X)
    assert notes(error) == ["in series[1] > gate"]


def test_missing_key_in_training_names_rng_and_the_layer() -> None:
    model = mlax.series(mlax.bias(-1), mlax.series(mlax.bias(-1), mlax.dropout(0.5, 0)))
    params, state = model.init(KEY, X)
    with pytest.raises(ValueError, match="^dropout: expected rng to be a PRNG key") as error:
        model.apply(params, state, X)
    assert notes(error) == ["in series[1] > series[1] > dropout"]


def test_parameters_of_another_model_raise() -> None:
    model = mlax.series(mlax.linear(2), mlax.bias(-1))
    params, state = model.init(KEY, X)
    wrong: Any = params[:1]  # wrong types on purpose
    with pytest.raises(ValueError, match="^series: expected params .* 2 entries.*, got 1 entries"):
        model.apply(wrong, state, X)
    _, other = mlax.series(mlax.z_norm("all"), mlax.z_norm("all"), counter()).init(KEY, X)
    wrong = mlax.State(other.variables, state.config)
    with pytest.raises(ValueError, match="^series: expected state.variables .* got 3 entries"):
        model.apply(params, wrong, X)


def test_gradients() -> None:
    model = mlax.series(mlax.linear(1), mlax.f(jnp.square), counter())
    params, state = model.init(KEY, X)
    kernel = np.asarray(params[0].kernel, np.float64)[:, 0]
    grads = jax.grad(lambda p: model.apply(p, state, X)[0][0])(params)
    inner = np.asarray(X, np.float64) @ kernel  # y = 2 (x . kernel)^2
    np.testing.assert_allclose(grads[0].kernel[:, 0], 4 * inner * np.asarray(X), rtol=1e-5)
    np.testing.assert_allclose(grads[2], [inner**2], rtol=1e-5)


def test_parameters_for_a_child_that_has_none_raise() -> None:
    other, _ = mlax.series(mlax.linear(3), mlax.linear(3)).init(KEY, X)
    nested, _ = mlax.series(mlax.linear(3), mlax.series(mlax.linear(3))).init(KEY, X)
    for wrong, got in ((other, "a LinearParams"), (nested, "1 entries")):
        model: Any = mlax.series(mlax.linear(3), mlax.f(jnp.tanh))  # wrong types on purpose
        _, state = model.init(KEY, X)
        with pytest.raises(TypeError, match=rf"^f: expected params to be \(\), got {got}") as error:
            model.apply(wrong, state, X)
        assert notes(error) == ["in series[1] > f"]


def test_a_users_state_and_params_may_be_numbers_of_python() -> None:
    def init(rng: Key, x: jax.Array) -> tuple[float, int]:
        return 2.0, 0

    def apply(
        params: float,
        state: int,
        x: jax.Array,
        rng: Key | None = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> tuple[jax.Array, int]:
        return params * x, state + 1

    model = mlax.series(Layer(init, apply), mlax.linear(2))
    params, state = model.init(KEY, X)
    step = jax.jit(model.apply)
    _, state = step(params, state, X)
    y, state = step(params, state, X)
    assert state.variables[0] == 2
    np.testing.assert_allclose(y, 2 * X @ params[1].kernel, rtol=1e-6)


def test_models_may_be_nested_deeply() -> None:
    model: AnyLayer = mlax.linear(3)
    for _ in range(140):
        model = mlax.series(model)
    params, state = model.init(KEY, X)
    y, _ = jax.eval_shape(jax.jit(model.apply), params, state, X)
    assert y.shape == X.shape
