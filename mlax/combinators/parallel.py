"""Layers side by side: y[i] = layer_i(x[i]).

params, variables, x and y are tuples with one entry for each layer, or dicts if they have names.
"""

# Why L1 to L10 stand only once: mlax/combinators/types.py.
# pyright: reportInvalidTypeVarUse=false
from __future__ import annotations  # the overloads take long to evaluate

from typing import Any, TypeVar, overload

from mlax.combinators.child import (
    AnyLayer,
    ChildrenState,
    DictState,
    any_needs_rng,
    apply_child,
    apply_keys,
    collected,
    entries,
    init_child,
    init_keys,
    joined_state,
    keyed,
    packed,
    require_layers,
    require_named_layers,
    split,
)
from mlax.combinators.types import (
    L1,
    L2,
    L3,
    L4,
    L5,
    L6,
    L7,
    L8,
    L9,
    L10,
    ManyLayers,
    P1,
    P2,
    P3,
    P4,
    P5,
    P6,
    P7,
    P8,
    S1,
    S2,
    S3,
    S4,
    S5,
    S6,
    S7,
    S8,
    TupleState,
)
from mlax.pair import AxisName, Key, Layer, PairBase

X1 = TypeVar("X1")
X2 = TypeVar("X2")
X3 = TypeVar("X3")
X4 = TypeVar("X4")
X5 = TypeVar("X5")
X6 = TypeVar("X6")
X7 = TypeVar("X7")
X8 = TypeVar("X8")
Y1 = TypeVar("Y1")
Y2 = TypeVar("Y2")
Y3 = TypeVar("Y3")
Y4 = TypeVar("Y4")
Y5 = TypeVar("Y5")
Y6 = TypeVar("Y6")
Y7 = TypeVar("Y7")
Y8 = TypeVar("Y8")


class Parallel(PairBase[Any, ChildrenState, Any, Any]):
    """The type of `parallel`: what is known of up to eight layers is known of their composition."""

    @overload
    def __call__(self, /) -> Layer[Any, ChildrenState, Any, Any]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, S1, X1, Y1],
        /,
    ) -> Layer[tuple[P1], TupleState[tuple[S1]], tuple[X1], tuple[Y1]]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, S1, X1, Y1],
        l2: Layer[P2, S2, X2, Y2],
        /,
    ) -> Layer[tuple[P1, P2], TupleState[tuple[S1, S2]], tuple[X1, X2], tuple[Y1, Y2]]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, S1, X1, Y1],
        l2: Layer[P2, S2, X2, Y2],
        l3: Layer[P3, S3, X3, Y3],
        /,
    ) -> Layer[
        tuple[P1, P2, P3], TupleState[tuple[S1, S2, S3]], tuple[X1, X2, X3], tuple[Y1, Y2, Y3]
    ]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, S1, X1, Y1],
        l2: Layer[P2, S2, X2, Y2],
        l3: Layer[P3, S3, X3, Y3],
        l4: Layer[P4, S4, X4, Y4],
        /,
    ) -> Layer[
        tuple[P1, P2, P3, P4],
        TupleState[tuple[S1, S2, S3, S4]],
        tuple[X1, X2, X3, X4],
        tuple[Y1, Y2, Y3, Y4],
    ]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, S1, X1, Y1],
        l2: Layer[P2, S2, X2, Y2],
        l3: Layer[P3, S3, X3, Y3],
        l4: Layer[P4, S4, X4, Y4],
        l5: Layer[P5, S5, X5, Y5],
        /,
    ) -> Layer[
        tuple[P1, P2, P3, P4, P5],
        TupleState[tuple[S1, S2, S3, S4, S5]],
        tuple[X1, X2, X3, X4, X5],
        tuple[Y1, Y2, Y3, Y4, Y5],
    ]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, S1, X1, Y1],
        l2: Layer[P2, S2, X2, Y2],
        l3: Layer[P3, S3, X3, Y3],
        l4: Layer[P4, S4, X4, Y4],
        l5: Layer[P5, S5, X5, Y5],
        l6: Layer[P6, S6, X6, Y6],
        /,
    ) -> Layer[
        tuple[P1, P2, P3, P4, P5, P6],
        TupleState[tuple[S1, S2, S3, S4, S5, S6]],
        tuple[X1, X2, X3, X4, X5, X6],
        tuple[Y1, Y2, Y3, Y4, Y5, Y6],
    ]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, S1, X1, Y1],
        l2: Layer[P2, S2, X2, Y2],
        l3: Layer[P3, S3, X3, Y3],
        l4: Layer[P4, S4, X4, Y4],
        l5: Layer[P5, S5, X5, Y5],
        l6: Layer[P6, S6, X6, Y6],
        l7: Layer[P7, S7, X7, Y7],
        /,
    ) -> Layer[
        tuple[P1, P2, P3, P4, P5, P6, P7],
        TupleState[tuple[S1, S2, S3, S4, S5, S6, S7]],
        tuple[X1, X2, X3, X4, X5, X6, X7],
        tuple[Y1, Y2, Y3, Y4, Y5, Y6, Y7],
    ]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, S1, X1, Y1],
        l2: Layer[P2, S2, X2, Y2],
        l3: Layer[P3, S3, X3, Y3],
        l4: Layer[P4, S4, X4, Y4],
        l5: Layer[P5, S5, X5, Y5],
        l6: Layer[P6, S6, X6, Y6],
        l7: Layer[P7, S7, X7, Y7],
        l8: Layer[P8, S8, X8, Y8],
        /,
    ) -> Layer[
        tuple[P1, P2, P3, P4, P5, P6, P7, P8],
        TupleState[tuple[S1, S2, S3, S4, S5, S6, S7, S8]],
        tuple[X1, X2, X3, X4, X5, X6, X7, X8],
        tuple[Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y8],
    ]: ...
    @overload
    def __call__(
        self,
        l1: L1,
        l2: L2,
        l3: L3,
        l4: L4,
        l5: L5,
        l6: L6,
        l7: L7,
        l8: L8,
        l9: L9,
        /,
        *layers: L10,
    ) -> ManyLayers: ...
    @overload
    def __call__(self, /, **named: AnyLayer) -> Layer[dict[str, Any], DictState, Any, Any]: ...
    def __call__(self, /, *layers: AnyLayer, **named: AnyLayer) -> AnyLayer:
        """Return the layers side by side."""
        keyed("parallel", layers, named)
        return self.bind(*layers, **named)


