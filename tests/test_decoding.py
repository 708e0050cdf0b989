"""Tests of `init_state` and `generate`, and of models that decode."""

import functools
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import AttentionInputs
from mlax.positions import rotary
from mlax.types import AnyLayer, Sublayers

KEY = jax.random.key(0)
VOCABULARY = 11
PROMPT = jnp.array([[3, 1, 4, 1], [5, 9, 2, 6]])


@mlax.block(
    embed=mlax.embed(VOCABULARY, 8),
    positions=mlax.position_embedding(16),
    body=mlax.repeat(
        mlax.transformer_block(mlax.attention(2, 1, causal=True, rotary=rotary), mlax.mlp(16)), 2
    ),
)
def model(sub: Sublayers, x: Any) -> Any:
    """A small language model with tied weights, of tokens or of (tokens, positions)."""
    return language_model(sub, x)


@mlax.block(
    embed=mlax.embed(VOCABULARY, 8),
    positions=mlax.position_embedding(16, decodes=True),
    body=mlax.repeat(
        mlax.transformer_block(
            mlax.attention(2, 1, causal=True, rotary=rotary, cache_length=16), mlax.mlp(16)
        ),
        2,
    ),
)
def decoder(sub: Sublayers, x: Any) -> Any:
    """The same model, which decodes."""
    return language_model(sub, x)


def language_model(sub: Sublayers, x: Any) -> Any:
    """Return the logits of the next tokens."""
    tokens, positions = x if isinstance(x, tuple) else (x, None)
    x = sub.embed(tokens)
    x = sub.positions(x if positions is None else (x, positions))
    y = sub.body(x if positions is None else AttentionInputs(x, positions=positions))
    y = y.x if isinstance(y, AttentionInputs) else y
    return 4 * y @ sub.embed.params.embedding.T


@functools.cache
def made() -> tuple[Any, Any]:
    """Return params and the state of the model that does not decode."""
    params, state = model.init(KEY, PROMPT)
    return params, state


full = jax.jit(model.apply)
step = jax.jit(functools.partial(decoder.apply, inference_mode=True))


@functools.cache
def state_for(shape: tuple[int, ...], are_pairs: bool) -> Any:
    """Return a state for tokens of a shape, or for pairs of tokens and positions."""
    tokens = jnp.zeros(shape, int)
    return mlax.init_state(decoder, made()[0], (tokens, tokens) if are_pairs else tokens)


def fresh(x: Any = PROMPT) -> Any:
    """Return a new state for decoding."""
    tokens = x[0] if isinstance(x, tuple) else x
    return state_for(tokens.shape, isinstance(x, tuple))


def test_the_state_alone_is_that_of_init() -> None:
    _, expected = decoder.init(KEY, PROMPT)
    state = fresh()
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    jax.tree.map(
        functools.partial(np.testing.assert_array_equal, strict=True), state, expected
    )


def test_the_state_is_for_params_of_this_model_alone() -> None:
    params, _ = mlax.linear(3).init(KEY, jnp.ones(2))
    with pytest.raises(ValueError, match=r"init_state: expected params.kernel .*\(2, 4\).*\(2, 3\)"):
        mlax.init_state(mlax.linear(4), params, jnp.ones(2))
    with pytest.raises(TypeError, match="init_state: expected params .* structure"):
        mlax.init_state(mlax.dense(3), cast(Any, params), jnp.ones(2))  # of another layer
    with pytest.raises(TypeError, match="bfloat16"):
        mlax.init_state(mlax.linear(3, dtype=jnp.bfloat16), params, jnp.ones(2))


