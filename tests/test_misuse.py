"""Mistakes that are easy to make: each error says what it got and the way out."""

import operator
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import mlax
from mlax import AxisName, Key, Layer

KEY = jax.random.key(0)
X = jnp.ones((4, 3))
# Any: layers of all kinds side by side.
AnyLayer = Layer[Any, Any, Any, Any]
MODEL: AnyLayer = mlax.series(body=mlax.series(mlax.linear(3), mlax.dropout(0.5, -1)))


def notes(error: pytest.ExceptionInfo[BaseException]) -> list[str]:
    """Return the paths noted on an error."""
    return [n for n in getattr(error.value, "__notes__", []) if n.startswith("in ")]


# The last three arguments of apply.


@pytest.mark.parametrize("wrong", [True, False])
def test_a_bool_in_the_place_of_the_key(wrong: bool) -> None:
    params, state = MODEL.init(KEY, X)
    value: Any = wrong
    wanted = f"^series: expected rng to be one PRNG key, got {wrong}; .*inference_mode.*None, True"
    with pytest.raises(TypeError, match=wanted):
        MODEL.apply(params, state, X, value)
    linear_params, linear_state = mlax.linear(3).init(KEY, X)
    with pytest.raises(TypeError, match="^linear: expected rng to be one PRNG key"):
        mlax.linear.apply(linear_params, linear_state, X, value)


@pytest.mark.parametrize(
    ("wrong", "got"),
    [
        (jax.random.split(KEY), r"keys of shape \(2,\); .*jax.vmap"),
        (jax.random.split(jax.random.PRNGKey(0)), r"keys of shape \(2, 2\); .*jax.vmap"),
        (0, r"0; make one with jax.random.key\(0\)"),
        (jnp.ones(3), r"an array of shape \(3,\) and dtype float32; the key comes first"),
        ("key", r"'key'; make one with"),
    ],
    ids=["split", "raw", "int", "array", "string"],
)
def test_what_is_no_key(wrong: Any, got: str) -> None:
    params, state = MODEL.init(KEY, X)
    with pytest.raises(TypeError, match=f"^series: expected rng to be one PRNG key, got {got}"):
        MODEL.apply(params, state, X, wrong)
    with pytest.raises(TypeError, match=f"^series: expected rng to be one PRNG key, got {got}"):
        MODEL.init(wrong, X)
    with pytest.raises(TypeError, match=f"^dropout: expected rng to be one PRNG key, got {got}"):
        mlax.dropout(0.5, 0).init(wrong, X)


def test_a_raw_key_is_a_key() -> None:
    raw = jax.random.PRNGKey(0)
    params, state = MODEL.init(raw, X)
    assert MODEL.apply(params, state, X, raw)[0].shape == (4, 3)


def test_no_key_for_init() -> None:
    missing: Any = None  # wrong on purpose
    with pytest.raises(TypeError, match="^linear: expected rng to be one PRNG key, got None; make"):
        mlax.linear(3).init(missing, X)


def test_what_is_no_key_for_init_of_a_plan_and_of_adapters() -> None:
    plan = mlax.sharding.plan(mlax.linear(3), X, "data", jax.make_mesh((1,), ("data",)))
    wrong: Any
    for wrong in (True, 0):
        with pytest.raises(TypeError, match=f"^plan.init: expected rng .*, got {wrong}; "):
            plan.init(wrong)
        with pytest.raises(TypeError, match=f"^init_lora: expected rng .*, got {wrong}; "):
            mlax.init_lora(mlax.lora(mlax.linear(3), "kernel", 1), wrong, X, (), ())


@pytest.mark.parametrize("wrong", ["train", 1, None, "inference"])
def test_an_inference_mode_that_is_no_bool(wrong: Any) -> None:
    params, state = MODEL.init(KEY, X)
    wanted = rf"^series: expected inference_mode to be True or False, got {wrong!r}; True in inf"
    with pytest.raises(TypeError, match=wanted):
        MODEL.apply(params, state, X, KEY, wrong)


