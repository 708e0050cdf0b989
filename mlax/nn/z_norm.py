"""`ZNorm`: `mlax.z_norm` as a module."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mlax.arguments import NormalizedAxis
from mlax.initializers import Initializer
from mlax.layer import Key
from mlax.layers.z_norm import ZNormVariables, z_norm
from mlax.module import Parameter
from mlax.nn.base import PairModule


class ZNorm(PairModule[jax.Array, jax.Array]):
    """Normalisation with running statistics: see `mlax.z_norm`.

    The statistics are the parameters `moving_mean` and `moving_var`, which are not trained.
    """

    _pair = z_norm
    _variables = ZNormVariables, ("moving_mean", "moving_var")

    def __init__(
        self, rng: Key, axis: NormalizedAxis, epsilon: float = 1e-05, momentum: float = 0.9,
        mean_initializer: Initializer = jax.nn.initializers.zeros,
        variance_initializer: Initializer = jax.nn.initializers.ones,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Hold the key and the hyperparameters of `mlax.z_norm`."""
        super().__init__()
        self.rng: Key | None = rng
        self.axis = axis
        self.epsilon = epsilon
        self.momentum = momentum
        self.mean_initializer = mean_initializer
        self.variance_initializer = variance_initializer
        self.dtype = dtype
        self.moving_mean: Parameter = Parameter(trainable=False)
        self.moving_var: Parameter = Parameter(trainable=False)
