"""`ZNorm`: `mlax.z_norm` as a module."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mlax.arguments import NormalizedAxis
from mlax.initializers import Initializer
from mlax.layers.z_norm import ZNormVariables, z_norm
from mlax.module import Module, Parameter
from mlax.layer import AxisName, Key, State


class ZNorm(Module):
    """Normalisation with running statistics: see `mlax.z_norm`.

    The statistics are the parameters `moving_mean` and `moving_var`, which are not trained.
    """

    def __init__(
        self, rng: Key, axis: NormalizedAxis, epsilon: float = 1e-05, momentum: float = 0.9,
        mean_initializer: Initializer = jax.nn.initializers.zeros,
        variance_initializer: Initializer = jax.nn.initializers.ones,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Hold the key and the hyperparameters of `mlax.z_norm`."""
        super().__init__()
        self.rng = rng
        self._layer = z_norm(axis, epsilon, momentum, mean_initializer, variance_initializer, dtype)
        self.moving_mean: Parameter = Parameter(trainable=False)
        self.moving_var: Parameter = Parameter(trainable=False)

    def setup(self, x: jax.Array) -> None:
        """Create the running statistics."""
        _, state = self._layer.init(self.rng, x)
        self.moving_mean.data, self.moving_var.data = state.variables
        self._config = state.config

    def forward(
        self, x: jax.Array, rng: None = None,
        inference_mode: bool = False, batch_axis_name: AxisName = (),
    ) -> jax.Array:
        """Return x normalised; in training, update the running statistics."""
        variables = ZNormVariables(self.moving_mean.data, self.moving_var.data)
        y, state = z_norm.apply(
            (), State(variables, self._config), x, None, inference_mode, batch_axis_name
        )
        self.moving_mean.data, self.moving_var.data = state.variables
        return y
