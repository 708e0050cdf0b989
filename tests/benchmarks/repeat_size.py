"""Print what a training step through `repeat` costs before it runs, for more and more copies.

    python tests/benchmarks/repeat_size.py

Seconds to trace, lower and compile, and lines of the lowered program (StableHLO). The times
are the minimum of a few rounds, each with a function that jax has not seen before.
"""

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp

import mlax


def stages(copies: int, width: int) -> tuple[float, float, float, int]:
    """Return the seconds that tracing, lowering and compiling take, and the lines of HLO."""
    block = mlax.residual(mlax.series(mlax.linear(width), mlax.bias(-1), mlax.f(jax.nn.relu)))
    model = mlax.batched(mlax.repeat(block, copies))
    x = jnp.ones((8, width))
    params, state = jax.eval_shape(model.init, jax.random.key(0), x)

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return jnp.mean(jnp.square(model.apply(params, state, x)[0]))

    start = time.perf_counter()
    traced = jax.jit(jax.value_and_grad(loss)).trace(params, x)
    after_trace = time.perf_counter()
    lowered = traced.lower()
    after_lower = time.perf_counter()
    lowered.compile()
    after_compile = time.perf_counter()
    lines = len(lowered.as_text().splitlines())
    return after_trace - start, after_lower - after_trace, after_compile - after_lower, lines


def main() -> None:
    """Print a line for each number of copies."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--copies", type=int, nargs="+", default=[4, 16, 64, 256])
    parser.add_argument("--width", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    stages(args.copies[0], args.width)
    for copies in args.copies:
        rounds = [stages(copies, args.width) for _ in range(args.rounds)]
        trace, lower, compilation, lines = map(min, zip(*rounds, strict=True))
        print(
            f"{copies} copies: trace {trace:.3f} s, lower {lower:.3f} s, "
            f"compile {compilation:.3f} s, {lines} lines"
        )


if __name__ == "__main__":
    main()
