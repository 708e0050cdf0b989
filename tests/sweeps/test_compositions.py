"""Combinators in combinators, drawn at random, obey the laws that hold for each of them.

A composition that fails is printed as an expression, after hypothesis has made it as small as it
can. Functions and wirings are at the top level here, so that a state that holds them can be
pickled.
"""

import functools
import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import mlax
from mlax.arguments import AnyLayer
from mlax.testing import spy
from mlax.testing.spy import keys_used

from ..laws.registry import (
    GATE, alternate, counted_gain, is_positive, noise, recompute, without_noise,
)

INIT_KEY, APPLY_KEY = jax.random.split(jax.random.key(0))
FEATURES = 3
SHAPES = {1: (FEATURES,), 2: (4, FEATURES)}

Layers = st.SearchStrategy[AnyLayer]

half_as_many = settings(max_examples=settings().max_examples // 2)
"""A composition takes long to compile."""


# Functions and blocks between the layers.


def doubled(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return (x, x / 2)."""
    return x, x / 2


def stacked(x: jax.Array) -> jax.Array:
    """Return four different multiples of x along a new axis."""
    return jnp.stack([x, -x, x / 2, 1 - x])


def averaged(x: jax.Array) -> jax.Array:
    """Return the mean over the first axis."""
    return jnp.mean(x, 0)


def over_time(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return four steps of x, and x as the first carry."""
    return stacked(x), x


def over_time_twice(x: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Return four steps of x, and a carry for each direction."""
    return stacked(x), (x, x / 2)


def last(results: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Return the mean of the outputs plus the carry."""
    ys, h = results
    return averaged(ys) + h


def last_of_both(results: tuple[jax.Array, tuple[jax.Array, jax.Array]]) -> jax.Array:
    """Return the mean of both directions plus their carries."""
    ys, (forward, backward) = results
    a, b = jnp.split(averaged(ys), 2, -1)
    return a + b + forward * backward


def first(results: tuple[jax.Array, Any]) -> jax.Array:
    """Return y of (y, values)."""
    return results[0]


def wire_twice(sub: Any, x: jax.Array) -> jax.Array:
    """Call `a` twice and `b` in between."""
    y: jax.Array = sub.a(sub.b(sub.a(x))) + x
    return y


def wire_pair(sub: Any, x: jax.Array) -> jax.Array:
    """Call each layer once, and read the params of one."""
    a = sub.a(x)
    total = sum((jnp.sum(leaf) for leaf in jax.tree.leaves(sub.a.params)), jnp.zeros(()))
    y: jax.Array = a - sub.b(x) * jnp.tanh(total).astype(x.dtype)
    return y


def block_of(wire: Callable[[Any, Any], Any], a: AnyLayer, b: AnyLayer) -> AnyLayer:
    """Return a block of two layers."""
    layer: AnyLayer = mlax.block(a=a, b=b)(wire)
    return layer


# Combinators around one layer and around two.

AROUND_ONE: list[Callable[[AnyLayer], AnyLayer]] = [
    lambda a: mlax.residual(a),
    lambda a: mlax.remat(a),
    lambda a: mlax.frozen(a),
    lambda a: recompute(a),
    lambda a: mlax.series(mlax.tap(a), mlax.f(first)),
    lambda a: mlax.stochastic_depth(a, 0.5),
    lambda a: mlax.cast(a, params_dtype=jnp.bfloat16),
    lambda a: mlax.repeat(a, 2),
    lambda a: mlax.repeat(a, 3, unroll=2, remat=True),
    lambda a: mlax.series(mlax.ensemble(a, 2), mlax.f(averaged)),
    lambda a: mlax.as_layer(functools.partial(mlax.as_module, a)),
]


def joined(a: AnyLayer, b: AnyLayer) -> AnyLayer:
    """Return both results, concatenated and projected."""
    layer: AnyLayer = mlax.series(mlax.branch(a, b), mlax.concatenate(), mlax.dense(FEATURES))
    return layer


def in_time(a: AnyLayer, b: AnyLayer) -> AnyLayer:
    """Return a recurrence of x by `a` and of the carry by `b`."""
    cell: AnyLayer = mlax.parallel(a, b)
    layer: AnyLayer = mlax.series(mlax.f(over_time), mlax.recurrent(cell), mlax.f(last))
    return layer


def in_both_directions(a: AnyLayer, b: AnyLayer) -> AnyLayer:
    """Return a recurrence in each direction."""
    forward: AnyLayer = mlax.parallel(a, b)
    backward: AnyLayer = mlax.parallel(b, a)
    both: AnyLayer = mlax.bidirectional(forward, backward)
    layer: AnyLayer = mlax.series(mlax.f(over_time_twice), both, mlax.f(last_of_both))
    return layer


AROUND_TWO: list[Callable[[AnyLayer, AnyLayer], AnyLayer]] = [
    lambda a, b: mlax.series(a, b),
    lambda a, b: mlax.series(first=a, second=b),
    lambda a, b: mlax.residual(a, b),
    lambda a, b: mlax.series(mlax.branch(a, b), mlax.add()),
    lambda a, b: mlax.series(mlax.branch(a=a, b=b), mlax.multiply()),
    lambda a, b: mlax.series(mlax.f(doubled), mlax.parallel(a, b), mlax.add()),
    lambda a, b: alternate(a, b, n=2),
    lambda a, b: block_of(wire_twice, a, b),
    lambda a, b: block_of(wire_pair, a, b),
    lambda a, b: mlax.switch(is_positive, a, b),
    joined,
    in_time,
    in_both_directions,
]


# Strategies: all layers map an array to one of its shape and dtype.

OF_ANY_RANK: list[AnyLayer] = [
    mlax.series(),
    mlax.f(jnp.tanh),
    mlax.linear(FEATURES),
    mlax.dense(FEATURES),
    mlax.layer_norm(),
    mlax.rms_norm(),
    mlax.z_norm(-1),
    mlax.dropout(0.5, -1),
    mlax.f_rng(noise, without_noise),
    mlax.series(mlax.dense(2), mlax.dense(FEATURES)),
    GATE,
    counted_gain(rate=0.5),
    spy(),
]
OF_RANK: dict[int, list[AnyLayer]] = {
    1: [
        *OF_ANY_RANK,
        mlax.bias(-1),
        mlax.scaler(-1),
    ],
    2: [
        *OF_ANY_RANK,
        mlax.bias((0, -1)),
        mlax.conv(FEATURES, 2, padding="SAME"),
        mlax.depthwise_conv(2, padding="SAME"),
        mlax.series(mlax.max_pool(2, 2), mlax.conv_transpose(FEATURES, filter_shape=2, strides=2)),
        mlax.avg_pool(3, padding="SAME"),
        mlax.batch_norm(),
        mlax.group_norm(FEATURES),
    ],
}
STATEFUL = (mlax.z_norm, mlax.batch_norm, counted_gain, GATE)


def leaves(rank: int, stateless: bool) -> Layers:
    """Return the layers that combinators are put around."""
    if not stateless:
        return st.sampled_from(OF_RANK[rank])
    chosen = [
        layer
        for layer in OF_RANK[rank]
        if layer is not GATE and getattr(layer.init, "pair", None) not in STATEFUL
    ]
    return st.sampled_from(chosen)


def layers(depth: int, rank: int, stateless: bool = False) -> Layers:
    """Return layers of `depth` combinators in each other.

    `stateless` leaves out the layers with variables: under `mlax.batched`, the examples that
    choose different layers of `mlax.switch` would change different ones.
    """
    return combined(depth, rank, stateless) if depth else leaves(rank, stateless)


@functools.cache
def combined(depth: int, rank: int, stateless: bool) -> Layers:
    """Return combinators, with one layer that is `depth` - 1 deep in each."""
    inner = layers(depth - 1, rank, stateless)
    beside = leaves(rank, stateless)
    around: list[Layers] = [st.builds(build, inner) for build in AROUND_ONE]
    for build in AROUND_TWO:
        around.append(st.builds(build, inner, beside) | st.builds(build, beside, inner))
    of_examples = layers(depth - 1, 1, stateless=True)
    name = f"axis of depth {depth}"  # each in another has its own
    if rank == 2:
        around.append(of_examples.map(lambda layer: mlax.batched(layer, axis_name=name)))
        if not stateless:
            apart = layers(depth - 1, 1)
            around.append(
                apart.map(lambda layer: mlax.batched(layer, axis_name=name, state_axis=0))
            )
            around.append(st.just(mlax.batched(mlax.batch_norm(), axis_name=name)))
    else:
        around.append(
            of_examples.map(
                lambda layer: mlax.series(
                    mlax.f(stacked), mlax.batched(layer, axis_name=name), mlax.f(averaged)
                )
            )
        )
    return st.one_of(around)


RANKS = st.sampled_from([1, 2])
DEPTHS = st.integers(1, 4)


@st.composite
def compositions(draw: st.DrawFn) -> tuple[AnyLayer, jax.Array]:
    """Return a composition, up to 4 deep, and its input."""
    rank = draw(RANKS)
    x = np.random.default_rng(rank).normal(size=SHAPES[rank])
    return draw(layers(draw(DEPTHS), rank)), jnp.asarray(x, jnp.float32)


def assert_same_form(got: Any, wanted: Any) -> None:
    """Require equal structures, and leaves of equal shapes, dtypes and weak types."""
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    for a, b in pairs:
        assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)


def assert_close(got: Any, wanted: Any) -> None:
    """Require trees of one form whose numbers differ only by rounding."""
    assert_same_form(got, wanted)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        wide = np.asarray(a, np.float64), np.asarray(b, np.float64)
        np.testing.assert_allclose(*wide, rtol=1e-3, atol=1e-3)


def key_of(layer: AnyLayer) -> jax.Array | None:
    """Return the key of `apply` in training, None if the layer needs none."""
    return APPLY_KEY if layer.needs_rng else None


@half_as_many
@given(compositions())
def test_compositions(composition: tuple[AnyLayer, jax.Array]) -> None:
    layer, x = composition
    params, state = layer.init(INIT_KEY, x)
    key = key_of(layer)

    def loss(params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        y, after = layer.apply(params, state, x, key)
        return jnp.sum(jnp.sin(y)), (y, after, layer.apply(params, state, x, None, True))

    both = jax.jit(jax.value_and_grad(loss, (0, 2), has_aux=True))
    (_, (y, after, (y_in_inference, kept))), gradients = both(params, state, x)
    assert_same_form(y, x)
    assert_same_form(y_in_inference, x)
    assert_same_form(after, state)
    assert_same_form(kept, state)
    eager = layer.apply(params, state, x, key)
    assert_close(eager, (y, after))
    for a, b in zip(jax.tree.leaves(kept), jax.tree.leaves(state), strict=True):
        np.testing.assert_array_equal(a, b)
    assert_same_form(gradients[0], params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))

    params_again, state_again = pickle.loads(pickle.dumps((params, state)))
    assert_same_form((params_again, state_again), (params, state))
    assert_close(layer.apply(params_again, state_again, x, key), eager)


@half_as_many
@given(compositions())
def test_no_key_is_used_twice(composition: tuple[AnyLayer, jax.Array]) -> None:
    layer, x = composition
    params, state = layer.init(INIT_KEY, x)
    used = keys_used(jax.jit(lambda key: layer.init(key, x)), INIT_KEY)
    assert len(set(used)) == len(used)
    if layer.needs_rng:
        used = keys_used(jax.jit(lambda key: layer.apply(params, state, x, key)), APPLY_KEY)
        assert len(set(used)) == len(used)


@half_as_many
@given(DEPTHS, RANKS, st.data(), st.integers(1, 3), st.integers(1, 2), st.booleans())
def test_repeat_is_a_loop_over_its_copies(
    depth: int, rank: int, data: st.DataObject, n: int, unroll: int, remat: bool
) -> None:
    layer = data.draw(layers(depth - 1, rank))
    x = jnp.asarray(np.random.default_rng(n).normal(size=SHAPES[rank]), jnp.float32)
    repeated = mlax.repeat(layer, n, unroll=unroll, remat=remat)
    params, state = repeated.init(INIT_KEY, x)
    key = key_of(layer)
    wanted, copies, nexts = x, [], []
    for i in range(n):
        copy = layer.init(jax.random.fold_in(INIT_KEY, i), x)
        own = key if key is None or n == 1 else jax.random.fold_in(key, i)
        wanted, after = layer.apply(*copy, wanted, own)
        copies.append(copy)
        nexts.append(after)
    y, after = repeated.apply(params, state, x, key)

    def leaves_of(trees: list[Any]) -> list[Any]:
        return jax.tree.leaves(jax.tree.map(lambda *leaves: np.stack(leaves), *trees))

    assert_close(y, wanted)
    for got, expected in (((params, state), copies), (after, nexts)):
        for a, b in zip(jax.tree.leaves(got), leaves_of(expected), strict=True):
            np.testing.assert_allclose(
                np.asarray(a, np.float64), np.asarray(b, np.float64), 1e-3, 1e-3
            )
