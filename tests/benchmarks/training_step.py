"""Time a jitted training step of mlax against the same model written by hand.

    python tests/benchmarks/training_step.py

The model is `layers` times (linear, bias, relu), narrow so that the cost of a call shows.
By hand it is a list of tuples (kernel, bias) and a loop. A step returns the input of the next one
and the loss. Rounds of both are interleaved in changing order; the figures are medians over the
rounds, first of steps that wait for the loss, then of steps in a row, where jax dispatches one
while another runs.
"""

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import mlax


LEARNING_RATE = 1e-8
"""So small that thousands of steps leave the numbers as they are: denormal ones are slow."""


def by_mlax(layers: int, width: int) -> tuple[Callable[..., Any], Any]:
    """Return a jitted step and its carry, (params, state)."""
    model = mlax.series(
        *(
            layer
            for _ in range(layers)
            for layer in (mlax.linear(width), mlax.bias(-1), mlax.f(jax.nn.relu))
        )
    )

    def loss(params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        y, state = jax.vmap(
            lambda x: model.apply(params, state, x, None, False, "batch"),
            out_axes=(0, None),
            axis_name="batch",
        )(x)
        return jnp.mean(jnp.square(y)), state

    @jax.jit
    def step(carry: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        params, state = carry
        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params, state, x)
        params = jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, grads)
        return (params, state), value

    return step, model.init(jax.random.key(0), jnp.ones(width))


def by_hand(layers: int, width: int) -> tuple[Callable[..., Any], Any]:
    """Return a jitted step and its carry, a list of (kernel, bias)."""
    initializer = jax.nn.initializers.lecun_normal()
    keys = jax.random.split(jax.random.key(0), layers)
    params = [(initializer(key, (width, width)), jnp.zeros(width)) for key in keys]

    def loss(params: Any, x: jax.Array) -> jax.Array:
        for kernel, bias in params:
            x = jax.nn.relu(x @ kernel + bias)
        return jnp.mean(jnp.square(x))

    @jax.jit
    def step(params: Any, x: jax.Array) -> tuple[Any, jax.Array]:
        value, grads = jax.value_and_grad(loss)(params, x)
        return jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, grads), value

    return step, params


def main() -> None:
    """Print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=100)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2000)
    args = parser.parse_args()

    x = jnp.ones((args.batch, args.width))
    contenders = {"hand": by_hand, "mlax": by_mlax}
    steps = {name: make(args.layers, args.width) for name, make in contenders.items()}
    carries = {name: step(carry, x)[0] for name, (step, carry) in steps.items()}
    for kind, calls in {"one step, waited for": 1, "a step of 50 in a row": 50}.items():
        times: dict[str, list[float]] = {name: [] for name in steps}
        for _ in range(args.rounds // calls):
            for name in random.sample(list(steps), len(steps)):
                step = steps[name][0]
                start = time.perf_counter()
                carries[name], loss = step(carries[name], x)
                for _ in range(calls - 1):
                    carries[name], loss = step(carries[name], x)
                jax.block_until_ready(loss)
                times[name].append((time.perf_counter() - start) / calls)
        hand, ours = (statistics.median(times[name]) * 1e6 for name in ("hand", "mlax"))
        print(f"{kind}: hand {hand:.0f} us, mlax {ours:.0f} us, ratio {ours / hand:.3f}")


if __name__ == "__main__":
    main()
