"""Decoding: a state for existing params, and tokens drawn one after the other.

A model that decodes keeps what it has seen in its state: the caches of `mlax.attention` with a
`cache_length`. Each call of its `apply`, in inference mode, takes the next tokens.
"""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from mlax import mesh
from mlax.arguments import described, read_layer, read_size, require_integers, require_key
from mlax.belonging import pair_of, require_params_like, require_state_like
from mlax.errors import expected, message
from mlax.layer import Apply, Key, Layer, P, S
from mlax.pair import require_input
from mlax.positions import signed
from mlax.serialization import serializable
from mlax.statistics import WARNS
from mlax.tree import path_of


def init_state(layer: Layer[P, S, Any, Any], params: P, x: Any, state: Any = None) -> S:
    """Return the state that `layer.init` makes, without making params.

    It starts afresh, with running statistics and empty caches as `init` makes them.

    Args:
        layer: any layer; its variables must not be random, except for weights that `state` has.
        params: the params that it will run with, whose shapes and dtypes must be those of its own.
        x: an input of `apply`, or its shapes and dtypes.
        state: for `mlax.lora` and `mlax.quantized`, anywhere in the layer, a state that holds their
            weights: the one of the same layer without caches. Nothing else in it is used.

    Raises:
        TypeError: the params have another structure or dtype, or no state has the weights.
        ValueError: the params have other shapes.

    >>> import jax, jax.numpy as jnp, mlax
    >>> x = jnp.ones((4, 8))
    >>> params, _ = mlax.attention(2, causal=True).init(jax.random.key(0), x)
    >>> decoder = mlax.attention(2, causal=True, cache_length=16)
    >>> mlax.init_state(decoder, params, x).variables.key.shape
    (2, 16, 4)
    """
    read_layer("init_state", "layer", layer)
    require_input("init_state", x)
    key = jax.random.key(0)
    own, _ = jax.eval_shape(layer.init, key, x)
    require_params_like("init_state", own, params)

    def make(key: Key, state: Any) -> S:
        made = layer.init(key, x)[1]
        with_weights: S = _with_weights(made, state)
        require_state_like("init_state", made, with_weights)
        return with_weights

    started: S = jax.jit(make)(key, state)
    return started


def _with_weights(own: Any, state: Any) -> Any:
    """Return a state with the weights that another holds at the same places."""

    def holds(node: Any) -> bool:
        return hasattr(node, "holding")

    leaves = jax.tree_util.tree_leaves_with_path(state, is_leaf=holds)
    found = {path_of(path): node for path, node in leaves if holds(node)}

    def filled(path: Any, node: Any) -> Any:
        if not holds(node):
            return node
        place = path_of(path)
        other: Any = found.get(place)
        if type(other) is not type(node):
            wanted = f"one with the weights at {place}, as a new one has random weights there"
            way_out = "pass that of the layer without caches: init_state(layer, params, x, state)"
            raise TypeError(message("init_state", "state", wanted, described(state), way_out))
        return node.holding(other)._replace(layer=_with_weights(node.layer, other.layer))

    return jax.tree_util.tree_map_with_path(filled, own, is_leaf=holds)


def require_inference(owner: str, inference_mode: bool, name: str) -> None:
    """Require inference for a layer that decodes, except where only its shapes matter."""
    if not inference_mode and WARNS.get():
        way_out = f"train the layer without {name}: its params are the same"
        raise ValueError(expected(owner, f"inference_mode=True with {name}", "False", way_out))


@serializable
class Generated(NamedTuple):
    """What `generate` returns: (tokens, lengths, state).

    tokens is (..., steps): after a stop token, that token again. lengths is (...), the number of
    tokens up to and including the first stop token. state has seen all of these but the last: to
    continue, pass a prompt that starts with the last token. (In a batch without lengths, sequences
    that ended before the others can't be continued: the state is NaN then.)
    """

    tokens: jax.Array
    """(..., steps), int32 or int64; after a stop token, that token again."""
    lengths: jax.Array
    """(...), the number of tokens up to and including the first stop token."""
    state: Any
    """The state after all tokens of each sequence but the last, which has not been an input yet."""


