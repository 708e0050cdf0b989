"""Pure functions without parameters: dropout, pooling, normalisation, attention, recurrences.

Each takes one example; a batch goes through `jax.vmap`.
"""

import math
from collections.abc import Callable
from typing import Any, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from mlax import arguments, mesh
from mlax.arguments import Axes, NormalizedAxis, Padding, Sizes
from mlax.chunked_attention import chunked_attention
from mlax.errors import expected, message
from mlax.layer import AxisName, Key
from mlax.linear_recurrence import linear_recurrence
from mlax.statistics import (
    MAP_A_BATCH, elements, require_statistics, standardized, statistics, warn_of_one_element,
    wide_dtype,
)

# fmt: off
__all__ = [
    "apply_attention_weights", "avg_pool", "batch_mean", "chunked_attention",
    "dot_product_attention_logits", "dropout", "identity", "linear_recurrence", "max_pool", "pool",
    "sum_pool", "z_norm",
]
# fmt: on

T = TypeVar("T")


@overload
def identity(x: T, /) -> T: ...
@overload
def identity(*xs: Any) -> Any: ...
def identity(*xs: Any) -> Any:
    """Return the argument, or a tuple of the arguments if there are several or none.

    >>> identity(1), identity(1, 2)
    (1, (1, 2))
    """
    return xs[0] if len(xs) == 1 else xs


def dropout(x: jax.Array, rng: Key, rate: float, axis: Axes) -> jax.Array:
    """Set elements to zero with probability `rate` and divide the others by 1 - rate.

    Args:
        x: floating array.
        rng: PRNG key.
        rate: probability in [0, 1).
        axis: the axes along which the mask varies; it is shared along the others. All axes
            give ordinary dropout, the channel axis alone drops whole feature maps.

    Returns:
        An array of the shape and dtype of `x`. Dropped elements are 0, and so are their gradients,
        even where `x` is infinite or NaN; kept elements stay infinite or NaN.

    Raises:
        TypeError: `x` is not floating, or an argument is of the wrong type.
        ValueError: `rate` is outside [0, 1) or an axis outside `x`.

    Source: Srivastava et al., "Dropout: a simple way to prevent neural networks from
    overfitting", 2014; Tompson et al., "Efficient object localization using convolutional
    networks", 2015, for shared masks.
    """
    arguments.read_rate("dropout", "rate", rate)
    x = arguments.array("dropout", x)
    axes = arguments.canonical_axes("dropout", axis, x.ndim)
    arguments.require_castable("dropout", x, jnp.float32)
    keep = 1.0 - rate
    shape = tuple(length if i in axes else 1 for i, length in enumerate(x.shape))
    mask = jax.random.bernoulli(rng, keep, shape)
    return jnp.where(mask, x, 0) / jnp.asarray(keep, x.dtype)


def pool(
    x: jax.Array, init_value: ArrayLike, reduce_fn: Callable[[Any, Any], Any],
    window_shape: Sizes, strides: Sizes = 1, padding: Padding = "VALID",
    input_dilation: Sizes | None = None, window_dilation: Sizes | None = None,
    data_format: str = "channel_last",
) -> jax.Array:
    """Reduce every window of the spatial axes to one element.

    An integer applies to every spatial axis. Gradients are defined if `reduce_fn` is
    `jax.lax.add`, `jax.lax.max` or `jax.lax.min` with its identity as `init_value`.

    Args:
        x: one channel axis and n spatial axes.
        init_value: the initial value of each reduction, and the value of the padding. It should
            be the identity of `reduce_fn`: how often it enters a reduction is up to XLA.
        reduce_fn: associative function of two scalars, which works in the dtype of `x`: sums of
            short integers wrap.
        window_shape: window length, or one for each spatial axis.
        strides: distance between windows.
        padding: "VALID", "SAME", "SAME_LOWER", an integer, or for each spatial axis an
            integer or a pair (before, after).
        input_dilation: distance between neighbours of `x` after `init_value` is inserted
            between them. None means 1. "SAME" pads for the length that `x` has before.
        window_dilation: distance between neighbours within a window. None means 1.
        data_format: "channel_last", "channel_first", or a spec such as "HWCD".

    Returns:
        An array with the axes and dtype of `x`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: an argument has the wrong length, sign or name, or no window fits into `x`.

    Source: `jax.lax.reduce_window`.
    """
    arguments.read_function("pool", "reduce_fn", reduce_fn)
    if np.ndim(init_value) != 0 or isinstance(init_value, str):
        raise TypeError(message("pool", "init_value", "a number", repr(init_value)))
    windows = window_shape, strides, padding, input_dilation, window_dilation, data_format
    return _pool("pool", x, init_value, reduce_fn, *windows)


