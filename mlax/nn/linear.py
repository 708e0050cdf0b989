"""`Linear`: `mlax.linear` as a module."""

import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from mlax.initializers import Initializer, glorot_uniform
from mlax.layer import Key
from mlax.layers.linear import LinearParams, linear
from mlax.module import Parameter
from mlax.nn.trained import Trained


class Linear(Trained):
    """Linear transformation of the last axis, without bias: see `mlax.linear`.

    The kernel is the parameter `linear_kernel`.
    """

    _params, _name = LinearParams, "linear_kernel"

    def __init__(
        self, rng: Key, out_features: int,
        precision: lax.PrecisionLike = None, accum_dtype: DTypeLike | None = None,
        transposed_kernel: bool = False, kernel_initializer: Initializer = glorot_uniform,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Hold the key and the hyperparameters of `mlax.linear`."""
        hparams = out_features, precision, accum_dtype, transposed_kernel, kernel_initializer, dtype
        super().__init__(rng, linear(*hparams))
        self.linear_kernel: Parameter = Parameter(trainable=True)
