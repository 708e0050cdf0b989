"""Layers that break a law are rejected, and sound ones are not."""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.core import Tracer
from jax.custom_batching import custom_vmap

import mlax
from mlax.arguments import AnyLayer
from mlax.combinators import Call, Child, Made, init_only_child, transform
from mlax.layer import AxisName, Key, Layer, State
from mlax.testing import LAWS, Example, check_laws, check_state, spy

X = np.array([0.5, -1.0, 2.0], np.float32)


def init(rng: Key, x: Any) -> tuple[Any, Any]:
    """Make a gain for each number of x, and a counter."""
    return {"gain": jax.random.normal(rng, x.shape)}, jnp.zeros((), jnp.int32)


def apply(
    params: Any,
    state: Any,
    x: Any,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[Any, Any]:
    """Return gain * x, and count the calls in training."""
    return params["gain"] * x, state if inference_mode else state + 1


def with_init(make: Callable[[Key, Any], Any]) -> AnyLayer:
    """Return the layer with another `init`."""
    return Layer(make, apply)


def with_params(make: Callable[[Key, Any], Any], use: Callable[[Any], Any]) -> AnyLayer:
    """Return a layer whose gain is computed from other params."""

    def apply(
        params: Any,
        state: Any,
        x: Any,
        rng: Any = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> Any:
        return use(params) * x, state

    return Layer(lambda rng, x: (make(rng, x), ()), apply)


def with_output(change: Callable[[Any], Any]) -> AnyLayer:
    """Return the layer with a function of its output."""

    def changed(
        params: Any,
        state: Any,
        x: Any,
        rng: Any = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> Any:
        y, state = apply(params, state, x, rng, inference_mode, batch_axis_name)
        return change(y), state

    return Layer(init, changed)


def with_state(change: Callable[[Any, Any, bool], Any]) -> AnyLayer:
    """Return the layer with another next state: a function of state, x and mode."""

    def changed(
        params: Any,
        state: Any,
        x: Any,
        rng: Any = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> Any:
        return params["gain"] * x, change(state, x, inference_mode)

    return Layer(init, changed)


def with_noise(noise: Callable[[Any, Any, bool], Any], needs_rng: bool = True) -> AnyLayer:
    """Return a layer that adds a function of key, x and mode."""

    def noisy(
        params: Any,
        state: Any,
        x: Any,
        rng: Any = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> Any:
        return params["gain"] * x + noise(rng, x, inference_mode), state

    return Layer(lambda rng, x: (init(rng, x)[0], ()), noisy, needs_rng)


class HolderConfig(NamedTuple):
    """Configuration of the combinators below."""

    layer: Child
    """The layer."""


def holder(run: Callable[..., tuple[Any, Any]]) -> Any:
    """Return a combinator of one layer: `run(call, child, params, variables, x)`."""

    def apply(call: Call, config: HolderConfig, params: Any, variables: Any, x: Any) -> Any:
        return run(call, config.layer, params, variables, x)

    @transform(apply, HolderConfig)
    def held(rng: Key, x: Any, layer: AnyLayer) -> Made:
        return init_only_child("held", layer, rng, x)

    return held


def half(y: jax.Array) -> jax.Array:
    """Return y in half precision."""
    return y.astype(jnp.bfloat16)


def half_while_traced(rng: Key) -> jax.Array:
    """Return parameters in half precision while jax traces."""
    gain = jax.random.normal(rng, (3,))
    return half(gain) if isinstance(gain, Tracer) else gain


@jax.custom_jvp
def square(y: jax.Array) -> jax.Array:
    """Return y**2, but with the derivative of y."""
    return y**2


@square.defjvp
def _derivative(primals: tuple[Any], tangents: tuple[Any]) -> tuple[Any, Any]:
    return square(*primals), primals[0] * tangents[0]


@custom_vmap
def identity(y: jax.Array) -> jax.Array:
    """Return y, but 2 y for a batch."""
    return y


@identity.def_vmap
def _doubled(axis_size: int, in_batched: list[bool], y: jax.Array) -> tuple[jax.Array, bool]:
    return 2 * y, in_batched[0]


class Unequal:
    """A config that is only equal to itself."""


def with_config(config: Any) -> AnyLayer:
    """Return the layer with a config."""

    def configured(
        params: Any,
        state: Any,
        x: Any,
        rng: Any = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> Any:
        return params["gain"] * x, state

    return Layer(lambda rng, x: (init(rng, x)[0], State((), config)), configured)


def local_params(rng: Key, x: Any) -> Any:
    """Return params of a class that can't be found by its name."""

    class Local(NamedTuple):
        gain: Any

    return Local(jax.random.normal(rng, x.shape))


class Weights(NamedTuple):
    """Params of a layer that takes any."""

    gain: Any


def takes_anything(
    params: Any,
    state: Any,
    x: Any,
    rng: Any = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> Any:
    """Return x times everything in params."""
    return jax.tree.leaves(params)[0] * x, state


@mlax.layer(takes_anything)
def any_params(rng: Key, x: Any) -> Any:
    """A layer that does not look at its params."""
    return Weights(jax.random.normal(rng, x.shape)), State((), None)


calls = itertools.count()
one_draw = with_noise(lambda rng, x, inference: 0 if inference else jax.random.normal(rng, x.shape))


def dropped_axis(call: Call, child: Child, params: Any, variables: Any, x: Any) -> Any:
    """Run a layer without the batch axes."""
    return call._replace(batch_axis_name=())(child, params, variables, x)


def always_training(call: Call, child: Child, params: Any, variables: Any, x: Any) -> Any:
    """Run a layer in training."""
    key = jax.random.key(0) if call.rng is None else call.rng
    return call._replace(inference_mode=False)(child, params, variables, x, key)


def dropped_key(call: Call, child: Child, params: Any, variables: Any, x: Any) -> Any:
    """Run a layer without its key."""
    return call(child, params, variables, x, None)


def twice(call: Call, child: Child, params: Any, variables: Any, x: Any) -> Any:
    """Run a layer twice with one key."""
    x, variables = call(child, params, variables, x)
    return call(child, params, variables, x)


def in_steps(call: Call, child: Child, params: Any, variables: Any, x: Any) -> Any:
    """Run a layer in a loop with one key."""

    def step(carry: Any, _: None) -> Any:
        return call(child, params, carry[1], carry[0]), None

    return lax.scan(step, (x, variables), None, 3)[0]


def for_each(call: Call, child: Child, params: Any, variables: Any, x: Any) -> Any:
    """Run a layer on each entry of x with one key."""
    return jax.vmap(lambda x: call(child, params, variables, x), out_axes=(0, None))(x)


BROKEN: list[tuple[str, str, AnyLayer]] = [
    (
        "shapes",
        "init makes other dtypes while it is traced",
        with_params(lambda rng, x: {"gain": half_while_traced(rng)}, lambda p: p["gain"]),
    ),
    (
        "shapes",
        "init reads values",
        with_init(lambda rng, x: ({"gain": jnp.full(3, jnp.asarray(x).mean())}, jnp.zeros(()))),
    ),
    (
        "shapes",
        "apply returns another dtype while it is traced",
        with_output(lambda y: half(y) if isinstance(y, Tracer) else y),
    ),
    ("state", "the dtype changes", with_state(lambda state, x, inference: state + 0.5)),
    ("state", "the structure changes", with_state(lambda state, x, inference: (state,))),
    ("state", "the shape changes", with_state(lambda state, x, inference: state + x.astype(int))),
    ("state", "there is none", Layer(init, lambda params, state, x, *_: x)),
    ("transformations", "jit changes y", with_output(lambda y: y + isinstance(y, Tracer))),
    ("transformations", "it is not pure", with_output(lambda y: y + next(calls))),
    ("transformations", "vmap changes y", with_output(identity)),
    ("inference", "the state changes", with_state(lambda state, x, inference: state + 1)),
    (
        "inference",
        "a key is needed",
        with_noise(lambda rng, x, inference: jax.random.normal(rng, x.shape)),
    ),
    (
        "inference",
        "the key matters",
        with_noise(lambda rng, x, _: 0 if rng is None else jax.random.normal(rng, x.shape)),
    ),
    ("inference", "a layer within trains", holder(always_training)(spy())),
    ("gradients", "the derivative is wrong", with_output(square)),
    ("gradients", "the derivative is infinite", with_output(lambda y: jnp.sqrt(y - y))),
    (
        "gradients",
        "params are cut off",
        with_params(lambda rng, x: {"gain": jnp.ones(3)}, lambda p: lax.stop_gradient(p["gain"])),
    ),
    (
        "gradients",
        "there are integers in params",
        with_params(lambda rng, x: {"gain": jnp.ones(3, int)}, lambda p: p["gain"]),
    ),
    ("gradients", "it computes in float32", with_output(lambda y: y.astype(jnp.float32))),
    ("paths", "an array", with_params(lambda rng, x: jnp.ones(3), lambda p: p)),
    ("paths", "a tuple", with_params(lambda rng, x: (jnp.ones(3),), lambda p: p[0])),
    ("paths", "no name", with_params(lambda rng, x: {"a b": jnp.ones(3)}, lambda p: p["a b"])),
    (
        "copies",
        "no pickle of params",
        with_params(local_params, lambda p: p.gain),
    ),
    ("copies", "no pickle of the config", with_config(lambda: None)),
    ("copies", "configs are never equal", with_config(Unequal())),
    ("strangers", "params of any kind", any_params()),
    ("strangers", "leaves as params", Layer(lambda rng, x: (jnp.ones(3), ()), takes_anything)),
    ("keys", "the key is not used", with_noise(lambda rng, x, inference: 0)),
    (
        "keys",
        "a key is used all the same",
        with_noise(
            lambda rng, x, inference: 0 if rng is None else jax.random.normal(rng, x.shape), False
        ),
    ),
    (
        "keys",
        "init uses one key twice",
        with_init(lambda rng, x: ({n: jax.random.normal(rng, (3,)) for n in ("gain", "b")}, 0)),
    ),
    (
        "keys",
        "apply draws and splits",
        with_noise(
            lambda rng, x, inference: (
                0
                if inference
                else jax.random.normal(rng) + jax.random.normal(jax.random.split(rng)[0])
            )
        ),
    ),
    ("keys", "a combinator holds back the key", holder(dropped_key)(spy())),
    ("keys", "two places use one key", holder(twice)(one_draw)),
    ("keys", "all steps use one key", holder(in_steps)(one_draw)),
    ("keys", "all examples use one key", holder(for_each)(spy())),
    (
        "batch_axis",
        "the mean of one example",
        with_state(lambda state, x, inference: state if inference else x.mean().astype(int)),
    ),
    ("batch_axis", "a combinator holds back the axis", holder(dropped_axis)(spy())),
]


@pytest.mark.parametrize(("law", "what", "layer"), BROKEN, ids=str)
def test_a_layer_that_breaks_a_law_is_rejected(law: str, what: str, layer: AnyLayer) -> None:
    with pytest.raises(AssertionError, match=rf"^[\w<>]+, law \d+ \({law}\): expected "):
        LAWS[law](Example(layer, X))
    with pytest.raises(AssertionError, match=r"^[\w<>]+, law \d+ \(\w+\): expected "):
        check_laws(layer, X)


def test_every_law_rejects_a_layer() -> None:
    assert {law for law, _, _ in BROKEN} == LAWS.keys()


@pytest.mark.parametrize(
    "layer",
    [
        Layer(init, apply),
        one_draw,
        holder(lambda call, *args: call(*args))(spy()),
        mlax.series(spy(), mlax.z_norm("all"), mlax.dense(3)),
    ],
    ids=repr,
)
def test_a_sound_layer_is_accepted(layer: AnyLayer) -> None:
    check_laws(layer, X, skip={"copies": "a local combinator"} if "held" in repr(layer) else None)


def test_the_error_says_what_was_expected_and_what_came() -> None:
    layer = with_state(lambda state, x, inference: state.astype(jnp.float32))
    with pytest.raises(AssertionError) as raised:
        check_state(Example(layer, X))
    assert str(raised.value) == (
        "init, law 2 (state): expected state to keep its form in training, "
        "got float32[] for int32[] at the root"
    )


def test_an_error_of_the_layer_is_the_cause() -> None:
    layer = with_output(lambda y: y @ jnp.ones(2))
    with pytest.raises(
        AssertionError, match=r"^init, law 1 \(shapes\): expected no error"
    ) as raised:
        check_laws(layer, X)
    assert isinstance(raised.value.__cause__, TypeError)


def test_a_law_is_left_out_by_name_and_with_a_reason() -> None:
    layer = with_output(lambda y: y.astype(jnp.float32))
    check_laws(layer, X, skip={"gradients": "it computes in float32"})
    with pytest.raises(ValueError, match=r"^check_laws: expected skip to name laws \(shapes, "):
        check_laws(layer, X, skip={"gradient": "it computes in float32"})
    with pytest.raises(ValueError, match="^check_laws: expected skip to say why gradients"):
        check_laws(layer, X, skip={"gradients": ""})


def test_the_key_and_the_tolerance_are_those_passed() -> None:
    seen: list[Any] = []

    def make(rng: Key, x: Any) -> Any:
        if not isinstance(rng, Tracer):
            seen.append(rng)
        return init(rng, x)

    check_laws(with_init(make), X, rng=jax.random.key(7))
    assert jax.random.key_data(seen[0]).tolist() == [0, 7]

    rough = with_output(lambda y: y + 1e-3 * isinstance(y, Tracer))
    check_laws(rough, X, tolerance=1e-2)
    with pytest.raises(AssertionError, match="transformations"):
        check_laws(rough, X)


def test_what_is_no_layer_is_rejected() -> None:
    with pytest.raises(TypeError, match="^check_laws: expected layer to be a layer"):
        check_laws(jnp.tanh, X)  # type: ignore[arg-type]


def test_a_spy_does_what_it_says() -> None:
    params, state = spy().init(jax.random.key(0), X)
    key = jax.random.key(1)
    y, _ = spy().apply(params, state, jnp.asarray(X), key)
    noise = jax.random.normal(jax.random.fold_in(jax.random.fold_in(key, 0), 0), (3,))
    np.testing.assert_allclose(y, noise, rtol=1e-6)  # each is alone in its batch
    y, _ = spy().apply(params, state, jnp.asarray(X), None, True)
    np.testing.assert_allclose(y, params.scale * X, rtol=1e-6)
