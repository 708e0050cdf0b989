"""From feature maps to vectors: `flatten`, `global_avg_pool` and `adaptive_avg_pool`."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from mlax import arguments
from mlax.arguments import DataFormat, Sizes
from mlax.errors import expected
from mlax.layer import Key, Shaped
from mlax.pair import stateless
from mlax.statistics import wide_dtype


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
    return jnp.mean(x, axes, wide_dtype(dtype)).astype(dtype)


@stateless(apply_global_avg_pool, GlobalAvgPoolConfig, traced_once=True)
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
    y = x.astype(wide_dtype(dtype))
    for axis, count in zip(axes, counts, strict=True):
        if not isinstance(x.shape[axis], int):
            what = "x with spatial axes of known lengths, which the windows depend on"
            way_out = "export it for one length, or use mlax.global_avg_pool"
            raise ValueError(expected("adaptive_avg_pool", what, f"shape {x.shape}", way_out))
        y = _window_means(y, axis, count)
    return y.astype(dtype)


@stateless(apply_adaptive_avg_pool, AdaptiveAvgPoolConfig, traced_once=True)
def adaptive_avg_pool(
    rng: Key, x: Shaped, output_shape: Sizes, *, data_format: DataFormat = "channel_last"
) -> tuple[()]:
    """The means of a fixed number of windows, whatever the lengths of the spatial axes.

    Along an axis of length l, window i of n extends from floor(i l / n) to ceil((i + 1) l / n), as
    in `torch.nn.AdaptiveAvgPool2d`: windows may overlap, and there may be more windows than
    elements. Half precision is summed in float32. Integer x gives float32. An infinite or NaN
    element affects the windows that contain it, and no others.

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


def _window_means(x: jax.Array, axis: int, count: int) -> jax.Array:
    """Return the means of `count` windows along an axis.

    With g the greatest common divisor of length and count, the axis splits into g equal blocks, and
    no window crosses from one into another. A window reads no element outside it, not even times 0.
    """
    blocks = math.gcd(x.shape[axis], count)
    length, count = x.shape[axis] // blocks, count // blocks
    x = x.reshape(*x.shape[:axis], blocks, length, *x.shape[axis + 1 :])
    if count == 1:
        means = jnp.mean(x, axis + 1)
    else:
        window = np.arange(count)
        starts, stops = window * length // count, -(-(window + 1) * length // count)
        places = starts + np.arange((stops - starts).max())[:, None]
        after = tuple(range(places.ndim, places.ndim + x.ndim - axis - 2))
        before = tuple(range(axis + 1))

        def along_windows(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
            return np.expand_dims(np.expand_dims(values, after), before)

        read = jnp.take(x, np.minimum(places, length - 1), axis + 1)
        total = jnp.sum(jnp.where(along_windows(places < stops), read, 0), axis + 1, keepdims=True)
        sizes = along_windows((stops - starts)[None].astype(x.dtype))
        means = jnp.squeeze(total / sizes, axis + 1)
    return means.reshape(*x.shape[:axis], blocks * count, *x.shape[axis + 2 :])


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
