"""Layers one after the other: y = layer_n(... layer_1(x)).

params and variables are tuples with one entry for each layer, or dicts if they have names.
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
    init_child,
    init_keys,
    joined_state,
    keyed,
    output_shape,
    require_layers,
    require_named_layers,
    shapes,
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
X9 = TypeVar("X9")


class Series(PairBase[Any, ChildrenState, Any, Any]):
    """The type of `series`: what is known of up to eight layers is known of their composition."""

    @overload
    def __call__(self, /) -> Layer[Any, ChildrenState, Any, Any]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, S1, X1, X2],
        /,
    ) -> Layer[tuple[P1], TupleState[tuple[S1]], X1, X2]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, S1, X1, X2],
        l2: Layer[P2, S2, X2, X3],
        /,
    ) -> Layer[tuple[P1, P2], TupleState[tuple[S1, S2]], X1, X3]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, S1, X1, X2],
        l2: Layer[P2, S2, X2, X3],
        l3: Layer[P3, S3, X3, X4],
        /,
    ) -> Layer[tuple[P1, P2, P3], TupleState[tuple[S1, S2, S3]], X1, X4]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, S1, X1, X2],
        l2: Layer[P2, S2, X2, X3],
        l3: Layer[P3, S3, X3, X4],
        l4: Layer[P4, S4, X4, X5],
        /,
    ) -> Layer[tuple[P1, P2, P3, P4], TupleState[tuple[S1, S2, S3, S4]], X1, X5]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, S1, X1, X2],
        l2: Layer[P2, S2, X2, X3],
        l3: Layer[P3, S3, X3, X4],
        l4: Layer[P4, S4, X4, X5],
        l5: Layer[P5, S5, X5, X6],
        /,
    ) -> Layer[tuple[P1, P2, P3, P4, P5], TupleState[tuple[S1, S2, S3, S4, S5]], X1, X6]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, S1, X1, X2],
        l2: Layer[P2, S2, X2, X3],
        l3: Layer[P3, S3, X3, X4],
        l4: Layer[P4, S4, X4, X5],
        l5: Layer[P5, S5, X5, X6],
        l6: Layer[P6, S6, X6, X7],
        /,
    ) -> Layer[
        tuple[P1, P2, P3, P4, P5, P6], TupleState[tuple[S1, S2, S3, S4, S5, S6]], X1, X7
    ]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, S1, X1, X2],
        l2: Layer[P2, S2, X2, X3],
        l3: Layer[P3, S3, X3, X4],
        l4: Layer[P4, S4, X4, X5],
        l5: Layer[P5, S5, X5, X6],
        l6: Layer[P6, S6, X6, X7],
        l7: Layer[P7, S7, X7, X8],
        /,
    ) -> Layer[
        tuple[P1, P2, P3, P4, P5, P6, P7], TupleState[tuple[S1, S2, S3, S4, S5, S6, S7]], X1, X8
    ]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, S1, X1, X2],
        l2: Layer[P2, S2, X2, X3],
        l3: Layer[P3, S3, X3, X4],
        l4: Layer[P4, S4, X4, X5],
        l5: Layer[P5, S5, X5, X6],
        l6: Layer[P6, S6, X6, X7],
        l7: Layer[P7, S7, X7, X8],
        l8: Layer[P8, S8, X8, X9],
        /,
    ) -> Layer[
        tuple[P1, P2, P3, P4, P5, P6, P7, P8],
        TupleState[tuple[S1, S2, S3, S4, S5, S6, S7, S8]],
        X1,
        X9,
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
        """Return the layers in series."""
        keyed("series", layers, named)
        return self.bind(*layers, **named)


def apply(
    params: Any,
    state: ChildrenState,
    x: Any,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[Any, ChildrenState]:
    """Return the output of the last layer: see `mlax.Apply` and `mlax.series`."""
    children = split("series", params, state)
    keys = apply_keys(rng, [child.needs_rng for child, _, _ in children])
    variables = []
    for (child, p, v), key in zip(children, keys, strict=True):
        x, v = apply_child("series", child, p, v, x, key, inference_mode, batch_axis_name)
        variables.append(v)
    return x, joined_state(state.config, variables)


@Series.of(
    apply,
    needs_rng=any_needs_rng,
    checks={"layers": require_layers, "named": require_named_layers},
)
def series(rng: Key, x: Any, *layers: AnyLayer, **named: AnyLayer) -> tuple[Any, ChildrenState]:
    """Layers in series: the output of each is the input of the next.

    In `init` layer i gets the key fold_in(rng, i). In `apply` only layers that need a key get
    one: a single such layer gets `rng`, of several the j-th gets fold_in(rng, j).

    Args:
        layers: any number; none is the identity. params and variables are tuples.
        named: layers with names, in the order written, instead of `layers`. params and
            variables are dicts with these names.

    Raises:
        TypeError: something is not a layer, or some layers have names and others have not.
        Exception: whatever a layer raises, with a note of its path.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.series(mlax.linear(4), mlax.bias(-1), mlax.f(jax.nn.relu))
    >>> params, state = init(jax.random.key(0), jnp.ones(3))
    >>> params[0].kernel.shape
    (3, 4)
    >>> y, state = apply(params, state, jnp.ones(3))
    >>> y.shape
    (4,)
    >>> init, apply = mlax.series(stem=mlax.linear(4), head=mlax.linear(2))
    >>> params, state = init(jax.random.key(0), jnp.ones(3))
    >>> params["head"].kernel.shape
    (4, 2)
    """
    x = shapes(x)
    layers_by_key = keyed("series", layers, named)
    children = []
    for (key, layer), child_rng in zip(
        layers_by_key.items(), init_keys(rng, len(layers_by_key)), strict=True
    ):
        params, variables, child = init_child("series", key, layer, child_rng, x)
        children.append((params, variables, child))
        if len(children) < len(layers_by_key):
            x = output_shape("series", child, params, variables, x, rng)
    return collected(children)
