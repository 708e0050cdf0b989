"""Convolutions made of `mlax.conv`: transposed, depthwise and separable.

x, kernel and y are laid out as in `mlax.conv`, and there is no bias.
"""

import functools
from typing import Annotated, Any, TypeAlias

import jax
import jax.numpy as jnp

from mlax import arguments
from mlax.arguments import DType, Padding, Precision, Rule, Sharding, Size, Sizes, read_padding
from mlax.combinators.composed import composed
from mlax.combinators.series import series
from mlax.combinators.types import DictState
from mlax.initializers import Initializer, lecun_normal
from mlax.layer import Layer, Shaped, State
from mlax.layers.conv import ConvFormat, ConvPadding, ConvParams, conv

TransposedPadding: TypeAlias = Annotated[
    Padding, Rule(functools.partial(read_padding, names=("VALID", "SAME")))
]
"""The name of a padding, an integer, or an integer or a pair for each spatial axis."""


@composed()
def conv_transpose(
    x: Shaped, out_channels: Size, *,
    filter_shape: Sizes, strides: Sizes = 1, padding: TransposedPadding = "VALID",
    filter_dilation: Sizes | None = None, data_format: ConvFormat = "channel_last",
    precision: Precision = None, accum_dtype: DType | None = None,
    kernel_initializer: Initializer = lecun_normal, dtype: DType = jnp.float32,
    out_sharding: Sharding | None = None,
) -> Layer[ConvParams, State[tuple[()], Any], jax.Array, jax.Array]:
    """Transposed convolution: convolution of x with strides - 1 zeros between its elements.

    Computes the same as `jax.lax.conv_transpose(..., transpose_kernel=False)`. The kernel of
    `torch.nn.ConvTranspose2d`, (in, out, h, w), has its spatial axes flipped:
    kernel = weight[:, :, ::-1, ::-1].transpose(1, 2, 3, 0) for channel_last, and
    .transpose(1, 0, 2, 3) for channel_first. Its padding p corresponds to
    filter_dilation * (filter_shape - 1) - p here, and its output_padding is added to the
    second number of the pair.

    Args:
        out_channels: number of channels of y.
        filter_shape: lengths of the window.
        strides: how many times longer y is than x.
        padding: "VALID" for all positions where the window overlaps x, "SAME" for y of length
            strides * x, or the padding of x with the zeros inserted: an integer, or for each
            spatial axis an integer or a pair (before, after).
        kernel_initializer: called with shape (spatial..., in_channels, out_channels).
        filter_dilation, data_format, precision, accum_dtype, dtype, out_sharding: as in
            `mlax.conv`.

    Raises what `mlax.conv` raises.

    Source: Zeiler et al., "Deconvolutional networks", 2010; `jax.lax.conv_transpose`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> image = jnp.ones((8, 8, 3))
    >>> init, apply = mlax.conv_transpose(4, filter_shape=2, strides=2)
    >>> params, state = init(jax.random.key(0), image)
    >>> params.kernel.shape, apply(params, state, image)[0].shape
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
        out_channels, window, 1, padding, steps, dilation, 1, 1,
        data_format, precision, accum_dtype, kernel_initializer, dtype, out_sharding=out_sharding,
    )


def _transposed_pads(span: int, step: int, padding: str) -> tuple[int, int]:
    """Return the padding of `jax.lax.conv_transpose` for a window of this span."""
    if padding == "VALID":
        return span - 1, max(span, step) - 1
    total = span + step - 2
    before = span - 1 if step > span - 1 else -(-total // 2)
    return before, total - before


@composed()
def depthwise_conv(
    x: Shaped, filter_shape: Sizes, *,
    channel_multiplier: Size = 1, strides: Sizes = 1, padding: ConvPadding = "VALID",
    filter_dilation: Sizes | None = None, data_format: ConvFormat = "channel_last",
    precision: Precision = None, accum_dtype: DType | None = None,
    kernel_initializer: Initializer = lecun_normal, dtype: DType = jnp.float32,
) -> Layer[ConvParams, State[tuple[()], Any], jax.Array, jax.Array]:
    """Depthwise convolution: each channel of x has its own kernels.

    Channel c of x gives channels c * channel_multiplier, ... of y, as in a convolution with one
    group for each channel of x.

    Args:
        filter_shape: lengths of the window.
        channel_multiplier: number of channels of y for each channel of x.
        kernel_initializer: called with shape (spatial..., 1, in_channels * channel_multiplier).
        strides, padding, filter_dilation, data_format, precision, accum_dtype, dtype: as in
            `mlax.conv`.

    Raises what `mlax.conv` raises.

    Source: Chollet, "Xception", 2017.

    >>> import jax, jax.numpy as jnp, mlax
    >>> image = jnp.ones((8, 8, 3))
    >>> params, state = mlax.depthwise_conv(3).init(jax.random.key(0), image)
    >>> params.kernel.shape, mlax.depthwise_conv.apply(params, state, image)[0].shape
    ((3, 3, 3, 1), (6, 6, 3))
    """
    arguments.require_rank("depthwise_conv", x, 2)
    x_format = data_format if isinstance(data_format, str) else data_format[0]
    channels = int(x.shape[arguments.channel_axis("depthwise_conv", x_format, x)])
    return conv(
        channels * channel_multiplier, filter_shape, strides, padding, None, filter_dilation,
        channels, 1, data_format, precision, accum_dtype, kernel_initializer, dtype,
    )


@composed()
def separable_conv(
    x: Shaped, out_channels: Size, *,
    filter_shape: Sizes, channel_multiplier: Size = 1, strides: Sizes = 1,
    padding: ConvPadding = "VALID", filter_dilation: Sizes | None = None,
    data_format: ConvFormat = "channel_last", precision: Precision = None,
    accum_dtype: DType | None = None, depthwise_initializer: Initializer = lecun_normal,
    pointwise_initializer: Initializer = lecun_normal, dtype: DType = jnp.float32,
) -> Layer[dict[str, Any], DictState, jax.Array, jax.Array]:
    """Separable convolution: depthwise, followed by pointwise (a window of length 1).

    The same as series(depthwise=depthwise_conv(...), pointwise=conv(out_channels, 1));
    its params are a dict with these names.

    Args:
        out_channels: number of channels of y.
        filter_shape: lengths of the window of the depthwise convolution.
        channel_multiplier: number of intermediate channels for each channel of x.
        depthwise_initializer: called with shape (spatial..., 1, in_channels * channel_multiplier).
        pointwise_initializer: called with shape (1..., in_channels * channel_multiplier,
            out_channels).
        strides, padding, filter_dilation, data_format, precision, accum_dtype, dtype: as in
            `mlax.conv`.

    Raises what `mlax.conv` raises.

    Source: Chollet, "Xception", 2017.

    >>> import jax, jax.numpy as jnp, mlax
    >>> image = jnp.ones((8, 8, 3))
    >>> params, state = mlax.separable_conv(4, filter_shape=3).init(jax.random.key(0), image)
    >>> params["depthwise"].kernel.shape, params["pointwise"].kernel.shape
    ((3, 3, 3, 1), (4, 1, 1, 3))
    """
    pointwise_format = data_format
    if not isinstance(data_format, str):
        _, kernel_spec, y_spec = data_format
        pointwise_format = y_spec, kernel_spec, y_spec
    return series(
        depthwise=depthwise_conv(
            filter_shape, channel_multiplier=channel_multiplier, strides=strides, padding=padding,
            filter_dilation=filter_dilation, data_format=data_format, precision=precision,
            accum_dtype=accum_dtype, kernel_initializer=depthwise_initializer, dtype=dtype,
        ),
        pointwise=conv(
            out_channels, 1, data_format=pointwise_format, precision=precision,
            accum_dtype=accum_dtype, kernel_initializer=pointwise_initializer, dtype=dtype,
        ),
    )
