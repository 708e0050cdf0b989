"""`Linear`: `mlax.linear` as a module."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from mlax.initializers import Initializer, lecun_normal
from mlax.layer import Key
from mlax.layers.linear import LinearParams, linear
from mlax.module import Parameter
from mlax.nn.base import PairModule


class Linear(PairModule[jax.Array, jax.Array]):
    """Linear transformation of the last axis, without bias: see `mlax.linear`.

    The kernel is the parameter `linear_kernel`.
    """

    _pair = linear
    _params = LinearParams, ("linear_kernel",)

    out_sharding: PartitionSpec | None = None
    """Sharding of y over explicit mesh axes, to be set by hand: see `mlax.linear`."""

    def __init__(
        self, rng: Key, out_features: int,
        precision: lax.PrecisionLike = None, accum_dtype: DTypeLike | None = None,
        transposed_kernel: bool = False, kernel_initializer: Initializer = lecun_normal,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Hold the key and the hyperparameters of `mlax.linear`."""
        super().__init__()
        self.rng: Key | None = rng
        self.out_features = out_features
        self.precision = precision
        self.accum_dtype = accum_dtype
        self.transposed_kernel = transposed_kernel
        self.kernel_initializer = kernel_initializer
        self.dtype = dtype
        self.linear_kernel: Parameter = Parameter(trainable=True)

    def _sizes(self) -> dict[str, tuple[int | None, ...]]:
        sizes = None, self.out_features
        return {"linear_kernel": sizes[::-1] if self.transposed_kernel else sizes}
