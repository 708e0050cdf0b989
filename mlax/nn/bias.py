"""`Bias`: `mlax.bias` as a module."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mlax.initializers import Initializer
from mlax.layer import Key
from mlax.layers.bias import BiasParams, InFeatures, bias
from mlax.module import Parameter
from mlax.nn.base import PairModule


class Bias(PairModule[jax.Array, jax.Array]):
    """Addition of a trained term: see `mlax.bias`. The bias is the parameter `bias_kernel`."""

    _pair = bias
    _params = BiasParams, ("bias_kernel",)
    _sequences = ("in_features",)

    def __init__(
        self, rng: Key, in_features: InFeatures,
        bias_initializer: Initializer = jax.nn.initializers.zeros, dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Hold the key and the hyperparameters of `mlax.bias`."""
        super().__init__()
        self.rng: Key | None = rng
        self.in_features = in_features
        self.bias_initializer = bias_initializer
        self.dtype = dtype
        self.bias_kernel: Parameter = Parameter(trainable=True)
