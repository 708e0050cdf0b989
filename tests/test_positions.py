"""Tests of encodings of positions against their formulas, and of `chunked_attention`."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlax.functional import chunked_attention
from mlax.positions import LlamaScaling, alibi, relative_buckets, rotary, sinusoidal

X = jax.random.normal(jax.random.key(0), (5, 2, 8))


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dims", [None, 4])
def test_rotary_turns_pairs_as_complex_numbers(interleaved: bool, dims: int | None) -> None:
    positions = np.array([0, 3, 4, 1, 100])
    y = rotary(X, jnp.asarray(positions), base=500.0, dims=dims, interleaved=interleaved)
    n = dims or 8
    x = np.asarray(X, np.float64)
    turned, rest = x[..., :n], x[..., n:]
    if interleaved:
        pairs = turned[..., ::2] + 1j * turned[..., 1::2]
    else:
        pairs = turned[..., : n // 2] + 1j * turned[..., n // 2 :]
    pairs = pairs * np.exp(1j * positions[:, None, None] * 500.0 ** (-np.arange(0, n, 2) / n))
    parts = [pairs.real, pairs.imag]
    again = np.stack(parts, -1).reshape(turned.shape) if interleaved else np.concatenate(parts, -1)
    np.testing.assert_allclose(y, np.concatenate([again, rest], -1), rtol=1e-4, atol=1e-5)


def test_products_of_rotated_vectors_depend_on_the_distance() -> None:
    q, k = X[:1], X[1:2]
    near = [
        jnp.sum(rotary(q, jnp.array([i + 3])) * rotary(k, jnp.array([i]))) for i in (0, 5, 40)
    ]
    np.testing.assert_allclose(near, [near[0]] * 3, rtol=1e-4)


def test_the_rotations_of_llama_3_are_slowed_down_where_they_are_slow() -> None:
    """As `_compute_llama3_parameters` of transformers computes them."""
    scaling = LlamaScaling(8.0, 1.0, 4.0, 64)
    frequencies = 10_000.0 ** (-np.arange(0, 8, 2) / 8)
    expected = []
    for frequency in frequencies:
        length = 2 * math.pi / frequency
        if length < 64 / 4:
            expected.append(frequency)
        elif length > 64:
            expected.append(frequency / 8)
        else:
            smooth = (64 / length - 1) / 3
            expected.append((1 - smooth) * frequency / 8 + smooth * frequency)
    x = jnp.concatenate([jnp.ones((1, 1, 4)), jnp.zeros((1, 1, 4))], -1)
    y = rotary(x, jnp.array([1]), scaling=scaling)[0, 0]
    np.testing.assert_allclose(jnp.arctan2(y[4:], y[:4]), expected, rtol=1e-5)


def test_encodings_need_no_promotion_of_ranks() -> None:
    with jax.numpy_rank_promotion("raise"):
        rotary(jnp.ones((2, 3, 1, 8)), jnp.ones((2, 3), int))
        sinusoidal(jnp.ones((2, 3), int), 8)


def test_rotary_keeps_dtype_and_takes_batches() -> None:
    x = jnp.stack([X, 2 * X]).astype(jnp.bfloat16)
    positions = jnp.array([[0, 1, 2, 3, 4], [7, 7, 7, 7, 7]])
    y = rotary(x, positions)
    assert y.dtype == jnp.bfloat16
    for one, alone, own in zip(y, x, positions, strict=True):
        np.testing.assert_array_equal(one, rotary(alone, own))


@pytest.mark.parametrize("dims", [3, 0, 10])
def test_rotary_refuses_dims(dims: int) -> None:
    with pytest.raises(ValueError, match=f"^rotary: expected dims to be even.*8, got {dims}"):
        rotary(X, jnp.arange(5), dims=dims)


def test_sinusoidal() -> None:
    y = sinusoidal(jnp.array([[0, 3], [7, 50]]), 6)
    for i, j in np.ndindex(2, 2):
        position = [[0, 3], [7, 50]][i][j]
        for pair in range(3):
            angle = position / 10_000 ** (2 * pair / 6)
            expected = [math.sin(angle), math.cos(angle)]
            np.testing.assert_allclose(y[i, j, 2 * pair : 2 * pair + 2], expected, atol=1e-5)
    with pytest.raises(ValueError, match="features to be a positive even number, got 5"):
        sinusoidal(jnp.arange(3), 5)


@pytest.mark.parametrize(
    ("heads", "slopes"),
    [
        (4, [2**-2, 2**-4, 2**-6, 2**-8]),
        (6, [2**-2, 2**-4, 2**-6, 2**-8, 2**-1, 2**-3]),
    ],
)
def test_alibi(heads: int, slopes: list[float]) -> None:
    bias = alibi(heads, jnp.array([5, 6]), jnp.array([3, 5, 9]))
    distance = np.array([[2, 0, 4], [3, 1, 3]])
    np.testing.assert_allclose(bias, -np.array(slopes)[:, None, None] * distance, rtol=1e-6)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_relative_buckets_are_those_of_t5(bidirectional: bool) -> None:
    """Written out for one distance at a time, in float32 as T5 does."""

    def bucket(distance: int) -> int:
        count, offset = 32, 0
        if bidirectional:
            count //= 2
            offset = count if distance < 0 else 0
            distance = abs(distance)
        distance = max(distance, 0)
        exact = count // 2
        if distance < exact:
            return offset + distance
        far = np.log(np.float32(distance) / np.float32(exact)) / np.float32(math.log(128 / exact))
        return offset + min(count - 1, exact + int(far * (count - exact)))

    queries, keys = np.arange(0, 300, 7), np.arange(0, 300, 5)
    found = relative_buckets(jnp.asarray(queries), jnp.asarray(keys), bidirectional=bidirectional)
    expected = [[bucket(int(q - k)) for k in keys] for q in queries]
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.uint32, jnp.int8])
def test_distances_of_any_integer_dtype(dtype: Any) -> None:
    plain, other = jnp.arange(0, 120, 8), jnp.arange(0, 120, 8, dtype=dtype)
    np.testing.assert_array_equal(alibi(2, other, other), alibi(2, plain, plain))
    np.testing.assert_array_equal(
        relative_buckets(other, other), relative_buckets(plain, plain)
    )


# Attention in chunks.


def attended(chunk: int, *arrays: jax.Array, **more: Any) -> tuple[Any, Any]:
    """Return output and gradients of both products."""
    products = jax.nn.dot_product_attention, functools.partial(chunked_attention, chunk_length=chunk)
    both: list[Any] = []
    for product in products:
        run: Any = lambda *a, product=product: jnp.sin(product(*a, **more)).sum()
        numbers = tuple(i for i, a in enumerate(arrays) if jnp.issubdtype(a.dtype, jnp.floating))
        whole = lambda *a, product=product: product(*a, **more)
        both.append((jax.jit(whole)(*arrays), jax.jit(jax.grad(run, numbers))(*arrays)))
    return both[0], both[1]


def normal(seed: int, *shape: int) -> jax.Array:
    """Return numbers of a normal distribution."""
    return jax.random.normal(jax.random.key(seed), shape)


Q, K, V = normal(1, 2, 11, 4, 8), normal(2, 2, 13, 2, 8), normal(3, 2, 13, 2, 8)


@pytest.mark.parametrize("chunk", [4, 512])
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"is_causal": True},
        {"local_window_size": 3},
        {"local_window_size": (4, 0), "is_causal": True},
        {"scale": 0.2},
        {"key_value_seq_lengths": jnp.array([13, 5])},
    ],
    ids=str,
)
def test_chunks_are_the_whole(chunk: int, more: dict[str, Any]) -> None:
    whole, chunks = attended(chunk, Q, K, V, **more)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), whole, chunks
    )


@pytest.mark.parametrize("shape", [(2, 4, 11, 13), (1, 1, 11, 13), (2, 1, 1, 13), (1, 4, 11, 1)])
def test_chunks_of_bias_and_mask(shape: tuple[int, ...]) -> None:
    bias = normal(4, *shape)
    mask = jax.random.bernoulli(jax.random.key(5), 0.6, shape).at[..., 0].set(True)
    whole, chunks = attended(4, Q, K, V, bias, mask)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), whole, chunks
    )


def test_memory_is_linear_in_the_length() -> None:
    def bytes_of(length: int) -> int:
        x = jax.ShapeDtypeStruct((length, 1, 16), jnp.float32)
        run = functools.partial(chunked_attention, is_causal=True, chunk_length=64)
        gradient = jax.jit(jax.grad(lambda q, k, v: run(q, k, v).sum(), (0, 1, 2)))
        analysis = gradient.lower(x, x, x).compile().memory_analysis()
        assert analysis is not None
        return int(analysis.temp_size_in_bytes)

    assert bytes_of(2048) < 2.5 * bytes_of(1024) < 2.5 * 1024 * 1024 * 4


@pytest.mark.parametrize("shape", [(11, 13), (4, 11, 13), (13,), (1, 13)])
def test_chunks_of_masks_of_lower_rank(shape: tuple[int, ...]) -> None:
    mask = jax.random.bernoulli(jax.random.key(5), 0.6, shape).at[..., 0].set(True)
    full = jnp.broadcast_to(mask, (2, 4, 11, 13))
    y = chunked_attention(Q, K, V, mask=mask, chunk_length=4)
    expected = jax.nn.dot_product_attention(Q, K, V, mask=full)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"chunk_length": 0}, "chunk_length to be a positive integer, got 0"),
        ({"mask": jnp.ones((11, 13))}, "mask to be of dtype bool, got float32"),
        ({"value": V[:1]}, r"key and value of shape \(2, 13, 2, 8\).*\(1, 13, 2, 8\)"),
    ],
    ids=["chunk", "mask", "batch"],
)
def test_what_chunks_refuse(more: dict[str, Any], match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^chunked_attention: expected {match}"):
        chunked_attention(**{"query": Q, "key": K, "value": V, **more})


def test_chunks_refuse_heads_that_do_not_divide() -> None:
    with pytest.raises(ValueError, match="heads to be a multiple of the 3 heads of keys, got 4"):
        chunked_attention(Q, normal(1, 2, 13, 3, 8), normal(1, 2, 13, 3, 8))


@pytest.mark.parametrize(("distance", "bidirectional"), [(8, True), (16, False)])
def test_ranges_of_buckets_need_room(distance: int, bidirectional: bool) -> None:
    places = jnp.arange(40)
    buckets = functools.partial(relative_buckets, num_buckets=32, bidirectional=bidirectional)
    with pytest.raises(ValueError, match=f"max_distance to be more than the {distance} distances"):
        buckets(places, places, max_distance=distance)
    found = buckets(places, places, max_distance=distance + 1)
    assert 0 <= found.min() and found.max() < 32
    assert relative_buckets(places, places, num_buckets=7, bidirectional=False).max() < 7
