"""What attention knows about positions: rotary and sinusoidal encodings, ALiBi, relative buckets.

Positions are integers, counted from 0. They are arguments, so that the chunks of a sequence, padded
batches and packed sequences are encoded as in the whole sequence.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mlax.errors import message

# fmt: off
__all__ = ["LlamaScaling", "alibi", "relative_buckets", "rotary", "sinusoidal"]
# fmt: on


class LlamaScaling(NamedTuple):
    """How Llama 3 stretches the slow rotations, so that longer sequences fit into them.

    Source: `rope_scaling` of type "llama3" in the configuration of Llama 3.1.
    """

    factor: float = 8.0
    """What rotations slower than `low_frequency_factor` turns are slowed down by."""
    low_frequency_factor: float = 1.0
    """The turns over `original_length` below which rotations are slowed down in full."""
    high_frequency_factor: float = 4.0
    """The turns above which they are left as they are."""
    original_length: int = 8192
    """The length that the model was first trained for."""


def signed(positions: jax.Array) -> jax.Array:
    """Return positions in a dtype with exact differences; the largest one stays the largest."""
    if positions.dtype in (jnp.int32, jnp.int64):
        return positions
    largest = min(jnp.iinfo(positions.dtype).max, jnp.iinfo(jnp.int32).max)
    return jnp.minimum(positions, jnp.asarray(largest, positions.dtype)).astype(jnp.int32)


def of_rank(array: jax.Array, rank: int) -> jax.Array:
    """Return an array of a rank, with axes of length 1 in front."""
    return array.reshape(*(1,) * (rank - array.ndim), *array.shape)


def with_padding(positions: jax.Array, lengths: jax.Array) -> jax.Array:
    """Return positions that are negative beyond the lengths."""
    counted = of_rank(jnp.arange(positions.shape[-1]), positions.ndim)
    return jnp.where(counted < of_rank(lengths, positions.ndim - 1)[..., None], positions, -1)


def rotary(
    x: jax.Array, positions: jax.Array, *, base: float = 10_000.0, dims: int | None = None,
    interleaved: bool = False, scaling: LlamaScaling | None = None,
) -> jax.Array:
    """Rotate pairs of features by an angle that grows with the position.

    Pair i at position p becomes (a cos t - b sin t, b cos t + a sin t), t = p * base^(-2 i / dims).
    The product of two vectors then depends only on the difference of their positions.

    Args:
        x: (..., length, heads, head_dim), queries or keys.
        positions: (length,) or (..., length), integers.
        base: the angle of the last pair is about p / base.
        dims: the number of features to rotate, from the first; None rotates all of them.
        interleaved: whether a pair is (x[2 i], x[2 i + 1]), as in GPT-J, or
            (x[i], x[i + dims / 2]), as in GPT-NeoX and Llama.
        scaling: what Llama 3 does to the angles.

    Returns:
        An array of the shape and dtype of x. Angles are computed in float32.

    Raises:
        ValueError: `dims` is odd, or more than head_dim.

    Source: Su et al., "RoFormer: enhanced transformer with rotary position embedding", 2021.

    >>> import jax.numpy as jnp
    >>> from mlax.positions import rotary
    >>> rotary(jnp.array([[[1.0, 0.0]]]), jnp.array([1])).round(3)  # (cos 1, sin 1)
    Array([[[0.54 , 0.841]]], dtype=float32)
    """
    head_dim = x.shape[-1]
    dims = head_dim if dims is None else dims
    if dims % 2 or not 0 < dims <= head_dim:
        raise ValueError(message("rotary", "dims", f"even, and at most {head_dim}", dims))
    angles = _angles(positions, dims, base, scaling)
    cos, sin = jnp.cos(angles)[..., None, :], jnp.sin(angles)[..., None, :]
    wide = x[..., :dims].astype(jnp.promote_types(x.dtype, jnp.float32))
    if interleaved:
        a, b = wide[..., ::2], wide[..., 1::2]
    else:
        a, b = wide[..., : dims // 2], wide[..., dims // 2 :]
    cos, sin = cos.astype(wide.dtype), sin.astype(wide.dtype)
    pairs = a * cos - b * sin, b * cos + a * sin
    rotated = jnp.concatenate(pairs, -1)
    if interleaved:
        rotated = jnp.stack(pairs, -1).reshape(wide.shape)
    return jnp.concatenate([rotated.astype(x.dtype), x[..., dims:]], -1)


def _angles(
    positions: jax.Array, dims: int, base: float, scaling: LlamaScaling | None
) -> jax.Array:
    """Return the angle of each pair, (..., dims / 2)."""
    frequencies = base ** (-np.arange(0, dims, 2) / dims)
    if scaling is not None:
        turns = scaling.original_length * frequencies / (2 * math.pi)
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        kept = np.clip((turns - low) / (high - low), 0, 1)
        frequencies = frequencies * (kept + (1 - kept) / scaling.factor)
    of_one = frequencies.astype(np.float32).reshape(*(1,) * positions.ndim, -1)
    return positions[..., None].astype(jnp.float32) * of_one


def sinusoidal(positions: jax.Array, features: int, *, base: float = 10_000.0) -> jax.Array:
    """Return sines and cosines of positions, to be added to embeddings.

    Features 2 i and 2 i + 1 are sin(t) and cos(t), t = position * base^(-2 i / features).

    Args:
        positions: any shape, integers.
        features: length of the last axis, even.
        base: the wavelengths go from 2 pi to 2 pi * base.

    Returns:
        (..., features), in float32.

    Source: Vaswani et al., "Attention is all you need", 2017.

    >>> import jax.numpy as jnp
    >>> from mlax.positions import sinusoidal
    >>> sinusoidal(jnp.arange(2), 2).round(3)
    Array([[0.   , 1.   ],
           [0.841, 0.54 ]], dtype=float32)
    """
    if features < 2 or features % 2:
        raise ValueError(message("sinusoidal", "features", "a positive even number", features))
    angles = _angles(positions, features, base, None)
    waves = jnp.stack([jnp.sin(angles), jnp.cos(angles)], -1)
    return waves.reshape(*positions.shape, features)


def alibi(num_heads: int, positions: jax.Array, memory_positions: jax.Array) -> jax.Array:
    """Return a bias for attention that falls linearly with the distance: -slope * |p - q|.

    Args:
        num_heads: number of heads n; head i has the slope 2^(-8 (i + 1) / n) if n is a power of 2,
            else the slopes of the next smaller power, and every other one of the next larger.
        positions: (..., length), of the queries.
        memory_positions: (..., memory_length), of the keys.

    Returns:
        (..., num_heads, length, memory_length), in float32.

    Source: Press et al., "Train short, test long: attention with linear biases enables input
    length extrapolation", 2021.

    >>> import jax.numpy as jnp
    >>> from mlax.positions import alibi
    >>> alibi(8, jnp.arange(2), jnp.arange(2))[0]
    Array([[-0. , -0.5],
           [-0.5, -0. ]], dtype=float32)
    """
    power = 2 ** math.floor(math.log2(num_heads))
    slopes = 2.0 ** (-8 * np.arange(1, power + 1) / power)
    between = 2.0 ** (-8 * np.arange(1, 2 * power + 1, 2) / (2 * power))
    slopes = jnp.asarray(np.concatenate([slopes, between])[:num_heads], jnp.float32)
    distance = jnp.abs(_differences(positions, memory_positions))[..., None, :, :]
    slopes = of_rank(slopes[:, None, None], distance.ndim)
    return -slopes * distance.astype(jnp.float32)


def _differences(positions: jax.Array, memory_positions: jax.Array) -> jax.Array:
    """Return the positions of queries minus those of keys, (..., length, memory_length)."""
    rank = max(positions.ndim, memory_positions.ndim)
    queries, keys = (of_rank(signed(a), rank) for a in (positions, memory_positions))
    return queries[..., :, None] - keys[..., None, :]


def relative_buckets(
    positions: jax.Array, memory_positions: jax.Array, *, num_buckets: int = 32,
    max_distance: int = 128, bidirectional: bool = True,
) -> jax.Array:
    """Return the bucket of the distance of each key from each query, as in T5.

    Half of the buckets hold one distance each, the other half ranges that grow up to
    `max_distance`, beyond which all distances share the last one. If `bidirectional`, keys after
    the query have buckets of their own, else they share that of distance 0.

    Args:
        positions: (..., length), of the queries.
        memory_positions: (..., memory_length), of the keys.
        num_buckets: number of buckets, at least 4, and even if `bidirectional`.
        max_distance: from this distance on, all keys share a bucket.
        bidirectional: whether keys after the query have buckets of their own.

    Returns:
        (..., length, memory_length), integers in [0, num_buckets).

    Raises:
        ValueError: there are too few buckets, or `max_distance` has a bucket of its own.

    Source: Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text
    transformer", 2020.
    """
    if num_buckets < 4 or bidirectional and num_buckets % 2:
        wanted = "an even number, at least 4" if bidirectional else "at least 4"
        raise ValueError(message("relative_buckets", "num_buckets", wanted, num_buckets))
    exact = num_buckets // 4 if bidirectional else num_buckets // 2
    if max_distance <= exact:
        wanted = f"more than the {exact} distances that have a bucket each"
        raise ValueError(message("relative_buckets", "max_distance", wanted, max_distance))
    distance = _differences(positions, memory_positions)
    offset = jnp.zeros_like(distance)
    if bidirectional:
        num_buckets //= 2
        offset = jnp.where(distance < 0, num_buckets, 0)
        distance = jnp.abs(distance)
    distance = jnp.maximum(distance, 0)
    far = jnp.log(jnp.maximum(distance, exact).astype(jnp.float32) / exact)
    ranges = far / math.log(max_distance / exact) * (num_buckets - exact)
    coarse = exact + ranges.astype(distance.dtype)
    return offset + jnp.where(distance < exact, distance, jnp.minimum(coarse, num_buckets - 1))
