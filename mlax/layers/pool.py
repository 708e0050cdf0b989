"""Pooling: every window of the spatial axes of one example is reduced to one element.

    x  one channel axis and n spatial axes
    y  as x, with shorter spatial axes
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.typing import ArrayLike

from mlax import arguments, functional
from mlax.arguments import Padding, Shaped, Sizes
from mlax.equality import by_parts
from mlax.pair import AxisName, Key, State, layer


class WindowConfig(NamedTuple):
    """Configuration of `max_pool`, `avg_pool` and `sum_pool`: the windows."""

    window_shape: tuple[int, ...]
    """Length of a window along each spatial axis."""
    strides: tuple[int, ...]
    """Distance between windows."""
    padding: str | tuple[tuple[int, int], ...]
    """Name of the padding, or (before, after) for each spatial axis."""
    input_dilation: tuple[int, ...]
    """Distance between neighbours of x."""
    window_dilation: tuple[int, ...]
    """Distance between neighbours in a window."""
    data_format: str
    """Which axis holds the channels."""


@by_parts
class PoolConfig(NamedTuple):
    """Configuration of `pool`."""

    init_value: float
    """What each reduction starts from."""
    reduce_fn: Callable[[Any, Any], Any]
    """Function of two scalars."""
    windows: WindowConfig
    """The windows."""


CHECKS: dict[str, Callable[[str, str, Any], None]] = {
    "window_shape": arguments.check_sizes,
    "strides": arguments.check_sizes,
    "padding": arguments.check_padding,
    "input_dilation": arguments.check_dilation,
    "window_dilation": arguments.check_dilation,
    "data_format": arguments.check_data_format,
}


def _windows(
    owner: str,
    x: Shaped,
    window_shape: Sizes,
    strides: Sizes,
    padding: Padding,
    input_dilation: Sizes | None,
    window_dilation: Sizes | None,
    data_format: str,
) -> WindowConfig:
    """Return the windows with one entry for each spatial axis of x."""
    arguments.channel_axis(owner, data_format, x)
    rank = len(x.shape) - 1
    return WindowConfig(
        arguments.per_axis(owner, "window_shape", window_shape, rank),
        arguments.per_axis(owner, "strides", strides, rank),
        arguments.padding_per_axis(owner, padding, rank),
        arguments.optional_per_axis(owner, "input_dilation", input_dilation, rank),
        arguments.optional_per_axis(owner, "window_dilation", window_dilation, rank),
        data_format,
    )


def apply_max_pool(
    params: tuple[()],
    state: State[tuple[()], WindowConfig],
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, State[tuple[()], WindowConfig]]:
    """Return the largest element of every window: see `mlax.Apply` and `mlax.max_pool`."""
    windows = arguments.config_of("max_pool", state, WindowConfig)
    return functional.max_pool(x, *windows), state


@layer(apply_max_pool, checks=CHECKS)
def max_pool(
    rng: Key,
    x: Shaped,
    window_shape: Sizes,
    strides: Sizes = 1,
    padding: Padding = "VALID",
    input_dilation: Sizes | None = None,
    window_dilation: Sizes | None = None,
    data_format: str = "channel_last",
) -> tuple[tuple[()], State[tuple[()], WindowConfig]]:
    """The largest element of every window.

    Arguments, result and errors are those of `mlax.functional.max_pool`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.max_pool(2, strides=2)
    >>> params, state = init(jax.random.key(0), jnp.ones((8, 8, 3)))
    >>> apply(params, state, jnp.ones((8, 8, 3)))[0].shape
    (4, 4, 3)
    """
    windows = _windows(
        "max_pool", x, window_shape, strides, padding, input_dilation, window_dilation, data_format
    )
    return (), State((), windows)


def apply_avg_pool(
    params: tuple[()],
    state: State[tuple[()], WindowConfig],
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, State[tuple[()], WindowConfig]]:
    """Return the mean of every window: see `mlax.Apply` and `mlax.avg_pool`."""
    windows = arguments.config_of("avg_pool", state, WindowConfig)
    return functional.avg_pool(x, *windows), state


@layer(apply_avg_pool, checks=CHECKS)
def avg_pool(
    rng: Key,
    x: Shaped,
    window_shape: Sizes,
    strides: Sizes = 1,
    padding: Padding = "VALID",
    input_dilation: Sizes | None = None,
    window_dilation: Sizes | None = None,
    data_format: str = "channel_last",
) -> tuple[tuple[()], State[tuple[()], WindowConfig]]:
    """The sum of every window divided by its size, padding included.

    Arguments, result and errors are those of `mlax.functional.avg_pool`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.avg_pool(2, strides=2)
    >>> params, state = init(jax.random.key(0), jnp.ones((8, 8, 3)))
    >>> apply(params, state, jnp.ones((8, 8, 3)))[0].shape
    (4, 4, 3)
    """
    windows = _windows(
        "avg_pool", x, window_shape, strides, padding, input_dilation, window_dilation, data_format
    )
    return (), State((), windows)


def apply_sum_pool(
    params: tuple[()],
    state: State[tuple[()], WindowConfig],
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, State[tuple[()], WindowConfig]]:
    """Return the sum of every window: see `mlax.Apply` and `mlax.sum_pool`."""
    windows = arguments.config_of("sum_pool", state, WindowConfig)
    return functional.sum_pool(x, *windows), state


@layer(apply_sum_pool, checks=CHECKS)
def sum_pool(
    rng: Key,
    x: Shaped,
    window_shape: Sizes,
    strides: Sizes = 1,
    padding: Padding = "VALID",
    input_dilation: Sizes | None = None,
    window_dilation: Sizes | None = None,
    data_format: str = "channel_last",
) -> tuple[tuple[()], State[tuple[()], WindowConfig]]:
    """The sum of every window.

    Arguments, result and errors are those of `mlax.functional.sum_pool`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.sum_pool(2, strides=2)
    >>> params, state = init(jax.random.key(0), jnp.ones((8, 8, 3)))
    >>> apply(params, state, jnp.ones((8, 8, 3)))[0].shape
    (4, 4, 3)
    """
    windows = _windows(
        "sum_pool", x, window_shape, strides, padding, input_dilation, window_dilation, data_format
    )
    return (), State((), windows)


def apply_pool(
    params: tuple[()],
    state: State[tuple[()], PoolConfig],
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, State[tuple[()], PoolConfig]]:
    """Return every window reduced: see `mlax.Apply` and `mlax.pool`."""
    init_value, reduce_fn, windows = arguments.config_of("pool", state, PoolConfig)
    return functional.pool(x, init_value, reduce_fn, *windows), state


@layer(apply_pool, checks={
        "init_value": arguments.check_scalar,
        "reduce_fn": arguments.check_callable,
        **CHECKS,
    },
)
def pool(
    rng: Key,
    x: Shaped,
    init_value: ArrayLike,
    reduce_fn: Callable[[Any, Any], Any],
    window_shape: Sizes,
    strides: Sizes = 1,
    padding: Padding = "VALID",
    input_dilation: Sizes | None = None,
    window_dilation: Sizes | None = None,
    data_format: str = "channel_last",
) -> tuple[tuple[()], State[tuple[()], PoolConfig]]:
    """A reduction of every window by a function of two scalars.

    Arguments, result and errors are those of `mlax.functional.pool`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.pool(1, jax.lax.mul, 2)
    >>> params, state = init(jax.random.key(0), jnp.ones((3, 1)))
    >>> apply(params, state, jnp.array([[2.0], [3.0], [4.0]]))[0]
    Array([[ 6.],
           [12.]], dtype=float32)
    """
    value = np.asarray(init_value).item()
    windows = _windows(
        "pool", x, window_shape, strides, padding, input_dilation, window_dilation, data_format
    )
    return (), State((), PoolConfig(value, reduce_fn, windows))
