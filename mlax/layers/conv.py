"""Convolution over n spatial axes of one example.

    x       one channel axis and n spatial axes
    kernel  (out, spatial..., in / groups) for channel_last, (out, in / groups, spatial...)
            for channel_first, or as the kernel spec says
    y       like x, with out_channels channels, unless its spec orders the axes differently
"""

import functools
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from mlax import arguments, mesh
from mlax.arguments import (
    CHANNEL_AXES, PADDINGS, DType, Padding, Precision, Rule, Sharding, Size, Sizes, is_sequence,
    optional_per_axis, padding_per_axis, per_axis, read_padding,
)
from mlax.errors import expected, message
from mlax.initializers import Initializer, initialize, lecun_normal
from mlax.layer import Key, Shaped
from mlax.layers.grouped import Convolve, Geometry, with_derivative_by_taps
from mlax.pair import stateless
from mlax.serialization import serializable


def read_conv_format(owner: str, name: str, value: Any) -> str | tuple[str, str, str]:
    """Require "channel_last", "channel_first", or specs of x, kernel and y."""
    specs = 'three specs without N, such as ("HWC", "HWIO", "HWC")'
    wanted = f'"channel_last", "channel_first", or {specs}'
    if isinstance(value, str):
        if value not in CHANNEL_AXES:
            raise ValueError(message(owner, name, wanted, repr(value)))
        return value
    if not is_sequence(value) or len(value) != 3 or not all(isinstance(s, str) for s in value):
        raise TypeError(message(owner, name, wanted, repr(value)))
    spatial = set(value[0]) - {"C"}
    letters = (spatial | {"C"}, spatial | {"I", "O"}, spatial | {"C"})
    for spec, allowed in zip(value, letters, strict=True):
        if "N" in spec or set(spec) != allowed or len(spec) != len(allowed):
            raise ValueError(message(owner, name, wanted, repr(value)))
    x_spec, kernel_spec, y_spec = value
    return x_spec, kernel_spec, y_spec


ConvFormat: TypeAlias = Annotated[
    Literal["channel_last", "channel_first"] | tuple[str, str, str], Rule(read_conv_format)
]
"""Where the channel axis is, or the specs of x, kernel and y, one letter for each axis."""


ConvPadding: TypeAlias = Annotated[
    Padding, Rule(functools.partial(read_padding, names=(*PADDINGS, "CAUSAL")))
]
"""The name of a padding, an integer, or an integer or a pair for each spatial axis."""


@serializable
class ConvParams(NamedTuple):
    """Parameters of `conv`."""

    kernel: jax.Array
    """In the layout of the kernel spec."""


class ConvConfig(NamedTuple):
    """Configuration of `conv`: its hyperparameters, as passed."""

    strides: int | tuple[int, ...]
    """Distance between windows."""
    padding: str | int | tuple[int | tuple[int, int], ...]
    """Name of the padding, or its widths."""
    input_dilation: int | tuple[int, ...] | None
    """Distance between neighbours of x."""
    filter_dilation: int | tuple[int, ...] | None
    """Distance between neighbours of the kernel."""
    feature_group_count: int
    """Number of groups that the channels are split into."""
    data_format: str | tuple[str, str, str]
    """Where the channel axis is, or the specs of x, kernel and y."""
    precision: lax.PrecisionLike
    """Precision of the products."""
    accum_dtype: DTypeLike | None
    """Dtype of the sums and of the result."""
    out_sharding: PartitionSpec | None
    """Sharding of y over explicit mesh axes."""


