"""`Dense`: `mlax.dense` as a module."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from mlax.initializers import Initializer, lecun_normal
from mlax.layer import Key
from mlax.layers.dense import DenseParams, dense
from mlax.module import Parameter
from mlax.nn.base import PairModule


class Dense(PairModule[jax.Array, jax.Array]):
    """Linear transformation of the last axis with a bias: see `mlax.dense`.

    The parameters are `kernel` and `bias`; without `use_bias`, the latter stays empty.
    """

    _pair = dense
    _params = DenseParams, ("kernel", "bias")

    def __init__(
        self, rng: Key, features: int, *,
        use_bias: bool = True, kernel_initializer: Initializer = lecun_normal,
        bias_initializer: Initializer = jax.nn.initializers.zeros, dtype: DTypeLike = jnp.float32,
        out_sharding: PartitionSpec | None = None,
    ) -> None:
        """Hold the key and the hyperparameters of `mlax.dense`."""
        super().__init__()
        self.rng: Key | None = rng
        self.features = features
        self.use_bias = use_bias
        self.kernel_initializer = kernel_initializer
        self.bias_initializer = bias_initializer
        self.dtype = dtype
        self.out_sharding = out_sharding
        self.kernel: Parameter = Parameter(trainable=True)
        self.bias: Parameter = Parameter(trainable=True)

    def _sizes(self) -> dict[str, tuple[int | None, ...]]:
        return {"kernel": (None, self.features)}
