"""Mean and variance over axes of an array and over mapped axes, in float32 or better.

Every step works on differences, never on squares or sums of raw values alone, so that a
mean far larger than the spread spoils neither the variance nor the centred values:

- over the axes of the array and of `jax.vmap`, with d = x - m for an estimate m of the mean, the
  mean is m + E[d] and the variance E[d^2] - E[d]^2; the centred values are d - E[d], without the
  rounding of m + E[d]. m is the mean of a sample of at least 1 in 16 elements, so that it is at
  most sqrt(15) standard deviations off, whatever x is, and E[d^2] at most 16 times the variance:
  the subtraction costs at most 4 bits, and one pass over x less than an exact m would;
- over the axes of a mesh, each shard i does the same on its own, and one all-reduce gathers the
  m_i, E[d_i] and Var[d_i] of all shards, which are then combined by the same rule.

`standardized` needs no mean and no variance, only their quotient, so that no square has to fit
into the dtype: numbers that are very large or small are first scaled by a power of two, which is
exact.

Source: Chan, Golub and LeVeque, "Algorithms for computing the sample variance", 1983.
"""

import functools
import math
import sys
import warnings
from collections.abc import Hashable
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import DTypeLike

from mlax import arguments, mesh
from mlax.errors import expected
from mlax.layer import AxisName, Shaped


def wide_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """Return `dtype` if it is float32 or better, else float32, also where promotion is strict."""
    wide = jnp.issubdtype(dtype, jnp.inexact) and jnp.dtype(dtype).itemsize >= 4
    return jnp.dtype(dtype if wide else jnp.float32)


class Statistics(NamedTuple):
    """The result of `statistics`, all in float32 or better."""

    centred: jax.Array
    """x - mean, with the shape of x."""
    mean: jax.Array
    """The mean, with the shape of the remaining axes."""
    variance: jax.Array
    """Population variance, with the shape of the remaining axes."""


def require_statistics(
    owner: str, x: jax.Array, axes: tuple[int, ...], batch_axis_name: AxisName
) -> None:
    """Require elements to take statistics of, and warn if there is but one.

    Raises:
        TypeError: `x` is complex.
        ValueError: there are no elements.
        NameError: an axis is not mapped.
    """
    _require_elements(owner, x, axes)
    names = mesh.names_of(batch_axis_name)
    sizes = [_axis_size(owner, name) for name in names]
    if 0 in sizes:
        empty = f"the batch axis {names[sizes.index(0)]!r}"
        what = f"at least one example along {empty} to take statistics of"
        raise ValueError(expected(owner, what, "an empty batch"))
    way_out = "pass several examples" if names else MAP_A_BATCH
    warn_of_one_element(owner, elements(x, axes) * math.prod(sizes), way_out)


def statistics(
    owner: str, x: jax.Array, axes: tuple[int, ...], batch_axis_name: AxisName
) -> Statistics:
    """Return the statistics of `x` over `axes` and over the mapped axes `batch_axis_name`.

    They must be allowed by `require_statistics`.
    """
    names = mesh.names_of(batch_axis_name)
    mesh_names = mesh.shard_axes(names)
    vmap_names = tuple(name for name in names if name not in mesh_names)

    def mean_of(value: jax.Array) -> jax.Array:
        return mesh.mapped_mean(owner, value, axes, vmap_names)

    x = x.astype(wide_dtype(x.dtype))
    estimate = _rounded(mean_of(_sample(lax.stop_gradient(x), axes)), 3)
    difference = x - lax.expand_dims(estimate, axes)
    offset = mean_of(difference)
    variance = _rounded(mean_of(lax.square(difference)), 1) - lax.square(offset)
    if mesh_names:
        estimates, offsets, variances = _gather((estimate, offset, variance), mesh_names)
        from_first = (estimates - estimates[0]) + offsets
        mean_from_first = jnp.mean(from_first, 0)
        offset = mean_from_first - (estimate - estimates[0])
        mean = estimates[0] + mean_from_first
        variance = jnp.mean(variances, 0) + jnp.mean(jnp.square(from_first - mean_from_first), 0)
    else:
        mean = estimate + offset
    return Statistics(difference - lax.expand_dims(offset, axes), mean, variance)


def _sample(x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    """Return one in 16 slices along the longest of `axes`."""
    spec = mesh.spec_of(x)
    lengths = {
        axis: x.shape[axis] for axis in axes if type(x.shape[axis]) is int and spec[axis] is None
    }
    if not lengths:
        return x
    longest = max(lengths, key=lambda axis: lengths[axis])
    return lax.slice_in_dim(x, 0, None, min(16, lengths[longest]), longest)


def _rounded(x: jax.Array, bits: int) -> jax.Array:
    """Return a number rounded by this many bits.

    A compiler can't fuse this into what follows, and so use different values of it in different
    places.
    """
    info = jnp.finfo(x.dtype)
    return lax.reduce_precision(x, info.nexp, info.nmant - bits)


def standardized(
    owner: str, x: jax.Array, axes: tuple[int, ...], epsilon: float, centred: bool = True
) -> jax.Array:
    """Return (x - E[x]) / sqrt(Var[x] + epsilon) over `axes` of x, in float32 or better.

    If not `centred`, return x / sqrt(E[x^2] + epsilon).

    Raises:
        TypeError: `x` is complex.
        ValueError: there are no elements to take statistics of.
    """
    _require_elements(owner, x, axes)
    return _standardized(x.astype(wide_dtype(x.dtype)), epsilon, axes, centred)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2, 3))
