"""Tests of the contract: pairs, layers, states, signatures, documentation, pickle."""

import copy
import functools
import inspect
import pickle
import pydoc
import re
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import DTypeLike

import mlax
from mlax import AxisName, Key, Layer, State
from mlax.initializers import embedding_normal, lecun_normal

KEY = jax.random.key(0)
X = jnp.ones((4, 3))
# Any: layers of all kinds side by side.
AnyLayer = Layer[Any, Any, Any, Any]

REQUIRED = inspect.Parameter.empty
WINDOWS: dict[str, object] = {
    "window_shape": REQUIRED,
    "strides": 1,
    "padding": "VALID",
    "input_dilation": None,
    "window_dilation": None,
    "data_format": "channel_last",
}
HPARAMS: dict[str, dict[str, object]] = {
    "linear": {
        "out_features": REQUIRED,
        "precision": None,
        "accum_dtype": None,
        "transposed_kernel": False,
        "kernel_initializer": lecun_normal,
        "dtype": jnp.float32,
        "out_sharding": None,
    },
    "bias": {
        "in_features": REQUIRED,
        "bias_initializer": jax.nn.initializers.zeros,
        "dtype": jnp.float32,
    },
    "scaler": {
        "in_features": REQUIRED,
        "scaler_initializer": jax.nn.initializers.ones,
        "dtype": jnp.float32,
    },
    "conv": {
        "out_channels": REQUIRED,
        "filter_shape": REQUIRED,
        "strides": 1,
        "padding": "VALID",
        "input_dilation": None,
        "filter_dilation": None,
        "feature_group_count": 1,
        "batch_group_count": 1,
        "data_format": "channel_last",
        "precision": None,
        "accum_dtype": None,
        "kernel_initializer": lecun_normal,
        "dtype": jnp.float32,
        "out_sharding": None,
    },
    "embed": {
        "vocab_size": REQUIRED,
        "embed_dim": REQUIRED,
        "embed_initializer": embedding_normal,
        "dtype": jnp.float32,
        "out_sharding": None,
    },
    "z_norm": {
        "axis": REQUIRED,
        "epsilon": 1e-05,
        "momentum": 0.9,
        "mean_initializer": jax.nn.initializers.zeros,
        "variance_initializer": jax.nn.initializers.ones,
        "dtype": jnp.float32,
    },
    "f": {"train_fn": REQUIRED, "infer_fn": None},
    "f_rng": {"train_fn": REQUIRED, "infer_fn": None},
    "dropout": {"rate": REQUIRED, "axis": REQUIRED},
    "max_pool": WINDOWS,
    "avg_pool": WINDOWS,
    "sum_pool": WINDOWS,
    "pool": {"init_value": REQUIRED, "reduce_fn": REQUIRED, **WINDOWS},
    "recurrent": {"cell": REQUIRED, "reverse": False, "unroll": 1},
}
APPLY = ["params", "state", "x", "rng", "inference_mode", "batch_axis_name"]


def pair_of(name: str) -> Any:  # pairs of many types
    return getattr(mlax, name)


@pytest.mark.parametrize("name", HPARAMS)
def test_signatures_show_the_hyperparameters(name: str) -> None:
    pair = pair_of(name)
    shown = inspect.signature(pair).parameters
    assert {name: parameter.default for name, parameter in shown.items()} == HPARAMS[name]
    assert list(shown) == list(HPARAMS[name])
    assert list(inspect.signature(pair.init).parameters) == ["rng", "x", *HPARAMS[name]]


@pytest.mark.parametrize("name", [*HPARAMS, "series", "parallel"])
def test_apply_is_a_function_with_the_parameters_of_the_contract(name: str) -> None:
    apply = pair_of(name).apply
    assert inspect.isfunction(apply)
    parameters = inspect.signature(apply).parameters
    assert list(parameters) == APPLY
    defaults = [parameter.default for parameter in parameters.values()]
    assert defaults == [REQUIRED] * 3 + [None, False, ()]


@pytest.mark.parametrize("name", HPARAMS)
def test_help_shows_signature_and_documentation(name: str) -> None:
    pair = pair_of(name)
    text = pydoc.plain(pydoc.render_doc(pair))
    assert inspect.getdoc(pair) == inspect.getdoc(pair.init)
    signature, found, _ = text.partition("\n\n")[2].partition(pair.__doc__.splitlines()[0])
    assert found
    # Python 3.13 writes long signatures over several lines.
    assert re.match(rf"{name}\(\s*{next(iter(HPARAMS[name]))}\b", signature)
    for hparam in HPARAMS[name]:
        assert hparam in signature


def test_hyperparameters_by_place_and_by_name() -> None:
    by_place = mlax.linear(2, "highest", jnp.float32, True)
    by_name = mlax.linear(
        transposed_kernel=True, out_features=2, accum_dtype=jnp.float32, precision="highest"
    )
    assert jax.tree.structure(by_place.init(KEY, X)) == jax.tree.structure(by_name.init(KEY, X))


