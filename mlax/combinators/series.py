"""Layers one after the other: y = layer_n(... layer_1(x)).

params and variables are tuples with one entry for each layer.
"""

from __future__ import annotations  # the overloads take long to evaluate

from typing import Any, TypeVar, overload

import jax

from mlax.combinators.child import (
    AnyLayer,
    ChildrenState,
    any_needs_rng,
    apply_child,
    apply_keys,
    init_child,
    init_keys,
    joined_state,
    output_shape,
    require_layers,
    split_variables,
)
from mlax.pair import AxisName, Key, Layer, PairBase

P1 = TypeVar("P1")
P2 = TypeVar("P2")
P3 = TypeVar("P3")
P4 = TypeVar("P4")
P5 = TypeVar("P5")
P6 = TypeVar("P6")
P7 = TypeVar("P7")
P8 = TypeVar("P8")
X1 = TypeVar("X1")
X2 = TypeVar("X2")
X3 = TypeVar("X3")
X4 = TypeVar("X4")
X5 = TypeVar("X5")
X6 = TypeVar("X6")
X7 = TypeVar("X7")
X8 = TypeVar("X8")
X9 = TypeVar("X9")


class Series(PairBase[tuple[Any, ...], ChildrenState, Any, Any]):
    """The type of `series`: what is known of up to eight layers is known of their composition."""

    @overload
    def __call__(self) -> Layer[tuple[()], ChildrenState, Any, Any]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, Any, X1, X2],
        /,
    ) -> Layer[tuple[P1], ChildrenState, X1, X2]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, Any, X1, X2],
        l2: Layer[P2, Any, X2, X3],
        /,
    ) -> Layer[tuple[P1, P2], ChildrenState, X1, X3]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, Any, X1, X2],
        l2: Layer[P2, Any, X2, X3],
        l3: Layer[P3, Any, X3, X4],
        /,
    ) -> Layer[tuple[P1, P2, P3], ChildrenState, X1, X4]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, Any, X1, X2],
        l2: Layer[P2, Any, X2, X3],
        l3: Layer[P3, Any, X3, X4],
        l4: Layer[P4, Any, X4, X5],
        /,
    ) -> Layer[tuple[P1, P2, P3, P4], ChildrenState, X1, X5]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, Any, X1, X2],
        l2: Layer[P2, Any, X2, X3],
        l3: Layer[P3, Any, X3, X4],
        l4: Layer[P4, Any, X4, X5],
        l5: Layer[P5, Any, X5, X6],
        /,
    ) -> Layer[tuple[P1, P2, P3, P4, P5], ChildrenState, X1, X6]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, Any, X1, X2],
        l2: Layer[P2, Any, X2, X3],
        l3: Layer[P3, Any, X3, X4],
        l4: Layer[P4, Any, X4, X5],
        l5: Layer[P5, Any, X5, X6],
        l6: Layer[P6, Any, X6, X7],
        /,
    ) -> Layer[tuple[P1, P2, P3, P4, P5, P6], ChildrenState, X1, X7]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, Any, X1, X2],
        l2: Layer[P2, Any, X2, X3],
        l3: Layer[P3, Any, X3, X4],
        l4: Layer[P4, Any, X4, X5],
        l5: Layer[P5, Any, X5, X6],
        l6: Layer[P6, Any, X6, X7],
        l7: Layer[P7, Any, X7, X8],
        /,
    ) -> Layer[tuple[P1, P2, P3, P4, P5, P6, P7], ChildrenState, X1, X8]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, Any, X1, X2],
        l2: Layer[P2, Any, X2, X3],
        l3: Layer[P3, Any, X3, X4],
        l4: Layer[P4, Any, X4, X5],
        l5: Layer[P5, Any, X5, X6],
        l6: Layer[P6, Any, X6, X7],
        l7: Layer[P7, Any, X7, X8],
        l8: Layer[P8, Any, X8, X9],
        /,
    ) -> Layer[tuple[P1, P2, P3, P4, P5, P6, P7, P8], ChildrenState, X1, X9]: ...
    @overload
    def __call__(
        self,
        l1: AnyLayer,
        l2: AnyLayer,
        l3: AnyLayer,
        l4: AnyLayer,
        l5: AnyLayer,
        l6: AnyLayer,
        l7: AnyLayer,
        l8: AnyLayer,
        l9: AnyLayer,
        /,
        *layers: AnyLayer,
    ) -> Layer[Any, ChildrenState, Any, Any]: ...
    def __call__(self, *layers: AnyLayer) -> AnyLayer:
        """Return the layers in series."""
        return self.bind(*layers)


def apply(
    params: tuple[Any, ...],
    state: ChildrenState,
    x: Any,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[Any, ChildrenState]:
    """Return the output of the last layer: see `mlax.Apply` and `mlax.series`."""
    children = state.config
    keys = apply_keys(rng, [child.needs_rng for child in children])
    variables = []
    for child, p, v, key in zip(
        children, params, split_variables("series", params, state), keys, strict=True
    ):
        x, v = apply_child(child, p, v, x, key, inference_mode, batch_axis_name)
        variables.append(v)
    return x, joined_state(variables, children)


@Series.of(apply, needs_rng=any_needs_rng, checks={"layers": require_layers})
def series(
    rng: Key, x: Any, *layers: AnyLayer
) -> tuple[tuple[Any, ...], ChildrenState]:
    """Layers in series: the output of each is the input of the next.

    In `init` layer i gets the key fold_in(rng, i). In `apply` only layers that need a key get
    one: a single such layer gets `rng`, of several the j-th gets fold_in(rng, j).

    Args:
        layers: any number; none is the identity.

    Raises:
        TypeError: one of `layers` is not a layer.
        Exception: whatever a layer raises, with a note of its path.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.series(mlax.linear(4), mlax.bias(-1), mlax.f(jax.nn.relu))
    >>> params, state = init(jax.random.key(0), jnp.ones(3))
    >>> params[0].kernel.shape
    (3, 4)
    >>> y, state = apply(params, state, jnp.ones(3))
    >>> y.shape
    (4,)
    """
    x = jax.eval_shape(lambda x: x, x)
    params, variables, children = [], [], []
    for i, (layer, key) in enumerate(zip(layers, init_keys(rng, len(layers)), strict=True)):
        p, v, child = init_child(f"series[{i}]", layer, key, x)
        if i + 1 < len(layers):
            x = output_shape(child, p, v, x, rng)
        params.append(p)
        variables.append(v)
        children.append(child)
    return tuple(params), joined_state(variables, children)