def apply(
    params: Any,
    state: ChildrenState,
    x: Any,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[Any, ChildrenState]:
    """Return the outputs of the layers: see `mlax.Apply` and `mlax.parallel`."""
    children = split("parallel", params, state)
    keys = apply_keys(rng, [child.needs_rng for child, _, _ in children])
    xs = entries("parallel", "x", x, [child.key for child in state.config])
    outputs, variables = [], []
    for (child, p, v), entry, key in zip(children, xs, keys, strict=True):
        y, v = apply_child("parallel", child, p, v, entry, key, inference_mode, batch_axis_name)
        outputs.append(y)
        variables.append(v)
    return packed(state.config, outputs), joined_state(state.config, variables)


@Parallel.of(
    apply,
    needs_rng=any_needs_rng,
    checks={"layers": require_layers, "named": require_named_layers},
)
def parallel(rng: Key, x: Any, *layers: AnyLayer, **named: AnyLayer) -> tuple[Any, ChildrenState]:
    """Layers side by side: a tuple goes in, one entry for each layer, and a tuple comes out.

    Keys are given to the layers as `mlax.series` gives them.

    Args:
        layers: any number. params and variables are tuples.
        named: layers with names instead of `layers`. x, y, params and variables are dicts
            with these names.

    Raises:
        TypeError: something is not a layer, some layers have names and others have not, or
            x is not a tuple (a dict if the layers have names).
        ValueError: x has not one entry for each layer.
        Exception: whatever a layer raises, with a note of its path.

    >>> import jax, jax.numpy as jnp, mlax
    >>> x = (jnp.ones(3), jnp.ones(2))
    >>> init, apply = mlax.parallel(mlax.linear(4), mlax.f(jnp.negative))
    >>> params, state = init(jax.random.key(0), x)
    >>> y, state = apply(params, state, x)
    >>> y[0].shape, y[1]
    ((4,), Array([-1., -1.], dtype=float32))
    """
    layers_by_key = keyed("parallel", layers, named)
    xs = entries("parallel", "x", x, list(layers_by_key))
    keys = init_keys(rng, len(layers_by_key))
    return collected(
        [
            init_child("parallel", key, layer, child_rng, entry)
            for (key, layer), child_rng, entry in zip(layers_by_key.items(), keys, xs, strict=True)
        ]
    )