@pytest.mark.parametrize(
    ("arguments", "hparams", "text"),
    [
        ((), {}, "missing a required argument: 'out_features'"),
        ((3,), {"out_featurez": 3}, "got an unexpected keyword argument 'out_featurez'"),
        ((3, None, None, False, None, None, 7), {}, "too many positional arguments"),
        ((3,), {"out_features": 3}, "multiple values for argument 'out_features'"),
    ],
)
def test_wrong_hyperparameters_raise(
    arguments: tuple[Any, ...],  # wrong on purpose
    hparams: dict[str, Any],
    text: str,
) -> None:
    wanted = rf"^linear: {text}; expected linear\(out_features, .*dtype.*\)"
    with pytest.raises(TypeError, match=wanted):
        mlax.linear(*arguments, **hparams)
    with pytest.raises(TypeError, match=wanted):
        mlax.linear.init(KEY, X, *arguments, **hparams)


def test_layer_is_a_named_tuple_of_two_functions() -> None:
    layer = mlax.linear(2)
    init, apply = layer
    assert layer == (init, apply)
    assert (layer.init, layer.apply) == (init, apply)
    params, state = init(KEY, X)
    bare_params, bare_state = mlax.linear.init(KEY, X, 2)
    np.testing.assert_array_equal(params.kernel, bare_params.kernel)
    assert state == bare_state
    y, after = apply(params, state, X)
    np.testing.assert_array_equal(y, mlax.linear.apply(params, state, X)[0])
    assert after == state
    assert apply == mlax.linear(2).apply != mlax.linear(3).apply


def test_state_is_a_pytree_of_its_variables_with_a_static_config() -> None:
    state = State({"count": jnp.zeros(())}, ("any", "config"))
    assert len(jax.tree.leaves(state)) == 1
    one = jax.tree.map(lambda count: count + 1, state)
    assert isinstance(one, State)
    assert (one.variables["count"], one.config) == (1, ("any", "config"))
    assert jax.tree.structure(one) == jax.tree.structure(state)
    other = State({"count": jnp.zeros(())}, ("another", "config"))
    assert jax.tree.structure(other) != jax.tree.structure(state)
    (path, _), *_ = jax.tree_util.tree_leaves_with_path(state)
    assert jax.tree_util.keystr(path) == ".variables['count']"
    with pytest.raises(AttributeError):
        state.config = ()  # type: ignore[misc, assignment]  # the error is what is tested


class Loose(NamedTuple):
    """A config that equals every other of its type, but only by `==`."""

    note: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Loose)

    def __hash__(self) -> int:
        return 0


def test_configs_are_compared_with_their_own_equality() -> None:
    one, other = jax.tree.structure((State((), Loose("one")), State((), Loose("other")))).children()
    assert one == other
    assert not one != other
    assert hash(one) == hash(other)


def test_jit_takes_config_as_static_and_does_not_trace_again() -> None:
    traces: list[int] = []

    @jax.jit
    def step(params: Any, state: Any, x: jax.Array) -> jax.Array:
        traces.append(1)
        return mlax.linear.apply(params, state, x)[0]

    for _ in range(2):
        params, state = mlax.linear.init(KEY, X, 2)
        step(params, state, X)
    assert len(traces) == 1
    step(*mlax.linear.init(KEY, X, 2, precision="highest"), X)
    assert len(traces) == 2


class GainConfig(NamedTuple):
    """Configuration of `gain`."""

    power: int


def apply_gain(
    params: jax.Array,
    state: State[tuple[()], GainConfig],
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, State[tuple[()], GainConfig]]:
    """Return params**power * x."""
    return params**state.config.power * x, state


def read_power(owner: str, name: str, value: Any) -> int:
    """Require a non-negative power. (Any: a caller can pass anything.)"""
    if value < 0:
        raise ValueError(f"{owner}: expected {name} to be at least 0, got {value}")
    return int(value)


Power = Annotated[int, mlax.Rule(read_power)]


def test_a_literal_is_a_rule() -> None:
    def apply(params: tuple[()], config: Any, x: jax.Array) -> jax.Array:
        return x

    @mlax.stateless(apply)
    def kept(
        rng: Key, x: Any, how: Literal["up", "down", None] = None, times: Literal[0, 1] = 1
    ) -> tuple[()]:
        """A user's own pair."""
        return ()

    kept("up", times=0), kept(None)
    for wrong in ("Up", 0, False):
        with pytest.raises(ValueError, match='kept: expected how to be "up", "down" or None, got'):
            kept(wrong)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match="kept: expected times to be 0 or 1, got True"):
        kept(times=True)  # type: ignore[arg-type]  # wrong on purpose


