"""One input to several layers: y[i] = layer_i(x).

params, variables and y are tuples with one entry for each layer, or dicts if they have names.
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

X = TypeVar("X")
Y1 = TypeVar("Y1")
Y2 = TypeVar("Y2")
Y3 = TypeVar("Y3")
Y4 = TypeVar("Y4")
Y5 = TypeVar("Y5")
Y6 = TypeVar("Y6")
Y7 = TypeVar("Y7")
Y8 = TypeVar("Y8")


class Branch(PairBase[Any, ChildrenState, Any, Any]):
    """The type of `branch`: what is known of up to eight layers is known of their composition."""

    @overload
    def __call__(self, /) -> Layer[Any, ChildrenState, Any, Any]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, S1, X, Y1],
        /,
    ) -> Layer[tuple[P1], TupleState[tuple[S1]], X, tuple[Y1]]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, S1, X, Y1],
        l2: Layer[P2, S2, X, Y2],
        /,
    ) -> Layer[tuple[P1, P2], TupleState[tuple[S1, S2]], X, tuple[Y1, Y2]]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, S1, X, Y1],
        l2: Layer[P2, S2, X, Y2],
        l3: Layer[P3, S3, X, Y3],
        /,
    ) -> Layer[tuple[P1, P2, P3], TupleState[tuple[S1, S2, S3]], X, tuple[Y1, Y2, Y3]]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, S1, X, Y1],
        l2: Layer[P2, S2, X, Y2],
        l3: Layer[P3, S3, X, Y3],
        l4: Layer[P4, S4, X, Y4],
        /,
    ) -> Layer[
        tuple[P1, P2, P3, P4],
        TupleState[tuple[S1, S2, S3, S4]],
        X,
        tuple[Y1, Y2, Y3, Y4],
    ]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, S1, X, Y1],
        l2: Layer[P2, S2, X, Y2],
        l3: Layer[P3, S3, X, Y3],
        l4: Layer[P4, S4, X, Y4],
        l5: Layer[P5, S5, X, Y5],
        /,
    ) -> Layer[
        tuple[P1, P2, P3, P4, P5],
        TupleState[tuple[S1, S2, S3, S4, S5]],
        X,
        tuple[Y1, Y2, Y3, Y4, Y5],
    ]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, S1, X, Y1],
        l2: Layer[P2, S2, X, Y2],
        l3: Layer[P3, S3, X, Y3],
        l4: Layer[P4, S4, X, Y4],
        l5: Layer[P5, S5, X, Y5],
        l6: Layer[P6, S6, X, Y6],
        /,
    ) -> Layer[
        tuple[P1, P2, P3, P4, P5, P6],
        TupleState[tuple[S1, S2, S3, S4, S5, S6]],
        X,
        tuple[Y1, Y2, Y3, Y4, Y5, Y6],
    ]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, S1, X, Y1],
        l2: Layer[P2, S2, X, Y2],
        l3: Layer[P3, S3, X, Y3],
        l4: Layer[P4, S4, X, Y4],
        l5: Layer[P5, S5, X, Y5],
        l6: Layer[P6, S6, X, Y6],
        l7: Layer[P7, S7, X, Y7],
        /,
    ) -> Layer[
        tuple[P1, P2, P3, P4, P5, P6, P7],
        TupleState[tuple[S1, S2, S3, S4, S5, S6, S7]],
        X,
        tuple[Y1, Y2, Y3, Y4, Y5, Y6, Y7],
    ]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, S1, X, Y1],
        l2: Layer[P2, S2, X, Y2],
        l3: Layer[P3, S3, X, Y3],
        l4: Layer[P4, S4, X, Y4],
        l5: Layer[P5, S5, X, Y5],
        l6: Layer[P6, S6, X, Y6],
        l7: Layer[P7, S7, X, Y7],
        l8: Layer[P8, S8, X, Y8],
        /,
    ) -> Layer[
        tuple[P1, P2, P3, P4, P5, P6, P7, P8],
        TupleState[tuple[S1, S2, S3, S4, S5, S6, S7, S8]],
        X,
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
        """Return the layers on one input."""
        keyed("branch", layers, named)
        return self.bind(*layers, **named)


def apply(
    params: Any,
    state: ChildrenState,
    x: Any,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[Any, ChildrenState]:
    """Return the outputs of the layers: see `mlax.Apply` and `mlax.branch`."""
    children = split("branch", params, state)
    keys = apply_keys(rng, [child.needs_rng for child, _, _ in children])
    outputs, variables = [], []
    for (child, p, v), key in zip(children, keys, strict=True):
        y, v = apply_child("branch", child, p, v, x, key, inference_mode, batch_axis_name)
        outputs.append(y)
        variables.append(v)
    return packed(state.config, outputs), joined_state(state.config, variables)


@Branch.of(
    apply,
    needs_rng=any_needs_rng,
    checks={"layers": require_layers, "named": require_named_layers},
)
def branch(rng: Key, x: Any, *layers: AnyLayer, **named: AnyLayer) -> tuple[Any, ChildrenState]:
    """One input to several layers: the results are a tuple.

    Keys are given to the layers as `mlax.series` gives them. `mlax.add` and
    `mlax.concatenate` join what comes out.

    Args:
        layers: any number. y, params and variables are tuples.
        named: layers with names instead of `layers`. y, params and variables are dicts with
            these names.

    Raises:
        TypeError: something is not a layer, or some layers have names and others have not.
        Exception: whatever a layer raises, with a note of its path.

    >>> import jax, jax.numpy as jnp, mlax
    >>> split = mlax.branch(mlax.linear(4), mlax.f(jnp.negative))
    >>> init, apply = mlax.series(split, mlax.concatenate())
    >>> params, state = init(jax.random.key(0), jnp.ones(2))
    >>> apply(params, state, jnp.ones(2))[0].shape
    (6,)
    """
    layers_by_key = keyed("branch", layers, named)
    keys = init_keys(rng, len(layers_by_key))
    return collected(
        [
            init_child("branch", key, layer, child_rng, x)
            for (key, layer), child_rng in zip(layers_by_key.items(), keys, strict=True)
        ]
    )
