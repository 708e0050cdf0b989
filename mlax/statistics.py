"""Mean and variance over axes of an array and over mapped axes, in float32 or better.

Every step works on differences, never on squares or sums of raw values alone, so that a
mean far larger than the spread spoils neither the variance nor the centred values:

- over the axes of the array and of `jax.vmap`, the corrected two-pass algorithm: with
  d = x - m for an estimate m of the mean, the mean is m + E[d] and the variance
  E[d^2] - E[d]^2; the centred values are d - E[d], without the rounding of m + E[d];
- over the axes of a mesh, each shard i does the same on its own, and one all-reduce gathers the
  m_i, E[d_i] and Var[d_i] of all shards, which are then combined by the same rule.

Source: Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983.
"""

import math
from collections.abc import Hashable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mlax import arguments
from mlax.errors import expected
from mlax.layer import AxisName


class Statistics(NamedTuple):
    """The result of `statistics`, all in float32 or better."""

    centred: jax.Array
    """x - mean, with the shape of x."""
    mean: jax.Array
    """The mean, with the shape of the remaining axes."""
    variance: jax.Array
    """Population variance, with the shape of the remaining axes."""


def statistics(
    owner: str, x: jax.Array, axes: tuple[int, ...], batch_axis_name: AxisName
) -> Statistics:
    """Return the statistics of `x` over `axes` and over the mapped axes `batch_axis_name`.

    Raises:
        TypeError: `x` is complex.
        ValueError: there are no elements to take statistics of.
    """
    arguments.require_real(owner, x)
    if not math.prod(x.shape[axis] for axis in axes):
        what = f"at least one element along axes {axes} to take statistics of"
        raise ValueError(expected(owner, what, f"x of shape {x.shape}"))
    names = batch_axis_name if isinstance(batch_axis_name, tuple) else (batch_axis_name,)
    sharded = jax.sharding.get_abstract_mesh().manual_axes
    mesh_names = tuple(name for name in names if name in sharded)
    vmap_names = tuple(name for name in names if name not in sharded)

    for name in names:
        if not _axis_size(owner, name):
            what = f"at least one example along the batch axis {name!r} to take statistics of"
            raise ValueError(expected(owner, what, "an empty batch"))

    def mean_of(value: jax.Array) -> jax.Array:
        mean: jax.Array = lax.pmean(jnp.mean(value, axes, keepdims=True), vmap_names)
        return mean

    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    estimate = lax.stop_gradient(mean_of(x))
    difference = x - estimate
    offset = mean_of(difference)
    variance = mean_of(jnp.square(difference)) - jnp.square(offset)
    if mesh_names:
        estimates, offsets, variances = _gather((estimate, offset, variance), mesh_names)
        from_first = (estimates - estimates[0]) + offsets
        mean_from_first = jnp.mean(from_first, 0)
        offset = mean_from_first - (estimate - estimates[0])
        mean = estimates[0] + mean_from_first
        variance = jnp.mean(variances, 0) + jnp.mean(jnp.square(from_first - mean_from_first), 0)
    else:
        mean = estimate + offset
    return Statistics(difference - offset, jnp.squeeze(mean, axes), jnp.squeeze(variance, axes))


def _axis_size(owner: str, name: Hashable) -> int:
    try:
        return lax.axis_size(name)
    except NameError:
        way_out = (
            f"map the batch with mlax.batched(layer, axis_name={name!r}), jax.vmap(..., "
            f"axis_name={name!r}) or jax.shard_map over a mesh with that axis"
        )
        what = f"the batch axis {name!r} to be bound"
        raise NameError(expected(owner, what, "no axis of that name", way_out)) from None


def _gather(values: tuple[jax.Array, ...], names: tuple[Hashable, ...]) -> jax.Array:
    """Return the n values of each of k shards as (n, k, ...), using one all-reduce.

    Each shard adds its values in its own slot. Unlike the result of `jax.lax.all_gather`, this
    one is known to be equal on all shards, as the running statistics must be.
    """
    own = jnp.arange(lax.axis_size(names)) == lax.axis_index(names)
    own = jnp.expand_dims(own, tuple(range(1, values[0].ndim + 1)))
    slots = jnp.where(own, jnp.stack(values)[:, None], 0)
    gathered: jax.Array = lax.psum(slots, names)
    return gathered
