"""`Conv`: `mlax.conv` as a module."""

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from mlax.arguments import Padding, Sizes
from mlax.initializers import Initializer, glorot_uniform
from mlax.layer import Key
from mlax.layers.conv import ConvFormat, ConvParams, conv
from mlax.module import Parameter
from mlax.nn.trained import Trained


class Conv(Trained):
    """Convolution over the spatial axes of one example, without bias: see `mlax.conv`.

    The kernel is the parameter `conv_kernel`.
    """

    _params, _name = ConvParams, "conv_kernel"

    def __init__(
        self, rng: Key, out_channels: int, filter_shape: Sizes,
        strides: Sizes = 1, padding: Padding = "VALID",
        input_dilation: Sizes | None = None, filter_dilation: Sizes | None = None,
        feature_group_count: int = 1, batch_group_count: int = 1,
        data_format: ConvFormat = "channel_last", precision: lax.PrecisionLike = None,
        accum_dtype: DTypeLike | None = None, kernel_initializer: Initializer = glorot_uniform,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Hold the key and the hyperparameters of `mlax.conv`."""
        layer = conv(
            out_channels, filter_shape, strides, padding, input_dilation, filter_dilation,
            feature_group_count, batch_group_count, data_format, precision, accum_dtype,
            kernel_initializer, dtype,
        )
        super().__init__(rng, layer)
        self.conv_kernel: Parameter = Parameter(trainable=True)
