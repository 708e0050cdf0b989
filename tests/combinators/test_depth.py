"""Tests of models that are nested deeply or have many layers: what `init` traces, and how deep."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import AxisName, Key, Layer
from mlax.types import Sublayers

KEY = jax.random.key(0)
X = jnp.array([1.0, -2.0, 0.5])
# Any: layers of all kinds side by side.
AnyLayer = Layer[Any, Any, Any, Any]


class Spy(NamedTuple):
    """A layer and the shapes of the inputs that its `apply` was traced with."""

    layer: AnyLayer
    traced: list[tuple[int, ...]]


def spy() -> Spy:
    """Return a layer with a parameter that records its traces."""
    traced: list[tuple[int, ...]] = []

    def init(rng: Key, x: Any) -> tuple[jax.Array, tuple[()]]:
        return jax.random.normal(rng, x.shape), ()

    def apply(
        params: jax.Array, state: tuple[()], x: jax.Array, rng: Key | None = None,
        inference_mode: bool = False, batch_axis_name: AxisName = (),
    ) -> tuple[jax.Array, tuple[()]]:
        traced.append(x.shape)
        return params * x, state

    return Spy(Layer(init, apply), traced)


def first(y: Any) -> Any:
    """Return the first entry."""
    return y[0]


def with_carry(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return x as a sequence of one step, and a carry."""
    return x[None], jnp.zeros(2)


def with_two_carries(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Return x as a sequence of one step, and a carry for each direction."""
    return x[None], (jnp.zeros(2), jnp.zeros(2))


def forward_half(y: Any) -> Any:
    """Return the output of the forward cell at the first step."""
    return y[0][0, : X.size]


def always_first(x: jax.Array) -> jax.Array:
    """Return the index of the first layer."""
    return jnp.zeros((), int)


def wiring(sub: Sublayers, x: Any) -> Any:
    """Return what a layer adds to x."""
    return x + sub.inner(x)


@mlax.composed()
def inside(x: Any, layer: AnyLayer) -> AnyLayer:
    """Return the layer."""
    return layer


SAME = mlax.f(jnp.asarray)


def cell(layer: AnyLayer) -> AnyLayer:
    """Return a cell that keeps its carry."""
    return mlax.parallel(layer, SAME)


AROUND: dict[str, Callable[[AnyLayer], AnyLayer]] = {
    "series": lambda layer: mlax.series(layer),
    "series named": lambda layer: mlax.series(inner=layer),
    "residual": lambda layer: mlax.residual(layer),
    "branch": lambda layer: mlax.series(mlax.branch(layer), mlax.f(first)),
    "parallel": lambda layer: mlax.series(mlax.branch(SAME), mlax.parallel(layer), mlax.f(first)),
    "block": lambda layer: mlax.block(inner=layer)(wiring),
    "composed": lambda layer: mlax.series(inside(layer)),
    "cast": lambda layer: mlax.cast(layer, compute_dtype=jnp.float32),
    "remat": lambda layer: mlax.remat(layer),
    "frozen": lambda layer: mlax.frozen(layer),
    "stochastic_depth": lambda layer: mlax.stochastic_depth(layer, 0.1),
    "switch": lambda layer: mlax.switch(always_first, layer, SAME),
    "repeat": lambda layer: mlax.repeat(layer, 1),
    "ensemble": lambda layer: mlax.series(mlax.ensemble(layer, 1), mlax.f(first)),
    "batched": lambda layer: mlax.series(
        mlax.f(lambda x: x[None]), mlax.batched(layer), mlax.f(first)
    ),
    "recurrent": lambda layer: mlax.series(
        mlax.f(with_carry), mlax.recurrent(cell(layer)), mlax.f(lambda y: y[0][0])
    ),
    "bidirectional": lambda layer: mlax.series(
        mlax.f(with_two_carries), mlax.bidirectional(cell(layer), cell(SAME)), mlax.f(forward_half)
    ),
}


def nested(around: Callable[[AnyLayer], AnyLayer], layer: AnyLayer, depth: int) -> AnyLayer:
    """Return the layer inside that many combinators."""
    for _ in range(depth):
        layer = around(layer)
    return layer


@pytest.mark.parametrize("name", AROUND)
def test_init_traces_a_layer_as_often_at_any_depth(name: str) -> None:
    leaf = spy()
    jax.eval_shape(nested(AROUND[name], mlax.series(leaf.layer), 6).init, KEY, X)
    assert 1 <= len(leaf.traced) <= 2


def test_init_traces_equal_layers_with_equal_inputs_once() -> None:
    leaf = spy()
    mlax.series(leaf.layer, leaf.layer, mlax.residual(leaf.layer)).init(KEY, X)
    assert leaf.traced == [X.shape]


def test_init_traces_equal_layers_for_each_shape() -> None:
    leaf = spy()
    mlax.parallel(leaf.layer, leaf.layer).init(KEY, (X, X[:2]))
    assert leaf.traced == [X.shape, X[:2].shape]


def test_equal_layers_with_equal_inputs_have_parameters_of_their_own() -> None:
    params, _ = mlax.series(*[mlax.linear(3)] * 2).init(KEY, X)
    for i, one in enumerate(params):
        alone, _ = mlax.linear(3).init(jax.random.fold_in(KEY, i), X)
        np.testing.assert_array_equal(one.kernel, alone.kernel)


def test_equal_layers_with_equal_inputs_are_traced_for_each_dtype_to_compute_in() -> None:
    leaf = spy()
    half = mlax.cast(leaf.layer, compute_dtype=jnp.bfloat16)
    mlax.branch(mlax.cast(leaf.layer, compute_dtype=jnp.float32), half).init(KEY, X)
    assert leaf.traced == [X.shape] * 2


@mlax.block(linear=mlax.linear(3))
def looped(sub: Sublayers, x: Any) -> Any:
    """Two calls of a layer in a loop, and one after it."""
    x, _ = jax.lax.scan(lambda x, _: (sub.linear(x), None), x, None, 2)
    return sub.linear(x)


def test_a_layer_in_a_loop_of_a_block_in_a_block_leaks_no_tracer() -> None:
    outer = mlax.block(inner=looped)(wiring)
    with jax.checking_leaks():
        params, _ = outer.init(KEY, X)
    alone, _ = looped.init(jax.random.fold_in(KEY, 0), X)
    np.testing.assert_array_equal(params["inner"]["linear"].kernel, alone["linear"].kernel)


@pytest.mark.parametrize(
    "name", ["series", "series named", "residual", "cast", "remat", "frozen", "switch"]
)
def test_models_are_initialised_at_depth_160(name: str) -> None:
    model = nested(AROUND[name], mlax.scaler(()), 160)
    with ThreadPoolExecutor(1) as fresh_stack:
        params, _ = fresh_stack.submit(model.init, KEY, X).result()
    assert len(jax.tree.leaves(params)) == 1


def test_blocks_are_initialised_at_depth_120() -> None:
    model = nested(AROUND["block"], mlax.scaler(()), 120)
    with ThreadPoolExecutor(1) as fresh_stack:
        params, _ = fresh_stack.submit(model.init, KEY, X).result()
    assert len(jax.tree.leaves(params)) == 1


def test_residual_connections_in_series_are_nested_80_deep() -> None:
    model = nested(lambda layer: mlax.series(mlax.residual(layer)), mlax.scaler(()), 80)

    def run() -> Any:
        params, state = model.init(KEY, X)
        return jax.eval_shape(model.apply, params, state, X)[0]

    with ThreadPoolExecutor(1) as fresh_stack:
        assert fresh_stack.submit(run).result().shape == X.shape