@mlax.layer(apply_gain, config=GainConfig, needs_rng=lambda power=1: power > 5)
def gain(
    rng: Key, x: jax.Array, power: Power = 1
) -> tuple[jax.Array, State[tuple[()], GainConfig]]:
    """A user's own pair."""
    return jnp.full(x.shape, 2.0), State((), GainConfig(power))


def apply_noise(
    params: tuple[()],
    state: tuple[()],
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, tuple[()]]:
    """Return x."""
    return x, state


@mlax.layer(apply_noise, needs_rng=True)
def noise(rng: Key, x: jax.Array) -> tuple[tuple[()], tuple[()]]:
    """A user's own pair that needs a key."""
    return (), ()


def test_users_pair() -> None:
    params, state = gain.init(KEY, X, 3)
    np.testing.assert_array_equal(gain.apply(params, state, X)[0], np.full((4, 3), 8))
    model = mlax.series(gain(power=2), mlax.bias((0, 0)), gain())
    all_params, all_state = model.init(KEY, X)
    y, _ = model.apply(all_params, all_state, X)
    np.testing.assert_array_equal(y, np.full((4, 3), 8))
    assert repr(gain(power=2)) == "gain(power=2)"
    (shown,) = inspect.signature(gain).parameters.values()
    assert (shown.name, shown.default) == ("power", 1)
    assert inspect.getdoc(gain) == "A user's own pair."


def test_checks_run_when_the_layer_is_made_and_in_init() -> None:
    for call in (
        lambda: gain(-1),
        lambda: gain(power=-1),
        lambda: gain.init(KEY, X, -1),
        lambda: gain.init(KEY, X, power=-1),
    ):
        with pytest.raises(ValueError, match="^gain: expected power to be at least 0, got -1"):
            call()


def test_needs_rng() -> None:
    def without_default(params: Any, state: Any, x: Any, rng: Key) -> Any:
        return x, state

    def with_default(params: Any, state: Any, x: Any, rng: Key | None = None) -> Any:
        return x, state

    assert mlax.needs_rng(without_default)
    assert not mlax.needs_rng(with_default)
    assert mlax.needs_rng(noise().apply)
    assert mlax.needs_rng(noise.apply)
    assert not mlax.needs_rng(gain().apply)
    assert not mlax.needs_rng(gain(power=5).apply)
    assert mlax.needs_rng(gain(power=6).apply)
    params, state = gain(power=6).init(KEY, X)
    np.testing.assert_array_equal(gain(power=6).apply(params, state, X)[0], np.full((4, 3), 64))
    assert not mlax.needs_rng(gain.apply)


def drawn(key: Key, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """Initialize with a function that can be pickled."""
    return jnp.ones(shape, dtype)


LAYERS: dict[str, AnyLayer] = {
    "linear": mlax.linear(2, kernel_initializer=drawn),
    "default initializers": mlax.series(mlax.linear(3), mlax.bias((0, -1)), mlax.scaler((0, -1))),
    "series": mlax.series(mlax.linear(2), mlax.f(jnp.tanh), mlax.z_norm("all")),
    "relu": mlax.series(mlax.linear(2), mlax.f(jax.nn.relu)),
    "keyed": mlax.series(mlax.dropout(0.5, 0), mlax.parallel(), gain(power=6)),
    "pool": mlax.pool(0.0, jax.lax.add, 2),
    "users": gain(power=2),
}


@pytest.mark.parametrize("pair", [mlax.linear, mlax.series, mlax.recurrent, mlax.f_rng, gain])
def test_pairs_survive_copies_and_pickle(pair: Any) -> None:  # pairs of many types
    assert copy.deepcopy(pair) is pair
    assert copy.copy(pair) is pair
    assert pickle.loads(pickle.dumps(pair)) is pair
    assert pickle.loads(pickle.dumps(pair.init)) is pair.init
    assert pickle.loads(pickle.dumps(pair.apply)) is pair.apply


@pytest.mark.parametrize("name", LAYERS)
def test_layers_survive_copies_and_pickle(name: str) -> None:
    layer = LAYERS[name]
    for other in (copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer))):
        assert isinstance(other, Layer)
        assert other == layer
        assert repr(other) == repr(layer)
        assert mlax.needs_rng(other.apply) == mlax.needs_rng(layer.apply)


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in ("keyed", "users")])
def test_params_and_state_survive_copies_and_pickle(name: str) -> None:
    init, apply = LAYERS[name]
    params, state = init(KEY, X)
    expected, _ = apply(params, state, X)
    dumped = pickle.dumps((params, state))
    for other_params, other_state in (copy.deepcopy((params, state)), pickle.loads(dumped)):
        assert jax.tree.structure((other_params, other_state)) == jax.tree.structure(
            (params, state)
        )
        np.testing.assert_array_equal(apply(other_params, other_state, X)[0], expected)


