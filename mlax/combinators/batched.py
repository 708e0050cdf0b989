"""From a layer of one example to a layer of a batch: y[i] = layer(x[i]).

params are those of the layer, and so are variables unless each example has its own.
"""

from collections.abc import Hashable
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from mlax import arguments
from mlax.combinators.child import (
    AnyLayer,
    Child,
    any_needs_rng,
    apply_child,
    has_path,
    init_child,
    init_keys,
    require_layer,
    shapes,
)
from mlax.pair import AxisName, Key, Layer, PairBase, State

P = TypeVar("P")
X = TypeVar("X")
Y = TypeVar("Y")


class BatchedConfig(NamedTuple):
    """Configuration of `batched`."""

    layer: Child
    """What is kept of the layer."""
    axis_name: Hashable
    """The name of the batch axis."""
    state_axis: int | None
    """0 if every example has variables of its own, None if they are shared."""


class Batched(PairBase[Any, State[Any, BatchedConfig], Any, Any]):
    """The type of `batched`: what is known of the layer is known of the batch."""

    def __call__(
        self,
        layer: Layer[P, Any, X, Y],
        axis_name: Hashable = "batch",
        state_axis: int | None = None,
    ) -> Layer[P, State[Any, BatchedConfig], X, Y]:
        """Return the layer, for a batch."""
        return self.bind(layer, axis_name, state_axis)


def apply(
    params: Any,
    state: State[Any, BatchedConfig],
    x: Any,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[Any, State[Any, BatchedConfig]]:
    """Return the outputs of all examples: see `mlax.Apply` and `mlax.batched`."""
    child, axis_name, state_axis = arguments.config_of("batched", state, BatchedConfig)
    size = _batch_size(x)
    keys = None
    if rng is not None and child.needs_rng:
        keys = jax.vmap(lambda i: jax.random.fold_in(rng, i))(jnp.arange(size))
    outer = batch_axis_name if isinstance(batch_axis_name, tuple) else (batch_axis_name,)
    if axis_name in outer:
        wanted = "a name that no axis around it has"
        raise ValueError(arguments.message("batched", "axis_name", wanted, repr(axis_name)))
    if state_axis == 0 and jax.tree.leaves(state.variables):
        kept = arguments.leading_length("batched", "state.variables", state.variables, "batch")
        if kept != size:
            wanted = f"a batch of {kept}, one example for each of the variables"
            raise ValueError(arguments.message("batched", "x", wanted, size))

    def example(x: Any, variables: Any, key: Key | None) -> tuple[Any, Any]:
        return apply_child(
            "batched", child, params, variables, x, key, inference_mode, (axis_name, *outer)
        )

    batch = jax.vmap(
        example,
        in_axes=(0, state_axis, 0),
        out_axes=(0, state_axis),
        axis_name=axis_name,
        axis_size=size,
    )
    try:
        y, variables = batch(x, state.variables, keys)
    except ValueError as error:
        if "out_axes" not in str(error) or has_path(error):
            raise
        wanted = "the same for all examples"
        way_out = "take statistics over batch_axis_name, or keep them apart with state_axis=0"
        raise ValueError(
            arguments.message("batched", "variables", wanted, "one for each", way_out)
        ) from error
    return y, State(variables, state.config)


def _check_state_axis(owner: str, name: str, value: Any) -> None:
    if value is not None and value != 0:
        raise ValueError(arguments.message(owner, name, "None or 0", repr(value)))


@Batched.of(
    apply,
    needs_rng=lambda layer, *_, **__: any_needs_rng(layer),
    checks={"layer": require_layer, "state_axis": _check_state_axis},
)
def batched(
    rng: Key,
    x: Any,
    layer: AnyLayer,
    axis_name: Hashable = "batch",
    state_axis: int | None = None,
) -> tuple[Any, State[Any, BatchedConfig]]:
    """A layer of one example, for a batch: every array of x and y gets a leading axis.

    `init` reads the first example. `apply` is vmapped; example i gets the key
    fold_in(rng, i) if the layer needs one. Statistics are taken over the batch, since
    `axis_name` joins the outer `batch_axis_name`, and variables come back without a batch
    axis.

    Args:
        layer: any layer of one example.
        axis_name: the name of the batch axis.
        state_axis: 0 if every example keeps variables of its own, on a leading axis. None if
            all share them: then no example alone may change them.

    Raises:
        ValueError: the arrays of x have no common leading axis.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.batched(mlax.series(mlax.linear(3), mlax.z_norm(())))
    >>> params, state = init(jax.random.key(0), jnp.ones((8, 2)))
    >>> y, state = apply(params, state, jnp.ones((8, 2)))
    >>> y.shape, state.variables[1].mean.shape
    ((8, 3), (3,))
    """
    size = _batch_size(x)
    first = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), shapes(x))
    (key,) = init_keys(rng, 1)
    params, variables, child = init_child("batched", None, layer, key, first)
    if state_axis == 0:
        variables = jax.tree.map(lambda v: jnp.broadcast_to(v, (size, *v.shape)), variables)
    return params, State(variables, BatchedConfig(child, axis_name, state_axis))


def _batch_size(x: Any) -> int:
    return arguments.leading_length("batched", "x", x, "batch")
