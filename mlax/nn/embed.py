"""`Embed`: `mlax.embed` as a module."""

import jax.numpy as jnp
from jax.typing import DTypeLike

from mlax.initializers import Initializer, embedding_normal
from mlax.layer import Key
from mlax.layers.embed import EmbedParams, embed
from mlax.module import Parameter
from mlax.nn.trained import Trained


class Embed(Trained):
    """Embedding of integers: see `mlax.embed`, with the parameter `embed_kernel`."""

    _params, _name = EmbedParams, "embed_kernel"

    def __init__(
        self, rng: Key, vocab_size: int, embed_dim: int,
        embed_initializer: Initializer = embedding_normal, dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Hold the key and the hyperparameters of `mlax.embed`."""
        super().__init__(rng, embed(vocab_size, embed_dim, embed_initializer, dtype))
        self.embed_kernel: Parameter = Parameter(trainable=True)
