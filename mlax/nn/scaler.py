"""`Scaler`: `mlax.scaler` as a module."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mlax.arguments import InFeatures
from mlax.initializers import Initializer
from mlax.layers.scaler import ScalerParams, scaler
from mlax.module import Module, Parameter
from mlax.pair import AxisName, Key


class Scaler(Module):
    """Multiplication by a trained factor: see `mlax.scaler`. It is the parameter `scaler_kernel`."""

    def __init__(
        self,
        rng: Key,
        in_features: InFeatures,
        scaler_initializer: Initializer = jax.nn.initializers.ones,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Keep the key and the hyperparameters, which are those of `mlax.scaler`."""
        super().__init__()
        self.rng = rng
        self._layer = scaler(in_features, scaler_initializer, dtype)
        self.scaler_kernel: Parameter = Parameter(trainable=True)

    def setup(self, x: jax.Array) -> None:
        """Create the scale."""
        params, self._state = self._layer.init(self.rng, x)
        self.scaler_kernel.data = params.scale

    def forward(
        self,
        x: jax.Array,
        rng: None = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> jax.Array:
        """Return x * scale."""
        y, _ = scaler.apply(ScalerParams(self.scaler_kernel.data), self._state, x)
        return y
