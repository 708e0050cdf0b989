"""`mlax.sharding.plan`: rules and what is wrong with them, shardings, initialisation, the table."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, NamedSharding, PartitionSpec as P

import mlax
from mlax import models
from tests.sharding.test_equal import mesh_of

KEY = jax.random.key(0)
X = jax.ShapeDtypeStruct((8, 4), jnp.float32)
MLP = mlax.series(up=mlax.dense(16), act=mlax.f(jnp.tanh), down=mlax.dense(6))
ABSTRACT = AbstractMesh((4, 2), ("data", "model"))
PATHS = ["up.kernel", "up.bias", "down.kernel", "down.bias"]


def specs_of(plan: Any) -> dict[str, Any]:
    """Return the spec of each parameter."""
    leaves = jax.tree.leaves(plan.params)
    return dict(zip(mlax.paths(plan.params), (leaf.spec for leaf in leaves), strict=True))


def findings(rules: Any, x: Any = X, **options: Any) -> list[str]:
    """Return what a plan says is wrong."""
    with pytest.raises(ValueError, match="the rules do not fit the model and the mesh:") as caught:
        mlax.sharding.plan(MLP, x, rules, ABSTRACT, **options)
    return str(caught.value).split("\n  ")[1:]


# Rules.


def test_the_first_pattern_that_matches_counts() -> None:
    rules = [("down.kernel", P("model")), ("*.kernel", P(None, "model")), ("*", P())]
    assert specs_of(mlax.sharding.plan(MLP, X, rules, ABSTRACT)) == {
        "up.kernel": P(None, "model"), "up.bias": P(), "down.kernel": P("model"), "down.bias": P(),
    }


def test_a_strategy_takes_what_the_rules_before_it_leave() -> None:
    plan = mlax.sharding.plan(MLP, X, [("up.*", P()), "tensor"], ABSTRACT)
    assert specs_of(plan) == {
        "up.kernel": P(), "up.bias": P(), "down.kernel": P("model", None), "down.bias": P(None),
    }


def test_all_that_is_wrong_is_told_at_once() -> None:
    rules = [
        ("up.kernel", P("data", "modle")), ("*.kernel", P("data", "data")), ("down.kernel", P()),
        ("up.bais", P("data")), ("up", P()), ("down.bias", P(None, "data")),
    ]
    assert findings(rules, jax.ShapeDtypeStruct((6, 4), jnp.float32)) == [
        "expected axis 0 of x to be a multiple of 'data' of the mesh, 4, got shape (6, 4)",
        "expected down.kernel to be split over 'data' once, got P('data', 'data')",
        "expected axis 1 of down.kernel to be a multiple of 'data' of the mesh, 4, got shape "
        "(16, 6)",
        "expected down.bias to have the 2 axes of P(None, 'data'), got shape (6,)",
        "expected up.kernel to be split over mesh axes, 'data', 'model', got 'modle'",
        "expected a rule for up.bias, of shape (16,), got none; a last rule (\"*\", "
        "PartitionSpec()) keeps arrays whole",
        "expected arrays to follow rule 2, 'down.kernel', got none, as all that it matches, such "
        "as down.kernel, follow rule 1; put it before that",
        "expected rule 3, 'up.bais', to match a path, got none; did you mean 'up.bias'?",
        "expected rule 4, 'up', to match a path, got none; did you mean 'up.*'?",
    ]


@pytest.mark.parametrize(
    ("rules", "options", "text"),
    [
        (["data", ("*", P("data"))], {}, "expected arrays to follow rule 1, '*', got none"),
        ([("*", P()), "fsdp"], {}, "expected arrays to be left for rule 1, 'fsdp', got none"),
        ("data", {"outputs": [("dwon", P())]}, "'dwon' of outputs to match the path of a layer"),
        ("data", {"outputs": [("up", P("a"))]}, "the output of 'up' to be split over mesh axes"),
        ("data", {"outputs": [("", P(None, "data"))]}, "axis 1 of y to be a multiple of 'data'"),
        ("data", {"outputs": [("*", P()), ("up", P("data"))]}, "'up' of outputs to come before"),
        ("data", {"x_spec": P("data", "modle")}, "expected x to be split over mesh axes"),
    ],
)
def test_each_finding_says_what_and_where(rules: Any, options: Any, text: str) -> None:
    (finding,) = findings(rules, **options)
    assert text in finding


@pytest.mark.parametrize(
    ("rules", "mesh", "options", "error", "text"),
    [
        ("fsdp+tensr", ABSTRACT, {}, ValueError, "'data', 'fsdp', 'tensor', 'expert', joined by +"),
        ([("*", "data")], ABSTRACT, {}, TypeError, r"pairs \(pattern of paths, PartitionSpec\)"),
        ({"*": P()}, ABSTRACT, {}, TypeError, 'a strategy such as "fsdp", got a dict'),
        ("data", 3, {}, TypeError, "mesh to be a Mesh or an AbstractMesh, got 3"),
        ("data", ABSTRACT, {"x_spec": [P(), P()]}, TypeError, "x_spec to be a PartitionSpec, or"),
        ("data", ABSTRACT, {"outputs": [P()]}, TypeError, "outputs to be a list of pairs"),
        ("data", ABSTRACT, {"outputs": "up"}, TypeError, "outputs to be a list .*got 'up'"),
        (("*", P()), ABSTRACT, {}, TypeError, r"got the pair \('\*', P"),
        ("data", ABSTRACT, {"gathered": ("dta",)}, ValueError, "a tuple of mesh axes, 'dat"),
        ("data", ABSTRACT, {"gathered": "data"}, ValueError, "a tuple of mesh axes"),
        ([("*", P(unreduced={"data"}))], ABSTRACT, {}, ValueError, "the rule for '.' to be a Part"),
        (
            "data",
            AbstractMesh((4, 2), ("data", "model"), (AxisType.Auto, AxisType.Explicit)),
            {}, ValueError, "all explicit, or all automatic",
        ),
        ("data", ABSTRACT, {"optimizer": 3}, TypeError, "optimizer to be one with a function init"),
    ],
)
def test_wrong_arguments_are_told(
    rules: Any, mesh: Any, options: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        mlax.sharding.plan(MLP, X, rules, mesh, **options)


def test_experts_need_an_axis_of_the_mesh_and_a_moe() -> None:
    assert findings("expert") == [
        "expected a mesh with an axis 'expert' for 'expert', got 'data', 'model'",
        "expected a mlax.moe for 'expert', got none in the model",
    ]


# Strategies.


def test_the_features_of_products_are_split_in_turn() -> None:
    layers = [mlax.dense(8), mlax.f(jnp.tanh), mlax.linear(8), mlax.dense(8)]
    x = jax.ShapeDtypeStruct((8, 8), jnp.float32)
    plan = mlax.sharding.plan(mlax.series(*layers), x, "tensor", ABSTRACT)
    assert specs_of(plan) == {
        "0.kernel": P(None, "model"), "0.bias": P("model"), "2": P("model", None),
        "3.kernel": P(None, "model"), "3.bias": P("model"),
    } or list(specs_of(plan).values())[2] == P("model", None)


def test_heads_that_devices_do_not_divide_are_computed_whole_and_stored_in_parts() -> None:
    layer, x = mlax.attention(6, 3), jax.ShapeDtypeStruct((8, 5, 12), jnp.float32)
    mesh = AbstractMesh((2, 4), ("data", "model"))
    assert specs_of(mlax.sharding.plan(layer, x, "tensor", mesh))["query.kernel"] == P(None, None)
    stored = specs_of(mlax.sharding.plan(layer, x, "fsdp+tensor", mesh))
    assert stored["query.kernel"] == P("model", "data")


def test_copies_are_not_split() -> None:
    layer = mlax.repeat(mlax.repeat(mlax.dense(4), 8), 4)
    specs = specs_of(mlax.sharding.plan(layer, X, "fsdp", ABSTRACT))
    assert specs == {"kernel": P(None, None, "data", None), "bias": P(None, None, "data")}


def test_caches_lie_as_their_heads_and_their_batch() -> None:
    config = models.LlamaConfig(16, 8, 2, num_heads=4, num_kv_heads=2, hidden_features=16)
    tokens = jax.ShapeDtypeStruct((8, 6), jnp.int32)
    plan = mlax.sharding.plan(models.llama(config, cache_length=8), tokens, "tensor", ABSTRACT)
    cache = plan.state.variables["body"]["attention"]
    assert cache.key.spec == P(None, "data", "model", None, None)
    assert cache.positions.spec == P(None, "data", None)


def test_variables_follow_rules_of_their_own() -> None:
    layer = mlax.batched(mlax.batch_norm())
    rules = [("variables.*.mean", P("model")), ("variables.*", P()), ("*", P("data"))]
    plan = mlax.sharding.plan(layer, X, rules[1:], ABSTRACT)
    assert [leaf.spec for leaf in jax.tree.leaves(plan.state)] == [P(), P()]
    assert [leaf.spec for leaf in jax.tree.leaves(plan.params)] == [P("data"), P("data")]


def test_the_weights_of_lora_lie_as_the_params_in_their_place() -> None:
    tuned = mlax.lora(MLP, "*.kernel", rank=2)
    plan = mlax.sharding.plan(tuned, X, "tensor", ABSTRACT)
    base = plan.state.variables.base
    specs = base["up"].kernel.spec, base["down"].kernel.spec
    assert specs == (P(None, "model"), P("model", None))


# Shardings.


class Momentum:
    """An optimizer with the interface of optax."""

    def init(self, params: Any) -> Any:
        return {"trace": params, "count": jnp.zeros((), jnp.int32), "odd": {"up": {"bias": 0.0}}}


def test_the_state_of_an_optimizer_lies_as_the_params() -> None:
    plan = mlax.sharding.plan(MLP, X, "fsdp", ABSTRACT, optimizer=Momentum())
    assert plan.optimizer["trace"] == plan.params
    assert plan.optimizer["count"].spec == P()
    assert plan.optimizer["odd"]["up"]["bias"].spec == P()


def test_shardings_of_masked_states_of_optax() -> None:
    optax = pytest.importorskip("optax")
    params = jax.eval_shape(MLP.init, KEY, X)[0]
    optimizer = optax.masked(optax.adam(1e-3), mlax.mask(params, "up.*"))
    plan = mlax.sharding.plan(MLP, X, "fsdp", ABSTRACT, optimizer=optimizer)
    moments = plan.optimizer.inner_state[0].mu
    assert moments["up"] == plan.params["up"] and not jax.tree.leaves(moments["down"])


def test_init_makes_arrays_in_parts() -> None:
    layer = mlax.series(mlax.dense(512), mlax.dense(512))
    x = jax.ShapeDtypeStruct((8, 512), jnp.float32)
    mesh = jax.make_mesh((8,), ("data",))
    plan = mlax.sharding.plan(layer, x, "fsdp", mesh)
    params, _ = plan.init(KEY)
    assert all(
        leaf.sharding == sharding
        for leaf, sharding in zip(jax.tree.leaves(params), jax.tree.leaves(plan.params))
    )
    for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(layer.init(KEY, x)[0]), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    compiled = plan._make.lower(KEY).compile()
    memory, largest = compiled.memory_analysis(), 4 * 512 * 512
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 0.8 * largest
    assert "[512,512]" not in compiled.as_text() and "[262144]" not in compiled.as_text()


def test_an_abstract_mesh_has_no_devices_to_make_arrays_on() -> None:
    with pytest.raises(ValueError, match="one of devices, got no devices; plan with jax.make_mesh"):
        mlax.sharding.plan(MLP, X, "fsdp", ABSTRACT).init(KEY)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_a_step_lowers_without_devices(platform: str) -> None:
    plan = mlax.sharding.plan(MLP, X, "fsdp+tensor", ABSTRACT)

    def step(params: Any, state: Any, x: Any) -> Any:
        return jax.grad(lambda params: jnp.sum(plan.apply(params, state, x)[0]))(params)

    shapes = plan.shapes
    traced = jax.jit(step, out_shardings=plan.params).trace(shapes.params, shapes.state, shapes.x)
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert "num_partitions = 8" in text and text.count("sharding_constraint") >= 5


def test_a_file_is_read_where_the_plan_says(tmp_path: Path) -> None:
    mesh = mesh_of(("data", "model"), AxisType.Auto)
    plan = mlax.sharding.plan(MLP, X, "fsdp+tensor", mesh)
    params = MLP.init(KEY, X)[0]
    mlax.save(tmp_path / "params.safetensors", params)
    loaded = mlax.load(tmp_path / "params.safetensors", plan.shapes.params)
    assert jax.tree.map(lambda a: a.sharding, loaded) == plan.params
    jax.tree.map(np.testing.assert_array_equal, loaded, params)


# Running by a plan.


def test_apply_runs_eagerly_and_in_inference() -> None:
    layer = mlax.batched(mlax.series(MLP, mlax.dropout(0.5, axis=0), mlax.batch_norm()))
    x = np.ones((8, 4), np.float32)
    for types in (AxisType.Auto, AxisType.Explicit):
        plan = mlax.sharding.plan(layer, x, "fsdp+tensor", mesh_of(("data", "model"), types))
        params, state = plan.init(KEY)
        y, after = plan.apply(params, state, x, inference_mode=True)
        expected, _ = layer.apply(*layer.init(KEY, x), x, inference_mode=True)
        np.testing.assert_allclose(y, expected, atol=1e-6)
        assert jax.tree.structure(after) == jax.tree.structure(state)


@pytest.mark.parametrize("types", [AxisType.Auto, AxisType.Explicit])
def test_a_model_generates_by_a_plan(types: AxisType) -> None:
    config = models.LlamaConfig(16, 8, 1, num_heads=2, num_kv_heads=2, hidden_features=16)
    tokens = np.arange(16, dtype=np.int32).reshape(8, 2)
    layer = models.llama(config, cache_length=8)
    params, state = layer.init(KEY, tokens)
    prompt = jnp.asarray(tokens)
    expected = mlax.generate(layer.apply, params, state, prompt, 4, temperature=0.0)
    mesh = mesh_of(("data", "model"), types)
    plan = mlax.sharding.plan(layer, tokens, "tensor", mesh)
    params, state = jax.device_put((params, state), (plan.params, plan.state))
    with jax.set_mesh(mesh):
        prompt = jax.device_put(prompt, plan.x)
        found = mlax.generate(plan.apply, params, state, prompt, 4, temperature=0.0)
    np.testing.assert_array_equal(found.tokens, expected.tokens)


def test_errors_have_the_path_of_the_layer() -> None:
    plan = mlax.sharding.plan(MLP, X, "fsdp", mesh_of(("data", "model"), AxisType.Auto))
    params, state = plan.init(KEY)
    with pytest.raises(ValueError, match="4 features") as caught:
        plan.apply(params, state, jnp.ones((8, 5)))
    assert any("series > up > dense" in note for note in caught.value.__notes__)


@pytest.mark.parametrize("types", [AxisType.Auto, AxisType.Explicit])
def test_what_comes_back_lies_as_planned(types: AxisType) -> None:
    layer = mlax.repeat(mlax.batched(mlax.series(mlax.dense(4), mlax.batch_norm())), 2)
    options: Any = {"outputs": [("", P())]}
    mesh = mesh_of(("data", "model"), types)
    plan = mlax.sharding.plan(layer, X, "fsdp+tensor", mesh, **options)
    params, state = plan.init(KEY)
    step = jax.jit(plan.apply, in_shardings=(plan.params, plan.state, plan.x))
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.ones(X.shape), plan.x)
        y, state = step(params, state, x)
        y, state = step(params, state, x)
    assert y.sharding.is_fully_replicated


@pytest.mark.parametrize(
    ("params_of", "x", "text"),
    [
        (mlax.series(up=mlax.dense(16), act=mlax.f(jnp.tanh), down=mlax.dense(4)), jnp.ones((8, 4)),
         r"down.kernel to be of shape \(16, 6\), as planned, got shape \(16, 4\); plan with"),
        (MLP, jnp.ones((8, 2, 4)), r"x to be with 2 axes, as planned, got shape \(8, 2, 4\)"),
        (MLP, jnp.ones((6, 4)), "axis 0 of x to be a multiple of 'data' of the mesh, 4, .* pad it"),
        (MLP, (jnp.ones((8, 4)),), "x to be structured as it was planned"),
    ],
)
def test_what_does_not_fit_the_plan(params_of: Any, x: Any, text: str) -> None:
    plan = mlax.sharding.plan(MLP, X, "fsdp", mesh_of(("data", "model"), AxisType.Auto))
    params, state = params_of.init(KEY, X)
    with pytest.raises(ValueError, match=text):
        jax.eval_shape(plan.apply, params, state, x)


def test_outputs_that_cannot_lie_so() -> None:
    mesh = mesh_of(("data", "model"), AxisType.Auto)
    for spec, text in (
        (P("data", None, "model"), r"output of up to have the 3 axes of .*, got shape \(8, 16\)"),
        (P(("data", "model")), None), (P(None, ("data", "model")), None),
    ):
        plan = mlax.sharding.plan(MLP, X, "fsdp", mesh, outputs=[("up", spec)])
        args = *jax.eval_shape(MLP.init, KEY, X), X
        if text is None:
            jax.eval_shape(plan.apply, *args)
        else:
            with pytest.raises(ValueError, match=text):
                jax.eval_shape(plan.apply, *args)


def test_a_key_in_x() -> None:
    def wiring(sub: Any, x: Any) -> Any:
        return sub.a(x["x"]) + jax.random.uniform(x["key"], (8,))

    layer = mlax.block(a=mlax.dense(8))(wiring)
    x = {"x": jnp.ones((16, 4)), "key": jax.random.key(3)}
    plan = mlax.sharding.plan(layer, x, "fsdp", mesh_of(("data", "model"), AxisType.Auto))
    params, state = plan.init(KEY)
    y, _ = plan.apply(params, state, x)
    np.testing.assert_allclose(y, layer.apply(*layer.init(KEY, x), x)[0], atol=1e-6)


def test_what_was_tuned_by_a_plan_is_merged() -> None:
    mesh = jax.make_mesh((8,), ("data",))
    layer, x = mlax.series(mlax.dense(16), mlax.dense(8)), jnp.ones((8, 16))
    tuned, small = mlax.lora(layer, "*.kernel", 2), mlax.quantized(layer)
    cases: list[tuple[mlax.types.AnyLayer, Any]]
    cases = [(tuned, mlax.merge_lora), (small, mlax.merge_quantized)]
    for one, merge in cases:
        params, state = mlax.sharding.plan(one, x, "fsdp", mesh).init(KEY)
        if one is tuned:
            params = jax.tree.map(lambda a: a + 1, params)
        whole = jax.tree.map(np.asarray, (params, state))
        found, expected = merge(params, state)[0], merge(*whole)[0]
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)


def test_plans_in_a_mesh_that_is_set_and_of_models_that_decode_print() -> None:
    mesh = jax.make_mesh((8,), ("data",))
    decoder = mlax.batched(mlax.attention(2, causal=True, cache_length=4), state_axis=0)
    with jax.set_mesh(mesh):
        x = jax.device_put(jnp.ones((8, 4)), NamedSharding(mesh, P("data")))
        assert "0.kernel.a" in str(mlax.sharding.plan(mlax.lora(
            mlax.series(mlax.dense(8)), "*.kernel", 2), x, "fsdp", mesh))
        text = str(mlax.sharding.plan(decoder, jnp.ones((8, 3, 8)), "fsdp", mesh))
    assert "variables" in text and "activations" not in text


@pytest.mark.parametrize("sizes", [(0, 2), (2, 2)])
def test_meshes_that_are_none(sizes: tuple[int, int]) -> None:
    names = ("data", "data") if 0 not in sizes else ("data", "model")
    with pytest.raises(ValueError):
        mlax.sharding.plan(MLP, X, "fsdp", AbstractMesh(sizes, names))


# The table.


def test_the_table() -> None:
    config = models.LlamaConfig(64, 32, 4, num_heads=4, num_kv_heads=1, hidden_features=64)
    tokens = jax.ShapeDtypeStruct((8, 16), jnp.int32)
    plan = mlax.sharding.plan(
        models.llama(config), tokens, "fsdp+tensor", ABSTRACT, optimizer=Momentum()
    )
    lines = str(plan).split("\n")
    assert max(map(len, lines)) <= 80
    first = "body.attention.query.kernel f32[4,32,32] -, data, model 2.05K"
    assert lines[2].split() == first.split()
    assert "on each of 8 devices (data 4, model 2)" in lines
    ideal = mlax.nbytes(plan.shapes.params) / 8
    assert ideal <= plan.bytes_by_part()["params"] < 1.1 * ideal
