"""`Bias`: `mlax.bias` as a module."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mlax.arguments import InFeatures
from mlax.initializers import Initializer
from mlax.layers.bias import BiasParams, bias
from mlax.module import Module, Parameter
from mlax.pair import AxisName, Key


class Bias(Module):
    """Addition of a trained term: see `mlax.bias`. It is the parameter `bias_kernel`."""

    def __init__(
        self,
        rng: Key,
        in_features: InFeatures,
        bias_initializer: Initializer = jax.nn.initializers.zeros,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Keep the key and the hyperparameters, which are those of `mlax.bias`."""
        super().__init__()
        self.rng = rng
        self._layer = bias(in_features, bias_initializer, dtype)
        self.bias_kernel: Parameter = Parameter(trainable=True)

    def setup(self, x: jax.Array) -> None:
        """Create the bias."""
        params, self._state = self._layer.init(self.rng, x)
        self.bias_kernel.data = params.bias

    def forward(
        self,
        x: jax.Array,
        rng: None = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> jax.Array:
        """Return x + bias."""
        y, _ = bias.apply(BiasParams(self.bias_kernel.data), self._state, x)
        return y
