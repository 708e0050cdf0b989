"""A layer for one example turned into a layer for a batch: y[i] = layer(x[i]).

params are those of the layer, and so are variables, unless each example has its own.
"""

from collections.abc import Hashable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from mlax import mesh
from mlax.arguments import AnyLayer, leading_length, require_ndims
from mlax.combinators import (
    Around, Call, Child, Made, has_path, init_only_child, rejoined, separated, shapes, stacked,
    transform,
)
from mlax.errors import message
from mlax.layer import Key
from mlax.taps import setting


class BatchedConfig(NamedTuple):
    """Configuration of `batched`."""

    layer: Child
    """The layer."""
    axis_name: Hashable
    """The name of the batch axis."""
    state_axis: int | None
    """0 if every example has its own variables, None if they are shared."""
    ndims: tuple[int, ...]
    """Number of axes of each array of x."""


def apply(
    call: Call, config: BatchedConfig, params: Any, variables: Any, x: Any
) -> tuple[Any, Any]:
    """Return the outputs of all examples: see `mlax.batched`."""
    child, axis_name, state_axis, ndims = config
    size = _batch_size(x)
    way_out = "give a single example a leading axis with x[None]"
    if len(jax.tree.leaves(x)) != len(ndims):
        way_out = "initialise the layer for such an input"
    require_ndims("batched", x, ndims, way_out)
    outer = mesh.names_of(call.batch_axis_name)
    if axis_name in outer:
        wanted = "a name that no enclosing axis has"
        raise ValueError(message("batched", "axis_name", wanted, repr(axis_name)))
    if state_axis == 0 and jax.tree.leaves(variables):
        kept = leading_length("batched", "state.variables", variables, "batch")
        if kept != size:
            wanted = f"a batch of {kept} examples, one for each set of variables"
            raise ValueError(message("batched", "x", wanted, size))

    def example(x: Any, variables: Any, key: Key | None) -> tuple[Any, Any, dict[str, Any]]:
        y, after = call_one(child, params, variables, x, key)
        return y, *separated(after, variables)

    rng, keys = call.rng, None
    if rng is not None and child.needs_rng:
        indices = mesh.first_example(outer, size) + jnp.arange(size)
        keys = jax.vmap(lambda i: jax.random.fold_in(rng, i))(indices)
    own_variables = variables if state_axis == 0 else ()
    x, own_variables, keys = mesh.sharded_together("batched", (x, own_variables, keys))
    if state_axis == 0:
        variables = own_variables
    call_one = call._replace(batch_axis_name=(axis_name, *outer))
    batch = jax.vmap(
        example, in_axes=(0, state_axis, 0), out_axes=(0, state_axis, 0), axis_name=axis_name,
        axis_size=size,
    )
    try:
        with setting(mesh.EXAMPLES_HAVE_KEYS, True):
            y, variables, values = batch(x, variables, keys)
    except ValueError as error:
        if "out_axes" not in str(error) or has_path(error):
            raise
        wanted = "the same for all examples"
        way_out = "reduce them over batch_axis_name, or keep one for each with state_axis=0"
        raise ValueError(
            message("batched", "variables", wanted, "different ones", way_out)
        ) from error
    _, y = mesh.sharded_together("batched", (x, y))
    return y, rejoined(variables, values)


@transform(apply, BatchedConfig, Around)
def batched(
    rng: Key, x: Any, layer: AnyLayer, *,
    axis_name: Hashable = "batch", state_axis: Literal[None, 0] = None,
) -> Made:
    """A layer for one example, mapped over a batch: every array in x and y gets a leading axis.

    `init` reads the shapes of one example, and the layer is initialised with fold_in(rng, 0).
    `apply` is vmapped; example i gets the key fold_in(rng, i) if the layer needs one. Statistics
    are taken over the batch, since `axis_name` is added to `batch_axis_name`, and variables come
    back without a batch axis.

    Args:
        layer: any layer for one example.
        axis_name: the name of the batch axis.
        state_axis: 0 if every example has its own variables, on a leading axis. None if all
            examples share them: they must then be updated in the same way for all.

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
    made = init_only_child("batched", layer, rng, first)
    if state_axis == 0:
        made = made._replace(
            variables=jax.tree.map(lambda v: jnp.broadcast_to(v, (size, *v.shape)), made.variables)
        )
    return made._replace(output=lambda: stacked(made.output(), size))


def _batch_size(x: Any) -> int:
    return leading_length("batched", "x", x, "batch")
