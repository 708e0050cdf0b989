"""`Embed`: `mlax.embed` as a module."""

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from mlax.initializers import Initializer, embedding_normal
from mlax.layer import Key
from mlax.layers.embed import EmbedParams, embed
from mlax.module import Parameter
from mlax.nn.base import PairModule


class Embed(PairModule[jax.Array, jax.Array]):
    """Embedding of integers: see `mlax.embed`, with the parameter `embed_kernel`."""

    _pair = embed
    _params = EmbedParams, ("embed_kernel",)

    out_sharding: PartitionSpec | None = None
    """Sharding of y over explicit mesh axes, to be set by hand: see `mlax.embed`."""

    def __init__(
        self, rng: Key, vocab_size: int, embed_dim: int,
        embed_initializer: Initializer = embedding_normal, dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Hold the key and the hyperparameters of `mlax.embed`."""
        super().__init__()
        self.rng: Key | None = rng
        self.vocab_size = vocab_size
        self.embed_dim = embed_dim
        self.embed_initializer = embed_initializer
        self.dtype = dtype
        self.embed_kernel: Parameter = Parameter(trainable=True)

    def _sizes(self) -> dict[str, tuple[int | None, ...]]:
        return {"embed_kernel": (self.vocab_size, self.embed_dim)}
