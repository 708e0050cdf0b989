"""What all combinators have in common: named children, paths in errors and profiles, `repr`, and
`init` and `apply` under the transformations of jax.

Functions and pairs that end up in a state are at the top level, so that they can be pickled.
"""

import copy
import functools
import pickle
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import AxisName, Key, Layer
from mlax.layers.bias import BiasParams
from mlax.layers.linear import LinearParams

KEY = jax.random.key(0)
X = jnp.array([1.0, -2.0, 1.5])
# Any: layers of all kinds side by side.
AnyLayer = Layer[Any, Any, Any, Any]


def count_init(rng: Key, x: Any) -> tuple[jax.Array, jax.Array]:
    """Make a parameter that is an array and a state that is one: a counter."""
    return jax.random.normal(rng, ()), jnp.zeros((), jnp.int32)


def count_apply(
    params: jax.Array,
    state: jax.Array,
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, jax.Array]:
    """Scale x, and count the calls in training."""
    return params * x, state if inference_mode else state + 1


def by_sign(x: jax.Array) -> jax.Array:
    """Return 0 if the sum of x is positive, else 1."""
    return jnp.where(x.sum() > 0, 0, 1)


@mlax.composed(needs_rng=True)
def dense(x: jax.ShapeDtypeStruct, features: int) -> AnyLayer:
    """Linear transformation, dropout and a counted scaler."""
    return mlax.series(mlax.linear(features), mlax.dropout(0.5, 0), COUNT)


COUNT = Layer(count_init, count_apply)
INNER: AnyLayer = mlax.series(mlax.linear(3), mlax.dropout(0.5, 0), COUNT)
"""A layer with parameters, a key and variables, whose output is like its input."""


@mlax.block(inner=INNER)
def twice(sub: mlax.types.Sublayers, x: jax.Array) -> jax.Array:
    """Return the output of one layer that is called twice."""
    y: jax.Array = sub.inner(sub.inner(x))
    return y


@mlax.block(norm=mlax.z_norm(()))
def normed(sub: mlax.types.Sublayers, x: jax.Array) -> jax.Array:
    """Return x normalised."""
    y: jax.Array = sub.norm(x)
    return y


MODELS: dict[str, AnyLayer] = {
    "series named": mlax.series(stem=INNER, head=mlax.linear(2)),
    "branch named": mlax.branch(stem=INNER, head=mlax.linear(2)),
    "residual": mlax.residual(INNER),
    "repeat": mlax.repeat(INNER, 2),
    "ensemble": mlax.ensemble(INNER, 2),
    "remat": mlax.remat(INNER),
    "switch": mlax.switch(by_sign, INNER, mlax.linear(3)),
    "cast": mlax.cast(
        INNER, params_dtype=jnp.float32, compute_dtype=jnp.bfloat16, output_dtype=jnp.float32
    ),
    "block": twice,
    "batched": mlax.batched(INNER),
    "composed": dense(4),
    "parallel named": mlax.series(mlax.branch(b=INNER, a=COUNT), mlax.parallel(b=COUNT, a=COUNT)),
}
PATHS = {
    "series named": "series > stem[0] > linear",
    "branch named": "branch > stem[0] > linear",
    "residual": "residual[0] > series[0] > linear",
    "repeat": "repeat > series[0] > linear",
    "ensemble": "ensemble > series[0] > linear",
    "remat": "remat > series[0] > linear",
    "switch": "switch[0] > series[0] > linear",
    "cast": "cast > series[0] > linear",
    "block": "twice > inner[0] > linear",
    "batched": "batched > series[0] > linear",
    "composed": "dense > series[0] > linear",
    "parallel named": "series[0] > branch > b[0] > linear",
}


SCOPES = {
    "series named": "stem (series)/0 (linear)",
    "branch named": "stem (series)/0 (linear)",
    "residual": "0 (series)/0 (linear)",
    "repeat": "0 (linear)",
    "ensemble": "vmap(0 (linear))",
    "remat": "0 (linear)",
    "switch": "0 (series)/0 (linear)",
    "cast": "0 (linear)",
    "block": "inner (series)/0 (linear)",
    "batched": "vmap(0 (linear))",
    "composed": "0 (linear)",
    "parallel named": "0 (branch)/b (series)/0 (linear)",
}


