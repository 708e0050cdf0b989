"""Convolution over n spatial axes of one example.

    x       one channel axis and n spatial axes
    kernel  (out, spatial..., in / groups) for channel_last, (out, in / groups, spatial...)
            for channel_first, or as the kernel spec says
    y       as x, with out_channels channels, unless its spec orders the axes differently
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from mlax import arguments
from mlax.arguments import Padding, Shaped, Sizes
from mlax.initializers import Initializer, glorot_uniform, initialize
from mlax.pair import AxisName, Key, State, layer


class ConvParams(NamedTuple):
    """Parameters of `conv`."""

    kernel: jax.Array
    """In the layout of the kernel spec."""


class ConvConfig(NamedTuple):
    """Configuration of `conv`, with one entry for each spatial axis."""

    strides: tuple[int, ...]
    """Distance between windows."""
    padding: str | tuple[tuple[int, int], ...]
    """Name of the padding, or (before, after)."""
    input_dilation: tuple[int, ...]
    """Distance between neighbours of x."""
    filter_dilation: tuple[int, ...]
    """Distance between neighbours of the kernel."""
    feature_group_count: int
    """Number of groups that channels are split in."""
    batch_group_count: int
    """Number of groups that the batch is split in."""
    specs: tuple[str, str, str]
    """Axes of x, kernel and y, one letter each."""
    precision: lax.PrecisionLike
    """Precision of the products."""
    accum_dtype: DTypeLike | None
    """Dtype of the sums and of the result."""


def apply(
    params: ConvParams,
    state: State[tuple[()], ConvConfig],
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, State[tuple[()], ConvConfig]]:
    """Return x convolved with the kernel: see `mlax.Apply` and `mlax.conv`."""
    config = arguments.config_of("conv", state, ConvConfig)
    arguments.require_params("conv", params, ConvParams)
    x = arguments.array("conv", x)
    x_spec, kernel_spec, y_spec = config.specs
    arguments.require_axes("conv", "params.kernel", params.kernel, len(kernel_spec))
    in_channels = params.kernel.shape[kernel_spec.index("I")] * config.feature_group_count
    if x.ndim != len(x_spec) or x.shape[x_spec.index("C")] != in_channels:
        raise ValueError(
            f"conv: expected x with {len(x_spec) - 1} spatial axes and {in_channels} channels, as "
            f"the kernel has, in axis {x_spec.index('C')}, got shape {x.shape}; "
            "map a batch axis with jax.vmap"
        )
    arguments.require_castable("conv", x, params.kernel.dtype)
    y: jax.Array = lax.conv_general_dilated(
        jnp.expand_dims(x, 0),
        params.kernel.astype(x.dtype),
        config.strides,
        config.padding,
        config.input_dilation,
        config.filter_dilation,
        ("N" + x_spec, kernel_spec, "N" + y_spec),
        config.feature_group_count,
        config.batch_group_count,
        config.precision,
        config.accum_dtype,
    )
    arguments.require_output("conv", x, y)
    return jnp.squeeze(y, 0), state


@layer(
    apply,
    checks={
        "out_channels": arguments.check_size,
        "filter_shape": arguments.check_sizes,
        "strides": arguments.check_sizes,
        "padding": arguments.check_padding,
        "input_dilation": arguments.check_dilation,
        "filter_dilation": arguments.check_dilation,
        "feature_group_count": arguments.check_size,
        "batch_group_count": arguments.check_size,
        "data_format": arguments.check_conv_format,
        "precision": arguments.check_precision,
        "accum_dtype": arguments.check_optional_dtype,
        "kernel_initializer": arguments.check_callable,
        "dtype": arguments.check_dtype,
    },
)
def conv(
    rng: Key,
    x: Shaped,
    out_channels: int,
    filter_shape: Sizes,
    strides: Sizes = 1,
    padding: Padding = "VALID",
    input_dilation: Sizes | None = None,
    filter_dilation: Sizes | None = None,
    feature_group_count: int = 1,
    batch_group_count: int = 1,
    data_format: str | tuple[str, str, str] = "channel_last",
    precision: lax.PrecisionLike = None,
    accum_dtype: DTypeLike | None = None,
    kernel_initializer: Initializer = glorot_uniform,
    dtype: DTypeLike = jnp.float32,
) -> tuple[ConvParams, State[tuple[()], ConvConfig]]:
    """Convolution over the spatial axes of one example, without bias.

    An integer stands for every spatial axis; a sequence has one entry for each, in the
    order of the kernel, which is that of x unless the specs say otherwise.

    Args:
        out_channels: number of channels of y.
        filter_shape: lengths of the window.
        strides: distances between windows.
        padding: "VALID", "SAME", "SAME_LOWER", an integer, or for each spatial axis an
            integer or a pair (before, after).
        input_dilation: distances between neighbours of x after zeros are put in between.
            None is 1.
        filter_dilation: distances between neighbours of the kernel, likewise.
        feature_group_count: number of groups of channels; each output channel sees the
            input channels of its own group.
        batch_group_count: number of groups of the batch. One example has one.
        data_format: "channel_last", "channel_first", or the specs of x, kernel and y
            without the batch axis, as ("HWC", "HWIO", "HWC").
        precision: of the products: one `jax.lax.Precision` or a pair, for x and the kernel.
        accum_dtype: dtype of the sums, and so of y; None is that of x.
        kernel_initializer: called with shape (spatial..., in_channels /
            feature_group_count, out_channels); what it returns is transposed to the layout
            of the kernel.
        dtype: dtype of the kernel. It is cast to that of x when it is used.

    Raises:
        TypeError: an argument is of the wrong type, or x is not floating and the kernel is.
        ValueError: an argument has the wrong length, sign or name, the groups do not
            divide the channels, or no window fits into x.

    Source: `jax.lax.conv_general_dilated`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> image = jnp.ones((8, 8, 3))
    >>> params, state = mlax.conv.init(jax.random.key(0), image, out_channels=4, filter_shape=3)
    >>> y, state = mlax.conv.apply(params, state, image)
    >>> params.kernel.shape, y.shape
    ((4, 3, 3, 3), (6, 6, 4))
    """
    arguments.require_castable("conv", x, dtype)
    arguments.require_rank("conv", x, 2)
    rank = len(x.shape) - 1
    x_spec, kernel_spec, y_spec = specs = _specs(data_format, rank)
    if len(x_spec) != len(x.shape):
        wanted = f"specs of {len(x.shape)} axes, as x of shape {x.shape} has"
        raise ValueError(arguments.message("conv", "data_format", wanted, repr(data_format)))
    in_channels = x.shape[x_spec.index("C")]
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if channels % feature_group_count:
            wanted = f"a divisor of {name} ({channels})"
            raise ValueError(
                arguments.message("conv", "feature_group_count", wanted, feature_group_count)
            )
    if batch_group_count != 1:
        way_out = "a layer takes one example, which cannot be split"
        raise ValueError(
            arguments.message("conv", "batch_group_count", "1", batch_group_count, way_out)
        )
    window = arguments.per_axis("conv", "filter_shape", filter_shape, rank)
    input_dilation = arguments.optional_per_axis("conv", "input_dilation", input_dilation, rank)
    config = ConvConfig(
        arguments.per_axis("conv", "strides", strides, rank),
        _padding(padding, input_dilation),
        input_dilation,
        arguments.optional_per_axis("conv", "filter_dilation", filter_dilation, rank),
        feature_group_count,
        batch_group_count,
        specs,
        precision,
        arguments.optional_dtype(accum_dtype),
    )
    kernel = initialize(
        "conv",
        "kernel_initializer",
        kernel_initializer,
        rng,
        (*window, in_channels // feature_group_count, out_channels),
        dtype,
    )
    initial_spec = kernel_spec.replace("O", "").replace("I", "") + "IO"
    return ConvParams(kernel.transpose(*map(initial_spec.index, kernel_spec))), State((), config)


def _padding(
    padding: Padding, input_dilation: tuple[int, ...]
) -> str | tuple[tuple[int, int], ...]:
    """Return the padding for `jax.lax.conv_general_dilated`, which refuses some of its names."""
    rank = len(input_dilation)
    pads = arguments.padding_per_axis("conv", padding, rank)
    if pads == "VALID":
        return ((0, 0),) * rank
    if isinstance(pads, str) and max(input_dilation) > 1:
        wanted = "VALID or integers where input_dilation is more than 1"
        raise ValueError(arguments.message("conv", "padding", wanted, repr(padding)))
    return pads


def _specs(data_format: str | Sequence[str], rank: int) -> tuple[str, str, str]:
    """Return the axes of x, kernel and y; those of space are named by characters from "0" on."""
    spatial = "".join(chr(ord("0") + axis) for axis in range(rank))
    if data_format == "channel_last":
        return spatial + "C", "O" + spatial + "I", spatial + "C"
    if data_format == "channel_first":
        return "C" + spatial, "OI" + spatial, "C" + spatial
    return data_format[0], data_format[1], data_format[2]
