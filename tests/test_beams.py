"""Tests of `beam_search`, against the most likely of all sequences."""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax

KEY = jax.random.key(0)
VOCABULARY = 4
PROMPT = jnp.array([1, 3])


def model(cache_length: int | None = None) -> mlax.Layer[Any, Any, Any, Any]:
    """Return a small language model."""
    attend = mlax.attention(2, causal=True, cache_length=cache_length)
    head = mlax.dense(VOCABULARY, kernel_initializer=jax.nn.initializers.normal(1.0))
    return mlax.series(mlax.embed(VOCABULARY, 8), mlax.residual(attend), head)


@functools.cache
def made() -> tuple[Any, Any]:
    """Return params, and the state of a model that decodes."""
    params, _ = model().init(KEY, PROMPT)
    return params, mlax.init_state(model(8), params, PROMPT)


def search(steps: int, beams: int, **more: Any) -> Any:
    """Return what a search for the model finds."""
    return mlax.beam_search(model(8).apply, *made(), PROMPT, steps, beams, **more)


def all_sequences(steps: int, stop: int | None = None) -> dict[tuple[int, ...], float]:
    """Return the log probabilities of all sequences, which end with the stop token if it comes."""
    full = jax.jit(model().apply)
    state, found = model().init(KEY, PROMPT)[1], {}
    for tokens in itertools.product(range(VOCABULARY), repeat=steps):
        if stop in tokens:
            tokens = tokens[: tokens.index(stop) + 1]
        whole = np.array([*PROMPT.tolist(), *tokens])
        padded = np.pad(whole, (0, len(PROMPT) + steps - len(whole)))  # causal: it reads no padding
        logits, _ = full(made()[0], state, padded)
        logs = np.asarray(jax.nn.log_softmax(logits))[len(PROMPT) - 1 : len(whole) - 1]
        found[tokens] = float(sum(logs[i, token] for i, token in enumerate(tokens)))
    return found


@pytest.mark.parametrize("stop", [None, 2])
def test_a_search_that_keeps_all_finds_the_most_likely(stop: int | None) -> None:
    expected = sorted(all_sequences(3, stop).items(), key=lambda item: -item[1])
    found = search(3, VOCABULARY**3, stop=stop)
    assert found.tokens.dtype == PROMPT.dtype
    for i, (tokens, logs) in enumerate(expected):
        assert found.lengths[i] == len(tokens)
        assert tuple(found.tokens[i, : len(tokens)].tolist()) == tokens
        assert (found.tokens[i, len(tokens) :] == tokens[-1]).all()
        np.testing.assert_allclose(found.log_probabilities[i], logs, rtol=1e-4)
    assert (found.log_probabilities[len(expected) :] == -jnp.inf).all()


def test_one_beam_is_greedy() -> None:
    greedy = mlax.generate(model(8).apply, *made(), PROMPT, 4, temperature=0).tokens
    np.testing.assert_array_equal(search(4, 1).tokens, greedy[None])


def test_sequences_are_those_of_a_search_written_out() -> None:
    kept: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for length in range(1, 5):
        logs = all_sequences(length)
        kept = sorted(
            ((logs[(*tokens, t)], (*tokens, t)) for _, tokens in kept for t in range(VOCABULARY)),
            reverse=True,
        )[:3]
    found = search(4, 3)
    assert [tuple(row) for row in found.tokens.tolist()] == [tokens for _, tokens in kept]
    np.testing.assert_allclose(found.log_probabilities, [log for log, _ in kept], rtol=1e-4)


def test_the_penalty_ranks_by_length() -> None:
    found = search(3, 16, stop=2, length_penalty=2.0)
    ranks = found.log_probabilities / ((5 + found.lengths) / 6) ** 2
    assert (jnp.diff(ranks) <= 0).all() and len(set(found.lengths.tolist())) > 1


def test_prompts_are_mapped_and_a_search_is_compiled() -> None:
    prompts = jnp.stack([PROMPT, PROMPT[::-1]])
    params, state = made()
    run = functools.partial(mlax.beam_search, model(8).apply, params, state, steps=3, beams=2)
    found = jax.jit(jax.vmap(run))(prompts)
    for i, prompt in enumerate(prompts):
        np.testing.assert_array_equal(found.tokens[i], run(prompt).tokens)


def test_what_it_refuses() -> None:
    params, state = made()
    run = functools.partial(mlax.beam_search, model(8).apply, params, state)
    with pytest.raises(ValueError, match="room for 9 tokens"):
        run(PROMPT, 8, 2)
    with pytest.raises(ValueError, match=r"prompt to be of shape \(length,\)"):
        run(PROMPT[None], 3, 2)
    with pytest.raises(ValueError, match="beams to be a positive integer"):
        run(PROMPT, 3, 0)
    with pytest.raises(ValueError, match="a state that holds caches"):
        mlax.beam_search(model().apply, params, model().init(KEY, PROMPT)[1], PROMPT, 3, 2)