def apply(params: ConvParams, config: ConvConfig, x: jax.Array) -> jax.Array:
    """Return x convolved with the kernel: see `mlax.conv`."""
    x = arguments.array("conv", x)
    rank = params.kernel.ndim - 2
    x_spec, kernel_spec, y_spec = specs_of(config.data_format, rank)
    arguments.require_axes("conv", "params.kernel", params.kernel, len(kernel_spec))
    in_channels = params.kernel.shape[kernel_spec.index("I")] * config.feature_group_count
    if x.ndim != len(x_spec) or x.shape[x_spec.index("C")] != in_channels:
        channels = f"{in_channels} channels, as the kernel has, in axis {x_spec.index('C')}"
        what = f"x with {len(x_spec) - 1} spatial axes and {channels}"
        way_out = "map a batch axis with mlax.batched or jax.vmap"
        raise ValueError(expected("conv", what, f"shape {x.shape}", way_out))
    arguments.require_castable("conv", x, params.kernel.dtype)
    strides = per_axis("conv", "strides", config.strides, rank)
    input_dilation = optional_per_axis("conv", "input_dilation", config.input_dilation, rank)
    filter_dilation = optional_per_axis("conv", "filter_dilation", config.filter_dilation, rank)
    window = [n for n, axis in zip(params.kernel.shape, kernel_spec) if axis not in "OI"]
    padding = _padding(config.padding, window, input_dilation, filter_dilation)
    sharding = _sharding(config.out_sharding, x, params.kernel, x_spec, kernel_spec, y_spec)

    def convolve(x: jax.Array, kernel: jax.Array) -> jax.Array:
        y: jax.Array = lax.conv_general_dilated(
            x, kernel, strides, padding, input_dilation, filter_dilation,
            ("N" + x_spec, kernel_spec, "N" + y_spec), config.feature_group_count,
            precision=config.precision, preferred_element_type=config.accum_dtype,
            out_sharding=mesh.output_sharding(sharding),
        )
        return y

    run: Convolve = convolve
    if config.feature_group_count > 1 and mesh.may_be_sharded():
        geometry = Geometry(
            ("N" + x_spec, kernel_spec, "N" + y_spec), config.feature_group_count, strides,
            padding, input_dilation, filter_dilation, config.precision,
        )
        run = with_derivative_by_taps(convolve, geometry)
    kernel: jax.Array = mesh.on_mesh_of(x, params.kernel).astype(x.dtype)
    y = run(jnp.expand_dims(x, 0), kernel)
    arguments.require_output("conv", x, y)
    return jnp.squeeze(y, 0)


