"""Tests of `attention` against NumPy, of its cache, and of its errors."""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import PartitionSpec as P

import mlax
from mlax import AttentionInputs
from mlax.functional import chunked_attention
from mlax.layers.attention import AttentionParams
from mlax.positions import alibi, rotary

KEY = jax.random.key(0)
DRAW = jax.nn.initializers.normal(0.5)


def normal(seed: int, *shape: int) -> jax.Array:
    """Return numbers of a normal distribution."""
    return jax.random.normal(jax.random.key(seed), shape)


X = normal(1, 6, 8)
BATCH = normal(2, 3, 6, 8)
MEMORY = normal(3, 5, 4)


def dense(params: Any, x: np.ndarray) -> np.ndarray:
    """Return x @ kernel + bias in float64."""
    y = x @ np.asarray(params.kernel, np.float64)
    return y if params.bias is None else y + np.asarray(params.bias, np.float64)


def oracle(
    params: AttentionParams, x: Any, num_heads: int, num_kv_heads: int | None = None, *,
    memory: Any = None, allowed: Any = None, bias: Any = 0.0, scale: float | None = None,
    softcap: float | None = None, turn: Callable[[np.ndarray], np.ndarray] = lambda x: x,
) -> np.ndarray:
    """Return attention for one sequence, head by head, in float64."""
    x = np.asarray(x, np.float64)
    memory = x if memory is None else np.asarray(memory, np.float64)
    kv_heads = num_kv_heads or num_heads
    if params.fused is not None:
        joint = dense(params.fused, x)
        width = joint.shape[-1] // (num_heads + 2 * kv_heads)
        q, k, v = np.split(joint, [num_heads * width, (num_heads + kv_heads) * width], -1)
    else:
        q, k, v = dense(params.query, x), dense(params.key, memory), dense(params.value, memory)
    q = q.reshape(len(q), num_heads, -1)
    k, v = (a.reshape(len(a), kv_heads, -1) for a in (k, v))
    if params.query_norm is not None and params.key_norm is not None:
        q, k = (
            a / np.sqrt(np.mean(a**2, -1, keepdims=True) + 1e-6) * np.asarray(norm.scale)
            for a, norm in ((q, params.query_norm), (k, params.key_norm))
        )
    q, k = turn(q), turn(k)
    heads = []
    for head in range(num_heads):
        other = head // (num_heads // kv_heads)
        logits = q[:, head] @ k[:, other].T * (q.shape[-1] ** -0.5 if scale is None else scale)
        if softcap is not None:
            logits = softcap * np.tanh(logits / softcap)
        logits = logits + np.broadcast_to(bias, (num_heads, *logits.shape))[head]
        if allowed is not None:
            logits = np.where(np.broadcast_to(allowed, logits.shape), logits, -np.inf)
        most = logits.max(-1, keepdims=True)
        weights = np.exp(logits - np.where(np.isfinite(most), most, 0))
        total = weights.sum(-1, keepdims=True)
        heads.append(weights / np.where(total, total, 1) @ v[:, other])
    return dense(params.output, np.concatenate(heads, -1))


def made(x: Any, *args: Any, **hparams: Any) -> tuple[Any, Any, Any]:
    """Return params, with biases that are not 0, state and apply."""
    layer = mlax.attention(*args, **hparams, bias_initializer=DRAW)
    return *layer.init(KEY, x), layer.apply


def order(length: int, causal: bool, window: int | None) -> np.ndarray:
    """Return which keys a query may attend to."""
    i, j = np.arange(length)[:, None], np.arange(length)
    near = np.ones((length, length), bool) if window is None else abs(i - j) < window
    return near & (j <= i) if causal else near


@pytest.mark.parametrize("window", [None, 1, 3])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads", [(4, None), (4, 2), (4, 1), (1, 1)])
def test_self_attention(heads: tuple[int, int | None], causal: bool, window: int | None) -> None:
    params, state, apply = made(X, *heads, causal=causal, window=window)
    y, after = apply(params, state, X)
    expected = oracle(params, X, *heads, allowed=order(6, causal, window))
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    assert after == state