def test_init_state_keeps_the_weights_that_are_variables() -> None:
    """Of adapted and quantized layers, at any depth; everything else starts anew."""
    x = jax.random.normal(jax.random.key(1), (5, 8))

    def model(decodes: bool) -> AnyLayer:
        attend = mlax.attention(2, causal=True, cache_length=8 if decodes else None)
        layer = mlax.series(
            mlax.quantized(mlax.dense(8)), mlax.repeat(mlax.residual(attend), 2), mlax.dense(3)
        )
        return mlax.series(mlax.lora(layer, "*.kernel", 2), mlax.batched(mlax.batch_norm()))

    params, state = model(False).init(jax.random.key(0), x)
    params = jax.tree.map(lambda leaf: leaf + 0.1, params)
    decoder = model(True)
    caches = mlax.init_state(decoder, params, x, state)
    wanted, _ = model(False).apply(params, state, x, inference_mode=True)
    first, caches = decoder.apply(params, caches, x[:2], inference_mode=True)
    last, caches = decoder.apply(params, caches, x[2:], inference_mode=True)
    np.testing.assert_allclose(jnp.concatenate([first, last]), wanted, rtol=1e-5, atol=1e-5)

    _, trained = model(False).apply(params, state, x)
    fresh = mlax.init_state(model(False), params, x, trained)
    jax.tree.map(np.testing.assert_array_equal, fresh.variables, state.variables)

    for other in (None, mlax.dense(3).init(jax.random.key(0), x)[1]):
        with pytest.raises(TypeError, match="with the weights at variables.0, as a .* got .*; pass"):
            mlax.init_state(decoder, params, x, other)
    quantized = mlax.quantized(mlax.dense(3))
    biases, own = quantized.init(jax.random.key(0), jnp.ones(4))
    with pytest.raises(ValueError, match=r"state.variables.weights.kernel.values to be .*\(5, 3\)"):
        mlax.init_state(quantized, biases, jnp.ones(5), own)


def test_a_model_decodes_chunks() -> None:
    params, state = made()
    expected, _ = full(params, state, PROMPT)
    ys, state = [], fresh()
    for start, end in ((0, 2), (2, 3), (3, 4)):
        y, state = step(params, state, PROMPT[:, start:end])
        ys.append(y)
    np.testing.assert_allclose(jnp.concatenate(ys, 1), expected, rtol=1e-4, atol=1e-4)


def greedy(tokens: list[int], steps: int) -> list[int]:
    """Return the most likely tokens, each by a full pass."""
    for _ in range(steps):
        padded = jnp.asarray(tokens + [0] * (12 - len(tokens)))  # what comes later has no effect
        logits, _ = full(*made(), padded)
        tokens = [*tokens, int(jnp.argmax(logits[len(tokens) - 1]))]
    return tokens[-steps:]


def test_greedy_tokens_are_those_of_full_passes() -> None:
    generated = mlax.generate(decoder.apply, made()[0], fresh(), PROMPT, 6, temperature=0)
    expected = [greedy(row.tolist(), 6) for row in np.asarray(PROMPT)]
    np.testing.assert_array_equal(generated.tokens, expected)
    np.testing.assert_array_equal(generated.lengths, [6, 6])


def test_prompts_of_different_lengths() -> None:
    params = made()[0]
    pair = PROMPT, PROMPT
    lengths = jnp.array([4, 2])
    generated = mlax.generate(
        decoder.apply, params, fresh(pair), PROMPT, 5, temperature=0, lengths=lengths
    )
    expected = [greedy([3, 1, 4, 1], 5), greedy([5, 9], 5)]
    np.testing.assert_array_equal(generated.tokens, expected)


def test_a_stop_token_ends_a_sequence() -> None:
    tokens = [greedy(row.tolist(), 6) for row in np.asarray(PROMPT)]
    stop = tokens[0][2]
    generated = mlax.generate(
        decoder.apply, made()[0], fresh(), PROMPT, 6, temperature=0, stop=[stop, 100]
    )
    for row, found, length in zip(tokens, generated.tokens, generated.lengths, strict=True):
        count = row.index(stop) + 1 if stop in row else 6
        assert length == count
        assert found.tolist() == row[:count] + [stop] * (6 - count)


