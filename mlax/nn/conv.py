"""`Conv`: `mlax.conv` as a module."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from mlax.arguments import Padding, Sizes, per_axis
from mlax.initializers import Initializer, lecun_normal
from mlax.layer import Key
from mlax.layers.conv import ConvFormat, ConvParams, conv, specs_of
from mlax.module import Parameter
from mlax.nn.base import PairModule


class Conv(PairModule[jax.Array, jax.Array]):
    """Convolution over the spatial axes of one example, without bias: see `mlax.conv`.

    The kernel is the parameter `conv_kernel`.
    """

    _pair = conv
    _params = ConvParams, ("conv_kernel",)

    out_sharding: PartitionSpec | None = None
    """Sharding of y over explicit mesh axes, to be set by hand: see `mlax.conv`."""

    def __init__(
        self, rng: Key, out_channels: int, filter_shape: Sizes,
        strides: Sizes = 1, padding: Padding = "VALID",
        input_dilation: Sizes | None = None, filter_dilation: Sizes | None = None,
        feature_group_count: int = 1, batch_group_count: int = 1,
        data_format: ConvFormat = "channel_last", precision: lax.PrecisionLike = None,
        accum_dtype: DTypeLike | None = None, kernel_initializer: Initializer = lecun_normal,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Hold the key and the hyperparameters of `mlax.conv`."""
        super().__init__()
        self.rng: Key | None = rng
        self.out_channels = out_channels
        self.filter_shape = filter_shape
        self.strides = strides
        self.padding = padding
        self.input_dilation = input_dilation
        self.filter_dilation = filter_dilation
        self.feature_group_count = feature_group_count
        self.batch_group_count = batch_group_count
        self.data_format = data_format
        self.precision = precision
        self.accum_dtype = accum_dtype
        self.kernel_initializer = kernel_initializer
        self.dtype = dtype
        self.conv_kernel: Parameter = Parameter(trainable=True)

    def _sizes(self) -> dict[str, tuple[int | None, ...]]:
        rank = self.conv_kernel.data.ndim - 2
        _, spec, _ = specs_of(self.data_format, rank)
        window = iter(per_axis("conv", "filter_shape", self.filter_shape, rank))
        fixed = {"O": self.out_channels, "I": None}
        return {"conv_kernel": tuple(fixed[c] if c in fixed else next(window) for c in spec)}
