"""Embedding: y = embedding[x], one row for each index.

    x          any shape, integers in [0, vocab_size)
    embedding  (vocab_size, embed_dim)
    y          (..., embed_dim)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mlax import arguments
from mlax.arguments import Shaped
from mlax.initializers import Initializer, embedding_normal, initialize
from mlax.pair import AxisName, Key, State, layer


class EmbedParams(NamedTuple):
    """Parameters of `embed`."""

    embedding: jax.Array
    """(vocab_size, embed_dim)."""


class EmbedConfig(NamedTuple):
    """Configuration of `embed`: nothing but its name."""


def apply(
    params: EmbedParams,
    state: State[tuple[()], EmbedConfig],
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, State[tuple[()], EmbedConfig]]:
    """Return the rows of the embedding: see `mlax.Apply` and `mlax.embed`."""
    arguments.config_of("embed", state, EmbedConfig)
    arguments.require_params("embed", params, EmbedParams)
    arguments.require_axes("embed", "params.embedding", params.embedding, 2)
    arguments.require_integers("embed", x)
    indices = x.astype(jnp.int32) if x.dtype.itemsize < 4 else x  # int8 holds no large vocab_size
    return params.embedding.at[indices].get(mode="fill"), state


@layer(
    apply,
    checks={
        "vocab_size": arguments.check_size,
        "embed_dim": arguments.check_size,
        "embed_initializer": arguments.check_callable,
        "dtype": arguments.check_dtype,
    },
)
def embed(
    rng: Key,
    x: Shaped,
    vocab_size: int,
    embed_dim: int,
    embed_initializer: Initializer = embedding_normal,
    dtype: DTypeLike = jnp.float32,
) -> tuple[EmbedParams, State[tuple[()], EmbedConfig]]:
    """Embedding of integers: y = embedding[x].

    (...) -> (..., embed_dim). Negative indices count from the end, as in NumPy; an index
    outside the embedding gives a row of NaN, never that of another index.

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
    arguments.require_integers("embed", x)
    shape = (vocab_size, embed_dim)
    embedding = initialize("embed", "embed_initializer", embed_initializer, rng, shape, dtype)
    return EmbedParams(embedding), State((), EmbedConfig())