@pytest.mark.parametrize(
    "hparams",
    [
        {"fused": True},
        {"fused": True, "num_kv_heads": 1},
        {"qk_norm": True},
        {"head_dim": 3},
        {"use_bias": False},
        {"use_output_bias": False},
        {"out_features": 5},
        {"scale": 0.3},
        {"softcap": 0.7},
        {"implementation": "xla"},
        {"implementation": jax.nn.dot_product_attention},
        {"implementation": functools.partial(chunked_attention, chunk_length=4)},
    ],
    ids=lambda hparams: next(iter(hparams)),
)
def test_hyperparameters(hparams: dict[str, Any]) -> None:
    params, state, apply = made(X, 2, **hparams)
    y, _ = apply(params, state, X)
    named = {n: v for n, v in hparams.items() if n in ("num_kv_heads", "scale", "softcap")}
    np.testing.assert_allclose(y, oracle(params, X, 2, **named), rtol=1e-5, atol=1e-5)
    assert y.shape == (6, hparams.get("out_features", 8))
    assert (params.output.bias is None) == (
        not hparams.get("use_bias", True) or not hparams.get("use_output_bias", True)
    )


def test_cross_attention() -> None:
    mask = np.random.default_rng(0).random((6, 5)) < 0.5
    mask[:, 0] = True
    bias = normal(4, 2, 6, 5)
    inputs = AttentionInputs(X, MEMORY, jnp.asarray(mask), bias)
    params, state, apply = made(inputs, 2)
    assert params.key.kernel.shape == (4, 8)
    expected = oracle(params, X, 2, memory=MEMORY, allowed=mask, bias=np.asarray(bias))
    y, _ = apply(params, state, inputs)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


