"""Plan the training of a large language model on many devices, with none of them at hand.

    python -m mlax.examples.plan --model llama-70b --mesh 64x128

`mlax.sharding.plan` plans on an abstract mesh; the training step is traced and lowered for the
platforms, and no array is ever made. It prints which array goes where, the bytes and FLOPs of
each device next to an equal share, how large the program is, and what devices send each other.
With `--compile`, XLA compiles the step for as many simulated CPU devices, for comparison: there,
devices exchange bfloat16 as float32, and sums are all-reduced before a device takes its part.
"""

import argparse
import contextlib
import math
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.export
import jax.numpy as jnp
from jax.sharding import AbstractMesh, PartitionSpec

import mlax
from mlax import models
from mlax.examples import collectives
from mlax.examples.meshes import make_mesh
from mlax.mesh import names_in
from mlax.outline import short

MODELS: dict[str, tuple[Callable[..., Any], Any]] = {
    "gpt2": (models.gpt2, models.GPT_2),
    "gpt2-xl": (models.gpt2, models.GPT_2_XL),
    "qwen-0.6b": (models.llama, models.QWEN_3_0_6B),
    "llama-1b": (models.llama, models.LLAMA_3_2_1B),
    "mistral-7b": (models.llama, models.MISTRAL_7B),
    "llama-8b": (models.llama, models.LLAMA_3_8B),
    "llama-70b": (models.llama, models.LLAMA_3_70B),
}
"""Functions and configs of `mlax.models`."""

Plan: TypeAlias = mlax.sharding.Plan[Any, Any, Any, Any]


class Adam(NamedTuple):
    """The state of the optimizer."""

    steps: Any
    """The number of steps."""
    mean: Any
    """Of the gradients."""
    square: Any
    """The mean of their squares."""


class Optimizer:
    """Adam, written out: a plan needs only `init`, and finds the moments by their paths."""

    @staticmethod
    def init(params: Any) -> Adam:
        """Return the state for params."""
        zeros = jax.tree.map(jnp.zeros_like, params)
        return Adam(jnp.zeros((), int), zeros, zeros)

    @staticmethod
    def update(params: Any, adam: Adam, grads: Any, rate: float = 3e-4) -> tuple[Any, Adam]:
        """Return the next params and state."""
        steps = adam.steps + 1
        mean = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, adam.mean, grads)
        square = jax.tree.map(lambda v, g: 0.95 * v + 0.05 * g * g, adam.square, grads)
        scale = rate * jnp.sqrt(1 - 0.95**steps) / (1 - 0.9**steps)
        params = jax.tree.map(
            lambda p, m, v: p - scale * m / (jnp.sqrt(v) + 1e-8), params, mean, square
        )
        return params, Adam(steps, mean, square)


def step_of(plan: Plan) -> Any:
    """Return the jitted training step (params, state of the optimizer, tokens) of a plan."""
    def loss(params: Any, tokens: jax.Array) -> jax.Array:
        logits, _ = plan.apply(params, plan.shapes.state, tokens)
        scores = jax.nn.log_softmax(logits[:, :-1].astype(jnp.float32))
        return -jnp.mean(jnp.take_along_axis(scores, tokens[:, 1:, None], -1))

    def step(params: Any, adam: Adam, tokens: jax.Array) -> tuple[Any, Adam, jax.Array]:
        value, grads = jax.value_and_grad(loss)(params, tokens)
        return *Optimizer.update(params, adam, grads), value

    return jax.jit(step, out_shardings=(plan.params, plan.optimizer, None), donate_argnums=(0, 1))


def flops_on_device(plan: Plan) -> tuple[float, float]:
    """Estimate the operations of a step on each device; return them, and an equal share of all.

    A layer computes in parts if its kernels are split while it runs, or if its positions are.
    """
    rows = {row.path: row for row in mlax.summary(plan.layer, plan.model.x).rows}
    total = {".".join(path): row.forward.total + row.backward.total for path, row in rows.items()}
    sizes, batch = plan.mesh.shape, plan.shapes.x.sharding.spec
    parts: dict[str, int] = {}
    for spec, path in plan.used.values():
        positions = plan.inside.outputs(path.partition(".")[0]) or batch
        names = {name for name in (*names_in(spec), *names_in(positions))}
        parts[path] = max(parts.get(path, 1), math.prod(sizes[name] for name in names))
    tied = total[""] - sum(total[path] for path in parts)  # the head that is the embedding
    found = sum(total[path] / parts[path] for path in parts) + tied / parts["embed"]
    return found, total[""] / plan.mesh.size


def report(plan: Plan) -> str:
    """Return the table of a plan, and what a device has next to an equal share."""
    kept = [plan.shapes.params, plan.shapes.params, plan.shapes.optimizer]
    share, (flops, flops_share) = mlax.nbytes(kept) / plan.mesh.size, flops_on_device(plan)
    parts = plan.bytes_by_part()
    nbytes = parts["params"] + parts["gradients"] + parts["optimizer"]
    hint = "; devices repeat what cannot be split: --sequence or another --mesh avoids that"
    return "\n".join([
        str(plan),
        f"  {'FLOPs (estimate)':<24} {short(int(flops)):>8}",
        "",
        f"params, gradients and optimizer take {nbytes / share:.3f} of an equal share",
        f"FLOPs take {flops / flops_share:.3f} of an equal share"
        f"{hint if flops > 1.1 * flops_share else ''}",
    ])


