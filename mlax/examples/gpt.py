"""Train a small GPT on the English of Python's manual, character by character, and have it write.

    python -m mlax.examples.gpt

The text comes with Python: the topics of `help()`. The last tenth of it is held out. The same
expression makes the model that is trained and the one that writes, which keeps the keys and values
of its attention in its state. `--model lstm` trains a recurrent one instead, and `--model ssm` one
of linear recurrences; their state is the carry. `--devices 8 --parallel fsdp` trains on many
devices, of which a CPU simulates any number: losses and checkpoints are those of one device.
"""

import argparse
import functools
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

import mlax
from mlax.examples.meshes import make_mesh
from mlax.positions import rotary

try:
    import optax
    from matplotlib.figure import Figure
    from tqdm import tqdm
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(
        f'{_error}, which the examples need: pip install "mlax[examples]"', name=_error.name
    ) from None

ALPHABET = "\n" + "".join(map(chr, range(32, 127)))
CONTEXT = 128
BATCH_SIZE = 8
PROMPT = "The "

Tree: TypeAlias = Any
"""A pytree of arrays."""

AnyLayer: TypeAlias = mlax.Layer[Any, Any, Any, Any]


def gpt(decodes: bool = False) -> AnyLayer:
    """Return a model of tokens (length,) with logits (length, vocabulary)."""
    cache_length = CONTEXT if decodes else None
    attention = mlax.attention(4, causal=True, rotary=rotary, cache_length=cache_length)
    return mlax.series(
        embed=mlax.embed(len(ALPHABET), 128),
        body=mlax.repeat(mlax.transformer_block(attention, mlax.mlp(512)), 2),
        norm=mlax.layer_norm(),
        head=mlax.dense(len(ALPHABET)),
    )


def lstm(decodes: bool = False) -> AnyLayer:
    """Return such a model without attention, whose state is the carry."""
    return mlax.series(
        embed=mlax.embed(len(ALPHABET), 128),
        body=mlax.carried(mlax.recurrent(mlax.lstm_cell(256)), decodes=decodes),
        head=mlax.dense(len(ALPHABET)),
    )


def ssm(decodes: bool = False) -> AnyLayer:
    """Return such a model of gated linear recurrences, whose state is the carries."""
    recurrence = mlax.series(mlax.dense(256), mlax.carried(mlax.lru(128), decodes=decodes))
    gate = mlax.series(mlax.dense(256), mlax.f(jax.nn.silu))
    block = mlax.series(
        mlax.layer_norm(), mlax.branch(recurrence, gate), mlax.multiply(), mlax.dense(128)
    )
    return mlax.series(
        embed=mlax.embed(len(ALPHABET), 128),
        body=mlax.repeat(mlax.residual(block), 2),
        norm=mlax.layer_norm(),
        head=mlax.dense(len(ALPHABET)),
    )


MODELS = {"gpt": gpt, "lstm": lstm, "ssm": ssm}
PARALLEL: dict[str, tuple[str, ...]] = {
    "data": ("data",), "fsdp": ("data",), "tensor": ("model",), "fsdp+tensor": ("data", "model")
}
"""Rules for `mlax.sharding.plan`, and the axes of a mesh for them."""


class Text(NamedTuple):
    """Characters as numbers."""

    train: np.ndarray
    """The first nine tenths."""
    test: np.ndarray
    """The last tenth."""


def encode(text: str) -> np.ndarray:
    """Return the indices of characters; those not in the alphabet are dropped."""
    return np.array([ALPHABET.index(c) for c in text if c in ALPHABET], np.int32)


def decode(tokens: Any) -> str:
    """Return the text of indices."""
    return "".join(ALPHABET[i] for i in np.asarray(tokens))