def test_a_mask_for_each_head() -> None:
    mask = np.random.default_rng(1).random((2, 6, 6)) < 0.5
    mask[..., 0] = True
    params, state, apply = made(X, 2)
    y, _ = apply(params, state, AttentionInputs(X, mask=jnp.asarray(mask)))
    bias = np.where(mask, 0, -1e30)
    np.testing.assert_allclose(y, oracle(params, X, 2, bias=bias), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("implementation", [None, chunked_attention])
@pytest.mark.parametrize("softcap", [None, 1e9])
def test_lengths_are_padding_on_the_right(implementation: Any, softcap: float | None) -> None:
    params, state, apply = made(BATCH, 2, implementation=implementation, softcap=softcap)
    lengths = jnp.array([6, 2, 0])
    y, _ = apply(params, state, AttentionInputs(BATCH, lengths=lengths))
    for one, x, length in zip(y[:2], BATCH, [6, 2], strict=False):
        expected = oracle(params, x[:length], 2)
        np.testing.assert_allclose(one[:length], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(y[2], np.tile(params.output.bias, (6, 1)), rtol=1e-6)


@pytest.mark.parametrize("implementation", [None, chunked_attention])
def test_negative_positions_are_padding(implementation: Any) -> None:
    hparams = {"causal": True, "rotary": rotary, "window": 3, "implementation": implementation}
    params, state, apply = made(BATCH, 2, **hparams)
    apply = jax.jit(apply)
    positions = jnp.arange(6) - jnp.array([[0], [2], [6]])
    y, _ = apply(params, state, AttentionInputs(BATCH, positions=positions))
    for one, x, padding in zip(y, BATCH, [0, 2, 6], strict=True):
        alone, _ = apply(params, state, x[padding:])  # of the last one, nothing is left
        np.testing.assert_allclose(one[padding:], alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("hparams", [{}, {"softcap": 1e9}, {"implementation": chunked_attention}])
def test_padding_is_the_output_of_nothing_whatever_computes_it(hparams: dict[str, Any]) -> None:
    params, state, apply = made(X, 2, **hparams)
    for inputs in (
        AttentionInputs(X, lengths=jnp.array(3)),
        AttentionInputs(X, positions=jnp.array([0, 1, 2, -1, -1, -1])),
    ):
        y, _ = apply(params, state, inputs)
        np.testing.assert_allclose(y[:3], oracle(params, X[:3], 2), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(y[3:], np.tile(params.output.bias, (3, 1)), rtol=1e-6)


@pytest.mark.parametrize("causal", [False, True])
def test_beyond_a_window_a_query_attends_to_nothing_in_a_memory(causal: bool) -> None:
    params, state, apply = made(AttentionInputs(X, MEMORY), 2, window=1, causal=causal)
    y, _ = apply(params, state, AttentionInputs(X, MEMORY))
    allowed = np.eye(6, 5, dtype=bool)
    expected = oracle(params, X, 2, memory=MEMORY, allowed=allowed)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.uint32, jnp.int8])
def test_positions_of_any_integer_dtype(dtype: Any) -> None:
    params, state, apply = made(X, 2, window=2, rotary=rotary)
    y, _ = apply(params, state, AttentionInputs(X, positions=jnp.arange(6, dtype=dtype)))
    np.testing.assert_allclose(y, apply(params, state, X)[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_the_largest_positions_do_not_overflow(causal: bool) -> None:
    params, state, apply = made(X, 2, window=2, causal=causal)
    positions = jnp.array([0, 1, 2, 3, 4, 2**31 - 1])
    y, _ = apply(params, state, AttentionInputs(X, positions=positions))
    allowed = order(6, causal, 2)
    allowed[4:, 4:] = np.eye(2, dtype=bool)
    allowed[4, 3] = True
    np.testing.assert_allclose(y, oracle(params, X, 2, allowed=allowed), rtol=1e-5, atol=1e-5)


def test_memory_and_cache_may_have_another_dtype() -> None:
    params, state, apply = made(AttentionInputs(X, MEMORY), 2)
    half, _ = apply(params, state, AttentionInputs(X, MEMORY.astype(jnp.bfloat16)))
    np.testing.assert_allclose(half, oracle(params, X, 2, memory=MEMORY), atol=0.05)
    decoder = mlax.attention(2, causal=True, cache_length=6)
    own, cache = decoder.init(KEY, X)
    y, _ = decoder.apply(own, cache, X.astype(jnp.bfloat16), inference_mode=True)
    expected = oracle(own, X, 2, allowed=order(6, True, None))
    np.testing.assert_allclose(y.astype(jnp.float32), expected, atol=0.05)


def test_positions_permute_with_the_tokens() -> None:
    params, state, apply = made(X, 2, causal=True, window=4, rotary=rotary)
    shuffled = np.random.default_rng(0).permutation(6)
    y, _ = apply(params, state, X)
    permuted, _ = apply(
        params, state, AttentionInputs(X[shuffled], positions=jnp.asarray(shuffled))
    )
    np.testing.assert_allclose(permuted, y[shuffled], rtol=1e-5, atol=1e-5)


def test_rotary_turns_queries_and_keys() -> None:
    def turn(a: np.ndarray) -> np.ndarray:
        t = np.arange(len(a))[:, None, None] * 10_000.0 ** (-np.arange(2) / 2)
        first, second = a[..., :2], a[..., 2:]
        parts = first * np.cos(t) - second * np.sin(t), second * np.cos(t) + first * np.sin(t)
        return np.concatenate(parts, -1)

    params, state, apply = made(X, 2, rotary=rotary, qk_norm=True)
    y, _ = apply(params, state, X)
    np.testing.assert_allclose(y, oracle(params, X, 2, turn=turn), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("places", [None, np.array([3, -1, 0, 7, 1, 2])])
def test_a_bias_by_positions_adds_to_a_given_one(places: Any) -> None:
    params, state, apply = made(X, 2, position_bias=functools.partial(alibi, 2))
    bias = normal(7, 2, 6, 6)
    y, _ = apply(params, state, AttentionInputs(X, bias=bias, positions=places))
    at = np.arange(6) if places is None else places
    distance = abs(at[:, None] - at)
    slopes = np.array([2.0**-4, 2.0**-8])[:, None, None]
    allowed = (at >= 0) & (at[:, None] >= 0)
    expected = oracle(params, X, 2, bias=np.asarray(bias) - slopes * distance, allowed=allowed)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)
    batch, _ = apply(params, state, AttentionInputs(X[None], bias=bias, positions=places))
    np.testing.assert_allclose(batch[0], y, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="bias to be broadcastable to .2, 6, 6."):
        wrong = mlax.attention(2, position_bias=functools.partial(alibi, 4))
        wrong.apply(params, wrong.init(KEY, X)[1], X)


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_leading_axes_are_those_of_vmap(lead: tuple[int, ...]) -> None:
    x = normal(5, *lead, 6, 8)
    mask = jax.random.bernoulli(KEY, 0.7, (*lead, 6, 6)).at[..., 0].set(True)
    bias = normal(6, 2, 6, 6)
    params, state, apply = made(x, 2)
    run: Any = lambda x, mask: apply(params, state, AttentionInputs(x, None, mask, bias))[0]
    mapped = run
    for _ in lead:
        mapped = jax.vmap(mapped)
    np.testing.assert_allclose(run(x, mask), mapped(x, mask), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_short_dtypes_stay(dtype: Any) -> None:
    params, state, apply = made(X, 2)
    y, _ = apply(params, state, X.astype(dtype))
    assert y.dtype == dtype
    np.testing.assert_allclose(y, oracle(params, X, 2), rtol=0.1, atol=0.1)


def test_dropout_of_weights_keeps_their_mean() -> None:
    params, state, apply = made(X, 2, dropout_rate=0.5)
    keys = jax.random.split(KEY, 4000)
    ys = jax.jit(jax.vmap(lambda key: apply(params, state, X, key)[0]))(keys)
    np.testing.assert_allclose(ys.mean(0), oracle(params, X, 2), atol=0.05)
    y, _ = apply(params, state, X, inference_mode=True)
    np.testing.assert_allclose(y, oracle(params, X, 2), rtol=1e-5, atol=1e-5)


def test_a_key_is_needed_for_dropout_alone() -> None:
    assert mlax.attention(2, dropout_rate=0.1).needs_rng
    assert not mlax.attention(2).needs_rng
    params, state, apply = made(X, 2, dropout_rate=0.5)
    with pytest.raises(ValueError, match="^attention: expected rng to be a PRNG key"):
        apply(params, state, X)


def test_weights_can_be_tapped() -> None:
    model = mlax.series(attend=mlax.attention(2, causal=True))
    params, state = model.init(KEY, X)
    tapped = mlax.tap(model, "attend.weights")
    (y, taps), _ = tapped.apply(params, tapped.init(KEY, X)[1], X)
    (weights,) = taps.values()
    assert weights.shape == (2, 6, 6)
    np.testing.assert_allclose(weights.sum(-1), np.ones((2, 6)), rtol=1e-5)
    assert not np.triu(weights, 1).any()
    np.testing.assert_allclose(y, model.apply(params, state, X)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "inputs",
    [X, AttentionInputs(X, MEMORY), AttentionInputs(X, positions=jnp.arange(6) + 3)],
    ids=["self", "cross", "positions"],
)
def test_gradients_are_those_of_the_plain_formula(inputs: Any) -> None:
    params, state, apply = made(inputs, 4, num_kv_heads=2, qk_norm=True)
    plain = mlax.attention(4, num_kv_heads=2, qk_norm=True, softcap=1e6)
    _, plain_state = plain.init(KEY, inputs)

    def loss(apply: Any, state: Any) -> Any:
        return jax.jit(jax.grad(lambda p: jnp.sin(apply(p, state, inputs)[0]).sum()))(params)

    for one, other in zip(
        jax.tree.leaves(loss(apply, state)),
        jax.tree.leaves(loss(plain.apply, plain_state)), strict=True,
    ):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_heads_may_be_sharded_over_an_explicit_mesh(fused: bool) -> None:
    mesh = jax.make_mesh((2,), ("model",), devices=jax.devices()[:2])
    x = normal(1, 6, 8)
    layer = mlax.attention(2, causal=True, out_sharding=P(None, None), fused=fused)
    params, state = layer.init(KEY, x)
    expected, _ = layer.apply(params, state, x)

    def placed(path: Any, leaf: jax.Array) -> Any:
        spec = P("model", None) if path[0].name == "output" else P(None, "model")
        if leaf.ndim == 1:
            spec = P(None) if path[0].name == "output" else P("model")
        return jax.device_put(leaf, jax.NamedSharding(mesh, spec))

    with jax.set_mesh(mesh):
        sharded = jax.tree.map_with_path(placed, params)
        x = jax.device_put(x, jax.NamedSharding(mesh, P(None, None)))
        run = jax.jit(lambda p, x: layer.apply(p, state, x)[0])
        y = run(sharded, x)
        ambiguous = mlax.attention(2, causal=True, fused=fused)
        with pytest.raises(ValueError, match="out_sharding"):
            ambiguous.apply(sharded, ambiguous.init(KEY, x)[1], x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


# Decoding.


def cuts(length: int) -> Iterator[list[int]]:
    """Yield all ways to cut a sequence into chunks."""
    for bits in itertools.product([False, True], repeat=length - 1):
        ends = [i + 1 for i, cut in enumerate(bits) if cut] + [length]
        yield [end - start for start, end in zip([0, *ends], ends, strict=False)]


KINDS: dict[str, dict[str, Any]] = {
    "multi-head": {"num_heads": 4},
    "grouped": {"num_heads": 4, "num_kv_heads": 2, "rotary": rotary},
    "multi-query": {"num_heads": 4, "num_kv_heads": 1, "qk_norm": True},
    "window": {"num_heads": 2, "window": 3, "rotary": rotary, "fused": True},
    "softcap": {"num_heads": 2, "softcap": 2.0},
    "alibi": {"num_heads": 2, "position_bias": functools.partial(alibi, 2)},
}


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [*((name, jnp.float32, 1e-5) for name in KINDS), ("grouped", jnp.bfloat16, 0.03)],
)
def test_chunks_of_any_length_give_the_full_pass(name: str, dtype: Any, tolerance: float) -> None:
    x = X.astype(dtype)
    full = mlax.attention(**KINDS[name], causal=True)
    decoder = mlax.attention(**KINDS[name], causal=True, cache_length=7)
    params, state = full.init(KEY, x)
    expected, _ = full.apply(params, state, x)
    _, start = decoder.init(KEY, x)
    step = jax.jit(functools.partial(decoder.apply, inference_mode=True))
    rows = np.asarray(x)
    for chunks in cuts(6):
        ys, state = [], start
        for end, length in zip(np.cumsum(chunks), chunks, strict=True):
            y, state = step(params, state, rows[end - length : end])
            ys.append(y)
        np.testing.assert_allclose(np.concatenate(ys), expected, rtol=tolerance, atol=tolerance)
    assert len(list(cuts(6))) == 32


def test_a_scan_decodes_token_by_token() -> None:
    full = mlax.attention(2, causal=True, rotary=rotary)
    decoder = mlax.attention(2, causal=True, rotary=rotary, cache_length=6)
    params, state = full.init(KEY, BATCH)
    _, start = decoder.init(KEY, BATCH)

    def step(state: Any, token: jax.Array) -> tuple[Any, jax.Array]:
        y, state = decoder.apply(params, state, token, inference_mode=True)
        return state, y[:, 0]

    _, ys = jax.lax.scan(step, start, jnp.swapaxes(BATCH, 0, 1)[:, :, None])
    expected, _ = full.apply(params, state, BATCH)
    np.testing.assert_allclose(jnp.swapaxes(ys, 0, 1), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_prompts_of_several_lengths_decode_in_one_batch(side: str) -> None:
    hparams: dict[str, Any] = {"causal": True, "rotary": rotary, "window": 4}
    full = mlax.attention(2, **hparams)
    decoder = mlax.attention(2, **hparams, cache_length=9)
    params, state = full.init(KEY, X)
    _, cache = decoder.init(KEY, BATCH)
    padding = np.array([0, 2, 3])
    positions = np.arange(4) - (padding[:, None] if side == "left" else 0)
    lengths = None if side == "left" else jnp.asarray(4 - padding)
    step = jax.jit(functools.partial(decoder.apply, inference_mode=True))
    sequences = [normal(7 + i, 4 - n + 3, 8) for i, n in enumerate(padding)]
    prompt = jnp.stack([
        jnp.pad(s[: 4 - n], ((n, 0), (0, 0)) if side == "left" else ((0, n), (0, 0)))
        for s, n in zip(sequences, padding, strict=True)
    ])
    inputs = AttentionInputs(prompt, positions=jnp.asarray(positions), lengths=lengths)
    ys = []
    _, cache = step(params, cache, inputs)
    for i in range(3):
        token = jnp.stack([s[4 - n + i] for s, n in zip(sequences, padding, strict=True)])
        y, cache = step(params, cache, token[:, None])
        ys.append(y[:, 0])
    for one, sequence in zip(jnp.stack(ys, 1), sequences, strict=True):
        expected, _ = jax.jit(full.apply)(params, state, sequence)
        np.testing.assert_allclose(one, expected[-3:], rtol=1e-5, atol=1e-5)


def test_a_cache_that_wraps_keeps_a_window() -> None:
    hparams: dict[str, Any] = {"causal": True, "rotary": rotary, "window": 3}
    full = mlax.attention(2, **hparams)
    decoder = mlax.attention(2, **hparams, cache_length=5, cache_policy="wrap")
    x = normal(9, 20, 8)
    params, state = full.init(KEY, x)
    expected, _ = full.apply(params, state, x)
    step = jax.jit(functools.partial(decoder.apply, inference_mode=True))
    for length in (1, 2, 3):
        _, state = decoder.init(KEY, x)
        ys = []
        for start in range(0, 20, length):
            y, state = step(params, state, x[start : start + length])
            ys.append(y)
        np.testing.assert_allclose(jnp.concatenate(ys), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="at most 3 tokens at once.*got 4; make cache_length"):
        decoder.apply(params, state, x[:4], inference_mode=True)


def test_a_full_cache_is_never_silent() -> None:
    decoder = mlax.attention(2, causal=True, cache_length=4)
    params, state = decoder.init(KEY, X)
    step = functools.partial(decoder.apply, inference_mode=True)
    _, state = step(params, state, X[:3])
    with pytest.raises(ValueError, match="a cache of 4 tokens, of which 3 are taken, got 2 tokens"):
        step(params, state, X[3:5])
    with pytest.raises(ValueError, match="a cache of 4 tokens, got 6 tokens"):
        jax.jit(step)(params, state, X)
    y, after = jax.jit(step)(params, state, X[3:5])
    assert jnp.isnan(y).all()
    y, _ = jax.jit(step)(params, after, X[:1])
    assert jnp.isnan(y).all()
    checked = checkify.checkify(jax.jit(step))
    error, _ = checked(params, state, X[3:5])
    assert "the cache of 4 tokens is full" in str(error.get())
    error, (y, _) = checked(params, state, X[3:4])
    assert error.get() is None and jnp.isfinite(y).all()


def test_without_a_check_a_full_cache_is_nan_and_jax_dispatches_in_one_call() -> None:
    decoder = mlax.attention(2, causal=True, cache_length=4, cache_policy="nan")
    params, state = decoder.init(KEY, X)
    step = jax.jit(functools.partial(decoder.apply, inference_mode=True))
    _, after = step(params, state, X[:3])
    assert jnp.isfinite(step(params, after, X[3:4])[0]).all()
    assert jnp.isnan(step(params, after, X[3:5])[0]).all()
    assert not step.trace(params, state, X[:3]).jaxpr.effects
    with pytest.raises(ValueError, match="a cache of 4 tokens"):
        decoder.apply(params, state, X[:5], inference_mode=True)


def test_a_donated_cache_is_updated_in_place() -> None:
    decoder = mlax.attention(2, causal=True, cache_length=64)
    params, state = decoder.init(KEY, X)
    step = jax.jit(functools.partial(decoder.apply, inference_mode=True), donate_argnums=1)
    memory = step.lower(params, state, X[:1]).compile().memory_analysis()
    assert memory is not None and memory.alias_size_in_bytes >= state.variables.key.nbytes * 2


def test_each_example_of_batched_has_its_cache() -> None:
    full = mlax.attention(2, causal=True)
    decoder = mlax.batched(mlax.attention(2, causal=True, cache_length=6), state_axis=0)
    params, state = full.init(KEY, X)
    expected, _ = full.apply(params, state, BATCH)
    _, caches = decoder.init(KEY, BATCH)
    step = jax.jit(functools.partial(decoder.apply, inference_mode=True))
    ys = []
    for start, end in ((0, 2), (2, 4), (4, 6)):
        y, caches = step(params, caches, BATCH[:, start:end])
        ys.append(y)
    np.testing.assert_allclose(jnp.concatenate(ys, 1), expected, rtol=1e-5, atol=1e-5)


# Wrong arguments.


@pytest.mark.parametrize(
    ("x", "hparams", "error", "match"),
    [
        (X, {"num_heads": 3}, ValueError, r"num_heads.*divisor of the 8 features.*got 3; or pass"),
        (X, {"num_heads": 4, "num_kv_heads": 3}, ValueError, r"divisor of num_heads \(4\), got 3"),
        (X[0], {"num_heads": 2}, ValueError, r"x with at least 2 axes, got shape \(8,\)"),
        (X.astype(int), {"num_heads": 2}, TypeError, "x to be of a floating dtype, .*got int32"),
        ((X, X), {"num_heads": 2}, TypeError, "AttentionInputs, got a tuple; pass mlax.Att"),
        (X, {"num_heads": 2, "implementation": "flash"}, ValueError, "\"xla\", \"cudnn\" or a fun"),
        (X, {"num_heads": 2, "cache_length": 8}, ValueError, "causal self-attention with cache_l"),
        (X, {"num_heads": 2, "cache_policy": "wrap"}, ValueError, "cache_length >= window with"),
        (X, {"num_heads": 2, "cache_policy": "drop"}, ValueError, '"error", "nan" or "wrap"'),
        (AttentionInputs(X, MEMORY), {"num_heads": 2, "fused": True}, ValueError, "x alone with fu"),
        (AttentionInputs(X, MEMORY[None]), {"num_heads": 2}, ValueError, r"memory.*\(1, 5, 4\)"),
    ],
)
def test_what_init_refuses(
    x: Any, hparams: dict[str, Any], error: type[Exception], match: str
) -> None:
    with pytest.raises(error, match=f"^attention: expected .*{match}"):
        mlax.attention(**hparams).init(KEY, x)


@pytest.mark.parametrize(
    ("inputs", "error", "match"),
    [
        (AttentionInputs(X, mask=jnp.ones((6, 5), bool)), ValueError, r"mask.*\(2, 6, 6\).*\(6, 5\)"),
        (AttentionInputs(X, mask=jnp.ones((6, 6))), TypeError, "dtype bool, got float32; pass num"),
        (AttentionInputs(X, bias=jnp.ones((3, 6, 6))), ValueError, r"bias.*\(2, 6, 6\).*\(3, 6, 6\)"),
        (AttentionInputs(X, positions=jnp.ones(6)), TypeError, "positions.*integer.*float32"),
        (AttentionInputs(X, positions=jnp.arange(5)), ValueError, r"positions.*\(6,\).*\(5,\)"),
        (AttentionInputs(X, lengths=jnp.arange(6)), ValueError, r"lengths.*\(\).*\(6,\)"),
        (AttentionInputs(X, memory_positions=jnp.arange(6)), ValueError, "with a memory, got no"),
        (AttentionInputs(X, mask=jnp.ones(6, bool)), ValueError, r"mask.*\(6, 6\) or, with a head axis"),
        (jnp.ones((6, 7)), ValueError, r"\(6, 7\)"),
    ],
)
def test_what_apply_refuses(inputs: Any, error: type[Exception], match: str) -> None:
    params, state, apply = made(X, 2)
    with pytest.raises(error, match=match):
        apply(params, state, inputs)


def test_params_of_other_heads_are_refused() -> None:
    params, _ = mlax.attention(4).init(KEY, X)
    decoder = mlax.attention(4, num_kv_heads=2, causal=True, cache_length=8)
    _, state = decoder.init(KEY, X)
    with pytest.raises(ValueError, match="2 heads of 2 features, as queries, got kernels for 4"):
        decoder.apply(params, state, X, inference_mode=True)


def test_rotary_is_checked_by_init() -> None:
    with pytest.raises(ValueError, match="rotary: expected dims to be even, and at most 3"):
        mlax.attention(2, head_dim=3, rotary=rotary).init(KEY, X)


def test_a_cache_serves_its_batch_in_inference_alone() -> None:
    decoder = mlax.series(mlax.attention(2, causal=True, cache_length=8))
    params, state = decoder.init(KEY, BATCH)
    with pytest.raises(ValueError, match="inference_mode=True with cache_length, got False") as caught:
        decoder.apply(params, state, BATCH)
    assert "series[0]" in str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    with pytest.raises(ValueError, match=r"a batch of shape \(2,\), got one for \(3,\)"):
        decoder.apply(params, state, BATCH[:2], inference_mode=True)
    trained = mlax.series(mlax.attention(2, causal=True))
    with pytest.raises(ValueError, match="cache_length"):
        trained.apply(params, state, BATCH)


def test_fused_can_be_required() -> None:
    params, state, apply = made(X, 2, dropout_rate=0.1, require_fused=True)
    apply(params, state, X, inference_mode=True)
    with pytest.raises(ValueError, match="require_fused"):
        apply(params, state, X, KEY)


@pytest.mark.parametrize("lead", [(), (2,)])
def test_padding_pushes_nothing_out_of_a_window(lead: tuple[int, ...]) -> None:
    places = np.array([0, -1, -1, 1, -1, 2])
    x = jnp.broadcast_to(X, (*lead, *X.shape))
    positions = np.broadcast_to(places, (*lead, 6))
    if lead:
        positions = np.stack([places, places[::-1]]) * 1
        positions[1] = [-1, 0, 1, -1, 2, -1]
    full = mlax.attention(2, causal=True, window=2)
    params, state = full.init(KEY, x)
    expected, _ = full.apply(params, state, AttentionInputs(x, positions=positions))
    decoder = mlax.attention(2, causal=True, window=2, cache_length=2, cache_policy="wrap")
    state = mlax.init_state(decoder, params, x)
    for i in range(6):
        part = AttentionInputs(x[..., i : i + 1, :], positions=positions[..., i : i + 1])
        y, state = decoder.apply(params, state, part, inference_mode=True)
        np.testing.assert_allclose(y, expected[..., i : i + 1, :], rtol=1e-5, atol=1e-5)