def test_a_traced_inference_mode() -> None:
    params, state = MODEL.init(KEY, X)
    apply: Any = jax.jit(MODEL.apply)
    wanted = r"^series: expected inference_mode to be True or False, got a traced .*static_argnames"
    with pytest.raises(TypeError, match=wanted):
        apply(params, state, X, KEY, True)
    static = jax.jit(MODEL.apply, static_argnames="inference_mode")
    assert static(params, state, X, KEY, inference_mode=True)[0].shape == (4, 3)


def test_a_list_of_batch_axes() -> None:
    params, state = MODEL.init(KEY, X)
    wanted = r'^series: expected batch_axis_name to be a name .*, got \[\'batch\'\]; .*\("batch",\)'
    names: Any = ["batch"]  # wrong on purpose
    with pytest.raises(TypeError, match=wanted):
        MODEL.apply(params, state, X, KEY, False, names)


# Layers that are not called, or that are called too early.


def test_lists_functions_pairs_and_modules_among_layers() -> None:
    a, b = mlax.linear(3), mlax.bias(-1)
    wrong: list[tuple[Any, str]] = [
        ([a, b], r"a list; unpack it, as in series\(\*layers\)"),
        ((init_nothing, apply_nothing), r"a tuple; unpack it, as in series\(\*layers\)"),
        (jax.nn.relu, r"the function relu; .* mlax.f\(relu\)"),
        (mlax.linear, r"<pair linear> .*call it.*in linear"),
        (mlax.nn.Linear(KEY, 3), r"a module; .* mlax.as_layer\(module\)"),
    ]
    for value, got in wrong:
        for layers in ([value], [a, value]):
            wanted = f"^series: expected layers to be a layer, got {got}"
            with pytest.raises(TypeError, match=wanted):
                mlax.series(*layers)


def test_what_is_no_layer_where_one_is_initialised() -> None:
    wrong: Any
    for wrong in ([mlax.linear(3)], mlax.linear, jax.nn.relu, mlax.nn.Linear(KEY, 3)):
        with pytest.raises(TypeError, match="^init_state: expected layer to be a layer, got .*; "):
            mlax.init_state(wrong, (), X)
        with pytest.raises(TypeError, match="^init_lora: expected layer to be a layer, got .*; "):
            mlax.init_lora(wrong, KEY, X, (), ())
        with pytest.raises(TypeError, match="^init_quantized: expected layer to be a layer, got "):
            mlax.init_quantized(wrong, X, (), ())
    wrong = X
    with pytest.raises(TypeError, match="^Layer: expected init to be a function, got an array$"):
        Layer(wrong, wrong)


def test_a_call_of_a_layer() -> None:
    wrong: Any = mlax.linear(3)  # wrong on purpose
    with pytest.raises(TypeError, match=r"^linear: expected a call of layer.init\(rng, x\) or "):
        wrong(X)


def init_nothing(rng: Key, x: Any) -> tuple[tuple[()], tuple[()]]:
    """Make nothing."""
    return (), ()


