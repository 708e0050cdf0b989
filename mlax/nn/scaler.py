"""`Scaler`: `mlax.scaler` as a module."""


import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mlax.initializers import Initializer
from mlax.layer import Key
from mlax.layers.bias import InFeatures
from mlax.layers.scaler import ScalerParams, scaler
from mlax.module import Parameter
from mlax.nn.base import PairModule


class Scaler(PairModule[jax.Array, jax.Array]):
    """Multiplication by a trained factor: see `mlax.scaler`, with the parameter `scaler_kernel`."""

    _pair = scaler
    _params = ScalerParams, ("scaler_kernel",)
    _sequences = ("in_features",)

    def __init__(
        self, rng: Key, in_features: InFeatures,
        scaler_initializer: Initializer = jax.nn.initializers.ones, dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Hold the key and the hyperparameters of `mlax.scaler`."""
        super().__init__()
        self.rng: Key | None = rng
        self.in_features = in_features
        self.scaler_initializer = scaler_initializer
        self.dtype = dtype
        self.scaler_kernel: Parameter = Parameter(trainable=True)
