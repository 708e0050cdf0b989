"""Beam search: the most likely continuations of a prompt, among those that the search keeps.

Each step extends every kept sequence by every token and keeps the best, those with the largest sum
of log probabilities. A sequence that has ended stays as it is and takes up a beam.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlax.arguments import read_number, read_size
from mlax.belonging import pair_of
from mlax.decoding import read_prompt, read_stops, require_caches, require_numbers
from mlax.errors import message
from mlax.layer import Apply, P, S
from mlax.serialization import serializable


@serializable
class Beams(NamedTuple):
    """What `beam_search` returns, the best sequence first."""

    tokens: jax.Array
    """(beams, steps), int32 or int64; after a stop token, that token again."""
    lengths: jax.Array
    """(beams,), the number of tokens up to and including the first stop token."""
    log_probabilities: jax.Array
    """(beams,), float32: the sum over the tokens of a sequence, given the prompt; -inf where there
    are fewer sequences than beams."""


def beam_search(
    apply: Apply[P, S, Any, jax.Array], params: P, state: S, prompt: jax.Array, steps: int,
    beams: int, *, stop: int | Sequence[int] | None = None, length_penalty: float = 0.0,
) -> Beams:
    """Return the most likely continuations of a prompt that beam search finds.

    `apply` is as in `mlax.generate`: it takes tokens and returns logits, in inference mode. Inside,
    the state has a leading axis of beams, over which `jax.vmap` maps `apply`. For several prompts
    of one length, use `jax.vmap` on this function.

    Args:
        apply: the `apply` of a model that decodes.
        params: its params.
        state: a new state for it, or one to continue from.
        prompt: (length,), integers, at least one token.
        steps: number of tokens to find.
        beams: number of sequences to keep at each step.
        stop: a token, or several, after which a sequence ends.
        length_penalty: sequences are ranked by their log probability divided by
            ((5 + length) / 6) ^ length_penalty, at the end; 0 favours short sequences, 1 long ones.

    Raises:
        TypeError: the prompt is not of an integer dtype.
        ValueError: an argument is out of its range, the state has no cache, or a logit is NaN, as
            when a cache is full. (In a program compiled as a whole, all log probabilities are then
            NaN.)

    Source: Wu et al., "Google's neural machine translation system", 2016, for the penalty.

    >>> import jax, jax.numpy as jnp, mlax
    >>> def model(cache_length=None):
    ...     attend = mlax.attention(2, causal=True, cache_length=cache_length)
    ...     return mlax.series(mlax.embed(5, 8), mlax.residual(attend), mlax.dense(5))
    >>> prompt = jnp.array([1, 2, 3])
    >>> params, _ = model().init(jax.random.key(0), prompt)
    >>> state = mlax.init_state(model(16), params, prompt)
    >>> mlax.beam_search(model(16).apply, params, state, prompt, steps=4, beams=3).tokens.shape
    (3, 4)
    """
    prompt = read_prompt("beam_search", prompt)
    if prompt.ndim != 1 or not prompt.size:
        wanted, way_out = "of shape (length,), with at least one token", "use jax.vmap for several"
        raise ValueError(message("beam_search", "prompt", wanted, prompt.shape, way_out))
    read_size("beam_search", "steps", steps)
    read_size("beam_search", "beams", beams)
    read_number("beam_search", "length_penalty", length_penalty)
    require_caches("beam_search", state)
    stops = read_stops(stop)
    found: Beams = _search(apply, params, state, prompt, steps, beams, stops, length_penalty)
    are_numbers = ~jnp.isnan(found.log_probabilities).any()
    require_numbers("beam_search", are_numbers, prompt.size + steps - 1)
    return found


class _Carry(NamedTuple):
    """What a step continues from: arrays with a leading axis of beams."""

    states: Any
    tokens: jax.Array
    scores: jax.Array
    ended: jax.Array
    lengths: jax.Array


@functools.partial(jax.jit, static_argnames=("apply", "steps", "beams", "stops"))
def _search(
    apply: Any, params: Any, state: Any, prompt: jax.Array, steps: int, beams: int,
    stops: tuple[int, ...], length_penalty: float,
) -> Beams:
    def run(state: Any, tokens: jax.Array) -> tuple[jax.Array, Any]:
        """Return the log probabilities of the next token."""
        result = apply(params, state, tokens, inference_mode=True)
        logits, state = pair_of("beam_search", "apply", "(y, state)", result)
        return jax.nn.log_softmax(logits[-1].astype(jnp.float32)), state

    def extended(carry: _Carry, logs: jax.Array, i: Any) -> _Carry:
        """Return the best of all sequences with one more token."""
        size = logs.shape[-1]
        last = carry.tokens[:, i - 1]
        again = jnp.where(jnp.arange(size) == last[:, None], 0, -jnp.inf)
        totals = carry.scores[:, None] + jnp.where(carry.ended[:, None], again, logs)
        scores, places = jax.lax.top_k(totals.ravel(), beams)
        parents, token = places // size, (places % size).astype(prompt.dtype)
        states, tokens, ended, lengths = jax.tree.map(
            lambda a: a[parents], (carry.states, carry.tokens, carry.ended, carry.lengths)
        )
        lengths = lengths + ~ended
        for stop in stops:
            ended |= token == stop
        return _Carry(states, tokens.at[:, i].set(token), scores, ended, lengths)

    logs, state = run(state, prompt)
    carry = _Carry(
        jax.tree.map(lambda a: jnp.broadcast_to(a, (beams, *a.shape)), state),
        jnp.zeros((beams, steps), prompt.dtype),
        jnp.where(jnp.arange(beams) == 0, 0.0, -jnp.inf),  # every beam is the prompt: count it once
        jnp.zeros(beams, bool), jnp.zeros(beams, jnp.int32),
    )
    carry = extended(carry, jnp.broadcast_to(logs, (beams, logs.size)), 0)

    def step(carry: _Carry, i: jax.Array) -> tuple[_Carry, None]:
        logs, states = jax.vmap(run)(carry.states, carry.tokens[:, i - 1, None])
        return extended(carry._replace(states=states), logs, i), None

    carry, _ = jax.lax.scan(step, carry, jnp.arange(1, steps))
    scores = jnp.where(jnp.isnan(carry.scores).any(), jnp.nan, carry.scores)
    ranks = scores / ((5 + carry.lengths) / 6) ** length_penalty
    order = jnp.argsort(-ranks)
    return Beams(carry.tokens[order], carry.lengths[order], scores[order])