def apply_nothing(
    params: Any,
    state: Any,
    x: Any,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> Any:
    """Return x and forget the state."""
    return x


def apply_forgetful(
    params: Any,
    state: Any,
    x: Any,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> Any:
    """Return x, and in inference forget the state."""
    return x if inference_mode else (x, state)


# init.


@pytest.mark.parametrize(
    "layer", [mlax.linear(3), MODEL, mlax.remat(mlax.linear(3)), mlax.tap(MODEL)], ids=repr
)
def test_init_without_a_key(layer: Any) -> None:
    with pytest.raises(TypeError, match=r"^\w+: expected init\(rng, x\), .*jax.random.key\(0\)"):
        layer.init(X)
    with pytest.raises(TypeError, match=r"^\w+: expected init\(rng, x\), .*jax.random.key\(0\)"):
        layer.init()
    with pytest.raises(TypeError, match=r"^\w+: expected rng .* key comes first: init\(rng, x\)"):
        layer.init(X, KEY)
    for inputs in ((X, X), {"a": X}):
        with pytest.raises(TypeError, match=r"^\w+: expected rng .* first: init\(rng, x\)"):
            layer.init(inputs, KEY)


def test_init_with_a_shape() -> None:
    layer: AnyLayer
    wrong: Any
    mesh = jax.sharding.AbstractMesh((1,), ("data",))
    runs: tuple[Callable[[], Any], ...] = (
        lambda: mlax.summary(layer, wrong), lambda: mlax.diagram(layer, wrong),
        lambda: mlax.sharding.plan(layer, wrong, "data", mesh),
        lambda: mlax.export(layer, (), (), wrong), lambda: mlax.init_state(layer, (), wrong),
        lambda: mlax.init_lora(layer, KEY, wrong, (), ()),
        lambda: mlax.init_quantized(layer, wrong, (), ()), lambda: layer.init(KEY, wrong),
    )
    for layer in (mlax.linear(3), MODEL, mlax.repeat(mlax.linear(3), 2)):
        for wrong in ((-1, 784), [1, 784]):
            wanted = r"^\w+: expected x to be an example.*; pass jax.ShapeDtypeStruct\(\(1, 784\)"
            for run in runs:
                with pytest.raises(TypeError, match=wanted):
                    run()


# What a user's function returns.


def test_a_forgotten_state() -> None:
    forgetful: AnyLayer = Layer(init_nothing, apply_nothing)
    model = mlax.series(body=mlax.series(mlax.linear(3), forgetful))
    wanted = r"what apply returns to be \(y, state\), got .*; return \(y, \(\)\) "
    with pytest.raises(TypeError, match=wanted) as init:
        model.init(KEY, X)
    assert notes(init) == ["in series > body[1] > init_nothing"]
    later = mlax.series(Layer(init_nothing, apply_forgetful))
    params, state = later.init(KEY, X)
    with pytest.raises(TypeError, match=wanted) as apply:
        later.apply(params, state, X, inference_mode=True)
    assert notes(apply) == ["in series[0] > init_nothing"]


def test_a_forgotten_state_is_not_taken_from_an_array_of_two_rows() -> None:
    @mlax.layer(apply_nothing)
    def forgetful(rng: Key, x: Any) -> tuple[tuple[()], mlax.State[tuple[()], tuple[()]]]:
        return (), mlax.State((), ())

    rows = X[:2]
    wanted = r": expected what apply returns to be \(y, state\), got an array of shape \(2, 3\)"
    params, state = forgetful().init(KEY, rows)
    for apply in (forgetful().apply, forgetful.apply):
        with pytest.raises(TypeError, match=f"^forgetful{wanted}"):
            apply(params, state, rows)
    foreign: AnyLayer = Layer(init_nothing, apply_nothing)
    with pytest.raises(TypeError, match=f"^tap{wanted}"):
        mlax.tap(foreign).apply((), (), rows)
    with pytest.raises(TypeError, match=f"^as_module{wanted}"):
        mlax.as_module(foreign, KEY)(rows, None)


def test_structures_in_errors_are_short() -> None:
    layer = mlax.as_layer(lambda rng: mlax.nn.Series([mlax.nn.Dense(rng, 3) for _ in "abc"]))
    params, _ = layer.init(KEY, X)
    with pytest.raises(TypeError, match="^as_layer: expected the state that apply ") as error:
        layer.apply(params, params, X)
    assert len(str(error.value)) < 600


def test_a_forgotten_state_of_init() -> None:
    def init(rng: Key, x: Any) -> Any:
        return jnp.ones(3)

    model = mlax.series(mlax.linear(3), Layer(init, apply_nothing))
    wanted = r"^init: expected what init returns to be \(params, state\), got an array of shape"
    with pytest.raises(TypeError, match=wanted) as error:
        model.init(KEY, X)
    assert notes(error) == ["in series[1] > init"]

    @mlax.layer(apply_nothing)
    def forgetful(rng: Key, x: Any) -> Any:
        return jnp.ones(2)

    with pytest.raises(TypeError, match="^forgetful: expected what init returns to be"):
        forgetful().init(KEY, X)


def test_a_state_that_is_no_longer_one() -> None:
    def init(rng: Key, x: Any) -> Any:
        return (), mlax.State((), ())

    def apply(
        params: Any,
        state: Any,
        x: Any,
        rng: Key | None = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> Any:
        return x, ()

    changed: AnyLayer = Layer(init, apply)
    model = mlax.series(changed)
    with pytest.raises(TypeError, match="the state that apply returns to be a State, got a tuple"):
        model.apply(*model.init(KEY, X), X)


# Positional hyperparameters.


def test_sizes_of_the_input() -> None:
    wrong: Any = mlax.linear  # wrong on purpose
    with pytest.raises(TypeError, match=r"^linear: expected precision .*, got 3; .*\blinear\(3\)"):
        wrong(4, 3)
    for pair, sizes in (
        (mlax.batch_norm, (64,)),
        (mlax.layer_norm, (64,)),
        (mlax.dense, (4, 3)),
        (mlax.gru_cell, (4, 3)),
        (mlax.conv_transpose, (8, 3)),
        (mlax.rms_norm, (64,)),
        (mlax.instance_norm, (64,)),
        (mlax.group_norm, (4, 64)),
        (mlax.global_avg_pool, ("channel_first",)),
        (mlax.cast, (mlax.linear(3), jnp.bfloat16)),
        (mlax.batched, (mlax.linear(3), "batch")),
        (mlax.remat, (mlax.linear(3), None)),
        (mlax.repeat, (mlax.linear(3), 2, 1)),
    ):
        wrong = pair
        name = wrong.__name__
        with pytest.raises(TypeError, match=rf"^{name}: too many positional .* expected {name}\("):
            wrong(*sizes)


# A batch for a layer of one example, and one example for a batched model.

IMAGE = jnp.ones((8, 8, 3))
OF_ONE_EXAMPLE: dict[str, tuple[AnyLayer, jax.Array]] = {
    "conv": (mlax.conv(4, 3), IMAGE),
    "conv_transpose": (mlax.conv_transpose(4, filter_shape=3), IMAGE),
    "depthwise_conv": (mlax.depthwise_conv(3), IMAGE),
    "separable_conv": (mlax.separable_conv(4, filter_shape=3), IMAGE),
    "max_pool": (mlax.max_pool(2), IMAGE),
    "avg_pool": (mlax.avg_pool(2), IMAGE),
    "global_avg_pool": (mlax.global_avg_pool(), IMAGE),
    "adaptive_avg_pool": (mlax.adaptive_avg_pool(2), IMAGE),
    "group_norm": (mlax.group_norm(1), IMAGE),
    "instance_norm": (mlax.instance_norm(), IMAGE),
    "batch_norm": (mlax.batch_norm(), IMAGE),
    "layer_norm of all": (mlax.layer_norm(axis="all"), IMAGE),
    "z_norm": (mlax.z_norm("channel_last"), IMAGE),
    "flatten": (mlax.flatten(), IMAGE),
    "bias": (mlax.bias((0, 0, -1)), IMAGE),
    "scaler": (mlax.scaler((0, 0, -1)), IMAGE),
    "mamba_block": (mlax.mamba_block(4, state_features=2), IMAGE[0]),
    "dropout": (mlax.dropout(0.5, 0), jnp.ones(3)),
}


@pytest.mark.parametrize("name", OF_ONE_EXAMPLE)
def test_a_batch_for_a_layer_of_one_example(name: str) -> None:
    layer, x = OF_ONE_EXAMPLE[name]
    model = mlax.series(body=layer)
    params, state = model.init(KEY, x)
    batch = jnp.stack([x] * 2)
    with pytest.raises(ValueError, match=r"^\w+: expected .* shape \(2, ") as error:
        model.apply(params, state, batch, KEY)
    assert notes(error)[0].startswith("in series > body")
    assert "ArrayImpl" not in str(error.value) and "Tracer" not in str(error.value)
    assert "mlax.batched" in str(error.value)
    y = jax.vmap(lambda x, key: model.apply(params, state, x, key)[0])(batch, jax.random.split(KEY))
    assert len(jax.tree.leaves(y)[0]) == 2


def test_layers_for_any_leading_axes_take_a_batch() -> None:
    layer: Any  # layers with different parameters
    for layer in (mlax.linear(4), mlax.dense(4), mlax.layer_norm(), mlax.rms_norm()):
        params, state = layer.init(KEY, jnp.ones(3))
        assert layer.apply(params, state, X)[0].shape[0] == 4
    layer = mlax.embed(5, 2)
    params, state = layer.init(KEY, jnp.arange(3))
    assert layer.apply(params, state, jnp.ones((4, 3), int))[0].shape == (4, 3, 2)


def test_one_example_for_a_model_of_a_batch() -> None:
    model = mlax.batched(mlax.embed(5, 2))
    tokens = jnp.ones((4, 7), int)
    params, state = model.init(KEY, tokens)
    assert model.apply(params, state, tokens[:2])[0].shape == (2, 7, 2)
    wanted = r"^batched: expected x .*2 axes.*, got shape \(7,\); .*x\[None\]"
    with pytest.raises(ValueError, match=wanted):
        model.apply(params, state, tokens[0])


# The state and the params of something else.


def test_the_state_of_the_layer_within() -> None:
    layer = mlax.z_norm(())
    model = mlax.batched(layer)
    params, _ = model.init(KEY, X)
    _, inner = layer.init(KEY, X[0])
    wanted = "^batched: expected state to be what init returned, got the state of z_norm; .*layer"
    with pytest.raises(TypeError, match=wanted):
        model.apply(params, inner, X)  # type: ignore[arg-type]  # wrong on purpose


def test_params_that_come_back_from_a_file() -> None:
    model = mlax.series(a=mlax.layer_norm(), b=mlax.series(mlax.linear(2)))
    params, state = model.init(KEY, X)
    read: Any
    for read in (
        {"a": params["a"]._asdict(), "b": [{"kernel": params["b"][0].kernel}]},
        {"a": params["a"]._asdict(), "b": {"0": {"kernel": params["b"][0].kernel}}},
        {"a": list(params["a"]), "b": [[params["b"][0].kernel]]},
    ):
        wanted = "^layer_norm: expected params to be a NormParams"
        with pytest.raises(TypeError, match=wanted) as error:
            model.apply(read, state, X)
        assert notes(error) == ["in series > a > layer_norm"]
        names = {"params": read, "mlax": mlax, "jax": jax, "layer": model, "rng": KEY, "x": X}
        exec(re.sub("^.*rebuild them( by path)?: ", "", str(error.value)), names)  # as it is told
        assert jax.tree.structure(names["params"]) == jax.tree.structure(params)
        rebuilt = jax.tree.leaves(names["params"])
        assert all(map(operator.is_, rebuilt, jax.tree.leaves(params)))
    stack: AnyLayer = mlax.series(mlax.f(jnp.tanh), mlax.linear(3))
    (_, linear), state = stack.init(KEY, X)
    with pytest.raises(TypeError, match="^series: expected params to be a tuple .*, rebuild them"):
        stack.apply({"0": {}, "1": {}}, state, X)
    with pytest.raises(TypeError, match=r"^f: expected params .*\(\), .*; put \(\) in its place"):
        stack.apply(([], linear), state, X)
    dense, _ = mlax.dense(3).init(KEY, X)
    for read in (dense._asdict(), list(dense)):
        with pytest.raises(TypeError, match=r"^dense: .*; .*\bDenseParams\(\*\*?params\)"):
            mlax.dense(3).apply(read, mlax.dense(3).init(KEY, X)[1], X)