def generate(
    apply: Apply[P, S, Any, jax.Array], params: P, state: S, prompt: jax.Array, steps: int,
    rng: Key | None = None, temperature: float | jax.Array = 1.0, top_k: int | None = None,
    top_p: float | jax.Array | None = None, stop: int | Sequence[int] | None = None, *,
    lengths: jax.Array | int | None = None, first_position: jax.Array | int = 0,
) -> Generated:
    """Return tokens that continue a prompt, each drawn from the logits after those before it.

    `apply(params, state, tokens, inference_mode=True)` takes the prompt, and then each new token,
    (..., 1), and returns logits (..., length, vocabulary) and the next state. With `lengths`, it
    takes pairs (tokens, positions) instead, where padding has position -1: a model that is a
    `mlax.block` passes them on with mlax.AttentionInputs(x, positions=positions), and its state is
    made for such a pair.

    The program is compiled once for an `apply`, the shape of the prompt and `steps`. With
    `lengths`, prompts are padded to the next power of two, so that they share programs. A cache
    needs room for the prompt, its padding included, and steps - 1 tokens.

    Args:
        apply: the `apply` of a model that decodes.
        params: its params.
        state: a new state for it, or one to continue from.
        prompt: (..., length), integers, at least one token.
        steps: number of tokens to draw.
        rng: PRNG key; not needed if the temperature is 0.
        temperature: what logits are divided by; 0 takes the most likely token.
        top_k: draw only from this many most likely tokens.
        top_p: draw only from the most likely tokens that together have this probability.
        stop: a token, or several, after which a sequence ends.
        lengths: (...), the number of real tokens of each prompt; those after them are padding.
        first_position: (...), the position of the first token of each prompt, if there are
            `lengths` and the state is not new. A prompt that starts with the last token of the
            sequence so far starts at its length - 1.

    Raises:
        TypeError: the prompt is not of an integer dtype.
        ValueError: an argument is out of its range, there is no key, or a logit is NaN, as when a
            cache is full. (In a program compiled as a whole, tokens are -1 from then on.)

    >>> import jax, jax.numpy as jnp, mlax
    >>> def model(cache_length=None):
    ...     attend = mlax.attention(2, causal=True, cache_length=cache_length)
    ...     return mlax.series(mlax.embed(5, 8), mlax.residual(attend), mlax.dense(5))
    >>> prompt = jnp.array([1, 2, 3])
    >>> params, _ = model().init(jax.random.key(0), prompt)
    >>> state = mlax.init_state(model(16), params, prompt)
    >>> mlax.generate(model(16).apply, params, state, prompt, 4, temperature=0).tokens.shape
    (4,)
    """
    prompt = read_prompt("generate", prompt)
    if prompt.ndim < 1 or prompt.shape[-1] < 1:
        raise ValueError(expected("generate", "a prompt of at least one token", prompt.shape))
    read_size("generate", "steps", steps)
    if top_k is not None:
        read_size("generate", "top_k", top_k)
    for name, number in (("temperature", temperature), ("top_p", top_p)):
        if number is not None and jnp.ndim(number):
            raise ValueError(message("generate", name, "one number", f"shape {jnp.shape(number)}"))
    if lengths is None and not (isinstance(first_position, int) and first_position == 0):
        what, way_out = "first_position only with lengths", "without them, the state keeps count"
        raise ValueError(expected("generate", what, "lengths=None", way_out))
    is_greedy = not isinstance(temperature, Tracer) and temperature == 0
    if not is_greedy:
        if rng is None:
            way_out = "pass jax.random.key(0), or temperature=0"
            raise ValueError(expected("generate", "a key to draw with", "rng=None", way_out))
        require_key("generate", rng)
        if not isinstance(temperature, Tracer) and not temperature > 0:
            raise ValueError(message("generate", "temperature", "at least 0", temperature))
    if top_p is not None and not isinstance(top_p, Tracer) and not 0 < top_p <= 1:
        raise ValueError(message("generate", "top_p", "in (0, 1]", top_p))
    require_caches("generate", state)
    if lengths is not None:
        lengths = _read_lengths(lengths, prompt)
        _require_first_position(state, first_position)
        bucket = 1 << (prompt.shape[-1] - 1).bit_length()
        widths = [(0, 0)] * (prompt.ndim - 1) + [(0, bucket - prompt.shape[-1])]
        prompt = jnp.pad(prompt, widths)
    stops = read_stops(stop)
    generated: Generated
    generated, is_number = _generate(
        apply, params, state, prompt, lengths, first_position, steps, rng,
        None if is_greedy else temperature, top_k, top_p, stops,
    )
    require_numbers("generate", is_number, prompt.shape[-1] + steps - 1)
    return generated


