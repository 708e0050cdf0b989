"""`Bias`: `mlax.bias` as a module."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mlax.arguments import entries
from mlax.initializers import Initializer
from mlax.layer import Key
from mlax.layers.bias import BiasParams, InFeatures, bias
from mlax.module import Parameter
from mlax.nn.base import PairModule


class Featurewise(PairModule[jax.Array, jax.Array]):
    """A module with `in_features`, kept as a tuple."""

    in_features: InFeatures

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; one entry of `in_features` is a sequence of one."""
        if name == "in_features":
            value = entries(type(self).__name__, name, value)
        super().__setattr__(name, value)


class Bias(Featurewise):
    """Addition of a trained term: see `mlax.bias`. The bias is the parameter `bias_kernel`."""

    _pair = bias
    _params = BiasParams, ("bias_kernel",)

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