def input_of(name: str) -> jax.Array:
    """Return an input of the model."""
    return jnp.stack([X, 2 * X]) if name == "batched" else X


@functools.cache
def made(name: str) -> tuple[Any, Any]:
    """Return the parameters and state of the model, initialised once."""
    params, state = MODELS[name].init(KEY, input_of(name))
    return params, state


def trace(model: AnyLayer, params: Any, state: Any, x: Any, rng: Key | None = None) -> Any:
    """Apply the model to shapes only."""
    return jax.eval_shape(lambda p, s, x: model.apply(p, s, x, rng), params, state, x)


def notes(error: pytest.ExceptionInfo[BaseException]) -> list[str]:
    """Return the paths noted on an error."""
    return [n for n in getattr(error.value, "__notes__", []) if n.startswith("in ")]


def assert_equal(tree: Any, expected: Any) -> None:
    """Require two pytrees with equal structures and values."""
    assert jax.tree.structure(tree) == jax.tree.structure(expected)
    for leaf, other in zip(jax.tree.leaves(tree), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-6, atol=1e-6)


# Named children.


def test_params_variables_and_outputs_of_named_layers_are_dicts() -> None:
    variables: Any
    x: Any
    for combinator, x in (
        (mlax.series, X),
        (mlax.branch, X),
        (mlax.parallel, {"stem": X, "head": X}),
    ):
        model = combinator(stem=mlax.linear(3), head=COUNT)
        params, state = model.init(KEY, x)
        assert isinstance(params, dict)
        assert list(params) == ["stem", "head"]
        assert params["stem"].kernel.shape == (3, 3)
        y, after = model.apply(params, state, x)
        assert isinstance(after.variables, dict)
        variables = after.variables
        assert (variables["stem"], int(variables["head"])) == ((), 1)
        assert list(y) == ["stem", "head"] if isinstance(y, dict) else y.shape == (3,)
    variables = mlax.series(a=mlax.bias(-1)).init(KEY, X)[1].variables
    assert variables == ()


def test_paths_of_named_children() -> None:
    model = mlax.series(stem=mlax.series(mlax.bias(-1)), head=mlax.linear(2), norm=mlax.z_norm(0))
    params, state = model.init(KEY, X)
    leaves = jax.tree_util.tree_leaves_with_path(params)
    spelled = [jax.tree_util.keystr(path) for path, _ in leaves]
    assert spelled == ["['head'].kernel", "['stem'][0].bias"]
    (mean, _), (var, _) = jax.tree_util.tree_leaves_with_path(state.variables)
    assert jax.tree_util.keystr(mean) == "['norm'].mean"
    assert jax.tree_util.keystr(var) == "['norm'].var"
    assert mlax.paths(params) == ["stem.0.bias", "head.kernel"]


def test_named_layers_run_in_the_order_written() -> None:
    model = mlax.series(
        zeta=mlax.f(lambda x: x + 1), mid=mlax.linear(2), alpha=mlax.f(lambda x: 2 * x)
    )
    params, state = model.init(KEY, X)
    expected = 2 * ((np.asarray(X) + 1) @ np.asarray(params["mid"].kernel))
    np.testing.assert_allclose(model.apply(params, state, X)[0], expected, rtol=1e-5)
    mapped_params, mapped_state = jax.tree.map(lambda a: a, (params, state))
    assert list(mapped_params) == ["alpha", "mid", "zeta"]
    y, after = jax.jit(model.apply)(mapped_params, mapped_state, X)
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    np.testing.assert_allclose(model.apply(mapped_params, after, X)[0], expected, rtol=1e-5)


