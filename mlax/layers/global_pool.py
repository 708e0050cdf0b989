"""From feature maps to vectors: `flatten`, `global_avg_pool` and `adaptive_avg_pool`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from mlax import arguments
from mlax.arguments import DataFormat, Sizes
from mlax.errors import expected
from mlax.layer import Key, Shaped
from mlax.pair import stateless


class FlattenConfig(NamedTuple):
    """Configuration of `flatten`."""

    ndim: int
    """Number of axes of x."""


def apply_flatten(params: tuple[()], config: FlattenConfig, x: jax.Array) -> jax.Array:
    """Return x as a vector: see `mlax.flatten`."""
    return jnp.ravel(arguments.array("flatten", x))


@stateless(apply_flatten, FlattenConfig)
def flatten(rng: Key, x: Shaped) -> tuple[()]:
    """All elements of one example as a vector, with the last axis varying fastest.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.flatten()
    >>> params, state = init(jax.random.key(0), jnp.ones((4, 4, 3)))
    >>> apply(params, state, jnp.ones((4, 4, 3)))[0].shape
    (48,)
    """
    arguments.require_array("flatten", x)
    return ()


class GlobalAvgPoolConfig(NamedTuple):
    """Configuration of `global_avg_pool`."""

    data_format: str
    """Where the channel axis is."""
    ndim: int
    """Number of axes of x."""


def apply_global_avg_pool(
    params: tuple[()], config: GlobalAvgPoolConfig, x: jax.Array
) -> jax.Array:
    """Return the mean of every channel: see `mlax.global_avg_pool`."""
    x = arguments.array("global_avg_pool", x)
    axes = _spatial_axes("global_avg_pool", config.data_format, x)
    dtype = _mean_dtype(x)
    return jnp.mean(x, axes, jnp.promote_types(dtype, jnp.float32)).astype(dtype)


@stateless(apply_global_avg_pool, GlobalAvgPoolConfig)
def global_avg_pool(rng: Key, x: Shaped, *, data_format: DataFormat = "channel_last") -> tuple[()]:
    """The mean of every channel over all spatial axes: (spatial..., channels) -> (channels,).

    Half precision is summed in float32. Integer x gives float32.

    Args:
        data_format: "channel_last", "channel_first", or a spec such as "HWC".

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: x has no spatial axis, or one of length 0, or `data_format` does not fit.

    Source: Lin et al., "Network in network", 2014.

    >>> import jax, jax.numpy as jnp, mlax
    >>> params, state = mlax.global_avg_pool.init(jax.random.key(0), jnp.ones((2, 1)))
    >>> mlax.global_avg_pool.apply(params, state, jnp.array([[1.0], [3.0]]))[0]
    Array([2.], dtype=float32)
    """
    _spatial_axes("global_avg_pool", data_format, x)
    return ()


class AdaptiveAvgPoolConfig(NamedTuple):
    """Configuration of `adaptive_avg_pool`."""

    output_shape: int | tuple[int, ...]
    """Number of windows along each spatial axis."""
    data_format: str
    """Where the channel axis is."""
    ndim: int
    """Number of axes of x."""


def apply_adaptive_avg_pool(
    params: tuple[()], config: AdaptiveAvgPoolConfig, x: jax.Array
) -> jax.Array:
    """Return the mean of every window: see `mlax.adaptive_avg_pool`."""
    x = arguments.array("adaptive_avg_pool", x)
    axes = _spatial_axes("adaptive_avg_pool", config.data_format, x)
    counts = arguments.per_axis("adaptive_avg_pool", "output_shape", config.output_shape, len(axes))
    dtype = _mean_dtype(x)
    y = x.astype(jnp.promote_types(dtype, jnp.float32))
    for axis, count in zip(axes, counts, strict=True):
        weights = _window_means(x.shape[axis], count).astype(y.dtype)
        y = jnp.tensordot(y, weights, ((axis,), (0,)), precision=lax.Precision.HIGHEST)
        y = jnp.moveaxis(y, -1, axis)
    return y.astype(dtype)


@stateless(apply_adaptive_avg_pool, AdaptiveAvgPoolConfig)
def adaptive_avg_pool(
    rng: Key, x: Shaped, output_shape: Sizes, *, data_format: DataFormat = "channel_last"
) -> tuple[()]:
    """The means of a fixed number of windows, whatever the lengths of the spatial axes.

    Along an axis of length l, window i of n extends from floor(i l / n) to ceil((i + 1) l / n), as
    in `torch.nn.AdaptiveAvgPool2d`: windows may overlap, and there may be more of them than
    elements. Half precision is summed in float32. Integer x gives float32.

    Args:
        output_shape: number of windows, or one for each spatial axis.
        data_format: "channel_last", "channel_first", or a spec such as "HWC".

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument has the wrong length, sign or name, or x has no spatial axis
            or one of length 0.

    Source: He et al., "Spatial pyramid pooling", 2014.

    >>> import jax, jax.numpy as jnp, mlax
    >>> x = jnp.array([[1.0], [3.0], [5.0]])
    >>> params, state = mlax.adaptive_avg_pool.init(jax.random.key(0), x, output_shape=2)
    >>> mlax.adaptive_avg_pool.apply(params, state, x)[0]
    Array([[2.],
           [4.]], dtype=float32)
    """
    axes = _spatial_axes("adaptive_avg_pool", data_format, x)
    arguments.per_axis("adaptive_avg_pool", "output_shape", output_shape, len(axes))
    return ()


def _window_means(length: int, count: int) -> npt.NDArray[np.float64]:
    """Return the (length, count) matrix that maps a row to the means of its windows."""
    index, window = np.arange(length)[:, None], np.arange(count)
    start, stop = window * length // count, -(-(window + 1) * length // count)
    means: npt.NDArray[np.float64] = ((start <= index) & (index < stop)) / (stop - start)
    return means


def _spatial_axes(owner: str, data_format: str, x: Shaped) -> tuple[int, ...]:
    """Return all axes but the channel axis, which must exist and not be empty."""
    arguments.require_rank(owner, x, 2)
    channel = arguments.channel_axis(owner, data_format, x)
    axes = tuple(axis for axis in range(len(x.shape)) if axis != channel)
    if not all(x.shape[axis] for axis in axes):
        what = f"x with at least one element along axes {axes}"
        raise ValueError(expected(owner, what, f"shape {x.shape}"))
    return axes


def _mean_dtype(x: jax.Array) -> np.dtype[Any]:
    return x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.dtype(jnp.float32)
