"""Embedding: y = embedding[x], one row for each index.

    x          any shape, integers in [0, vocab_size)
    embedding  (vocab_size, embed_dim)
    y          (..., embed_dim)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mlax import arguments
from mlax.arguments import DType, Size
from mlax.errors import message
from mlax.initializers import Initializer, embedding_normal, initialize
from mlax.layer import Key, Shaped
from mlax.pair import stateless


class EmbedParams(NamedTuple):
    """Parameters of `embed`."""

    embedding: jax.Array
    """(vocab_size, embed_dim)."""


class EmbedConfig(NamedTuple):
    """Configuration of `embed`: no hyperparameters."""


def apply(params: EmbedParams, config: EmbedConfig, x: jax.Array) -> jax.Array:
    """Return the rows of the embedding: see `mlax.embed`."""
    arguments.require_axes("embed", "params.embedding", params.embedding, 2)
    _require_integers(x)
    indices = x.astype(jnp.int32) if x.dtype.itemsize < 4 else x  # int8 can't hold vocab_size
    return params.embedding.at[indices].get(mode="fill")


@stateless(apply, EmbedConfig)
def embed(
    rng: Key, x: Shaped, vocab_size: Size, embed_dim: Size,
    embed_initializer: Initializer = embedding_normal, dtype: DType = jnp.float32,
) -> EmbedParams:
    """Embedding of integers: y = embedding[x].

    (...) -> (..., embed_dim). Negative indices count from the end, as in NumPy; an index out
    of range gives a row of NaN, never the row of another index.

    Args:
        vocab_size: number of rows.
        embed_dim: length of a row.
        embed_initializer: called with shape (vocab_size, embed_dim).
        dtype: dtype of the embedding and of y.

    Raises:
        TypeError: an argument is of the wrong type, or x is not of an integer dtype.
        ValueError: a size is not positive.

    Source: `jax.numpy.ndarray.at`, with mode "fill".

    >>> import jax, jax.numpy as jnp, mlax
    >>> params, state = mlax.embed.init(jax.random.key(0), jnp.array(0), vocab_size=10, embed_dim=3)
    >>> y, state = mlax.embed.apply(params, state, jnp.array([2, 5]))
    >>> y.shape
    (2, 3)
    """
    _require_integers(x)
    shape = (vocab_size, embed_dim)
    return EmbedParams(
        initialize("embed", "embed_initializer", embed_initializer, rng, shape, dtype)
    )


def _require_integers(x: Shaped) -> None:
    arguments.require_array("embed", x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(message("embed", "x", "of an integer dtype", jnp.dtype(x.dtype).name))