@pytest.mark.parametrize(
    "hparams", [{}, {"top_k": 3}, {"top_p": 0.5}, {"temperature": 0.5}, {"top_k": 1}], ids=str
)
def test_draws_follow_the_probabilities(hparams: dict[str, Any]) -> None:
    params, state = made()
    prompt = jnp.tile(PROMPT[:1], (4000, 1))
    generated = mlax.generate(decoder.apply, params, fresh(prompt), prompt, 1, KEY, **hparams)
    logits = np.asarray(full(params, state, PROMPT[0])[0][-1], np.float64)
    p = np.exp(logits / hparams.get("temperature", 1))
    p /= p.sum()
    order = np.argsort(-p)
    if "top_k" in hparams:
        p[order[hparams["top_k"] :]] = 0
    if "top_p" in hparams:
        p[order[np.cumsum(p[order]) - p[order] >= 0.5]] = 0
    frequencies = np.bincount(generated.tokens[:, 0], minlength=VOCABULARY) / 4000
    np.testing.assert_allclose(frequencies, p / p.sum(), atol=0.03)
    assert not frequencies[p == 0].any()


def test_equal_keys_draw_equal_tokens() -> None:
    draw = functools.partial(mlax.generate, decoder.apply, made()[0], fresh(), PROMPT, 8)
    np.testing.assert_array_equal(draw(KEY).tokens, draw(KEY).tokens)
    assert (draw(KEY).tokens != draw(jax.random.key(1)).tokens).any()


def test_going_on_from_the_state() -> None:
    run = functools.partial(mlax.generate, decoder.apply, made()[0], temperature=0)
    whole = run(fresh(), PROMPT, 6)
    first = run(fresh(), PROMPT, 3)
    second = run(first.state, first.tokens[:, -1:], 3)
    both = jnp.concatenate([first.tokens, second.tokens], -1)
    np.testing.assert_array_equal(both, whole.tokens)


def test_one_program_for_prompts_of_a_bucket(caplog: pytest.LogCaptureFixture) -> None:
    pair = PROMPT, PROMPT
    run = functools.partial(
        mlax.generate, decoder.apply, made()[0], steps=2, temperature=0, lengths=jnp.array([2, 3])
    )
    run(fresh(pair), prompt=PROMPT)
    with jax.log_compiles():
        run(fresh(pair), prompt=PROMPT[:, :3])
    assert "_generate" not in caplog.text


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({"prompt": PROMPT[:, :0]}, r"a prompt of at least one token, got \(2, 0\)"),
        ({"steps": 0}, "steps to be a positive integer, got 0"),
        ({"rng": None}, "a key to draw with, got rng=None; pass"),
        ({"temperature": -1.0}, "temperature to be at least 0, got -1.0"),
        ({"top_p": 0.0}, r"top_p to be in \(0, 1\], got 0.0"),
        ({"top_k": 0}, "top_k to be a positive integer, got 0"),
        ({"steps": 14}, "logits that are numbers, got NaN; is there room for 17 tokens in"),
        ({"state": "made"}, "a state that holds caches, got no variables"),
    ],
    ids=str,
)
def test_what_generate_refuses(arguments: dict[str, Any], match: str) -> None:
    call = {"prompt": PROMPT, "steps": 2, "rng": KEY, **arguments}
    state = made()[1] if call.pop("state", None) else fresh()
    with pytest.raises(ValueError, match=f"^generate: expected {match}"):
        mlax.generate(decoder.apply, made()[0], state, **call)


@pytest.mark.parametrize("temperature", [0.0, 1e-39, -1.0, float("nan")])
def test_a_traced_temperature(temperature: float) -> None:
    # Made out here: what other tests share must not hold values of a trace.
    run = functools.partial(mlax.generate, decoder.apply, made()[0], fresh(), PROMPT, 3, KEY)

    def draw(temperature: Any) -> Any:
        return run(temperature, top_p=1e-45).tokens

    tokens = jax.jit(draw)(temperature)
    if temperature >= 0:
        expected = [greedy(row.tolist(), 3) for row in np.asarray(PROMPT)]
        np.testing.assert_array_equal(tokens, expected)
    else:
        np.testing.assert_array_equal(tokens, -1)