@stateless(apply, ConvConfig, traced_once=True)
def conv(
    rng: Key, x: Shaped, out_channels: Size, filter_shape: Sizes,
    strides: Sizes = 1, padding: ConvPadding = "VALID",
    input_dilation: Sizes | None = None, filter_dilation: Sizes | None = None,
    feature_group_count: Size = 1, batch_group_count: Size = 1,
    data_format: ConvFormat = "channel_last",
    precision: Precision = None, accum_dtype: DType | None = None,
    kernel_initializer: Initializer = lecun_normal, dtype: DType = jnp.float32,
    *, out_sharding: Sharding | None = None,
) -> ConvParams:
    """Convolution over the spatial axes of one example, without bias.

    By default x is (spatial..., in_channels), the kernel (out_channels, spatial..., in_channels)
    and y (spatial..., out_channels).

    An integer applies to every spatial axis; a sequence has one entry for each, in the axis
    order of the kernel, which is that of x unless the specs say otherwise.

    Args:
        out_channels: number of channels of y.
        filter_shape: lengths of the window.
        strides: distances between windows.
        padding: "VALID", "SAME", "SAME_LOWER", an integer, or for each spatial axis an
            integer or a pair (before, after). "CAUSAL", for one spatial axis, is
            ((filter_shape - 1) * filter_dilation, 0). See below for what y depends on.
        input_dilation: distances between neighbours of x after zeros are inserted. None means 1.
        filter_dilation: distances between neighbours of the kernel, likewise.
        feature_group_count: number of groups of channels; each output channel only sees the
            input channels of its group.
        batch_group_count: number of groups of the batch. Must be 1, since x is one example.
        data_format: "channel_last", "channel_first", or the specs of x, kernel and y without the
            batch axis, such as ("HWC", "HWIO", "HWC").
        precision: precision of the products: a `jax.lax.Precision`, or a pair for x and kernel.
        accum_dtype: dtype of the sums and of y; None means the dtype of x.
        kernel_initializer: called with shape (spatial..., in_channels / feature_group_count,
            out_channels); the result is transposed to the layout of the kernel.
        dtype: dtype of the kernel. It is cast to the dtype of x when used.
        out_sharding: sharding of y, without a batch axis, on a mesh with explicit axes; ignored
            elsewhere. None means the spatial axes as in x and the channels as in the kernel, which
            is ambiguous where both x and the kernel are sharded along in_channels.

    Along an axis with window length n, stride s, filter dilation d and span = (n - 1) * d, y[t]
    depends on x[s * t - before], x[s * t - before + d], ..., x[s * t - before + span], where before
    is 0 for "VALID" and span for "CAUSAL", which sees no x after x[s * t]. For "SAME" and s = 1, it
    is span / 2, rounded down, and for "SAME_LOWER" rounded up.

    Raises:
        TypeError: an argument is of the wrong type, or x is not floating and the kernel is.
        ValueError: an argument has the wrong length, sign or name, the groups do not
            divide the channels, no window fits into x, or the sharding of y is ambiguous.

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
    x_spec, kernel_spec, _ = specs_of(data_format, rank)
    if len(x_spec) != len(x.shape):
        wanted = f"specs of {len(x.shape)} axes, for x of shape {x.shape}"
        raise ValueError(message("conv", "data_format", wanted, repr(data_format)))
    in_channels = x.shape[x_spec.index("C")]
    for name, channels in (("in_channels", in_channels), ("out_channels", out_channels)):
        if channels % feature_group_count:
            wanted = f"a divisor of {name} ({channels})"
            raise ValueError(message("conv", "feature_group_count", wanted, feature_group_count))
    if batch_group_count != 1:
        way_out = "a layer takes one example, which cannot be split"
        raise ValueError(message("conv", "batch_group_count", "1", batch_group_count, way_out))
    per_axis("conv", "strides", strides, rank)
    window = per_axis("conv", "filter_shape", filter_shape, rank)
    dilations = {"input_dilation": input_dilation, "filter_dilation": filter_dilation}
    _padding(padding, window, *(optional_per_axis("conv", *d, rank) for d in dilations.items()))
    shape = (*window, in_channels // feature_group_count, out_channels)
    initial_spec = kernel_spec.replace("O", "").replace("I", "") + "IO"
    axes = tuple(map(initial_spec.index, kernel_spec))
    kernel = initialize(
        "conv", "kernel_initializer", kernel_initializer, rng, shape, dtype, axes=axes
    )
    return ConvParams(kernel)


def _padding(
    padding: Padding, window: Sequence[int], input_dilation: tuple[int, ...],
    filter_dilation: tuple[int, ...],
) -> str | tuple[tuple[int, int], ...]:
    """Return the padding in a form that `jax.lax.conv_general_dilated` accepts."""
    rank = len(window)
    is_causal = isinstance(padding, str) and padding.upper() == "CAUSAL"
    pads = "CAUSAL" if is_causal else padding_per_axis("conv", padding, rank)
    if pads == "VALID":
        return ((0, 0),) * rank
    if isinstance(pads, str) and max(input_dilation) > 1:
        wanted = "VALID or integers if input_dilation is greater than 1"
        raise ValueError(message("conv", "padding", wanted, repr(padding)))
    if not is_causal:
        return pads
    before = [(length - 1) * gap for length, gap in zip(window, filter_dilation, strict=True)]
    if rank != 1:
        pairs = ((before[0], 0), *((width // 2, width - width // 2) for width in before[1:]))
        wanted = f"VALID, SAME, SAME_LOWER, or integers for {rank} spatial axes"
        way_out = f"pad the time axis alone, such as {pairs}, if it is the first"
        raise ValueError(message("conv", "padding", wanted, repr(padding), way_out))
    return ((before[0], 0),)


def kernel_axes(data_format: str | Sequence[str], ndim: int) -> tuple[int, int]:
    """Return the axes of a kernel that hold output and input channels."""
    spec = specs_of(data_format, ndim - 2)[1]
    return spec.index("O"), spec.index("I")


def specs_of(data_format: str | Sequence[str], rank: int) -> tuple[str, str, str]:
    """Return the specs of x, kernel and y, by default with spatial axes called "0", "1", ..."""
    spatial = "".join(chr(ord("0") + axis) for axis in range(rank))
    if data_format == "channel_last":
        return spatial + "C", "O" + spatial + "I", spatial + "C"
    if data_format == "channel_first":
        return "C" + spatial, "OI" + spatial, "C" + spatial
    return data_format[0], data_format[1], data_format[2]


def _sharding(
    out_sharding: PartitionSpec | None, x: jax.Array, kernel: jax.Array,
    x_spec: str, kernel_spec: str, y_spec: str,
) -> PartitionSpec | None:
    """Return the sharding of y with its batch axis, None where JAX finds it."""
    given = mesh.output_sharding(out_sharding)
    if given is not None:
        return PartitionSpec(None, *given)
    of_x = dict(zip(x_spec, mesh.spec_of(x), strict=True))
    of_kernel = dict(zip(kernel_spec, mesh.spec_of(kernel), strict=True))
    mesh.require_one_sharded("conv", of_x["C"], of_kernel["I"])
    if of_x["C"] is None and not any(of_kernel.values()):
        return None
    of_x["C"] = of_kernel["O"]
    return PartitionSpec(None, *map(of_x.get, y_spec))