def test_named_layers_get_keys_in_the_order_written() -> None:
    seen: list[Any] = []

    def spy(x: jax.Array, rng: jax.Array) -> jax.Array:
        seen.append(rng)
        return x

    model = mlax.series(z=mlax.f_rng(spy), m=mlax.linear(3), a=mlax.f_rng(spy))
    params, state = model.init(KEY, X)
    kernel = mlax.linear(3).init(jax.random.fold_in(KEY, 1), X)[0].kernel
    np.testing.assert_array_equal(params["m"].kernel, kernel)
    seen.clear()
    model.apply(params, jax.tree.map(lambda a: a, state), X, KEY)
    assert seen == [jax.random.fold_in(KEY, 0), jax.random.fold_in(KEY, 1)]


def test_a_parallel_of_named_layers_takes_and_gives_dicts() -> None:
    model = mlax.parallel(b=mlax.f(jnp.negative), a=mlax.f(jnp.abs))
    params, state = model.init(KEY, {"a": X, "b": X})
    y, _ = model.apply(params, state, {"a": X, "b": X})
    np.testing.assert_array_equal(y["a"], np.abs(X))
    np.testing.assert_array_equal(y["b"], -np.asarray(X))
    with pytest.raises(ValueError, match=r"^parallel: expected x .*\['b', 'a'\].*, got .*'c'"):
        model.init(KEY, {"a": X, "c": X})
    with pytest.raises(TypeError, match="^parallel: expected x .*dict.*, got a tuple"):
        model.init(KEY, (X, X))


@pytest.mark.parametrize("combinator", [mlax.series, mlax.parallel, mlax.branch])
def test_names_and_places_are_not_mixed(combinator: Any) -> None:  # wrong types on purpose
    wanted = "expected layers to be all with names or all without"
    with pytest.raises(TypeError, match=f"^{combinator.__name__}: {wanted}"):
        combinator(mlax.linear(3), head=mlax.linear(3))
    with pytest.raises(TypeError, match=f"^{combinator.__name__}: {wanted}"):
        combinator.init(KEY, X, mlax.linear(3), head=mlax.linear(3))


@pytest.mark.parametrize("combinator", [mlax.series, mlax.parallel, mlax.branch])
def test_wrong_names(combinator: Any) -> None:  # wrong types on purpose
    owner = combinator.__name__
    for name in ("rng", "x"):
        with pytest.raises(ValueError, match=f"^{owner}: expected a name other than '{name}'"):
            combinator(**{name: mlax.linear(3)})
    with pytest.raises(TypeError, match=f"^{owner}: expected head to be a layer, got .*linear"):
        combinator(head=mlax.linear)


@pytest.mark.parametrize("combinator", [mlax.series, mlax.parallel, mlax.branch])
def test_names_that_are_arguments_elsewhere(combinator: Any) -> None:
    names = ("self", "layers", "named", "owner")
    x = dict.fromkeys(names, X) if combinator is mlax.parallel else X
    params, _ = combinator(**dict.fromkeys(names, mlax.linear(3))).init(KEY, x)
    assert set(params) == set(names)


# Things that are not layers; parameters and states that do not fit.


@pytest.mark.parametrize(
    "make",
    [
        mlax.series,
        mlax.parallel,
        mlax.branch,
        mlax.residual,
        lambda layer: mlax.residual(mlax.linear(3), layer),
        lambda layer: mlax.repeat(layer, 2),
        lambda layer: mlax.ensemble(layer, 2),
        mlax.remat,
        lambda layer: mlax.switch(by_sign, layer),
        mlax.batched,
        mlax.cast,
        mlax.frozen,
        mlax.tap,
        lambda layer: mlax.block(head=layer)(lambda sub, x: sub.head(x)),
        lambda layer: mlax.series(head=layer),
    ],
)
@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (mlax.linear, r"<pair linear> .*; call it.*in linear\("),
        ((count_init, count_apply), r"a tuple; .* [a-z]+\(\*"),
        (jax.nn.relu, r"the function relu; .*mlax.f\(relu\)"),
        (count_apply, r"the function count_apply; .*mlax.f\(count_apply\)"),
        (mlax.nn.Linear(KEY, 3), r"a module; .*mlax.as_layer\("),
        ("linear", r"'linear'; .*mlax.Layer\(init, apply\)"),
        (3, r"3; .*mlax.Layer\(init, apply\)"),
    ],
    ids=["pair", "tuple", "relu", "function", "module", "string", "number"],
)
def test_what_is_no_layer_raises_at_once(
    make: Callable[[Any], Any], wrong: Any, got: str
) -> None:
    with pytest.raises(TypeError, match=f"^[a-z]+: expected .* to be a layer, got {got}"):
        make(wrong)