def test_prompts_of_different_lengths_go_on() -> None:
    pair = PROMPT, PROMPT
    run = functools.partial(mlax.generate, decoder.apply, made()[0], temperature=0)
    lengths = jnp.array([4, 2])
    whole = run(fresh(pair), PROMPT, 5, lengths=lengths)
    first = run(fresh(pair), PROMPT, 3, lengths=lengths)
    last = first.tokens[:, -1:]
    with pytest.raises(ValueError, match="first_position with lengths and a state that is not new"):
        run(first.state, last, 2, lengths=1)
    second = run(first.state, last, 2, lengths=1, first_position=lengths + 2)
    both = jnp.concatenate([first.tokens, second.tokens], -1)
    np.testing.assert_array_equal(both, whole.tokens)


@pytest.mark.parametrize(
    ("lengths", "match"),
    [
        ([0, 1], r"lengths to be from 1 to 4, got \[0, 1\]"),
        ([5, 1], r"lengths to be from 1 to 4, got \[5, 1\]"),
        ([1, 1, 1], r"lengths to be of shape \(2,\), got shape \(3,\)"),
        ([1.0, 1.0], "lengths to be of an integer dtype"),
    ],
    ids=str,
)
def test_lengths_are_checked(lengths: list[Any], match: str) -> None:
    run = functools.partial(mlax.generate, decoder.apply, made()[0], steps=2, temperature=0)
    state = fresh((PROMPT, PROMPT))
    with pytest.raises((TypeError, ValueError), match=f"^generate: expected {match}"):
        run(state, prompt=PROMPT, lengths=jnp.array(lengths))


def test_lengths_that_are_traced_are_checked_too() -> None:
    run = functools.partial(
        mlax.generate, decoder.apply, made()[0], fresh((PROMPT, PROMPT)), PROMPT, 2, temperature=0
    )
    tokens = jax.jit(lambda n: run(lengths=n).tokens)(jnp.array([4, 5]))
    np.testing.assert_array_equal(tokens, [greedy([3, 1, 4, 1], 2), [-1, -1]])


def test_the_output_must_be_logits() -> None:
    with pytest.raises(TypeError, match="generate: expected the output to be an array of logits"):
        tapped: Any = mlax.tap(decoder).apply
        mlax.generate(tapped, made()[0], fresh(), PROMPT, 2, KEY)


def test_prompts_are_integers() -> None:
    with pytest.raises(TypeError, match="prompt to be of an integer dtype, got float32"):
        mlax.generate(decoder.apply, made()[0], fresh(), PROMPT / 2, 2, KEY)


def test_positions_beyond_the_table() -> None:
    layer = mlax.position_embedding(4)
    x = jnp.zeros((5, 2))
    with pytest.raises(ValueError, match="at most 4 positions, as the embedding has, got 5"):
        layer.apply(*layer.init(KEY, x[:4]), x)
    params, state = layer.init(KEY, x)
    y, _ = layer.apply(params, state, (x, jnp.array([3, -1, 4, 0, -7])))
    np.testing.assert_array_equal(jnp.isnan(y).all(-1), [False, False, True, False, False])
    np.testing.assert_array_equal(y[jnp.array([1, 4])], 0)
    np.testing.assert_array_equal(y[jnp.array([0, 3])], params.embedding[jnp.array([3, 0])])
    steps = mlax.position_embedding(4, decodes=True)
    params, state = steps.init(KEY, x)
    _, state = steps.apply(params, state, x[:3], inference_mode=True)
    with pytest.raises(ValueError, match="at most 4 positions, as the embedding has, got 5"):
        steps.apply(params, state, x[:2], inference_mode=True)
    y, _ = jax.jit(functools.partial(steps.apply, inference_mode=True))(params, state, x[:2])
    np.testing.assert_array_equal(jnp.isnan(y).all(-1), [False, True])
    with pytest.raises(ValueError, match="inference_mode=True with decodes"):
        steps.apply(params, state, x)