def _standardized(x: jax.Array, epsilon: float, axes: tuple[int, ...], centred: bool) -> jax.Array:
    return _normal_and_factor(x, epsilon, axes, centred)[0]


def _normal_and_factor(
    x: jax.Array, epsilon: float, axes: tuple[int, ...], centred: bool
) -> tuple[jax.Array, jax.Array]:
    """Return the normalised values, and what the centred ones are multiplied with."""
    scale = _scale_to_squarable(lax.stop_gradient(x), lax.stop_gradient(epsilon), axes)
    value = x * scale
    if centred:
        sample = _sample(lax.stop_gradient(value), axes)
        value -= _rounded(jnp.mean(sample, axes, keepdims=True), 3)
        offset = jnp.mean(value, axes, keepdims=True)
        variance = jnp.mean(jnp.square(value), axes, keepdims=True) - jnp.square(offset)
        value -= offset
    else:
        variance = jnp.mean(jnp.square(value), axes, keepdims=True)
    square = variance + epsilon * scale * scale
    # For very large equal numbers `square` underflows to 0, though the variance + epsilon does not.
    of_epsilon = lax.rsqrt(jnp.asarray(epsilon, x.dtype)) / scale
    factor = lax.select(square > 0, lax.rsqrt(square), of_epsilon)
    return value * factor, factor * scale


def _scale_to_squarable(x: jax.Array, epsilon: float, axes: tuple[int, ...]) -> jax.Array:
    """Return a power of two for each mean over `axes`, 1 unless squares of x leave the range.

    The square root of epsilon counts as an element, so that epsilon does not leave it either.
    """
    bits = int(jnp.finfo(x.dtype).maxexp)
    most, scale = (2.0 ** (n * bits // 8) for n in (3, 5))
    root = lax.sqrt(jnp.asarray(epsilon, x.dtype))
    size = lax.max(jnp.max(lax.abs(x), axes, keepdims=True), root)
    small_or_not = lax.select(size < 1 / most, lax.full_like(size, scale), lax.full_like(size, 1))
    return lax.select(size > most, lax.full_like(size, 1 / scale), small_or_not)


# The transpose takes one pass over the array less than that of the formulas above.
@functools.partial(_standardized.defjvp, symbolic_zeros=True)
def _standardized_jvp(
    axes: tuple[int, ...], centred: bool, primals: tuple[Any, Any], tangents: tuple[Any, Any]
) -> tuple[jax.Array, jax.Array]:
    x, epsilon = primals
    by_x, by_epsilon = tangents
    y, factor = _normal_and_factor(x, epsilon, axes, centred)
    tangent = jnp.zeros_like(y)
    if not isinstance(by_x, SymbolicZero):
        moved = by_x - jnp.mean(by_x, axes, keepdims=True) if centred else by_x
        tangent = factor * (moved - y * jnp.mean(y * by_x, axes, keepdims=True))
    if not isinstance(by_epsilon, SymbolicZero):
        tangent -= y * jnp.square(factor) * (by_epsilon / 2)
    return y, tangent


def _require_elements(owner: str, x: jax.Array, axes: tuple[int, ...]) -> None:
    arguments.require_real(owner, x)
    if not elements(x, axes):
        what = f"at least one element along axes {axes} to take statistics of"
        raise ValueError(expected(owner, what, f"x of shape {x.shape}"))


def elements(x: Shaped, axes: tuple[int, ...]) -> int:
    """Return the number of elements along `axes`."""
    return math.prod(x.shape[axis] for axis in axes)


WARNS: ContextVar[bool] = ContextVar("warns", default=True)
"""Whether to warn: not while only shapes are wanted, since the batch is not mapped then."""


MAP_A_BATCH = (
    "map a batch with mlax.batched(layer), or with jax.vmap(..., axis_name='batch') and "
    "batch_axis_name='batch'"
)


def warn_of_one_element(owner: str, count: float, way_out: str) -> None:
    """Warn, at the user's line, if there is only one element to normalise."""
    if count != 1 or not WARNS.get():
        return
    what, got = "more than one element to take statistics of", "one, so that y is 0 whatever x is"
    frame, level = sys._getframe(), 1
    while frame.f_back and frame.f_code.co_filename.startswith(_NOT_THE_USERS):
        frame, level = frame.f_back, level + 1
    warnings.warn(expected(owner, what, got, way_out), UserWarning, stacklevel=level)


_NOT_THE_USERS = tuple(f"{Path(file).parent}/" for file in (__file__, jax.__file__))


def _axis_size(owner: str, name: Hashable) -> float:
    """Return the length of a batch axis, infinity if it is symbolic, as in `jax.export`."""
    try:
        return lax.axis_size(name)
    except jax.errors.InconclusiveDimensionOperation:
        return math.inf
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
