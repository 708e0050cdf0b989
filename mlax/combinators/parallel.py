"""Layers side by side: y[i] = layer_i(x[i]).

params and variables are tuples with one entry for each layer, as are x and y.
"""

from __future__ import annotations  # the overloads take long to evaluate

from typing import Any, TypeVar, overload

from mlax import arguments
from mlax.combinators.child import (
    AnyLayer,
    ChildrenState,
    any_needs_rng,
    apply_child,
    apply_keys,
    init_child,
    init_keys,
    joined_state,
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
Y1 = TypeVar("Y1")
Y2 = TypeVar("Y2")
Y3 = TypeVar("Y3")
Y4 = TypeVar("Y4")
Y5 = TypeVar("Y5")
Y6 = TypeVar("Y6")
Y7 = TypeVar("Y7")
Y8 = TypeVar("Y8")


class Parallel(PairBase[tuple[Any, ...], ChildrenState, Any, Any]):
    """The type of `parallel`: what is known of up to eight layers is known of their composition."""

    @overload
    def __call__(self) -> Layer[tuple[()], ChildrenState, tuple[()], tuple[()]]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, Any, X1, Y1],
        /,
    ) -> Layer[tuple[P1], ChildrenState, tuple[X1], tuple[Y1]]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, Any, X1, Y1],
        l2: Layer[P2, Any, X2, Y2],
        /,
    ) -> Layer[tuple[P1, P2], ChildrenState, tuple[X1, X2], tuple[Y1, Y2]]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, Any, X1, Y1],
        l2: Layer[P2, Any, X2, Y2],
        l3: Layer[P3, Any, X3, Y3],
        /,
    ) -> Layer[tuple[P1, P2, P3], ChildrenState, tuple[X1, X2, X3], tuple[Y1, Y2, Y3]]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, Any, X1, Y1],
        l2: Layer[P2, Any, X2, Y2],
        l3: Layer[P3, Any, X3, Y3],
        l4: Layer[P4, Any, X4, Y4],
        /,
    ) -> Layer[
        tuple[P1, P2, P3, P4],
        ChildrenState,
        tuple[X1, X2, X3, X4],
        tuple[Y1, Y2, Y3, Y4],
    ]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, Any, X1, Y1],
        l2: Layer[P2, Any, X2, Y2],
        l3: Layer[P3, Any, X3, Y3],
        l4: Layer[P4, Any, X4, Y4],
        l5: Layer[P5, Any, X5, Y5],
        /,
    ) -> Layer[
        tuple[P1, P2, P3, P4, P5],
        ChildrenState,
        tuple[X1, X2, X3, X4, X5],
        tuple[Y1, Y2, Y3, Y4, Y5],
    ]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, Any, X1, Y1],
        l2: Layer[P2, Any, X2, Y2],
        l3: Layer[P3, Any, X3, Y3],
        l4: Layer[P4, Any, X4, Y4],
        l5: Layer[P5, Any, X5, Y5],
        l6: Layer[P6, Any, X6, Y6],
        /,
    ) -> Layer[
        tuple[P1, P2, P3, P4, P5, P6],
        ChildrenState,
        tuple[X1, X2, X3, X4, X5, X6],
        tuple[Y1, Y2, Y3, Y4, Y5, Y6],
    ]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, Any, X1, Y1],
        l2: Layer[P2, Any, X2, Y2],
        l3: Layer[P3, Any, X3, Y3],
        l4: Layer[P4, Any, X4, Y4],
        l5: Layer[P5, Any, X5, Y5],
        l6: Layer[P6, Any, X6, Y6],
        l7: Layer[P7, Any, X7, Y7],
        /,
    ) -> Layer[
        tuple[P1, P2, P3, P4, P5, P6, P7],
        ChildrenState,
        tuple[X1, X2, X3, X4, X5, X6, X7],
        tuple[Y1, Y2, Y3, Y4, Y5, Y6, Y7],
    ]: ...
    @overload
    def __call__(
        self,
        l1: Layer[P1, Any, X1, Y1],
        l2: Layer[P2, Any, X2, Y2],
        l3: Layer[P3, Any, X3, Y3],
        l4: Layer[P4, Any, X4, Y4],
        l5: Layer[P5, Any, X5, Y5],
        l6: Layer[P6, Any, X6, Y6],
        l7: Layer[P7, Any, X7, Y7],
        l8: Layer[P8, Any, X8, Y8],
        /,
    ) -> Layer[
        tuple[P1, P2, P3, P4, P5, P6, P7, P8],
        ChildrenState,
        tuple[X1, X2, X3, X4, X5, X6, X7, X8],
        tuple[Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y8],
    ]: ...
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
        """Return the layers side by side."""
        return self.bind(*layers)


def apply(
    params: tuple[Any, ...],
    state: ChildrenState,
    x: tuple[Any, ...],
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[tuple[Any, ...], ChildrenState]:
    """Return the outputs of the layers: see `mlax.Apply` and `mlax.parallel`."""
    children = state.config
    _require_entries(x, len(children))
    keys = apply_keys(rng, [child.needs_rng for child in children])
    results = [
        apply_child(child, p, v, entry, key, inference_mode, batch_axis_name)
        for child, p, v, entry, key in zip(
            children, params, split_variables("parallel", params, state), x, keys, strict=True
        )
    ]
    return tuple(y for y, _ in results), joined_state([v for _, v in results], children)


@Parallel.of(apply, needs_rng=any_needs_rng, checks={"layers": require_layers})
def parallel(
    rng: Key, x: tuple[Any, ...], *layers: AnyLayer
) -> tuple[tuple[Any, ...], ChildrenState]:
    """Layers side by side: a tuple goes in, one entry for each layer, and a tuple comes out.

    Keys are given to the layers as `mlax.series` gives them.

    Args:
        layers: any number.

    Raises:
        TypeError: one of `layers` is not a layer, or x is not a tuple or list.
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
    _require_entries(x, len(layers))
    params, variables, children = [], [], []
    keys = init_keys(rng, len(layers))
    for i, (layer, key, entry) in enumerate(zip(layers, keys, x, strict=True)):
        p, v, child = init_child(f"parallel[{i}]", layer, key, entry)
        params.append(p)
        variables.append(v)
        children.append(child)
    return tuple(params), joined_state(variables, children)


def _require_entries(x: Any, count: int) -> None:
    wanted = f"a tuple with {count} entries, one for each layer"
    if not isinstance(x, tuple | list):
        raise TypeError(arguments.message("parallel", "x", wanted, type(x).__name__))
    if len(x) != count:
        raise ValueError(arguments.message("parallel", "x", wanted, f"{len(x)} entries"))