@pytest.mark.parametrize("name", MODELS)
def test_state_of_another_model_raises(name: str) -> None:
    params, _ = made(name)
    loop = mlax.recurrent(mlax.f(lambda pair: pair)).init(KEY, (X, X))[1]
    for state in (mlax.linear(2).init(KEY, X)[1], loop, (), None):
        with pytest.raises((TypeError, ValueError), match="^[a-z]+: expected state to be .*, got "):
            trace(MODELS[name], params, state, input_of(name), KEY)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_of_another_model_raise(name: str) -> None:
    params, state = made(name)

    def swapped(node: Any) -> Any:
        return BiasParams(node.kernel) if isinstance(node, LinearParams) else node

    wrong = jax.tree.map(swapped, params, is_leaf=lambda node: isinstance(node, LinearParams))
    wanted = "^linear: expected params to be a LinearParams, got a BiasParams; .* another model"
    with pytest.raises(TypeError, match=wanted) as error:
        trace(MODELS[name], wrong, state, input_of(name), KEY)
    assert notes(error) == [f"in {PATHS[name]}"]


@pytest.mark.parametrize("name", ["repeat", "ensemble"])
def test_parameters_of_another_number_of_copies_raise(name: str) -> None:
    params, state = made(name)
    more = jax.tree.map(lambda leaf: jnp.concatenate([leaf, leaf]), params)
    with pytest.raises(ValueError, match=f"^{name}: expected params to be .*2.*, got .*4.*"):
        trace(MODELS[name], more, state, X, KEY)


def test_parameters_of_a_model_with_other_children_raise() -> None:
    named: AnyLayer = mlax.series(a=mlax.linear(3), b=mlax.linear(3))
    params, state = named.init(KEY, X)
    wanted = r"^series: expected params to be a dict with the entries \['a', 'b'\].*, got .*'c'.*"
    with pytest.raises(ValueError, match=wanted + "another model"):
        named.apply({"a": params["a"], "c": params["b"]}, state, X)
    outer: AnyLayer = mlax.branch(named, mlax.residual(mlax.linear(3)))
    (inner, around), state = outer.init(KEY, X)
    with pytest.raises(TypeError, match="^series: expected params to be a dict") as wrong_type:
        outer.apply(((inner["a"], inner["b"]), around), state, X)
    assert notes(wrong_type) == ["in branch[0] > series"]
    with pytest.raises(ValueError, match="^residual: expected params .* 1 entries") as error:
        outer.apply((inner, (*around, *around)), state, X)
    assert notes(error) == ["in branch[1] > residual"]


# Paths in errors.


@pytest.mark.parametrize("name", MODELS)
def test_an_error_has_the_whole_path_once(name: str) -> None:
    model, x = MODELS[name], input_of(name)
    wanted = r"^linear: expected x with 3 features in its last axis.*, got shape \(2,\)"
    with pytest.raises(ValueError, match=wanted) as error:
        trace(model, *made(name), x[..., :2], KEY)
    assert notes(error) == [f"in {PATHS[name]}"]
    with pytest.raises(ValueError, match="^linear: expected x with at least 1 axis") as error:
        model.init(KEY, jnp.ones(2) if name == "batched" else jnp.ones(()))
    assert notes(error) == [f"in {PATHS[name]}"]


def test_the_path_of_a_deep_model() -> None:
    block: AnyLayer = mlax.series(norm=mlax.z_norm(()), attention=mlax.residual(mlax.linear(3)))
    blocks: AnyLayer = mlax.series(mlax.bias(-1), mlax.bias(-1), mlax.bias(-1), block)
    model = mlax.series(stem=mlax.linear(3), blocks=blocks)
    params, state = model.init(KEY, X)
    with pytest.raises(NameError) as unbound:
        model.apply(params, state, X, batch_axis_name="batch")
    assert notes(unbound) == ["in series > blocks[3] > series > norm > z_norm"]
    params["blocks"][3]["attention"] = mlax.residual(mlax.linear(2)).init(KEY, X[:2])[0]
    with pytest.raises(ValueError, match=r"2 features .* got shape \(3,\)") as error:
        model.apply(params, state, X, inference_mode=True)
    assert notes(error) == ["in series > blocks[3] > series > attention[0] > linear"]