def read_prompt(owner: str, prompt: Any) -> jax.Array:
    """Return tokens in a dtype that holds any vocabulary, and -1."""
    prompt = jnp.asarray(prompt)
    require_integers(owner, prompt, "prompt")
    return signed(prompt)


def read_stops(stop: Any) -> tuple[int, ...]:
    """Return the tokens after which a sequence ends."""
    return () if stop is None else tuple(int(token) for token in np.ravel(stop))


def require_caches(owner: str, state: Any) -> None:
    """Require the state of a model that decodes."""
    if not any(map(jnp.size, jax.tree.leaves(state))):
        way_out = "make the model with mlax.attention(..., cache_length=...)"
        raise ValueError(expected(owner, "a state that holds caches", "no variables", way_out))


def require_numbers(owner: str, are_numbers: jax.Array, needed: int) -> None:
    """Require logits without NaN, where that is known: a full cache gives NaN."""
    if not isinstance(are_numbers, Tracer) and not are_numbers:
        way_out = (
            f"is there room for {needed} tokens in each cache and embedding of positions, and is "
            "each token of the prompt in the vocabulary?"
        )
        raise ValueError(expected(owner, "logits that are numbers", "NaN", way_out))


def _read_lengths(lengths: Any, prompt: jax.Array) -> jax.Array:
    """Require a length for each prompt."""
    lengths = jnp.asarray(lengths)
    require_integers("generate", lengths, "lengths")
    if lengths.shape not in ((), prompt.shape[:-1]):
        wanted, got = f"of shape {prompt.shape[:-1]}", f"shape {lengths.shape}"
        raise ValueError(message("generate", "lengths", wanted, got))
    most = prompt.shape[-1]
    if not isinstance(lengths, Tracer) and not ((lengths >= 1) & (lengths <= most)).all():
        raise ValueError(message("generate", "lengths", f"from 1 to {most}", lengths.tolist()))
    fitting = jnp.where((lengths >= 1) & (lengths <= most), lengths, 0)
    return jnp.broadcast_to(fitting, prompt.shape[:-1])


def _require_first_position(state: Any, first_position: Any) -> None:
    """Require the first position of prompts if the state is not new."""
    goes_on = any(
        not isinstance(leaf, Tracer) and np.any(np.asarray(leaf))
        for path, leaf in jax.tree.leaves_with_path(state)
        if getattr(path[-1], "name", None) == "length"  # of a cache
    )
    if goes_on and isinstance(first_position, int) and first_position == 0:
        what, got = "first_position with lengths and a state that is not new", "0"
        raise ValueError(expected("generate", what, got, "pass the length so far, or a new state"))