def max_pool(
    x: jax.Array, window_shape: Sizes, strides: Sizes = 1, padding: Padding = "VALID",
    input_dilation: Sizes | None = None, window_dilation: Sizes | None = None,
    data_format: str = "channel_last",
) -> jax.Array:
    """Return the largest element of every window, for floating and integer `x`.

    Padding counts as the smallest value of the dtype. Arguments, result and errors are the
    same as in `pool`.

    >>> import jax.numpy as jnp
    >>> max_pool(jnp.array([[1], [3], [2]]), 2)
    Array([[3],
           [3]], dtype=int32)
    """
    x = arguments.array("max_pool", x)
    lowest = -np.inf if jnp.issubdtype(x.dtype, jnp.inexact) else _smallest(x.dtype)
    windows = window_shape, strides, padding, input_dilation, window_dilation, data_format
    return _pool("max_pool", x, lowest, lax.max, *windows)


def sum_pool(
    x: jax.Array, window_shape: Sizes, strides: Sizes = 1, padding: Padding = "VALID",
    input_dilation: Sizes | None = None, window_dilation: Sizes | None = None,
    data_format: str = "channel_last",
) -> jax.Array:
    """Return the sum of every window; half precision is summed in float32.

    Arguments, result and errors are the same as in `pool`, but integers shorter than 32 bits give
    int32 or uint32, and booleans int32, as in `jax.numpy.sum`.

    >>> import jax.numpy as jnp
    >>> sum_pool(jnp.array([[100], [100]], jnp.int8), 2)
    Array([[200]], dtype=int32)
    """
    x = arguments.array("sum_pool", x)
    total = _sum_pool(
        "sum_pool", x, window_shape, strides, padding, input_dilation, window_dilation, data_format
    )
    return total.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else total


def avg_pool(
    x: jax.Array, window_shape: Sizes, strides: Sizes = 1, padding: Padding = "VALID",
    input_dilation: Sizes | None = None, window_dilation: Sizes | None = None,
    data_format: str = "channel_last",
) -> jax.Array:
    """Return the sum of every window divided by its size, padding included.

    Arguments and errors are the same as in `pool`. Integer `x` gives float32.
    """
    x = arguments.array("avg_pool", x)
    dtype = x.dtype if jnp.issubdtype(x.dtype, jnp.inexact) else jnp.float32
    x = x.astype(dtype)
    total = _sum_pool(
        "avg_pool", x, window_shape, strides, padding, input_dilation, window_dilation, data_format
    )
    size = math.prod(arguments.per_axis("avg_pool", "window_shape", window_shape, x.ndim - 1))
    return (total / size).astype(dtype)


def _smallest(dtype: np.dtype[Any]) -> int | bool:
    return False if dtype == jnp.bool_ else int(jnp.iinfo(dtype).min)


def _sum_pool(owner: str, x: jax.Array, *windows: Any) -> jax.Array:
    """Return the sums, in at least 32 bits. (See `_pool` for the windows.)"""
    if jnp.issubdtype(x.dtype, jnp.inexact):
        x = x.astype(wide_dtype(x.dtype))
    elif x.dtype.itemsize < 4:
        unsigned = jnp.issubdtype(x.dtype, jnp.unsignedinteger)
        x = x.astype(jnp.uint32 if unsigned else jnp.int32)
    return _pool(owner, x, 0, lax.add, *windows)


def _pool(
    owner: str, x: jax.Array, init_value: ArrayLike, reduce_fn: Callable[[Any, Any], Any],
    window_shape: Sizes, strides: Sizes, padding: Padding,
    input_dilation: Sizes | None, window_dilation: Sizes | None, data_format: str,
) -> jax.Array:
    channel = arguments.channel_axis(owner, data_format, x)
    rank = x.ndim - 1

    def with_channel(per_axis: tuple[T, ...], value: T) -> tuple[T, ...]:
        return (*per_axis[:channel], value, *per_axis[channel:])

    def sizes(name: str, value: Sizes | None) -> tuple[int, ...]:
        return with_channel(arguments.optional_per_axis(owner, name, value, rank), 1)

    pads = arguments.padding_per_axis(owner, padding, rank)
    result: jax.Array = lax.reduce_window(
        x, np.asarray(init_value, x.dtype), reduce_fn,
        sizes("window_shape", window_shape), sizes("strides", strides),
        pads if isinstance(pads, str) else with_channel(pads, (0, 0)),
        sizes("input_dilation", input_dilation), sizes("window_dilation", window_dilation),
    )
    arguments.require_output(owner, x, result)
    return result


