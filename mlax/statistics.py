"""Mean and variance over axes of an array and over mapped axes, in float32 or better.

Every step takes squares of differences only, never of raw values, so that a mean far
larger than the spread leaves the variance intact:

- over the axes of the array and those of `jax.vmap`, the corrected two-pass algorithm: with
  d = x - m for a first estimate m of the mean, mean = m + E[d] and var = E[d^2] - E[d]^2;
- over the axes of a mesh, each shard does that for itself, and one all-reduce brings the
  pairs (mean, var) of all k shards together: mean = E[mean_i] and
  var = E[var_i] + E[(mean_i - mean)^2].

Source: Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983.
"""

import math
from collections.abc import Hashable

import jax
import jax.numpy as jnp
from jax import lax

from mlax.pair import AxisName


def mean_and_variance(
    owner: str, x: jax.Array, axes: tuple[int, ...], batch_axis_name: AxisName
) -> tuple[jax.Array, jax.Array]:
    """Return the mean and the population variance, in the shape of the axes that are kept.

    Raises:
        ValueError: there is no element to take the statistics of.
    """
    if not math.prod(x.shape[axis] for axis in axes):
        raise ValueError(
            f"{owner}: expected at least one element along axes {axes} to take "
            f"statistics of, got x of shape {x.shape}"
        )
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    names = batch_axis_name if isinstance(batch_axis_name, tuple) else (batch_axis_name,)
    sharded = jax.sharding.get_abstract_mesh().manual_axes
    mesh_names = tuple(name for name in names if name in sharded)
    vmap_names = tuple(name for name in names if name not in sharded)

    def mean_of(value: jax.Array) -> jax.Array:
        mean: jax.Array = lax.pmean(jnp.mean(value, axes, keepdims=True), vmap_names)
        return mean

    estimate = lax.stop_gradient(mean_of(x))
    difference = x - estimate
    offset = mean_of(difference)
    mean = jnp.squeeze(estimate + offset, axes)
    variance = jnp.squeeze(mean_of(jnp.square(difference)) - jnp.square(offset), axes)
    if not mesh_names:
        return mean, variance

    means, variances = _gather(jnp.stack([mean, variance]), mesh_names)
    mean = means[0] + jnp.mean(means - means[0], 0)
    return mean, jnp.mean(variances, 0) + jnp.mean(jnp.square(means - mean), 0)


def _gather(values: jax.Array, names: tuple[Hashable, ...]) -> jax.Array:
    """Return the values of all k shards, (n, ...) -> (n, k, ...), by one all-reduce.

    Each shard adds its values in a slot of its own. Unlike that of `jax.lax.all_gather` the
    result is known to be equal on all shards, as the running statistics must be.
    """
    slots = jnp.arange(lax.axis_size(names)) == lax.axis_index(names)
    slots = jnp.expand_dims(slots, tuple(range(1, values.ndim)))
    gathered: jax.Array = lax.psum(jnp.where(slots, jnp.expand_dims(values, 1), 0), names)
    return gathered
