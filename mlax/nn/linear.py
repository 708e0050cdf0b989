"""`Linear`: `mlax.linear` as a module."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from mlax.initializers import Initializer, glorot_uniform
from mlax.layers.linear import LinearParams, linear
from mlax.module import Module, Parameter
from mlax.pair import AxisName, Key


class Linear(Module):
    """Linear transformation of the last axis, without bias: see `mlax.linear`.

    The kernel is the parameter `linear_kernel`.
    """

    def __init__(
        self,
        rng: Key,
        out_features: int,
        precision: lax.PrecisionLike = None,
        accum_dtype: DTypeLike | None = None,
        transposed_kernel: bool = False,
        kernel_initializer: Initializer = glorot_uniform,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Keep the key and the hyperparameters, which are those of `mlax.linear`."""
        super().__init__()
        self.rng = rng
        self._layer = linear(
            out_features, precision, accum_dtype, transposed_kernel, kernel_initializer, dtype
        )
        self.linear_kernel: Parameter = Parameter(trainable=True)

    def setup(self, x: jax.Array) -> None:
        """Create the kernel."""
        params, self._state = self._layer.init(self.rng, x)
        self.linear_kernel.data = params.kernel

    def forward(
        self,
        x: jax.Array,
        rng: None = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> jax.Array:
        """Return x @ kernel."""
        y, _ = linear.apply(LinearParams(self.linear_kernel.data), self._state, x)
        return y