def test_layers_with_other_hyperparameters_differ() -> None:
    assert mlax.linear(2) == mlax.linear(2)
    assert mlax.linear(2) != mlax.linear(3)
    assert mlax.linear(2) != mlax.linear(2, dtype=jnp.float16)


def test_layers_can_be_static_arguments() -> None:
    @jax.jit
    def initialized(key: Key) -> Any:
        return mlax.series(mlax.linear(2)).init(key, X)

    jitted = jax.jit(lambda layer, key: layer.init(key, X), static_argnums=0)
    layer = mlax.series(mlax.linear(2))
    assert jax.tree.structure(jitted(layer, KEY)) == jax.tree.structure(initialized(KEY))
    assert hash(mlax.linear(2, dtype="float16")) == hash(mlax.linear(2, dtype="float16"))


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (mlax.linear(3), "linear(3)"),
        (mlax.linear(out_features=3, dtype=jnp.float16), "linear(3, dtype=float16)"),
        (mlax.bias((0, -1)), "bias((0, -1))"),
        (mlax.f(jax.nn.sigmoid), "f(sigmoid)"),
        (mlax.f(jax.nn.relu), "f(relu)"),
        (mlax.conv(3, (2, 2), padding="SAME"), "conv(3, (2, 2), padding='SAME')"),
        (
            mlax.parallel(mlax.series(mlax.linear(3), mlax.bias(-1))),
            "parallel(series(linear(3), bias(-1)))",
        ),
    ],
    ids=str,
)
def test_repr_is_the_expression_that_makes_the_layer(layer: AnyLayer, expected: str) -> None:
    assert repr(layer) == expected


def test_repr_of_a_users_layer_names_its_functions() -> None:
    assert "apply_gain" in repr(Layer(gain.init, apply_gain))
    assert "linear" in repr(mlax.linear)


def above(x: jax.Array, bound: float) -> jax.Array:
    """Return 1 if the sum is above the bound, else 0."""
    return (x.sum() > bound).astype(int)


def scaled(sub: Any, x: jax.Array, by: float) -> Any:
    """Return the output of a sublayer times a factor."""
    return sub.linear(x) * by


def nothing_saveable(*_: object, name: str, **__: object) -> bool:
    """A policy with an argument."""
    return False


def with_partials(by: float) -> dict[str, AnyLayer]:
    """Return layers that each hold a new partial."""
    linear = mlax.linear(3)
    policy = functools.partial(nothing_saveable, name=str(by))
    user = mlax.Layer(functools.partial(_init_gain, by), functools.partial(_apply_gain, by))
    return {
        "f": mlax.f(functools.partial(jnp.add, by)),
        "switch": mlax.switch(functools.partial(above, bound=by), linear, linear),
        "remat": mlax.remat(linear, policy=policy),
        "repeat": mlax.repeat(linear, 2, policy=policy),
        "block": mlax.block(linear=linear)(functools.partial(scaled, by=by)),
        "rnn_cell": mlax.rnn_cell(3, activation=functools.partial(jnp.multiply, by)),
        "user": mlax.series(user),
    }


def _init_gain(by: float, rng: Key, x: jax.Array) -> tuple[tuple[()], tuple[()]]:
    return (), ()


def _apply_gain(
    by: float,
    params: tuple[()],
    state: tuple[()],
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, tuple[()]]:
    return by * x, state


@pytest.mark.parametrize("name", with_partials(1.0))
def test_states_with_equal_partials_have_equal_structures(name: str) -> None:
    x: Any = jnp.ones(3)
    x = (x, x) if name == "rnn_cell" else x
    first, again, other = (with_partials(by)[name].init(KEY, x)[1] for by in (1.0, 1.0, 2.0))
    structure = jax.tree.structure(first)
    for same in (again, pickle.loads(pickle.dumps(first)), copy.deepcopy(first)):
        assert jax.tree.structure(same) == structure
        assert hash(jax.tree.structure(same)) == hash(structure)
        assert same == first
    assert jax.tree.structure(other) != structure


def test_a_layer_that_is_declared_to_need_a_key_asks_for_it() -> None:
    def apply(
        params: Any, state: Any, x: Any, rng: Any = None, inference_mode: bool = False,
        batch_axis_name: Any = (),
    ) -> Any:
        return (x if inference_mode else x * jax.random.normal(rng, x.shape)), state

    @mlax.layer(apply, needs_rng=True)
    def noise(rng: Any, x: Any) -> Any:
        return (), mlax.State((), ())

    params, state = noise().init(jax.random.key(0), jnp.ones(2))
    with pytest.raises(ValueError, match="noise: expected rng to be a PRNG key in training, got N"):
        noise().apply(params, state, jnp.ones(2))
    assert noise().apply(params, state, jnp.ones(2), None, True)[0].all()