def se(rng: Key, x: Any) -> Any:
    """Initialise a user's pair whose name starts like the name of the combinator inside."""
    return mlax.series.init(rng, x, mlax.linear(3))


def test_the_path_of_a_pair_made_of_a_combinator() -> None:
    model = mlax.series(head=Layer(se, mlax.series.apply))
    params, state = model.init(KEY, X)
    with pytest.raises(ValueError, match="3 features") as error:
        model.apply(params, state, X[:2])
    assert notes(error) == ["in series > head > series[0] > linear"]


def test_a_child_that_has_a_name_is_called_by_it() -> None:
    model = mlax.series(body=mlax.remat(mlax.repeat(mlax.series(head=mlax.linear(3)), 2)))
    params, state = model.init(KEY, X)
    with pytest.raises(ValueError, match="3 features") as error:
        model.apply(params, state, X[:2])
    assert notes(error) == ["in series > body > repeat > series > head > linear"]


@pytest.mark.parametrize("name", MODELS)
def test_a_missing_key_is_reported_by_the_layer_that_needs_it(name: str) -> None:
    model, x = MODELS[name], input_of(name)
    assert mlax.needs_rng(model.apply)
    with pytest.raises(ValueError, match="^dropout: expected rng to be a PRNG key") as error:
        trace(model, *made(name), x)
    path = PATHS[name].removesuffix("[0] > linear")
    assert notes(error) == [f"in {path}[1] > dropout"]


@pytest.mark.parametrize(
    ("model", "path"),
    [
        (mlax.series(body=mlax.residual(mlax.z_norm(()))), "series > body[0] > z_norm"),
        (mlax.repeat(mlax.series(norm=mlax.z_norm(())), 2), "repeat > series > norm > z_norm"),
        (mlax.ensemble(mlax.z_norm(()), 2), "ensemble > z_norm"),
        (mlax.remat(mlax.z_norm(())), "remat > z_norm"),
        (mlax.cast(mlax.z_norm(())), "cast > z_norm"),
        (mlax.switch(by_sign, mlax.f(jnp.sin), mlax.z_norm(())), "switch[1] > z_norm"),
        (normed, "normed > norm > z_norm"),
        (mlax.batched(mlax.z_norm(()), axis_name="inner"), "batched > z_norm"),
    ],
    ids=str,
)
def test_an_unbound_batch_axis_is_named_with_its_layer(model: AnyLayer, path: str) -> None:
    x = jnp.ones((2, 3))
    params, state = model.init(KEY, x)
    apply = functools.partial(model.apply, batch_axis_name="data")
    with pytest.raises(NameError, match="^z_norm: expected the batch axis 'data' to be ") as error:
        jax.eval_shape(apply, params, state, x)
    assert notes(error) == [f"in {path}"]
    for way_out in ("mlax.batched(", "axis_name='data'", "jax.vmap(", "jax.shard_map"):
        assert way_out in str(error.value)
    bound = jax.vmap(lambda x: apply(params, state, x)[0], axis_name="data")
    assert jax.eval_shape(bound, jnp.stack([x, 2 * x])).shape[0] == 2


def growing_init(rng: Key, x: Any) -> Any:
    return (), {"steps": jnp.zeros(())}