def z_norm(
    x: jax.Array, axis: NormalizedAxis, batch_axis_name: AxisName = (), epsilon: float = 1e-05
) -> jax.Array:
    """Normalise to mean 0 and variance 1: y = (x - E[x]) / sqrt(Var[x] + epsilon).

    Args:
        x: array.
        axis: the axes that E and Var are taken over: an axis, a sequence of axes, "all"
            (layer normalisation), or "channel_last" or "channel_first" for all but the
            last or first axis (instance normalisation).
        batch_axis_name: name or names of mapped axes that E and Var are also taken over.
        epsilon: small positive number.

    Returns:
        An array of the shape of `x`, and of its dtype if that is floating, else float32.
        The statistics are computed in float32 or better; Var is the population variance. Without
        `batch_axis_name`, squares of `x` may be larger or smaller than the dtype can hold.

    Raises:
        TypeError: an argument is of the wrong type, or `x` is complex.
        ValueError: `axis` is an unknown string or outside `x`, or selects no element.

    Warns:
        UserWarning: E and Var are taken over a single element, so that y is 0 whatever `x` is.

    Source: Ba et al., "Layer normalization", 2016; Ulyanov et al., "Instance
    normalization", 2016; Ioffe and Szegedy, "Batch normalization", 2015.
    """
    arguments.read_epsilon("z_norm", "epsilon", epsilon)
    x = arguments.array("z_norm", x)
    axes = arguments.normalized_axes("z_norm", axis, x.ndim)
    if batch_axis_name == ():
        warn_of_one_element("z_norm", elements(x, axes), MAP_A_BATCH)
        y = standardized("z_norm", x, axes, epsilon)
        return y.astype(x.dtype) if jnp.issubdtype(x.dtype, jnp.inexact) else y
    require_statistics("z_norm", x, axes, batch_axis_name)
    centred, _, variance = statistics("z_norm", x, axes, batch_axis_name)
    return scale_to_unit(centred, variance, axes, epsilon, x.dtype)


def batch_mean(x: jax.Array, batch_axis_name: AxisName) -> jax.Array:
    """Return the mean of x over the batch axes, those of `jax.vmap` and of `jax.shard_map`.

    The same as `jax.lax.pmean`, which fails under `jax.vmap` over an axis that is sharded over
    explicit mesh axes.

    Args:
        x: one example.
        batch_axis_name: the name or names of the batch axes; x itself is returned if there is none.

    >>> import jax, jax.numpy as jnp
    >>> from mlax.functional import batch_mean
    >>> jax.vmap(lambda x: x - batch_mean(x, "batch"), axis_name="batch")(jnp.arange(3.0))
    Array([-1.,  0.,  1.], dtype=float32)
    """
    return mesh.batch_mean("batch_mean", x, batch_axis_name)


def scale_to_unit(
    centred: jax.Array, variance: jax.Array, axes: tuple[int, ...], epsilon: float,
    dtype: np.dtype[Any],
) -> jax.Array:
    """Return centred / sqrt(variance + epsilon), in `dtype` if that is floating.

    The variance lacks `axes`.
    """
    y = centred * lax.rsqrt(jnp.expand_dims(variance, axes) + epsilon)
    return y.astype(dtype) if jnp.issubdtype(dtype, jnp.inexact) else y


def dot_product_attention_logits(query: jax.Array, key: jax.Array) -> jax.Array:
    """Return query @ key^T / sqrt(depth), in the dtype of the arguments.

    For integers, sqrt(depth) is rounded down and the quotient towards zero, as in integer division;
    the products are summed in 32 bits.

    Args:
        query: (query_length, depth).
        key: (key_value_length, depth), of the same dtype.

    Returns:
        (query_length, key_value_length), before the softmax.

    Source: Vaswani et al., "Attention is all you need", 2017.
    """
    _require_matrices("dot_product_attention_logits", query=query, key=key)
    if query.shape[1] != key.shape[1]:
        got = f"shapes {query.shape} and {key.shape}"
        owner = "dot_product_attention_logits"
        raise ValueError(expected(owner, "query and key of one depth", got))
    scale = math.sqrt(query.shape[1])
    if not jnp.issubdtype(query.dtype, jnp.integer):
        return jnp.einsum("qd,kd->qk", query / jnp.asarray(scale, query.dtype), key)
    wide = query.dtype if query.dtype.itemsize >= 4 else jnp.dtype(jnp.int32)
    accumulated = jnp.einsum("qd,kd->qk", query, key, preferred_element_type=wide)
    return lax.div(accumulated, jnp.asarray(max(int(scale), 1), wide)).astype(query.dtype)


def apply_attention_weights(attention_weights: jax.Array, value: jax.Array) -> jax.Array:
    """Return attention_weights @ value.

    Args:
        attention_weights: (query_length, key_value_length).
        value: (key_value_length, value_depth), of the same dtype.

    Returns:
        (query_length, value_depth).

    Source: Vaswani et al., "Attention is all you need", 2017.
    """
    _require_matrices("apply_attention_weights", attention_weights=attention_weights, value=value)
    if attention_weights.shape[1] != value.shape[0]:
        got = f"shapes {attention_weights.shape} and {value.shape}"
        what = "as many weights in a row as values"
        raise ValueError(expected("apply_attention_weights", what, got))
    return jnp.einsum("qk,kv->qv", attention_weights, value)


def _require_matrices(owner: str, **arrays: jax.Array) -> None:
    for name, array in arrays.items():
        if array.ndim != 2:
            way_out = "map other axes, such as heads or a batch, with jax.vmap"
            got = f"shape {array.shape}"
            raise ValueError(expected(owner, f"{name} with 2 axes", got, way_out))
    first, second = arrays.values()
    if first.dtype != second.dtype:
        got = f"{first.dtype.name} and {second.dtype.name}"
        raise TypeError(expected(owner, f"{' and '.join(arrays)} of one dtype", got))
