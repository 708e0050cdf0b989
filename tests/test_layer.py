"""Tests of what a layer knows about itself: its need for a key, its state, equality, and repr."""

import copy
import functools
import gc
import pickle
import weakref
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import AxisName, Key, Layer, State

KEY = jax.random.key(0)
X = jnp.array([1.0, -2.0, 0.5])
# Any: layers of all kinds side by side.
AnyLayer = Layer[Any, Any, Any, Any]
STATIC = ("inference_mode", "batch_axis_name")


def notes(error: pytest.ExceptionInfo[BaseException]) -> list[str]:
    """Return the paths noted on an error."""
    return [n for n in getattr(error.value, "__notes__", []) if n.startswith("in ")]


def nothing_init(rng: Key, x: Any) -> tuple[tuple[()], tuple[()]]:
    """Make nothing."""
    return (), ()


def spy_apply(
    params: Any,
    state: Any,
    x: Any,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[Any, Any]:
    """Return the key it gets."""
    return (x, rng), state


# The need for a key.


def wrappers(apply: Any) -> dict[str, Any]:
    """Return functions that call `apply`, each of which keeps its need for a key."""

    @functools.wraps(apply)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return apply(*args, **kwargs)

    return {
        "jit": jax.jit(apply, static_argnames=STATIC),
        "wraps": wrapped,
        "partial": functools.partial(apply),
        "lambda": lambda *args: apply(*args),
        "jit of partial": jax.jit(functools.partial(apply), static_argnames=STATIC),
    }


@pytest.mark.parametrize("how", ["jit", "wraps", "partial", "lambda", "jit of partial"])
@pytest.mark.parametrize("bare", [True, False])
def test_the_need_of_a_key_survives_a_wrapper(how: str, bare: bool) -> None:
    drop = mlax.dropout(0.5, 0)
    layer = Layer(drop.init, wrappers(mlax.dropout.apply if bare else drop.apply)[how])
    assert layer.needs_rng
    assert mlax.needs_rng(layer.apply)
    x = jnp.ones(64)
    model, plain = mlax.series(layer, mlax.bias(-1)), mlax.series(drop, mlax.bias(-1))
    y, _ = model.apply(*model.init(KEY, x), x, KEY)
    expected, _ = plain.apply(*plain.init(KEY, x), x, KEY)
    np.testing.assert_array_equal(y, expected)
    assert 0 < int((y == 0).sum()) < 64


def test_a_layer_says_itself_whether_it_needs_a_key() -> None:
    silent, needing = Layer(nothing_init, spy_apply), Layer(nothing_init, spy_apply, True)
    assert (silent.needs_rng, needing.needs_rng) == (False, True)
    init, apply = needing
    assert (init, apply) == (nothing_init, spy_apply)
    assert silent != needing
    for model, wanted in ((mlax.series(silent), None), (mlax.series(needing), KEY)):
        assert model.needs_rng == (wanted is not None)
        (_, rng), _ = model.apply(*model.init(KEY, X), X, KEY)
        assert rng is None if wanted is None else rng == wanted
    for again in (copy.deepcopy(needing), pickle.loads(pickle.dumps(needing))):
        assert again.needs_rng
        assert again == needing


def test_a_layer_that_needs_no_key_gets_none_and_the_error_says_how_to_change_that() -> None:
    drop = mlax.dropout(0.5, 0)
    model = mlax.series(Layer(drop.init, drop.apply, needs_rng=False))
    assert not model.needs_rng
    params, state = model.init(KEY, X)
    with pytest.raises(ValueError, match="^dropout: expected rng to be a PRNG key") as error:
        model.apply(params, state, X, KEY)
    assert any("needs_rng=True" in note for note in error.value.__notes__)


def test_of_a_users_function_the_signature_tells() -> None:
    def without_default(params: Any, state: Any, x: Any, rng: Key) -> Any:
        return x, state

    def with_default(params: Any, state: Any, x: Any, rng: Key | None = None) -> Any:
        return x, state

    assert mlax.needs_rng(without_default)
    assert not mlax.needs_rng(with_default)
    assert not mlax.needs_rng(functools.partial(without_default, rng=KEY))
    assert mlax.needs_rng(lambda *args: with_default(*args))
    assert mlax.needs_rng(jax.jit(without_default))
    assert not mlax.needs_rng(jax.jit(with_default))


def test_a_second_pair_with_the_same_apply_changes_nothing() -> None:
    def apply(
        params: Any,
        state: Any,
        x: Any,
        rng: Key | None = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> tuple[Any, Any]:
        return x, state

    @mlax.layer(apply)
    def silent(rng: Key, x: Any) -> tuple[tuple[()], tuple[()]]:
        return (), ()

    first = silent()

    @mlax.layer(apply, needs_rng=True)
    def needing(rng: Key, x: Any) -> tuple[tuple[()], tuple[()]]:
        return (), ()

    assert not silent().needs_rng
    assert not first.needs_rng
    assert not mlax.needs_rng(silent.apply)
    assert needing().needs_rng
    assert mlax.needs_rng(needing.apply)
    assert not mlax.needs_rng(apply)
    assert not mlax.series(silent()).needs_rng
    assert mlax.series(needing()).needs_rng


def test_a_pair_that_is_made_in_a_function_is_garbage_collected() -> None:
    def make() -> weakref.ref[Any]:
        def apply(
            params: Any,
            state: Any,
            x: Any,
            rng: Key,
            inference_mode: bool = False,
            batch_axis_name: AxisName = (),
        ) -> tuple[Any, Any]:
            return params * x, state

        @mlax.layer(apply)
        def dynamic(rng: Key, x: Any) -> tuple[Any, Any]:
            return jnp.ones(x.shape), State((), "any")

        model = mlax.series(dynamic(), mlax.bias(-1))
        params, state = model.init(KEY, X)
        model.apply(params, state, X, KEY)
        return weakref.ref(dynamic)

    made = make()
    gc.collect()
    assert made() is None


# A state belongs to its layer.

OTHER_STATES: dict[str, tuple[AnyLayer, AnyLayer, str, str]] = {
    "rate": (
        mlax.series(a=mlax.linear(3), b=mlax.series(mlax.dropout(0.5, 0))),
        mlax.series(a=mlax.linear(3), b=mlax.series(mlax.dropout(0.0, 0))),
        r"^dropout: expected state.config.rate to be 0.5, .*, got 0.0; .*initialise this layer",
        "in series > b[0] > dropout",
    ),
    "function": (
        mlax.series(mlax.linear(3), mlax.f(jax.nn.gelu)),
        mlax.series(mlax.linear(3), mlax.f(jax.nn.relu)),
        r"^f: expected state.config.train_fn to be gelu, .*, got relu; ",
        "in series[1] > f",
    ),
    "more layers": (
        mlax.batched(mlax.series(mlax.f(jnp.sin), mlax.f(jnp.sin))),
        mlax.batched(mlax.series(mlax.f(jnp.sin))),
        r"^series: expected state to be that of the layers \(f, f\), got that of \(f\); ",
        "in batched > series",
    ),
    "fewer layers": (
        mlax.remat(mlax.series(mlax.f(jnp.sin))),
        mlax.remat(mlax.series(mlax.f(jnp.sin), mlax.f(jnp.sin))),
        r"^series: expected state to be that of the layers \(f\), got that of \(f, f\); ",
        "in remat > series",
    ),
    "another layer": (
        mlax.series(mlax.residual(mlax.f(jnp.sin))),
        mlax.series(mlax.residual(mlax.bias(()))),
        r"f, got .*bias; ",
        "in series[0] > residual",
    ),
    "copies": (
        mlax.series(mlax.repeat(mlax.f(jnp.sin), 3)),
        mlax.series(mlax.repeat(mlax.f(jnp.sin), 2)),
        r"^repeat: expected state.config.n to be 3, .*, got 2; ",
        "in series[0] > repeat",
    ),
    "direction": (
        mlax.series(mlax.recurrent(mlax.rnn_cell(3))),
        mlax.series(mlax.recurrent(mlax.rnn_cell(3), reverse=True)),
        r"^recurrent: expected state.config.reverse to be False, .*, got True; ",
        "in series[0] > recurrent",
    ),
    "number": (
        mlax.series(mlax.layer_norm(epsilon=1e-5)),
        mlax.series(mlax.layer_norm(epsilon=1e-6)),
        r"^layer_norm: expected state.config.epsilon to be 1e-05, .*, got 1e-06; ",
        "in series[0] > layer_norm",
    ),
}


@pytest.mark.parametrize("name", OTHER_STATES)
@pytest.mark.parametrize("jitted", [False, True])
def test_the_state_of_another_model_raises(name: str, jitted: bool) -> None:
    model, other, wanted, path = OTHER_STATES[name]
    x: Any = (jnp.ones((4, 3)), jnp.zeros(3)) if name == "direction" else jnp.ones((4, 3))
    params, _ = model.init(KEY, x)
    _, state = other.init(KEY, x)
    apply: Any = jax.jit(model.apply) if jitted else model.apply
    with pytest.raises((TypeError, ValueError), match=wanted) as error:
        apply(params, state, x, KEY)
    assert path in notes(error) or (name == "another layer" and notes(error))


def test_the_own_state_is_taken_however_it_was_made() -> None:
    model = mlax.series(mlax.linear(3), mlax.f(lambda x: 2 * x), mlax.dropout(0.5, (0,)))
    params, state = model.init(KEY, X)
    expected, _ = model.apply(params, state, X, KEY)
    rebuilt = mlax.series(mlax.linear(3), mlax.f(lambda x: 2 * x), mlax.dropout(0.5, [0]))
    y, _ = mlax.series.apply(params, state, X, KEY)
    np.testing.assert_array_equal(y, expected)
    for same in (copy.deepcopy(state), jax.tree.map(lambda a: a, state)):
        np.testing.assert_array_equal(model.apply(params, same, X, KEY)[0], expected)
    named = mlax.series(mlax.linear(3), mlax.f(jax.nn.relu), mlax.dropout(0.5, 0))
    params, state = named.init(KEY, X)
    assert pickle.loads(pickle.dumps(state)) == state
    named.apply(params, pickle.loads(pickle.dumps(state)), X, KEY)
    assert rebuilt == rebuilt


# Equality.


class PowerConfig(NamedTuple):
    """Configuration of `power`."""

    factor: float
    """What x is multiplied with."""


def apply_power(params: tuple[()], config: PowerConfig, x: jax.Array) -> jax.Array:
    """Return factor * x."""
    return config.factor * x


@mlax.stateless(apply_power, PowerConfig)
def power(rng: Key, x: Any, factor: float) -> tuple[()]:
    """A number times x, in their promoted dtype."""
    return ()


def test_two_is_not_two_point_zero() -> None:
    x = jnp.arange(3)
    step = jax.jit(power.apply)
    for factor, dtype in ((2, jnp.int32), (2.0, jnp.float32), (2, jnp.int32)):
        params, state = power(factor).init(KEY, x)
        assert step(params, state, x)[0].dtype == dtype
    assert power(2) != power(2.0)
    _, state = power(2).init(KEY, x)
    wanted = "^power: expected state.config.factor to be 2.0, .* got 2;"
    with pytest.raises(ValueError, match=wanted):
        power(2.0).apply((), state, x)


def test_a_zero_has_a_sign() -> None:
    params, state = power(0.0).init(KEY, X)
    _, negative = power(-0.0).init(KEY, X)
    step = jax.jit(power.apply)
    assert not jnp.signbit(step(params, state, jnp.ones(1))[0])
    assert jnp.signbit(step(params, negative, jnp.ones(1))[0])
    assert jax.tree.structure(state) != jax.tree.structure(negative)


def test_a_model_of_a_loop_has_the_numbers_of_its_turn() -> None:
    static = jax.jit(lambda model: model.apply(*model.init(KEY, X), X)[0], static_argnums=0)
    for factor in (1.0, 2.0, 3.0):
        model = mlax.series(mlax.f(lambda x: x * factor))
        np.testing.assert_array_equal(static(model), X * factor)
        np.testing.assert_array_equal(jax.jit(model.apply)(*model.init(KEY, X), X)[0], X * factor)

        def apply(
            params: Any, state: Any, x: jax.Array, rng: Key | None = None,
            inference_mode: bool = False, batch_axis_name: AxisName = (),
        ) -> tuple[jax.Array, Any]:
            return x * factor, state

        own: AnyLayer = mlax.series(mlax.Layer(lambda rng, x: ((), ()), apply))
        np.testing.assert_array_equal(static(own), X * factor)


def test_a_model_that_is_built_twice_is_one_model() -> None:
    def build(scale: float) -> AnyLayer:
        def scaled(x: Any) -> Any:
            return jax.tree.map(lambda leaf: scale * leaf, x)

        return mlax.series(mlax.linear(3), mlax.f(lambda x: x + 1), mlax.f(scaled))

    traces: list[float] = []

    def step(scale: float) -> Any:
        def run(params: Any, state: Any, x: jax.Array) -> Any:
            traces.append(scale)
            return build(scale).apply(params, state, x)

        return jax.jit(run)

    run = step(2.0)
    for _ in range(3):
        run(*build(2.0).init(KEY, X), X)
    assert traces == [2.0]
    assert build(2.0) == build(2.0)
    assert hash(build(2.0)) == hash(build(2.0))
    assert build(2.0).init(KEY, X)[1] == build(2.0).init(KEY, X)[1]
    assert build(2.0) != build(3.0)
    assert build(2.0).init(KEY, X)[1] != build(3.0).init(KEY, X)[1]
    _, other = build(3.0).init(KEY, X)
    with pytest.raises(ValueError, match="^f: expected state.config.train_fn"):
        run(build(2.0).init(KEY, X)[0], other, X)


# Text.


def feed_forward(width: int) -> AnyLayer:
    """Return a block."""
    return mlax.residual(
        mlax.series(
            norm=mlax.layer_norm(),
            wide=mlax.dense(4 * width),
            act=mlax.f(lambda x: jax.nn.gelu(x)),
            drop=mlax.dropout(0.1, -1),
            narrow=mlax.dense(width),
        )
    )


def test_the_repr_of_a_state_fits_a_screen() -> None:
    model = mlax.series(
        stem=mlax.conv(8, (3, 3), padding="SAME"),
        norm=mlax.batch_norm(),
        body=mlax.series(feed_forward(8), feed_forward(8)),
        pool=mlax.global_avg_pool(),
        head=mlax.dense(10),
    )
    _, state = model.init(KEY, jnp.ones((8, 8, 3)))
    text = repr(state)
    assert len(text.splitlines()) <= 24
    assert len(text) <= 2000
    assert " at 0x" not in text
    for part in ("norm", "mean", "float32[8]", "stem: conv", "dropout"):
        assert part in text
    many = mlax.series(*[mlax.z_norm(0)] * 40).init(KEY, X[:, None])[1]
    assert len(repr(many).splitlines()) <= 24
    assert len(repr(many)) <= 2000


@pytest.mark.parametrize(
    "layer",
    [
        mlax.f(lambda x: x),
        mlax.f(functools.partial(jnp.clip, min=0)),
        mlax.f(jax.jit(lambda x: x)),
        mlax.linear(3, kernel_initializer=jax.nn.initializers.normal()),
        mlax.remat(mlax.linear(3), policy=jax.checkpoint_policies.dots_saveable),
        mlax.switch(lambda x: x.argmax(), mlax.linear(3)),
        mlax.block(a=mlax.linear(3))(lambda sub, x: sub.a(x)),
        Layer(nothing_init, spy_apply),
        Layer(lambda rng, x: ((), ()), lambda params, state, x, rng=None, *_: (x, state)),
        mlax.series(Layer(nothing_init, functools.partial(spy_apply))),
        mlax.tap(mlax.series(a=mlax.f(jnp.sin)), lambda path, _: True),
        mlax.as_layer(lambda rng: mlax.nn.Linear(rng, 3)),
    ],
    ids=["lambda", "partial", "jit", "initializer", "policy", "switch", "block", "functions",
         "lambdas", "partials", "tap", "module"],
)  # fmt: skip
def test_no_repr_has_an_address(layer: AnyLayer) -> None:
    assert " at 0x" not in repr(layer)
    assert " at 0x" not in repr(mlax.series(layer))


def test_a_key_is_found_by_its_place_too() -> None:
    """Combinators pass it as the fourth argument, whatever its name."""

    def named_key(p: Any, s: Any, x: Any, key: Any, mode: bool = False, axes: Any = ()) -> Any:
        return x, s

    def optional_key(p: Any, s: Any, x: Any, key: Any = None, mode: bool = False) -> Any:
        return x, s

    assert mlax.needs_rng(named_key)
    assert not mlax.needs_rng(optional_key)


def test_a_list_that_changes_later_changes_no_layer() -> None:
    class Config(NamedTuple):
        factors: Any

    def apply(params: Any, config: Config, x: jax.Array) -> jax.Array:
        y: jax.Array = x * config.factors[0]
        return y

    @mlax.stateless(apply, Config)
    def scaled(rng: Key, x: Any, factors: Any) -> tuple[()]:
        return ()

    factors = [2.0]
    layer = scaled(factors)
    params, state = layer.init(KEY, X)
    factors[0] = 5.0
    np.testing.assert_array_equal(layer.apply(params, state, X)[0], 2 * np.asarray(X))
    assert layer == scaled([2.0]) != scaled(factors)


def test_two_functions_of_one_name_are_told_apart() -> None:
    def scaled(by: float) -> AnyLayer:
        return mlax.f(lambda x: by * x)

    params, state = scaled(1.0).init(KEY, X)
    with pytest.raises(ValueError, match="got <lambda> with other code, defaults or closures"):
        scaled(2.0).apply(params, state, X)


def test_a_keyword_of_a_partial_is_named() -> None:
    def summed(axis: int) -> AnyLayer:
        return mlax.f(functools.partial(jnp.sum, axis=axis))

    params, state = summed(0).init(KEY, X)
    wanted = "^f: expected state.config.train_fn.axis to be -1, as in this layer, got 0; "
    with pytest.raises(ValueError, match=wanted):
        summed(-1).apply(params, state, X)
