"""How things are timed: every figure is a median over interleaved, shuffled rounds."""

import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import jax
from jaxlib.mlir import ir

from tests.benchmarks.model import Model, Sizes, arguments, training_step

ROOT = Path(__file__).parents[2]

Figures: TypeAlias = dict[str, dict[str, float]]
"""By measure and contender: seconds, or a number of operations."""


def medians(
    contenders: Mapping[str, Callable[[], dict[str, float]]], seconds: float, least: int
) -> Figures:
    """Return the medians of what the contenders return, by measure.

    Args:
        contenders: one call is one round.
        seconds: how long to repeat.
        least: how many rounds to make at least.
    """
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in contenders}
    end = time.perf_counter() + seconds
    done = 0
    while time.perf_counter() < end or done < least:
        for name in random.sample(list(contenders), len(contenders)):
            rounds[name].append(contenders[name]())
        done += 1
    figures: Figures = {}
    for name, results in rounds.items():
        for measure in results[0]:
            median = statistics.median(result[measure] for result in results)
            figures.setdefault(measure, {})[name] = median
    return figures


def steps(model: Model, sizes: Sizes) -> Callable[[], dict[str, float]]:
    """Return a function that takes a step: of the call alone, and until the loss is ready."""
    step = jax.jit(training_step(model))
    carry, key, x = arguments(model, sizes)
    carry, key, value = step(carry, key, x)
    jax.block_until_ready((carry, key, value))

    def run() -> dict[str, float]:
        nonlocal carry, key
        start = time.perf_counter()
        carry, key, value = step(carry, key, x)
        returned = time.perf_counter()
        value.block_until_ready()
        ready = time.perf_counter()
        jax.block_until_ready((carry, key))
        return {"step": ready - start, "call": returned - start}

    return run


def stages(model: Model, sizes: Sizes, compiled: bool) -> Callable[[], dict[str, float]]:
    """Return a function that traces and lowers a step anew, and compiles it if that is asked."""
    inputs = arguments(model, sizes)

    def run() -> dict[str, float]:
        step = jax.jit(training_step(model))
        start = time.perf_counter()
        traced = step.trace(*inputs)
        after_trace = time.perf_counter()
        lowered = traced.lower()
        after_lower = time.perf_counter()
        times = {"trace": after_trace - start, "lower": after_lower - after_trace}
        if compiled:
            lowered.compile()
            times["compile"] = time.perf_counter() - after_lower
        return times | {"operations": operations(lowered)}

    return run


def operations(lowered: jax.stages.Lowered) -> int:
    """Return the number of operations in a StableHLO program, those of a function once."""
    count = 0

    def visit(operation: ir.Operation) -> ir.WalkResult:
        nonlocal count
        count += operation.name.startswith("stablehlo.")
        return ir.WalkResult.ADVANCE

    module = lowered.compiler_ir("stablehlo")
    assert module is not None
    module.operation.walk(visit)
    return count


def fresh(measure: str, *arguments: str, path: Path = ROOT) -> Callable[[], dict[str, float]]:
    """Return a function that runs Python anew in a folder; what it prints last are seconds."""

    def run() -> dict[str, float]:
        output = subprocess.check_output([sys.executable, *arguments], text=True, cwd=path)
        return {measure: float(output.splitlines()[-1])}

    return run


def first_init(model: Model) -> float:
    """Return the seconds that the first `init` of a process takes, with the backend started."""
    key = jax.block_until_ready(jax.random.key(0))
    start = time.perf_counter()
    jax.block_until_ready(model.init(key))
    return time.perf_counter() - start