def growing_apply(
    params: Any, state: Any, x: Any, rng: Key | None = None, inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> Any:
    return x, {"steps": state["steps"] + 1, "last": state["steps"]}


def growing_state_init(rng: Key, x: Any) -> Any:
    return (), mlax.State((), ())


def growing_state_apply(
    params: Any, state: Any, x: Any, rng: Key | None = None, inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> Any:
    return x, state.with_variables(jnp.zeros(()))


GROWING: AnyLayer = Layer(growing_init, growing_apply)
GROWING_STATE: AnyLayer = mlax.layer(growing_state_apply)(growing_state_init)()


@pytest.mark.parametrize(
    ("layer", "path"),
    [
        (mlax.series(linear=mlax.linear(3), body=GROWING), "series > body > growing_init"),
        (mlax.series(mlax.series(GROWING_STATE)), "series[0] > series[0] > growing_state_init"),
        (mlax.repeat(mlax.series(GROWING), 2), "repeat > series[0] > growing_init"),
        (mlax.recurrent(mlax.series(GROWING)), "recurrent > series[0] > growing_init"),
        (mlax.batched(GROWING), "batched > growing_init"),
        (mlax.ensemble(GROWING, 2), "ensemble > growing_init"),
    ],
    ids=str,
)
def test_a_state_that_changes_its_structure_is_named(layer: AnyLayer, path: str) -> None:
    x = jnp.ones((2, 3))
    with pytest.raises(TypeError, match="^growing_.*init: expected the state that apply") as error:
        params, state = layer.init(KEY, (x, x[0]) if "recurrent" in path else x)
        layer.apply(params, state, (x, x[0]) if "recurrent" in path else x)
    assert notes(error) == [f"in {path}"]


def test_structures_of_a_state_are_spelled_out() -> None:
    model = mlax.series(mlax.linear(3), GROWING)
    with pytest.raises(TypeError) as error:
        params, state = model.init(KEY, X)
        model.apply(params, state, X)
    assert str(error.value) == (
        "growing_init: expected the state that apply returns to be of the structure {'steps': *}, "
        "as its init made it, got {'last': *, 'steps': *}; initialise all that apply may set"
    )


@pytest.mark.parametrize("change", ["dtype", "shape"])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda layer: layer, mlax.series, mlax.residual, mlax.remat, mlax.batched,
        lambda layer: mlax.repeat(layer, 2), lambda layer: mlax.ensemble(layer, 2),
        lambda layer: mlax.switch(lambda x: jnp.array(0), layer, layer),
    ],
    ids=["bare", "series", "residual", "remat", "batched", "repeat", "ensemble", "switch"],
)
def test_a_state_that_changes_its_types_is_named(wrap: Any, change: str) -> None:
    def apply(
        params: Any, state: Any, x: Any, rng: Any = None, inference_mode: bool = False,
        batch_axis_name: Any = (),
    ) -> Any:
        steps = state.variables.astype(jnp.float16) if change == "dtype" else jnp.zeros((2, 2))
        return x, mlax.State(steps, state.config)

    @mlax.layer(apply)
    def changing(rng: Any, x: Any) -> Any:
        return (), mlax.State(jnp.zeros(2), ())

    layer = wrap(changing())
    got = r"\(2,\) and dtype float16" if change == "dtype" else r"\(2, 2\)"
    text = rf"^changing: expected the state that apply returns to be .*\(2,\).*, got .*{got}"
    with pytest.raises(TypeError, match=text):
        layer.apply(*layer.init(KEY, X), X)


# Names in profiles.


def scopes(fn: Callable[..., Any], *args: Any) -> set[str]:
    """Return the name stacks of all equations of a function."""
    return {str(eqn.source_info.name_stack) for eqn in jax.make_jaxpr(fn)(*args).jaxpr.eqns}


def test_scopes_of_children_in_the_jaxpr() -> None:
    model = mlax.series(
        stem=mlax.linear(3),
        blocks=mlax.series(mlax.bias(-1), mlax.residual(mlax.linear(3))),
        end=mlax.branch(a=mlax.linear(1), b=mlax.switch(by_sign, mlax.bias(-1))),
    )
    params, state = model.init(KEY, X)
    found = scopes(model.apply, params, state, X)
    assert {
        "stem (linear)",
        "blocks (series)/0 (bias)",
        "blocks (series)/1 (residual)/0 (linear)",
        "blocks (series)/1 (residual)",
        "end (branch)/a (linear)",
        "end (branch)/b (switch)/0 (bias)",
    } <= found