@pytest.mark.parametrize("single", [False, True])
@pytest.mark.parametrize("with_lengths", [False, True])
def test_a_state_goes_on_after_a_stop_token(single: bool, with_lengths: bool) -> None:
    params, prompt = made()[0], PROMPT[0] if single else PROMPT
    sizes = jnp.full(prompt.shape[:-1], prompt.shape[-1]) if with_lengths else None
    run = functools.partial(mlax.generate, decoder.apply, params, temperature=0)
    start = mlax.init_state(decoder, params, (prompt, prompt) if with_lengths else prompt)
    free = run(start, prompt, 6, lengths=sizes).tokens
    stop = int(free.reshape(-1, 6)[0][1])
    found = run(start, prompt, 6, lengths=sizes, stop=stop)
    more = jnp.array([5, 9])
    if not single and not with_lengths:
        assert jnp.isnan(found.state.variables["body"]["attention"].key).any()
        return
    texts, expected = [], []
    for row, tokens, count in zip(
        prompt.reshape(-1, 4), found.tokens.reshape(-1, 6), found.lengths.reshape(-1), strict=True
    ):
        text = jnp.concatenate([row, tokens[:count], more])
        logits, _ = full(*made(), text)
        texts.append(jnp.concatenate([tokens[count - 1 : count], more]))
        expected.append(logits[-3:])
    x: Any = texts[0] if single else jnp.stack(texts)
    if with_lengths:
        first = prompt.shape[-1] + found.lengths - 1
        x = x, first[..., None] + jnp.arange(3)
    logits, _ = step(params, found.state, x)
    np.testing.assert_allclose(logits.reshape(-1, 3, VOCABULARY), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8, jnp.int16])
def test_tokens_are_of_a_dtype_that_holds_the_vocabulary(dtype: Any) -> None:
    def wide(cache_length: int | None) -> Any:
        attend = mlax.attention(2, causal=True, cache_length=cache_length)
        return mlax.series(mlax.embed(300, 8), mlax.residual(attend), mlax.dense(300))

    params, _ = wide(None).init(KEY, PROMPT)
    expected, found = (
        mlax.generate(
            wide(16).apply, params, mlax.init_state(wide(16), params, prompt), prompt, 8,
            temperature=0,
        ).tokens
        for prompt in (PROMPT, PROMPT.astype(dtype))
    )
    assert expected.max() > 255 and found.dtype == jnp.int32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"temperature": jnp.ones(3)}, r"temperature to be one number, got shape \(3,\)"),
        ({"top_p": jnp.ones(3)}, "top_p to be one number"),
        ({"first_position": 3}, "first_position only with lengths"),
    ],
)
def test_what_is_no_number_or_has_no_use_is_refused(more: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        mlax.generate(decoder.apply, made()[0], fresh(), PROMPT, 2, KEY, **more)


def test_an_apply_that_forgets_the_state_says_so() -> None:
    params, state = decoder.init(KEY, PROMPT[0])

    def forgetful(*_: Any, **__: Any) -> Any:
        return jnp.ones((2, VOCABULARY))

    wanted = r": expected what apply returns to be \(y, state\), got "
    with pytest.raises(TypeError, match=f"^generate{wanted}"):
        mlax.generate(forgetful, params, state, PROMPT[0], 2, temperature=0)
    with pytest.raises(TypeError, match=f"^beam_search{wanted}"):
        mlax.beam_search(forgetful, params, state, PROMPT[0], 2, 2)
