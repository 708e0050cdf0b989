"""Time the initialisation of a ResNet of 20 convolutions, in fresh processes.

    python tests/benchmarks/cold_init.py

By hand means one call of `jax.nn.initializers` for each array, as a script would write it.
Rounds of both are interleaved; the figures are medians over the rounds.
"""

import argparse
import statistics
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp

import mlax


def by_mlax(rng: jax.Array) -> Any:
    """Return params and state."""

    def conv(channels: int, filter_shape: int, strides: int = 1) -> mlax.Layer[Any, Any, Any, Any]:
        return mlax.series(
            mlax.conv(channels, filter_shape, strides, "SAME"),
            mlax.z_norm("channel_last"),
            mlax.scaler((0, 0, -1)),
            mlax.bias((0, 0, -1)),
        )

    def block(channels: int, strides: int) -> mlax.Layer[Any, Any, Any, Any]:
        return mlax.residual(
            mlax.series(conv(channels, 3, strides), mlax.f(jax.nn.relu), conv(channels, 3)),
            mlax.conv(channels, 1, strides) if strides != 1 else None,
        )

    model = mlax.series(
        conv(16, 3),
        *(block(c, 1 if i or c == 16 else 2) for c in (16, 32, 64) for i in range(3)),
        mlax.f(lambda x: x.mean((0, 1))),
        mlax.linear(10),
        mlax.bias(-1),
    )
    return model.init(rng, jax.ShapeDtypeStruct((32, 32, 3), jnp.float32))


def by_hand(rng: jax.Array) -> Any:
    """Return a list of arrays."""
    initializer = jax.nn.initializers.lecun_normal()
    shapes: list[tuple[int, ...]] = [(3, 3, 3, 16)]
    for channels in (16, 32, 64):
        for i in range(3):
            before = channels if i or channels == 16 else channels // 2
            shapes += [(3, 3, before, channels), (3, 3, channels, channels)]
            if before != channels:
                shapes.append((1, 1, before, channels))
    shapes.append((64, 10))
    params: list[Any] = []
    for shape, key in zip(shapes, jax.random.split(rng, len(shapes)), strict=True):
        params.append(initializer(key, shape, jnp.float32))
        params += [jnp.zeros(shape[-1]), jnp.ones(shape[-1])] * (2 if shape[0] == 3 else 0)
    return params


CONTENDERS = {"hand": by_hand, "mlax": by_mlax}


def main() -> None:
    """Print the medians and their ratio; with --once, run one contender and print its time."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--once", choices=CONTENDERS)
    args = parser.parse_args()
    if args.once:
        jax.block_until_ready(jnp.ones(()) + 1)
        start = time.perf_counter()
        jax.block_until_ready(CONTENDERS[args.once](jax.random.key(0)))
        print(time.perf_counter() - start)
        return
    times: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for _ in range(args.rounds):
        for name, values in times.items():
            command = [sys.executable, __file__, "--once", name]
            values.append(float(subprocess.check_output(command, text=True).splitlines()[-1]))
    medians = {name: statistics.median(values) for name, values in times.items()}
    for name, median in medians.items():
        print(f"{name}: {median:.2f} s")
    print(f"ratio: {medians['mlax'] / medians['hand']:.2f}")


if __name__ == "__main__":
    main()
