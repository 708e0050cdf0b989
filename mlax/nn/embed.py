"""`Embed`: `mlax.embed` as a module."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mlax.initializers import Initializer, embedding_normal
from mlax.layers.embed import EmbedParams, embed
from mlax.module import Module, Parameter
from mlax.pair import AxisName, Key


class Embed(Module):
    """Embedding of integers: see `mlax.embed`. It is the parameter `embed_kernel`."""

    def __init__(
        self,
        rng: Key,
        vocab_size: int,
        embed_dim: int,
        embed_initializer: Initializer = embedding_normal,
        dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Keep the key and the hyperparameters, which are those of `mlax.embed`."""
        super().__init__()
        self.rng = rng
        self._layer = embed(vocab_size, embed_dim, embed_initializer, dtype)
        self.embed_kernel: Parameter = Parameter(trainable=True)

    def setup(self, x: jax.Array) -> None:
        """Create the embedding."""
        params, self._state = self._layer.init(self.rng, x)
        self.embed_kernel.data = params.embedding

    def forward(
        self,
        x: jax.Array,
        rng: None = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> jax.Array:
        """Return the rows of the embedding."""
        y, _ = embed.apply(EmbedParams(self.embed_kernel.data), self._state, x)
        return y
