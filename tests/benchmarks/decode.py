"""Decoding beside a script: the time of a token, step by step and in a scan.

    python -m tests.benchmarks.decode

The model has 6 blocks of 256 features, 8 heads and caches of 512 tokens. Prints mlax / script, the
medians of interleaved rounds.
"""

import functools
import random
import statistics
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

import mlax
from tests.benchmarks.hand_decode import empty, step as hand_step

BLOCKS, FEATURES, HEADS, LENGTH, VOCABULARY = 6, 256, 8, 512, 256
TOKENS, ROUNDS = 100, 15

Step: TypeAlias = Callable[[Any, Any, jax.Array], tuple[jax.Array, Any]]
"""`step(params, state, token)` returns logits and the next state."""


def gpt(cache_length: int | None = None) -> mlax.Layer[Any, Any, Any, Any]:
    """Return the model."""
    attention = mlax.attention(HEADS, causal=True, cache_length=cache_length, cache_policy="nan")
    block = mlax.transformer_block(attention, mlax.mlp(4 * FEATURES))
    return mlax.series(
        embed=mlax.embed(VOCABULARY, FEATURES), body=mlax.series(*[block] * BLOCKS),
        norm=mlax.layer_norm(), head=mlax.dense(VOCABULARY),
    )


def looped(step: Step) -> Step:
    """Return a function that scans over tokens."""

    def run(params: Any, state: Any, token: jax.Array) -> tuple[jax.Array, Any]:
        def body(state: Any, _: None) -> tuple[Any, jax.Array]:
            logits, state = step(params, state, token)
            return state, logits

        state, logits = jax.lax.scan(body, state, None, length=TOKENS)
        return logits[-1], state

    return run


def seconds(step: Step, params: Any, state: Any, token: jax.Array, count: int) -> float:
    """Return the time of so many calls, each waited for."""
    start = time.perf_counter()
    for _ in range(count):
        logits, state = step(params, state, token)
        logits.block_until_ready()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    token = jnp.zeros((1, 1), int)
    params, _ = gpt().init(jax.random.key(0), token)
    apply = functools.partial(gpt(LENGTH).apply, inference_mode=True)
    contenders: dict[str, tuple[Step, Callable[[], Any]]] = {
        "mlax": (apply, lambda: mlax.init_state(gpt(LENGTH), params, token)),
        "script": (hand_step, lambda: empty(BLOCKS, LENGTH, HEADS, FEATURES // HEADS)),
    }
    one, other = (step(params, new(), token)[0] for step, new in contenders.values())
    np.testing.assert_allclose(np.asarray(one), np.asarray(other), atol=1e-4)
    for name, change, count in (("step by step", lambda f: f, TOKENS), ("in a scan", looped, 1)):
        steps = {
            who: jax.jit(change(step), donate_argnums=1) for who, (step, _) in contenders.items()
        }
        ratios = []
        for i in range(ROUNDS):
            times = {
                who: seconds(steps[who], params, contenders[who][1](), token, count)
                for who in random.sample(sorted(steps), 2)
            }
            if i:  # the first round compiles
                ratios.append(times["mlax"] / times["script"])
        middle = statistics.median(ratios)
        print(f"{name}: {middle:.2f} ({min(ratios):.2f}-{max(ratios):.2f})")


if __name__ == "__main__":
    main()