def test_scopes_spell_the_paths_of_layers() -> None:
    block = mlax.transformer_block(mlax.attention(2), mlax.mlp(8))
    model = mlax.series(embed=mlax.embed(5, 4), body=mlax.repeat(block, 2), head=mlax.dense(5))
    tokens = jnp.zeros(3, int)
    params, state = model.init(KEY, tokens)
    gradient = jax.jit(jax.grad(lambda params: model.apply(params, state, tokens)[0].sum()))
    text = str(gradient.lower(params).compile().as_text())
    names = re.findall(r'op_name="(jit[^";]*/dot_general)"', text)  # constants leave their loop
    found = {".".join(re.findall(r"([\w:]+) \(", name)) for name in names}
    rows = {".".join(row.path) for row in mlax.summary(model, tokens).rows}
    assert {"head", "body.attention", "body.mlp.up", "body.mlp.down"} <= found <= rows


@pytest.mark.parametrize("name", MODELS)
def test_scopes_of_children_in_the_compiled_program(name: str) -> None:
    model, x = MODELS[name], input_of(name)
    text = jax.jit(model.apply).lower(*made(name), x, KEY).compile().as_text()
    assert text is not None and f"{SCOPES[name]}/jit(linear)/dot_general" in text


# The expression that makes a layer.

NAMESPACE = {name: getattr(mlax, name) for name in mlax.__all__} | {
    "bfloat16": jnp.bfloat16,
    "by_sign": by_sign,
    "dense": dense,
    "float32": jnp.float32,
    "relu": jax.nn.relu,
    "twice": twice,
}


@pytest.mark.parametrize(
    "source",
    [
        "series(linear(3), bias(-1), f(relu))",
        "series(stem=conv(32, 3), head=linear(10))",
        "parallel(linear(3), linear(4))",
        "branch(left=linear(3), right=linear(4))",
        "series(branch(linear(3), linear(4)), concatenate(axis=0))",
        "series(parallel(a=linear(3)), add())",
        "residual(linear(3))",
        "residual(linear(3), shortcut=linear(3))",
        "repeat(residual(linear(3)), 12)",
        "repeat(linear(3), 12, unroll=2, remat=True)",
        "ensemble(linear(3), 5)",
        "remat(linear(3))",
        "switch(by_sign, linear(3), linear(3))",
        "batched(series(linear(3), z_norm(())))",
        "batched(linear(3), axis_name='data', state_axis=0)",
        "cast(linear(3), params_dtype=float32, compute_dtype=bfloat16)",
        "dense(4)",
    ],
)
def test_repr_is_the_expression(source: str) -> None:
    layer = eval(source, dict(NAMESPACE))
    assert repr(layer) == source
    assert eval(repr(layer), dict(NAMESPACE)) == layer


def test_a_long_repr_is_indented() -> None:
    stage = "series(conv(32, 3), z_norm('channel_last'), scaler(-1), bias(-1), f(relu))"
    layer = eval(f"series(stem={stage}, body=repeat({stage}, 8), head=linear(10))", NAMESPACE)
    text = repr(layer)
    lines = text.splitlines()
    assert lines[0] == "series("
    assert lines[-1] == ")"
    assert f"    stem={stage}," in lines
    assert "    head=linear(10)," in lines
    assert max(map(len, lines)) <= 100
    assert eval(text, dict(NAMESPACE)) == layer


# Under the transformations of jax.


def test_a_layer_and_its_init_are_hashable() -> None:
    for layer in MODELS.values():
        assert hash(layer) == hash(pickle.loads(pickle.dumps(layer)))
    assert len({mlax.linear(3, dtype=jnp.float32), mlax.linear(3, dtype=jnp.float32)}) == 1
    assert mlax.linear(3) != mlax.linear(4)