def load() -> Text:
    """Return the topics of `help()`, one after the other."""
    text = encode("\n\n".join(topics[name] for name in sorted(topics)))
    return Text(text[: len(text) * 9 // 10], text[len(text) * 9 // 10 :])


def batch(text: np.ndarray, step: int, seed: int) -> np.ndarray:
    """Return pieces of the text from random places, which the step and the seed determine."""
    starts = np.random.default_rng((seed, step)).integers(len(text) - CONTEXT, size=BATCH_SIZE)
    pieces: np.ndarray = text[starts[:, None] + np.arange(CONTEXT + 1)]
    return pieces


class Carry(NamedTuple):
    """Everything that a step changes."""

    params: Tree
    """Parameters of the model."""
    opt_state: Tree
    """State of the optimizer."""


class Checkpoint(NamedTuple):
    """What is saved."""

    carry: Carry
    """The carry after some steps."""
    state: Tree
    """The state of the model: no arrays, but hyperparameters, which `mlax.load` compares."""
    done: int
    """The number of steps."""


class Program(NamedTuple):
    """The model and what is done with it."""

    start: Checkpoint
    """Where training starts."""
    step: Callable[[Carry, np.ndarray, int], tuple[Carry, jax.Array]]
    """`step(carry, tokens, i)` is training step i; it returns the loss in nats per character."""
    evaluate: Callable[[Tree, np.ndarray], jax.Array]
    """`evaluate(params, tokens)` returns the loss of a batch."""
    write: Callable[[Tree, str, int, mlax.Key], str]
    """`write(params, prompt, length, rng)` returns a text that continues a prompt."""


def program(name: str, steps: int, seed: int, devices: int = 1, parallel: str = "data") -> Program:
    """Return the model, its training and its writing."""
    model, writer = mlax.batched(MODELS[name]()), MODELS[name](decodes=True)
    schedule = optax.warmup_cosine_decay_schedule(0.0, 3e-3, steps // 20, steps)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, 0.9, 0.95))

    axes, pairs = PARALLEL[parallel], 2 - devices % 2
    mesh = make_mesh((devices,) if len(axes) == 1 else (devices // pairs, pairs), axes)
    rng = jax.random.key(seed)
    x = jax.ShapeDtypeStruct((BATCH_SIZE, CONTEXT), jnp.int32)
    plan = mlax.sharding.plan(model, x, parallel, mesh, optimizer=optimizer)
    params, state = plan.init(rng)
    opt_state = jax.jit(optimizer.init, out_shardings=plan.optimizer)(params)
    places = Carry(plan.params, plan.optimizer)

    def loss(
        params: Tree, tokens: jax.Array, rng: mlax.Key | None = None, inference_mode: bool = True
    ) -> jax.Array:
        logits, _ = plan.apply(params, state, tokens[:, :-1], rng, inference_mode)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]))

    @functools.partial(jax.jit, in_shardings=(places, plan.x, None), out_shardings=(places, None))
    def step(carry: Carry, tokens: jax.Array, i: int) -> tuple[Carry, jax.Array]:
        key = jax.random.fold_in(rng, i)
        value, grads = jax.value_and_grad(loss)(carry.params, tokens, key, inference_mode=False)
        updates, opt_state = optimizer.update(grads, carry.opt_state, carry.params)
        return Carry(optax.apply_updates(carry.params, updates), opt_state), value

    evaluate = jax.jit(lambda p, tokens: loss(p, tokens), in_shardings=(plan.params, plan.x))

    def write(params: Tree, prompt: str, length: int, rng: mlax.Key) -> str:
        tokens = jnp.asarray(encode(prompt))
        cache = mlax.init_state(writer, params, tokens)
        generated = mlax.generate(writer.apply, params, cache, tokens, length, rng, 0.8)
        return prompt + decode(generated.tokens)

    return Program(Checkpoint(Carry(params, opt_state), state, 0), step, evaluate, write)


def held_out_loss(evaluate: Callable[..., jax.Array], params: Tree, text: np.ndarray) -> float:
    """Return the mean loss over the whole text, in nats per character."""
    count = (len(text) - 1) // CONTEXT
    pieces = text[np.arange(count)[:, None] * CONTEXT + np.arange(CONTEXT + 1)]
    batches = pieces[: count // BATCH_SIZE * BATCH_SIZE].reshape(-1, BATCH_SIZE, CONTEXT + 1)
    return float(np.mean([evaluate(params, tokens) for tokens in batches]))


def draw(losses: list[float], tested: list[tuple[int, float]]) -> Figure:
    """Plot the loss over the steps."""
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    first = tested[-1][0] - len(losses) + 1
    axes.plot(range(first, first + len(losses)), losses, color="tab:orange", label="training", lw=1)
    axes.plot(*zip(*tested, strict=True), color="tab:blue", label="held out", marker="o")
    axes.set(title=f"{tested[-1][1]:.2f} nats per character held out", xlabel="step", ylabel="loss")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    axes.legend(frameon=False)
    return figure


def main(argv: list[str] | None = None) -> None:
    """Train with the command-line options, and write samples now and then."""
    parser = argparse.ArgumentParser(
        prog="python -m mlax.examples.gpt", formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description="Train a small GPT on the English of Python's manual.",
    )
    parser.add_argument("--model", choices=MODELS, default="gpt", help="the model to train")
    parser.add_argument(
        "--devices", type=int, default=1, help="how many to train on; CPUs are simulated"
    )
    parser.add_argument(
        "--parallel", choices=PARALLEL, default="data", help="strategy of mlax.sharding.plan"
    )
    parser.add_argument("--steps", type=int, default=1000, help="total number of training steps")
    parser.add_argument("--every", type=int, default=200, help="steps between samples")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    parser.add_argument("--resume", action="store_true", help="resume from the checkpoint")
    parser.add_argument(
        "--checkpoint", type=Path, default="gpt.safetensors", help="file to save in"
    )
    parser.add_argument("--output", type=Path, default="gpt.png", help="image file to write")
    options = parser.parse_args(argv)
    if min(options.devices, options.steps, options.every) < 1:
        parser.error("--devices, --steps, --every: expected at least 1")
    if options.resume and not options.checkpoint.exists():
        parser.error(f"--resume: expected a checkpoint, found no {options.checkpoint}")

    text = load()
    try:
        saved, step, evaluate, write = program(
            options.model, options.steps, options.seed, options.devices, options.parallel
        )
    except ValueError as error:  # of the mesh or the plan
        parser.error(f"--devices, --parallel: {error}")
    if options.resume:
        saved = mlax.load(options.checkpoint, saved)
    carry, state, done = saved
    losses: list[float] = []
    tested: list[tuple[int, float]] = []
    progress = tqdm(range(done, options.steps), initial=done, total=options.steps, unit="step")
    start = time.perf_counter()
    for i in progress:
        carry, value = step(carry, batch(text.train, i, options.seed), i)
        losses.append(float(value))
        rate = len(losses) * BATCH_SIZE * CONTEXT / (time.perf_counter() - start)
        progress.set_postfix_str(f"loss {value:.2f}, {rate:,.0f} tokens/s")
        if (i + 1) % options.every == 0 or i + 1 == options.steps:
            tested.append((i + 1, held_out_loss(evaluate, carry.params, text.test)))
            sample = write(carry.params, PROMPT, CONTEXT - len(PROMPT), jax.random.key(i))
            progress.write(f"--- step {i + 1}, held out {tested[-1][1]:.2f}\n{sample}\n")
            mlax.save(options.checkpoint, Checkpoint(carry, state, i + 1))
    if not tested:
        parser.error(f"--resume: {options.checkpoint} has {done} steps already")
    draw(losses, tested).savefig(options.output, dpi=150, format="png")
    print(f"checkpoint: {options.checkpoint}, picture: {options.output}")
    print(f"held-out loss: {tested[-1][1]:.3f} nats per character")


if __name__ == "__main__":
    main()