def main(argv: list[str] | None = None) -> None:
    """Plan and lower with the command-line options."""
    parser = argparse.ArgumentParser(
        prog="python -m mlax.examples.plan", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Plan the training of a language model on many devices.",
    )
    parser.add_argument("--model", choices=MODELS, default="llama-70b", help="the model")
    parser.add_argument("--mesh", default="64x128", help="lengths of the mesh axes")
    parser.add_argument("--axes", default="data,model", help="names of the axes")
    parser.add_argument("--rules", default="fsdp+tensor", help="strategy, see mlax.sharding.plan")
    parser.add_argument(
        "--sequence", action="store_true", help='split positions over "model" between layers'
    )
    parser.add_argument("--length", type=int, default=1024, help="tokens of a sequence")
    parser.add_argument("--batch", type=int, help="sequences in a batch; by default one per part")
    parser.add_argument("--dtype", default="bfloat16", help="dtype in which layers run")
    parser.add_argument("--no-remat", action="store_true", help="save activations of all layers")
    parser.add_argument(
        "--platform", nargs="+", choices=["cpu", "cuda", "rocm", "tpu"], default=["tpu", "cuda"],
        help="what to lower for",
    )
    parser.add_argument("--compile", action="store_true", help="compile for simulated CPU devices")
    options = parser.parse_args(argv)
    sizes, axes = re.findall(r"\d+", options.mesh), options.axes.split(",")
    is_mesh = options.mesh == "x".join(sizes) and 0 < len(sizes) <= len(axes) == len(set(axes))
    if not is_mesh or "0" in sizes:
        parser.error(f"--mesh: expected lengths of axes {options.axes}, such as 64x128, got "
                     f"{options.mesh}; --axes names others")

    shape = dict(zip(axes, map(int, sizes), strict=False))
    make, config = MODELS[options.model]
    model = mlax.cast(make(config, remat=not options.no_remat), compute_dtype=options.dtype)
    batch = options.batch or math.prod(n for name, n in shape.items() if name != "model")
    tokens = jax.ShapeDtypeStruct((batch, options.length), jnp.int32)
    outputs = [("body", PartitionSpec("data", "model"))] if options.sequence else []
    seconds: dict[str, float] = {}
    if options.compile and math.prod(shape.values()) > 2048:
        parser.error("--compile: expected at most 2048 devices, the most that XLA simulates")
    try:
        if options.compile:
            jax.config.update("jax_platforms", "cpu")
            mesh: Any = make_mesh(tuple(shape.values()), tuple(shape))
        else:
            mesh = AbstractMesh(tuple(shape.values()), tuple(shape))
        with timed(seconds, "plan"):
            plan = mlax.sharding.plan(
                model, tokens, options.rules, mesh, outputs=outputs, optimizer=Optimizer()
            )
    except ValueError as error:
        parser.error(str(error))
    print(f"{options.model}, {batch} sequences of {options.length} tokens\n\n{report(plan)}\n")

    step = step_of(plan)
    with timed(seconds, "trace"):
        traced = step.trace(plan.shapes.params, plan.shapes.optimizer, tokens)
    text = ""
    for platform in options.platform:
        with timed(seconds, f"lower for {platform}"):
            text = traced.lower(lowering_platforms=(platform,)).as_text()
    with timed(seconds, "export"):
        exported = jax.export.export(step, platforms=options.platform)
        program = exported(plan.shapes.params, plan.shapes.optimizer, tokens)
    print(f"program: {short(len(text))}B of StableHLO, "
          f"{short(len(program.mlir_module_serialized))}B exported, "
          f"for {program.nr_devices} devices of {' and '.join(options.platform)}\n")

    itemsize = jnp.dtype(options.dtype).itemsize
    paper = collectives.on_paper(plan, config.num_layers, itemsize, not options.no_remat)
    print(f"a step on paper, bytes that each device receives\n{collectives.table(paper)}\n")
    if options.compile:
        with timed(seconds, "compile"):
            compiled = traced.lower().compile()
        memory = compiled.memory_analysis()
        found = collectives.compiled(compiled.as_text())
        print(f"a step as compiled for CPUs\n{collectives.table(found)}\n")
        print(f"memory of each: {short(memory.argument_size_in_bytes)}B of arguments, "
              f"{short(memory.temp_size_in_bytes)}B of temporaries\n")
    print("seconds: " + ", ".join(f"{name} {value:.2f}" for name, value in seconds.items()))


@contextlib.contextmanager
def timed(seconds: dict[str, float], name: str) -> Iterator[None]:
    """Record how long something takes."""
    start = time.perf_counter()
    yield
    seconds[name] = time.perf_counter() - start


if __name__ == "__main__":
    main()
