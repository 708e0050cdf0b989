"""`Conv`: `mlax.conv` as a module."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from mlax.arguments import Padding, Sizes
from mlax.initializers import Initializer, glorot_uniform
from mlax.layers.conv import ConvParams, conv
from mlax.module import Module, Parameter
from mlax.pair import AxisName, Key


class Conv(Module):
    """Convolution over the spatial axes of one example, without bias: see `mlax.conv`.

    The kernel is the parameter `conv_kernel`.
    """

    def __init__(
        self,
        rng: Key,
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
    ) -> None:
        """Keep the key and the hyperparameters, which are those of `mlax.conv`."""
        super().__init__()
        self.rng = rng
        self._layer = conv(
            out_channels, filter_shape, strides, padding, input_dilation, filter_dilation,
            feature_group_count, batch_group_count, data_format, precision, accum_dtype,
            kernel_initializer, dtype,
        )  # fmt: skip
        self.conv_kernel: Parameter = Parameter(trainable=True)

    def setup(self, x: jax.Array) -> None:
        """Create the kernel."""
        params, self._state = self._layer.init(self.rng, x)
        self.conv_kernel.data = params.kernel

    def forward(
        self,
        x: jax.Array,
        rng: None = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> jax.Array:
        """Return x convolved with the kernel."""
        y, _ = conv.apply(ConvParams(self.conv_kernel.data), self._state, x)
        return y