@pytest.mark.parametrize("name", MODELS)
def test_init_from_shapes_and_under_transformations(name: str) -> None:
    model, x = MODELS[name], input_of(name)
    params, state = made(name)
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    assert_equal(model.init(KEY, shape), (params, state))
    shapes = jax.eval_shape(model.init, KEY, x)
    assert jax.tree.structure(shapes) == jax.tree.structure((params, state))
    for wanted, leaf in zip(jax.tree.leaves(shapes), jax.tree.leaves((params, state)), strict=True):
        assert (wanted.shape, wanted.dtype) == (leaf.shape, leaf.dtype)
    trace(model, shapes[0], shapes[1], x, KEY)
    keys = jax.random.split(KEY, 2)
    stacked = jax.eval_shape(jax.vmap(lambda rng: model.init(rng, x)), keys)
    outputs = jax.vmap(lambda p, s: model.apply(p, s, x, KEY))
    _, after = jax.eval_shape(outputs, *stacked)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert after == stacked[1]


@pytest.mark.parametrize("name", ["repeat", "block"])
def test_values_of_init_under_jit_and_vmap(name: str) -> None:
    keys = jnp.stack([jax.random.key(1), KEY])
    stacked = jax.jit(jax.vmap(lambda rng: MODELS[name].init(rng, X)))(keys)
    assert_equal(jax.tree.map(lambda leaf: leaf[1], stacked), made(name))


def test_init_may_be_jitted_itself() -> None:
    for name, model in MODELS.items():
        shapes = jax.eval_shape(jax.jit(model.init), KEY, input_of(name))
        assert jax.tree.structure(shapes) == jax.tree.structure(made(name))


@pytest.mark.parametrize("name", MODELS)
def test_one_trace_and_a_stable_state(name: str) -> None:
    model, x = MODELS[name], input_of(name)
    traces: list[None] = []

    @jax.jit
    def step(params: Any, state: Any, x: Any, rng: Key) -> tuple[Any, Any]:
        traces.append(None)
        return model.apply(params, state, x, rng)

    params, state = made(name)
    _, first = step(params, state, x, KEY)
    assert jax.tree.structure(first) == jax.tree.structure(state)
    for copied in (pickle.loads(pickle.dumps((params, first))), copy.deepcopy((params, first))):
        assert_equal(copied, (params, first))
        _, second = step(*copied, x, KEY)
        counted = [leaf for leaf in jax.tree.leaves(second) if leaf.dtype == jnp.int32]
        assert counted
        calls = 2 if name == "block" else 1
        assert all(int(count.max()) == 2 * calls for count in counted)
    assert len(traces) == 1


@pytest.mark.parametrize("name", MODELS)
def test_inference_needs_no_key_and_keeps_the_state(name: str) -> None:
    model, x = MODELS[name], input_of(name)
    params, state = made(name)
    infer = functools.partial(model.apply, inference_mode=True)
    jax.eval_shape(infer, params, state, x)
    jitted = jax.jit(infer)
    y, after = jitted(params, state, x, KEY)
    assert_equal(after, state)
    assert_equal(jitted(params, state, x, jax.random.key(1))[0], y)


@pytest.mark.parametrize("name", MODELS)
def test_the_state_is_one_node(name: str) -> None:
    _, state = made(name)
    assert isinstance(state, mlax.State)
    assert "State" not in str(jax.tree.structure(state.variables))


@pytest.mark.parametrize(
    "around",
    [
        lambda layer: mlax.series(layer, mlax.f(jnp.sin)),
        lambda layer: mlax.ensemble(layer, 2),
        lambda layer: mlax.repeat(layer, 2),
        mlax.residual,
        mlax.batched,
    ],
    ids=["series", "ensemble", "repeat", "residual", "batched"],
)
def test_an_error_that_init_finds_late_has_the_whole_path(
    around: Any, request: pytest.FixtureRequest
) -> None:
    """The output of `remat` is only looked for when the combinator around it needs it."""
    wrong = mlax.remat(mlax.f(lambda x: x @ jnp.ones((99, 2))))
    with pytest.raises(TypeError, match="dot_general") as raised:
        mlax.series(around(wrong), mlax.f(jnp.sin)).init(jax.random.key(0), jnp.ones((3, 3)))
    (path,) = notes(raised)
    name = request.node.callspec.id
    assert re.fullmatch(rf"in series\[0\] > {name}(\[0\])? > remat > f", path)
