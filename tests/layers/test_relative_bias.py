"""Tests of the trained bias by distance, against the buckets of T5 and a decoder in chunks."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import AttentionInputs

KEY = jax.random.key(0)


def test_each_distance_has_the_row_of_its_bucket() -> None:
    layer = mlax.relative_bias(3, num_buckets=8, max_distance=16, bidirectional=False)
    queries, keys = jnp.array([[0, 5], [20, 3]]), jnp.array([0, 4, 18])
    params, state = layer.init(KEY, (queries, keys))
    y, _ = layer.apply(params, state, (queries, keys))
    assert params.embedding.shape == (8, 3) and y.shape == (2, 3, 2, 3)
    # Distances 0 to 3 have a bucket each; from there, 4 * (16 / 4)^(i / 4) is where bucket i ends.
    buckets = {0: 0, 5: 4, 1: 1, 20: 7, 16: 7, 2: 2, 3: 3}
    table = np.asarray(params.embedding)
    for row, column, key in np.ndindex(2, 2, 3):
        distance = max(int(queries[row, column] - keys[key]), 0)
        np.testing.assert_array_equal(y[row, :, column, key], table[buckets[distance]])


def test_one_bias_serves_a_decoder_in_chunks() -> None:
    def model(cache_length: int | None) -> Any:
        attend = mlax.attention(2, causal=True, cache_length=cache_length)

        @mlax.block(bias=mlax.relative_bias(2, num_buckets=4, bidirectional=False), attend=attend)
        def wired(sub: Any, inputs: Any) -> Any:
            x, positions = inputs
            slots = positions if cache_length is None else jnp.arange(cache_length)
            bias = sub.bias((positions, slots))
            return sub.attend(AttentionInputs(x, bias=bias, positions=positions))

        return wired

    x, positions = jax.random.normal(KEY, (5, 4)), jnp.arange(5)
    params, state = model(None).init(KEY, (x, positions))
    expected, _ = model(None).apply(params, state, (x, positions))
    state, ys = mlax.init_state(model(6), params, (x, positions)), []
    for part in (slice(0, 3), slice(3, 4), slice(4, 5)):
        y, state = model(6).apply(params, state, (x[part], positions[part]), inference_mode=True)
        ys.append(y)
    np.testing.assert_allclose(jnp.concatenate(ys), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "error", "match"),
    [
        (jnp.arange(3), TypeError, "relative_bias: expected x to be a pair"),
        ((jnp.arange(3), jnp.ones(3)), TypeError, "memory_positions .*integer"),
        ((jnp.array(3), jnp.arange(3)), ValueError, r"positions to be \(..., length\)"),
    ],
)
def test_what_is_no_pair_of_positions_is_refused(x: Any, error: Any, match: str) -> None:
    with pytest.raises(error, match=match):
        mlax.relative_bias(2).init(KEY, x)
    with pytest.raises(ValueError, match="num_buckets to be an even number"):
        mlax.relative_bias(2, num_buckets=3).init(KEY, (jnp.arange(3), jnp.arange(3)))