@functools.partial(jax.jit, static_argnames=("apply", "steps", "top_k", "stops"))
def _generate(
    apply: Any, params: Any, state: Any, prompt: jax.Array, lengths: jax.Array | None,
    first_position: Any, steps: int, rng: Key | None, temperature: Any, top_k: int | None,
    top_p: Any, stops: tuple[int, ...],
) -> tuple[Generated, jax.Array]:
    """Return what is generated, and whether all logits are numbers."""

    def draw(logits: jax.Array, i: Any, ended: jax.Array, before: Any) -> Any:
        """Return a token for each sequence, which sequences have ended, and the check."""
        logits = logits.astype(jnp.float32)
        are_numbers = ~jnp.isnan(logits).any(-1)
        if lengths is not None:
            are_numbers &= lengths > 0
        if temperature is None or rng is None:
            token = jnp.argmax(logits, -1)
        else:
            divisor = jnp.asarray(temperature, jnp.float32)
            is_greedy = divisor < 1e-30  # XLA flushes the smallest numbers to 0
            kept = _likely(logits / jnp.where(is_greedy, 1, divisor), top_k, top_p)
            drawn = jax.random.categorical(jax.random.fold_in(rng, i), kept)
            token = jnp.where(is_greedy, jnp.argmax(logits, -1), drawn)
            are_numbers &= divisor >= 0
        token = jnp.where(are_numbers, token.astype(prompt.dtype), -1)
        ended, before, token = mesh.placed_together(ended, before, token)
        token = jnp.where(ended, before, token)
        for stop in stops:
            ended |= token == stop
        return token, ended, are_numbers.all()

    def run(state: Any, x: Any) -> Any:
        try:
            result = apply(params, state, x, inference_mode=True)
        except Exception as error:
            if lengths is not None:
                error.add_note("generate: with lengths, apply takes pairs (tokens, positions)")
            raise
        logits, state = pair_of("generate", "apply", "(y, state)", result)
        if getattr(logits, "shape", ())[:-1] != (x if lengths is None else x[0]).shape:
            wanted = "an array of logits (..., length, vocabulary)"
            raise TypeError(message("generate", "the output", wanted, described(logits)))
        return logits, state

    after = None if lengths is None else jnp.asarray(first_position) + lengths
    if lengths is None:
        logits, state = run(state, prompt)
        last = logits[..., -1, :]
    else:
        counted = jnp.broadcast_to(jnp.arange(prompt.shape[-1]), prompt.shape)
        from_first = counted + jnp.asarray(first_position)[..., None]
        positions = jnp.where(counted < lengths[..., None], from_first, -1)
        logits, state = run(state, (prompt, positions))
        last = jnp.take_along_axis(logits, (lengths - 1)[..., None, None], -2)[..., 0, :]
    ended = jnp.zeros(prompt.shape[:-1], bool)
    token, ended, is_number = draw(last, 0, ended, prompt[..., -1])

    def step(carry: Any, i: jax.Array) -> tuple[Any, Any]:
        state, token, ended, is_number = carry
        x = token[..., None]
        if after is not None:
            x = x, jnp.where(ended, -1, after + i - 1)[..., None]
        if stops and not ended.ndim:
            nothing = jnp.zeros_like(last[None])
            logits, state = jax.lax.cond(ended, lambda s, x: (nothing, s), run, state, x)
        else:
            logits, state = run(state, x)
        token, ended, now = draw(logits[..., -1, :], i, ended, token)
        return (state, token, ended, is_number & now), (token, ended)

    first = token, ended
    carry: Any = state, token, ended, is_number
    (state, *_, is_number), others = jax.lax.scan(step, carry, jnp.arange(1, steps))
    tokens, have_ended = (
        jnp.moveaxis(jnp.concatenate([a[None], b]), 0, -1)
        for a, b in zip(first, others, strict=True)
    )
    count = jnp.sum(~have_ended, -1) + have_ended[..., -1]
    if stops and prompt.ndim > 1 and after is None:
        # No positions told the layers what to ignore: continuing must not be silently wrong.
        went_on = have_ended[..., :-1].any()

        def spoiled(leaf: jax.Array) -> jax.Array:
            is_floating = jnp.issubdtype(leaf.dtype, jnp.floating)
            return jnp.where(went_on, jnp.nan, leaf) if is_floating else leaf

        state = jax.tree.map(spoiled, state)
    return Generated(tokens, count, state), is_number


def _likely(logits: jax.Array, top_k: int | None, top_p: Any) -> jax.Array:
    """Return the logits, -inf for tokens that must not be drawn."""
    if top_k is not None:
        least = jax.lax.top_k(logits, min(top_k, logits.shape[-1]))[0][..., -1:]
        logits = jnp.where(logits < least, -jnp.inf, logits)
    if top_p is not None:
        ordered = jnp.sort(logits, -1, descending=True)
        probabilities = jax.nn.softmax(ordered, -1)
        before = jnp.cumsum(probabilities, -1) - probabilities
        is_kept = (before < top_p).at[..., 0].set(True)
        least = jnp.min(jnp.where(is_kept, ordered, jnp.inf), -1, keepdims=True)
        logits = jnp.where(logits < least, -jnp.inf, logits)
    return logits
