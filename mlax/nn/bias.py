"""`Bias`: `mlax.bias` as a module."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mlax.initializers import Initializer
from mlax.layer import Key
from mlax.layers.bias import BiasParams, InFeatures, bias
from mlax.module import Parameter
from mlax.nn.trained import Trained


class Bias(Trained):
    """Addition of a trained term: see `mlax.bias`. The bias is the parameter `bias_kernel`."""

    _params, _name = BiasParams, "bias_kernel"

    def __init__(
        self, rng: Key, in_features: InFeatures,
        bias_initializer: Initializer = jax.nn.initializers.zeros, dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Hold the key and the hyperparameters of `mlax.bias`."""
        super().__init__(rng, bias(in_features, bias_initializer, dtype))
        self.bias_kernel: Parameter = Parameter(trainable=True)
