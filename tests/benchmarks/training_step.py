"""Time a jitted training step of mlax against the same model written by hand.

    python tests/benchmarks/training_step.py

The model is `layers` times (linear, bias, relu), narrow so that the cost of a call shows.
By hand it is a list of tuples (kernel, bias) and a loop. Rounds of both are interleaved;
the figures are medians over the rounds.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import mlax


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
    def step(carry: Any, x: jax.Array) -> Any:
        params, state = carry
        grads, state = jax.grad(loss, has_aux=True)(params, state, x)
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, grads), state

    return step, model.init(jax.random.key(0), jnp.ones(width))


def by_hand(layers: int, width: int) -> tuple[Callable[..., Any], Any]:
    """Return a jitted step and its carry, a list of (kernel, bias)."""
    initializer = jax.nn.initializers.glorot_uniform()
    keys = jax.random.split(jax.random.key(0), layers)
    params = [(initializer(key, (width, width)), jnp.zeros(width)) for key in keys]

    def loss(params: Any, x: jax.Array) -> jax.Array:
        for kernel, bias in params:
            x = jax.nn.relu(x @ kernel + bias)
        return jnp.mean(jnp.square(x))

    @jax.jit
    def step(params: Any, x: jax.Array) -> Any:
        grads = jax.grad(loss)(params, x)
        return jax.tree.map(lambda p, g: p - 0.01 * g, params, grads)

    return step, params


def seconds(step: Callable[..., Any], carry: Any, x: jax.Array, calls: int) -> float:
    """Return the time of one call, over `calls` of them in a row."""
    start = time.perf_counter()
    for _ in range(calls):
        carry = step(carry, x)
    jax.block_until_ready(carry)
    return (time.perf_counter() - start) / calls


def main() -> None:
    """Print the medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--layers", type=int, default=100)
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--calls", type=int, default=50)
    args = parser.parse_args()

    x = jnp.ones((args.batch, args.width))
    contenders = {"hand": by_hand, "mlax": by_mlax}
    steps = {name: make(args.layers, args.width) for name, make in contenders.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step, carry in steps.values():
        seconds(step, carry, x, 3)
    for _ in range(args.rounds):
        for name, (step, carry) in steps.items():
            times[name].append(seconds(step, carry, x, args.calls))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(f"{name}: {median * 1e6:.0f} us a step")
    ratios = [m / h for m, h in zip(times["mlax"], times["hand"], strict=True)]
    print(f"ratio: {medians['mlax'] / medians['hand']:.3f} (by round: {statistics.median(ratios):.3f})")


if __name__ == "__main__":
    main()
