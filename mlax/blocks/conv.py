"""Convolutions made of `mlax.conv`: transposed, depthwise and separable.

The layouts of x, kernel and y are those of `mlax.conv`; like it, none has a bias.
"""

from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from mlax import arguments
from mlax.arguments import Padding, Sizes
from mlax.combinators.composed import composed
from mlax.combinators.series import series
from mlax.initializers import Initializer, glorot_uniform
from mlax.layers.conv import ConvParams, conv
from mlax.pair import Check, Key, Layer

DataFormat: TypeAlias = str | tuple[str, str, str]

CHECKS: dict[str, Check] = {
    "out_channels": arguments.check_size,
    "filter_shape": arguments.check_sizes,
    "channel_multiplier": arguments.check_size,
    "strides": arguments.check_sizes,
    "padding": arguments.check_padding,
    "filter_dilation": arguments.check_dilation,
    "data_format": arguments.check_conv_format,
    "precision": arguments.check_precision,
    "accum_dtype": arguments.check_optional_dtype,
    "kernel_initializer": arguments.check_callable,
    "depthwise_initializer": arguments.check_callable,
    "pointwise_initializer": arguments.check_callable,
    "dtype": arguments.check_dtype,
}


def lecun_uniform(key: Key, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Draw from U(-a, a) with a = sqrt(3 / fan_in).

    For a depthwise kernel of shape (spatial..., 1, channels): outputs keep the variance of
    the inputs, while the fan_out of Glorot's rule would count the channels that an input
    does not reach. Source: LeCun et al., "Efficient backprop", 1998.
    """
    return _lecun_uniform(key, shape, dtype)


_lecun_uniform = jax.nn.initializers.lecun_uniform()


def _check_transposed_padding(owner: str, name: str, value: object) -> None:
    arguments.check_padding(owner, name, value)
    if isinstance(value, str) and value.upper() not in ("VALID", "SAME"):
        raise ValueError(arguments.message(owner, name, "VALID, SAME, or integers", repr(value)))


@composed(checks={**CHECKS, "padding": _check_transposed_padding})
def conv_transpose(
    x: jax.Array | jax.ShapeDtypeStruct,
    out_channels: int,
    filter_shape: Sizes,
    strides: Sizes = 1,
    padding: Padding = "VALID",
    filter_dilation: Sizes | None = None,
    data_format: DataFormat = "channel_last",
    precision: lax.PrecisionLike = None,
    accum_dtype: DTypeLike | None = None,
    kernel_initializer: Initializer = glorot_uniform,
    dtype: DTypeLike = jnp.float32,
) -> Layer[ConvParams, Any, jax.Array, jax.Array]:
    """Transposed convolution: the convolution of x with strides - 1 zeros put in between.

    The numbers are those of `jax.lax.conv_transpose(..., transpose_kernel=False)`. The
    kernel of `torch.nn.ConvTranspose2d`, (in, out, h, w), has its spatial axes flipped:
    kernel = weight[:, :, ::-1, ::-1].transpose(1, 2, 3, 0) for channel_last, and
    .transpose(1, 0, 2, 3) for channel_first. Its padding p is here
    filter_dilation * (filter_shape - 1) - p, and its output_padding is added to the second
    number of the pair.

    Args:
        out_channels: number of channels of y.
        filter_shape: lengths of the window.
        strides: how many times longer y is than x.
        padding: "VALID" for all positions where window and x meet, "SAME" for y of
            length strides * x, or, of x with the zeros in between, an integer, or for each
            spatial axis an integer or a pair (before, after).
        filter_dilation: distances between neighbours of the kernel. None is 1.
        data_format: as in `mlax.conv`.
        precision: as in `mlax.conv`.
        accum_dtype: dtype of the sums, and so of y; None is that of x.
        kernel_initializer: called with shape (spatial..., in_channels, out_channels).
        dtype: dtype of the kernel. It is cast to that of x when it is used.

    Raises:
        TypeError: an argument is of the wrong type, or x is not floating and the kernel is.
        ValueError: an argument has the wrong length, sign or name.

    Source: Zeiler et al., "Deconvolutional networks", 2010; `jax.lax.conv_transpose`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> image = jnp.ones((8, 8, 3))
    >>> params, state = mlax.conv_transpose.init(jax.random.key(0), image, 4, 2, strides=2)
    >>> params.kernel.shape, mlax.conv_transpose.apply(params, state, image)[0].shape
    ((4, 2, 2, 3), (16, 16, 4))
    """
    arguments.require_rank("conv_transpose", x, 2)
    rank = len(x.shape) - 1
    steps = arguments.per_axis("conv_transpose", "strides", strides, rank)
    window = arguments.per_axis("conv_transpose", "filter_shape", filter_shape, rank)
    dilation = arguments.optional_per_axis(
        "conv_transpose", "filter_dilation", filter_dilation, rank
    )
    if isinstance(padding, str):
        spans = ((length - 1) * gap + 1 for length, gap in zip(window, dilation, strict=True))
        padding = tuple(
            _transposed_pads(span, step, padding.upper())
            for span, step in zip(spans, steps, strict=True)
        )
    return conv(
        out_channels,
        window,
        1,
        padding,
        steps,
        dilation,
        data_format=data_format,
        precision=precision,
        accum_dtype=accum_dtype,
        kernel_initializer=kernel_initializer,
        dtype=dtype,
    )


def _transposed_pads(span: int, step: int, padding: str) -> tuple[int, int]:
    """Return what `jax.lax.conv_transpose` pads for a window of that span."""
    if padding == "VALID":
        return span - 1, max(span, step) - 1
    total = span + step - 2
    before = span - 1 if step > span - 1 else -(-total // 2)
    return before, total - before


@composed(checks=CHECKS)
def depthwise_conv(
    x: jax.Array | jax.ShapeDtypeStruct,
    filter_shape: Sizes,
    channel_multiplier: int = 1,
    strides: Sizes = 1,
    padding: Padding = "VALID",
    filter_dilation: Sizes | None = None,
    data_format: DataFormat = "channel_last",
    precision: lax.PrecisionLike = None,
    accum_dtype: DTypeLike | None = None,
    kernel_initializer: Initializer = lecun_uniform,
    dtype: DTypeLike = jnp.float32,
) -> Layer[ConvParams, Any, jax.Array, jax.Array]:
    """Depthwise convolution: each channel of x with kernels of its own.

    Channel c of x makes the channels c * channel_multiplier, ... of y, as a convolution of
    as many groups as x has channels does.

    Args:
        filter_shape: lengths of the window.
        channel_multiplier: number of channels of y for each channel of x.
        strides: distances between windows.
        padding: as in `mlax.conv`.
        filter_dilation: distances between neighbours of the kernel. None is 1.
        data_format: as in `mlax.conv`.
        precision: as in `mlax.conv`.
        accum_dtype: dtype of the sums, and so of y; None is that of x.
        kernel_initializer: called with shape (spatial..., 1, in_channels *
            channel_multiplier).
        dtype: dtype of the kernel. It is cast to that of x when it is used.

    Raises:
        TypeError: an argument is of the wrong type, or x is not floating and the kernel is.
        ValueError: an argument has the wrong length, sign or name.

    Source: Chollet, "Xception", 2017.

    >>> import jax, jax.numpy as jnp, mlax
    >>> image = jnp.ones((8, 8, 3))
    >>> params, state = mlax.depthwise_conv.init(jax.random.key(0), image, 3)
    >>> params.kernel.shape, mlax.depthwise_conv.apply(params, state, image)[0].shape
    ((3, 3, 3, 1), (6, 6, 3))
    """
    channels = _channels("depthwise_conv", x, data_format)
    return conv(
        channels * channel_multiplier,
        filter_shape,
        strides,
        padding,
        None,
        filter_dilation,
        channels,
        data_format=data_format,
        precision=precision,
        accum_dtype=accum_dtype,
        kernel_initializer=kernel_initializer,
        dtype=dtype,
    )


def _channels(owner: str, x: jax.Array | jax.ShapeDtypeStruct, data_format: DataFormat) -> int:
    """Return the number of channels of x."""
    arguments.require_rank(owner, x, 2)
    x_format = data_format if isinstance(data_format, str) else data_format[0]
    return int(x.shape[arguments.channel_axis(owner, x_format, x)])


@composed(checks=CHECKS)
def separable_conv(
    x: jax.Array | jax.ShapeDtypeStruct,
    out_channels: int,
    filter_shape: Sizes,
    channel_multiplier: int = 1,
    strides: Sizes = 1,
    padding: Padding = "VALID",
    filter_dilation: Sizes | None = None,
    data_format: DataFormat = "channel_last",
    precision: lax.PrecisionLike = None,
    accum_dtype: DTypeLike | None = None,
    depthwise_initializer: Initializer = lecun_uniform,
    pointwise_initializer: Initializer = glorot_uniform,
    dtype: DTypeLike = jnp.float32,
) -> Layer[dict[str, Any], Any, jax.Array, jax.Array]:
    """Separable convolution: a depthwise one, then one with a window of length 1.

    It is series(depthwise=depthwise_conv(...), pointwise=conv(out_channels, 1)), and its
    params are a dict accordingly.

    Args:
        out_channels: number of channels of y.
        filter_shape: lengths of the window of the depthwise convolution.
        channel_multiplier: number of channels in between for each channel of x.
        strides: distances between windows.
        padding: as in `mlax.conv`.
        filter_dilation: distances between neighbours of the kernel. None is 1.
        data_format: as in `mlax.conv`.
        precision: as in `mlax.conv`.
        accum_dtype: dtype of the sums, and so of y; None is that of x.
        depthwise_initializer: called with shape (spatial..., 1, in_channels *
            channel_multiplier).
        pointwise_initializer: called with shape (1..., in_channels * channel_multiplier,
            out_channels).
        dtype: dtype of the kernels. They are cast to that of x when they are used.

    Raises:
        TypeError: an argument is of the wrong type, or x is not floating and a kernel is.
        ValueError: an argument has the wrong length, sign or name.

    Source: Chollet, "Xception", 2017.

    >>> import jax, jax.numpy as jnp, mlax
    >>> image = jnp.ones((8, 8, 3))
    >>> params, state = mlax.separable_conv.init(jax.random.key(0), image, 4, 3)
    >>> params["depthwise"].kernel.shape, params["pointwise"].kernel.shape
    ((3, 3, 3, 1), (4, 1, 1, 3))
    """
    pointwise_format = data_format
    if not isinstance(data_format, str):
        _, kernel_spec, y_spec = data_format
        pointwise_format = y_spec, kernel_spec, y_spec
    return series(
        depthwise=depthwise_conv(
            filter_shape,
            channel_multiplier,
            strides,
            padding,
            filter_dilation,
            data_format,
            precision,
            accum_dtype,
            depthwise_initializer,
            dtype,
        ),
        pointwise=conv(
            out_channels,
            1,
            data_format=pointwise_format,
            precision=precision,
            accum_dtype=accum_dtype,
            kernel_initializer=pointwise_initializer,
            dtype=dtype,
        ),
    )
