"""Pooling: every window of the spatial axes of one example is reduced to one element.

    x  one channel axis and n spatial axes
    y  like x, with shorter spatial axes
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import numpy as np
from jax.typing import ArrayLike

from mlax import arguments, functional
from mlax.arguments import DataFormat, Padding, Rule, Sizes
from mlax.belonging import layer_name
from mlax.errors import message
from mlax.layer import Key, Shaped
from mlax.pair import stateless


class WindowConfig(NamedTuple):
    """Configuration of `max_pool`, `avg_pool` and `sum_pool`: the windows."""

    window_shape: int | tuple[int, ...]
    """Length of a window along each spatial axis."""
    strides: int | tuple[int, ...]
    """Distance between windows."""
    padding: str | int | tuple[int | tuple[int, int], ...]
    """Name of the padding, or its widths."""
    input_dilation: int | tuple[int, ...] | None
    """Distance between neighbours of x."""
    window_dilation: int | tuple[int, ...] | None
    """Distance between neighbours in a window."""
    data_format: str
    """Which axis holds the channels."""
    ndim: int
    """Number of axes of x."""


class MaxPoolConfig(WindowConfig):
    """Configuration of `max_pool`."""


class AvgPoolConfig(WindowConfig):
    """Configuration of `avg_pool`."""


class SumPoolConfig(WindowConfig):
    """Configuration of `sum_pool`."""


def read_scalar(owner: str, name: str, value: Any) -> Any:
    """Require a single number: a Python number or an array."""
    if isinstance(value, str) or np.ndim(value) != 0:
        raise TypeError(message(owner, name, "a number", repr(value)))
    return np.asarray(value).item()


Scalar: TypeAlias = Annotated[ArrayLike, Rule(read_scalar)]
"""A single number, possibly an array."""


class PoolConfig(NamedTuple):
    """Configuration of `pool`."""

    init_value: float
    """The initial value of each reduction."""
    reduce_fn: Callable[[Any, Any], Any]
    """Function of two scalars."""
    window_shape: int | tuple[int, ...]
    """Length of a window along each spatial axis."""
    strides: int | tuple[int, ...]
    """Distance between windows."""
    padding: str | int | tuple[int | tuple[int, int], ...]
    """Name of the padding, or its widths."""
    input_dilation: int | tuple[int, ...] | None
    """Distance between neighbours of x."""
    window_dilation: int | tuple[int, ...] | None
    """Distance between neighbours in a window."""
    data_format: str
    """Which axis holds the channels."""
    ndim: int
    """Number of axes of x."""


def apply(params: tuple[()], config: WindowConfig | PoolConfig, x: jax.Array) -> jax.Array:
    """Return every window reduced, by the function of `mlax.functional` of the same name."""
    result: jax.Array = getattr(functional, layer_name(config))(x, *config[:-1])
    return result


def _require_fitting(reduce: Callable[..., jax.Array], x: Shaped, *hparams: Any) -> tuple[()]:
    """Return the params, which are empty, and require that the hyperparameters fit x."""
    arguments.require_array(reduce.__name__, x)
    jax.eval_shape(lambda x: reduce(x, *hparams), x)
    return ()


@stateless(apply, MaxPoolConfig, traced_once=True)
def max_pool(
    rng: Key, x: Shaped, window_shape: Sizes, strides: Sizes = 1, padding: Padding = "VALID",
    input_dilation: Sizes | None = None, window_dilation: Sizes | None = None,
    data_format: DataFormat = "channel_last",
) -> tuple[()]:
    """The largest element of every window.

    Arguments, result and errors are the same as in `mlax.functional.max_pool`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.max_pool(2, strides=2)
    >>> params, state = init(jax.random.key(0), jnp.ones((8, 8, 3)))
    >>> apply(params, state, jnp.ones((8, 8, 3)))[0].shape
    (4, 4, 3)
    """
    windows = window_shape, strides, padding, input_dilation, window_dilation, data_format
    return _require_fitting(functional.max_pool, x, *windows)


@stateless(apply, AvgPoolConfig, traced_once=True)
def avg_pool(
    rng: Key, x: Shaped, window_shape: Sizes, strides: Sizes = 1, padding: Padding = "VALID",
    input_dilation: Sizes | None = None, window_dilation: Sizes | None = None,
    data_format: DataFormat = "channel_last",
) -> tuple[()]:
    """The sum of every window divided by its size, padding included.

    Arguments, result and errors are the same as in `mlax.functional.avg_pool`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.avg_pool(2, strides=2)
    >>> params, state = init(jax.random.key(0), jnp.ones((8, 8, 3)))
    >>> apply(params, state, jnp.ones((8, 8, 3)))[0].shape
    (4, 4, 3)
    """
    windows = window_shape, strides, padding, input_dilation, window_dilation, data_format
    return _require_fitting(functional.avg_pool, x, *windows)


@stateless(apply, SumPoolConfig, traced_once=True)
def sum_pool(
    rng: Key, x: Shaped, window_shape: Sizes, strides: Sizes = 1, padding: Padding = "VALID",
    input_dilation: Sizes | None = None, window_dilation: Sizes | None = None,
    data_format: DataFormat = "channel_last",
) -> tuple[()]:
    """The sum of every window, in at least 32 bits for integer x.

    Arguments, result and errors are the same as in `mlax.functional.sum_pool`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.sum_pool(2, strides=2)
    >>> params, state = init(jax.random.key(0), jnp.ones((8, 8, 3)))
    >>> apply(params, state, jnp.ones((8, 8, 3)))[0].shape
    (4, 4, 3)
    """
    windows = window_shape, strides, padding, input_dilation, window_dilation, data_format
    return _require_fitting(functional.sum_pool, x, *windows)


@stateless(apply, PoolConfig)
def pool(
    rng: Key, x: Shaped, init_value: Scalar, reduce_fn: Callable[[Any, Any], Any],
    window_shape: Sizes, strides: Sizes = 1, padding: Padding = "VALID",
    input_dilation: Sizes | None = None, window_dilation: Sizes | None = None,
    data_format: DataFormat = "channel_last",
) -> tuple[()]:
    """A reduction of every window by a function of two scalars.

    Arguments, result and errors are the same as in `mlax.functional.pool`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.pool(1, jax.lax.mul, 2)
    >>> params, state = init(jax.random.key(0), jnp.ones((3, 1)))
    >>> apply(params, state, jnp.array([[2.0], [3.0], [4.0]]))[0]
    Array([[ 6.],
           [12.]], dtype=float32)
    """
    windows = window_shape, strides, padding, input_dilation, window_dilation, data_format
    return _require_fitting(functional.pool, x, init_value, reduce_fn, *windows)
