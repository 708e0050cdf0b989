"""From feature maps to vectors: `flatten`, `global_avg_pool` and `adaptive_avg_pool`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
from jax import lax

from mlax import arguments
from mlax.arguments import Sizes
from mlax.combinators.composed import composed
from mlax.layers.f import f
from mlax.pair import AxisName, Key, Layer, State, layer


@composed()
def flatten(x: jax.Array | jax.ShapeDtypeStruct) -> Layer[tuple[()], Any, jax.Array, jax.Array]:
    """All elements of one example as a vector, the last axis running fastest.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.flatten()
    >>> params, state = init(jax.random.key(0), jnp.ones((4, 4, 3)))
    >>> apply(params, state, jnp.ones((4, 4, 3)))[0].shape
    (48,)
    """
    return f(jnp.ravel)


class GlobalAvgPoolConfig(NamedTuple):
    """Configuration of `global_avg_pool`."""

    data_format: str
    """Where the channel axis is."""


def apply_global_avg_pool(
    params: tuple[()],
    state: State[tuple[()], GlobalAvgPoolConfig],
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, State[tuple[()], GlobalAvgPoolConfig]]:
    """Return the mean of every channel: see `mlax.Apply` and `mlax.global_avg_pool`."""
    config = arguments.config_of("global_avg_pool", state, GlobalAvgPoolConfig)
    x = arguments.array("global_avg_pool", x)
    axes = _spatial_axes("global_avg_pool", config.data_format, x)
    dtype = _mean_dtype(x)
    return jnp.mean(x, axes, jnp.promote_types(dtype, jnp.float32)).astype(dtype), state


@layer(apply_global_avg_pool, checks={"data_format": arguments.check_data_format})
def global_avg_pool(
    rng: Key, x: jax.Array | jax.ShapeDtypeStruct, data_format: str = "channel_last"
) -> tuple[tuple[()], State[tuple[()], GlobalAvgPoolConfig]]:
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
    return (), State((), GlobalAvgPoolConfig(data_format))


class AdaptiveAvgPoolConfig(NamedTuple):
    """Configuration of `adaptive_avg_pool`."""

    output_shape: tuple[int, ...]
    """Number of windows along each spatial axis."""
    data_format: str
    """Where the channel axis is."""


def apply_adaptive_avg_pool(
    params: tuple[()],
    state: State[tuple[()], AdaptiveAvgPoolConfig],
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, State[tuple[()], AdaptiveAvgPoolConfig]]:
    """Return the mean of every window: see `mlax.Apply` and `mlax.adaptive_avg_pool`."""
    output_shape, data_format = arguments.config_of(
        "adaptive_avg_pool", state, AdaptiveAvgPoolConfig
    )
    x = arguments.array("adaptive_avg_pool", x)
    axes = _spatial_axes("adaptive_avg_pool", data_format, x)
    arguments.per_axis("adaptive_avg_pool", "output_shape", output_shape, len(axes))
    dtype = _mean_dtype(x)
    y = x.astype(jnp.promote_types(dtype, jnp.float32))
    for axis, count in zip(axes, output_shape, strict=True):
        weights = _window_means(x.shape[axis], count).astype(y.dtype)
        y = jnp.tensordot(y, weights, ((axis,), (0,)), precision=lax.Precision.HIGHEST)
        y = jnp.moveaxis(y, -1, axis)
    return y.astype(dtype), state


@layer(
    apply_adaptive_avg_pool,
    checks={"output_shape": arguments.check_sizes, "data_format": arguments.check_data_format},
)
def adaptive_avg_pool(
    rng: Key,
    x: jax.Array | jax.ShapeDtypeStruct,
    output_shape: Sizes,
    data_format: str = "channel_last",
) -> tuple[tuple[()], State[tuple[()], AdaptiveAvgPoolConfig]]:
    """The means of `output_shape` windows, whatever the lengths of the spatial axes.

    Along an axis of length l, window i of n reaches from floor(i l / n) to
    ceil((i + 1) l / n), as in `torch.nn.AdaptiveAvgPool2d`: windows may overlap, and there
    may be more of them than elements. Half precision is summed in float32. Integer x gives
    float32.

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
    sizes = arguments.per_axis("adaptive_avg_pool", "output_shape", output_shape, len(axes))
    return (), State((), AdaptiveAvgPoolConfig(sizes, data_format))


def _window_means(length: int, count: int) -> npt.NDArray[np.float64]:
    """Return the (length, count) matrix that takes a row to the means of its windows."""
    index, window = np.arange(length)[:, None], np.arange(count)
    start, stop = window * length // count, -(-(window + 1) * length // count)
    means: npt.NDArray[np.float64] = ((start <= index) & (index < stop)) / (stop - start)
    return means


def _spatial_axes(
    owner: str, data_format: str, x: jax.Array | jax.ShapeDtypeStruct
) -> tuple[int, ...]:
    """Return all axes but that of the channels, and require that there is something in them."""
    arguments.require_rank(owner, x, 2)
    channel = arguments.channel_axis(owner, data_format, x)
    axes = tuple(axis for axis in range(len(x.shape)) if axis != channel)
    if not all(x.shape[axis] for axis in axes):
        raise ValueError(
            f"{owner}: expected x with at least one element along axes {axes}, got shape {x.shape}"
        )
    return axes


def _mean_dtype(x: jax.Array) -> np.dtype[Any]:
    return x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.dtype(jnp.float32)
