"""A layer with a way around it: y = shortcut(x) + layer(x)."""

from __future__ import annotations  # the states are typed for checkers only

from typing import Any, TypeVar, overload

import jax

from mlax.combinators.child import (
    AnyLayer,
    ChildrenState,
    any_needs_rng,
    apply_child,
    apply_keys,
    collected,
    init_child,
    init_keys,
    joined_state,
    output_shape,
    require_equal_shapes,
    require_layer,
    shapes,
    split,
)
from mlax.combinators.types import P1, P2, S1, S2, TupleState
from mlax.pair import AxisName, Key, Layer, PairBase

X = TypeVar("X")
Y = TypeVar("Y")


class Residual(PairBase[Any, ChildrenState, Any, Any]):
    """The type of `residual`."""

    @overload
    def __call__(
        self, layer: Layer[P1, S1, X, X], shortcut: None = None
    ) -> Layer[tuple[P1], TupleState[tuple[S1]], X, X]: ...
    @overload
    def __call__(
        self, layer: Layer[P1, S1, X, Y], shortcut: Layer[P2, S2, X, Y]
    ) -> Layer[tuple[P1, P2], TupleState[tuple[S1, S2]], X, Y]: ...
    def __call__(self, layer: AnyLayer, shortcut: AnyLayer | None = None) -> AnyLayer:
        """Return the layer with a way around it."""
        return self.bind(layer, shortcut)


def apply(
    params: Any,
    state: ChildrenState,
    x: Any,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[Any, ChildrenState]:
    """Return shortcut(x) + layer(x): see `mlax.Apply` and `mlax.residual`."""
    children = split("residual", params, state)
    keys = apply_keys(rng, [child.needs_rng for child, _, _ in children])
    outputs, variables = [], []
    for (child, p, v), key in zip(children, keys, strict=True):
        y, v = apply_child("residual", child, p, v, x, key, inference_mode, batch_axis_name)
        outputs.append(y)
        variables.append(v)
    around = x if len(outputs) == 1 else outputs[1]
    _require_like(shapes(around), shapes(outputs[0]))
    y = jax.tree.map(jax.numpy.add, around, outputs[0])
    return y, joined_state(state.config, variables)


def _require_shortcut(owner: str, name: str, layer: Any) -> None:
    if layer is not None:
        require_layer(owner, name, layer)


@Residual.of(
    apply,
    needs_rng=lambda layer, shortcut=None: any_needs_rng(layer, *([shortcut] if shortcut else [])),
    checks={"layer": require_layer, "shortcut": _require_shortcut},
)
def residual(
    rng: Key, x: Any, layer: AnyLayer, shortcut: AnyLayer | None = None
) -> tuple[Any, ChildrenState]:
    """A residual connection: y = x + layer(x), or y = shortcut(x) + layer(x).

    params and variables are tuples, with one entry for the layer and one for the shortcut
    if there is one. Keys are given out as by `mlax.series`.

    Args:
        layer: any layer.
        shortcut: a layer with outputs like those of `layer`, where x itself does not fit.

    Raises:
        ValueError: the two results are not of equal shapes and dtypes.

    Source: He et al., "Deep residual learning for image recognition", 2016.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.residual(mlax.linear(3))
    >>> params, state = init(jax.random.key(0), jnp.ones(3))
    >>> y, state = apply(params, state, jnp.zeros(3))
    >>> y
    Array([0., 0., 0.], dtype=float32)
    """
    layers = [layer] if shortcut is None else [layer, shortcut]
    x = shapes(x)
    children = [
        init_child("residual", i, child, key, x)
        for i, (child, key) in enumerate(zip(layers, init_keys(rng, len(layers)), strict=True))
    ]
    outputs = [output_shape("residual", child, p, v, x, rng) for p, v, child in children]
    around = x if shortcut is None else outputs[1]
    _require_like(around, outputs[0])
    return collected(children)


def _require_like(around: Any, output: Any) -> None:
    way_out = "give residual(layer, shortcut) a shortcut whose output is like that of the layer"
    require_equal_shapes("residual", around, output, "the output of the layer", way_out)
