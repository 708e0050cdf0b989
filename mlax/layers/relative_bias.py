"""A trained bias for attention by relative position: y[h, p, q] = embedding[bucket, h].

    x          positions (..., length) and memory_positions (..., memory_length), integers
    embedding  (num_buckets, num_heads)
    y          (..., num_heads, length, memory_length)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlax import arguments
from mlax.arguments import DType, Size
from mlax.errors import message
from mlax.initializers import Initializer, embedding_normal, initialize
from mlax.layer import Key
from mlax.layers import embed
from mlax.layers.embed import EmbedConfig, EmbedParams
from mlax.pair import stateless
from mlax.positions import relative_buckets


class RelativeBiasConfig(NamedTuple):
    """Configuration of `relative_bias`."""

    max_distance: int
    """From this distance on, all keys share a bucket."""
    bidirectional: bool
    """Whether keys after the query have buckets of their own."""


def apply(
    params: EmbedParams, config: RelativeBiasConfig, x: tuple[jax.Array, jax.Array]
) -> jax.Array:
    """Return the bias of each head for each query and key: see `mlax.relative_bias`."""
    positions, memory_positions = _read(x)
    arguments.require_axes("relative_bias", "params.embedding", params.embedding, 2)
    buckets = relative_buckets(
        jnp.asarray(positions), jnp.asarray(memory_positions),
        num_buckets=params.embedding.shape[0], max_distance=config.max_distance,
        bidirectional=config.bidirectional,
    )
    return jnp.moveaxis(embed.apply(params, EmbedConfig(None), buckets), -1, -3)


def _read(x: Any) -> tuple[Any, Any]:
    """Return the positions of queries and of keys."""
    pair = arguments.read_pair("relative_bias", "x", x, "(positions, memory_positions)")
    for name, places in zip(("positions", "memory_positions"), pair, strict=True):
        arguments.require_integers("relative_bias", places, name)
        if not places.shape:
            raise ValueError(message("relative_bias", name, "(..., length)", "shape ()"))
    return pair


@stateless(apply, RelativeBiasConfig)
def relative_bias(
    rng: Key, x: Any, num_heads: Size, *, num_buckets: Size = 32, max_distance: Size = 128,
    bidirectional: bool = True, embed_initializer: Initializer = embedding_normal,
    dtype: DType = jnp.float32,
) -> EmbedParams:
    """The bias of T5: one trained number for each head and each range of distances.

    ((..., length), (..., memory_length)) -> (..., num_heads, length, memory_length), for the
    positions of queries and keys: pass it on as `mlax.AttentionInputs(x, bias=...)`. Usually one
    such bias serves all blocks of a model. `mlax.positions.relative_buckets` has the ranges.

    Args:
        num_heads: number of heads of the queries.
        num_buckets: number of ranges of distances.
        max_distance: from this distance on, all keys share a bucket.
        bidirectional: whether keys after the query have buckets of their own; not needed if causal.
        embed_initializer: called with (num_buckets, num_heads).
        dtype: dtype of the bias.

    Raises:
        TypeError: x is not a pair, or not of integers.
        ValueError: `num_buckets` or `max_distance` is too small, or positions have no axis.

    Source: Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text
    transformer", 2020.

    >>> import jax, jax.numpy as jnp, mlax
    >>> positions = jnp.arange(6)
    >>> layer = mlax.relative_bias(num_heads=4)
    >>> params, state = layer.init(jax.random.key(0), (positions, positions))
    >>> layer.apply(params, state, (positions, positions))[0].shape
    (4, 6, 6)
    """
    positions, memory_positions = _read(x)
    jax.eval_shape(
        lambda a, b: relative_buckets(
            a, b, num_buckets=num_buckets, max_distance=max_distance, bidirectional=bidirectional
        ),
        positions, memory_positions,
    )
    shape = num_buckets, num_heads
    return EmbedParams(
        initialize("relative_bias", "embed_initializer", embed_initializer, rng, shape, dtype)
    )
