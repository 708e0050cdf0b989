"""Embedding: y = embedding[x], one row for each index.

    x          any shape, integers in [0, vocab_size)
    embedding  (vocab_size, embed_dim)
    y          (..., embed_dim)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mlax import arguments, mesh
from mlax.arguments import DType, Sharding, Size
from mlax.initializers import Initializer, embedding_normal, initialize
from mlax.layer import Key, Shaped
from mlax.pair import stateless
from mlax.serialization import serializable


@serializable
class EmbedParams(NamedTuple):
    """Parameters of `embed`."""

    embedding: jax.Array
    """(vocab_size, embed_dim)."""


class EmbedConfig(NamedTuple):
    """Configuration of `embed`."""

    out_sharding: PartitionSpec | None
    """Sharding of y over explicit mesh axes."""


def apply(params: EmbedParams, config: EmbedConfig, x: jax.Array) -> jax.Array:
    """Return the rows of the embedding: see `mlax.embed`."""
    arguments.require_axes("embed", "params.embedding", params.embedding, 2)
    arguments.require_integers("embed", x)
    indices = _indices(x, params.embedding.shape[0])
    sharding = config.out_sharding
    if sharding is None:
        sharding = PartitionSpec(*mesh.spec_of(indices), mesh.spec_of(params.embedding)[1])
    sharding = mesh.output_sharding(sharding)
    embedding = jnp.asarray(params.embedding)
    return embedding.at[indices].get(mode="fill", out_sharding=sharding)


def _indices(x: Any, vocab_size: int) -> jax.Array:
    """Return x in a dtype that holds vocab_size; what is out of range stays out of range."""
    indices = jnp.asarray(arguments.saturated(x))
    if indices.dtype.itemsize > 4:  # `at` would drop the upper bits
        lowest = max(-vocab_size - 1, int(jnp.iinfo(indices.dtype).min))
        indices = jnp.clip(indices, lowest, vocab_size)
    is_narrow = indices.dtype != jnp.uint32 and vocab_size <= jnp.iinfo(jnp.int32).max
    return indices.astype(jnp.int32) if is_narrow else indices


@stateless(apply, EmbedConfig, traced_once=True)
def embed(
    rng: Key, x: Shaped, vocab_size: Size, embed_dim: Size,
    embed_initializer: Initializer = embedding_normal, dtype: DType = jnp.float32,
    *, out_sharding: Sharding | None = None,
) -> EmbedParams:
    """Embedding of integers: y = embedding[x].

    (...) -> (..., embed_dim). Negative indices count from the end, as in NumPy; an index out
    of range gives a row of NaN, never the row of another index. (If the dtype of the embedding
    has no NaN, the row is filled with its smallest integer, or its largest if unsigned.) Without
    64-bit types, that holds for NumPy's int64 too, but not in arguments of a user's own `jax.jit`
    or `jax.vmap`: JAX truncates them to 32 bits before any layer sees them.

    Args:
        vocab_size: number of rows.
        embed_dim: length of a row.
        embed_initializer: called with shape (vocab_size, embed_dim).
        dtype: dtype of the embedding and of y.
        out_sharding: sharding of y, without a batch axis, on a mesh with explicit axes; ignored
            elsewhere. None means the sharding of x, with the last axis as in the embedding.

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
    arguments.require_integers("embed", x)
    shape = (vocab_size, embed_dim)
    return EmbedParams(
        initialize("embed", "embed_initializer", embed_initializer, rng, shape, dtype)
    )
