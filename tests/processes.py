"""Training by several processes that are killed, and resumed with another number of them.

    python -m tests.processes [--processes 2 4] [--devices 2]

Each process has its devices, and `jax.distributed` joins them over loopback. The parameters and the
state of the optimizer lie on all devices, each process makes its part of each batch and writes its
part of each checkpoint. A process is killed within a step, the next time within a checkpoint, and
one stops to answer; the others have to end soon, with an error that says so. Each time, as many
processes as the list says next, back and forth, go on from the last checkpoint, and in the end a
single one. Their losses are those of one process with one device that was never stopped.
"""

import argparse
import contextlib
import functools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import mlax
from mlax.safetensors import write_part

HEARTBEAT_SECONDS = 10
"""How long a process may be silent before JAX ends the others."""
ENDED_SECONDS = 3 * HEARTBEAT_SECONDS
"""How long the others may take to end, on a busy machine."""
RUN_SECONDS = 120
"""How long some steps may take, from the start of the processes."""

FEATURES, VOCABULARY, LENGTH, BATCH_SIZE = 16, 32, 8, 16
SAVED_EVERY = 2

Tree: TypeAlias = Any
"""A pytree of arrays."""


# What is trained.


MODEL = mlax.batched(
    mlax.series(
        embed=mlax.embed(VOCABULARY, FEATURES),
        attention=mlax.residual(mlax.series(mlax.layer_norm(), mlax.attention(2, causal=True))),
        dropout=mlax.dropout(0.1, axis=(0, 1)),
        hidden=mlax.linear(2 * FEATURES),
        norm=mlax.batch_norm(),
        relu=mlax.f(jax.nn.relu),
        head=mlax.dense(VOCABULARY),
    )
)
OPTIMIZER = optax.adam(1e-2)


def rows(step: int, index: tuple[slice, ...]) -> np.ndarray[Any, np.dtype[np.int32]]:
    """Return these rows of the batch of a step: each counts on from a number, in strides."""
    some = range(BATCH_SIZE)[index[0]]
    draws = [np.random.default_rng((step, row)).integers(0, 4, 2) for row in some]
    first, stride = np.array(draws, np.int32).T[:, :, None]
    tokens: np.ndarray[Any, np.dtype[np.int32]] = first + (stride + 1) * np.arange(LENGTH + 1)
    return tokens.astype(np.int32) % VOCABULARY


def initial() -> Tree:
    """Return all that training changes."""
    params, state = MODEL.init(jax.random.key(0), jnp.zeros((BATCH_SIZE, LENGTH), int))
    return {"params": params, "state": state, "optimizer": OPTIMIZER.init(params),
            "steps": jnp.int32(0)}


def train_step(apply: Any, run: Tree, tokens: jax.Array) -> tuple[Tree, jax.Array]:
    """Return the state of the run after a step, and its loss."""

    def loss(params: Tree) -> tuple[jax.Array, Tree]:
        rng = jax.random.fold_in(jax.random.key(1), run["steps"])
        logits, state = apply(params, run["state"], tokens[:, :-1], rng)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])
        return jnp.mean(losses), state

    (value, state), grads = jax.value_and_grad(loss, has_aux=True)(run["params"])
    updates, optimizer = OPTIMIZER.update(grads, run["optimizer"])
    params = optax.apply_updates(run["params"], updates)
    steps = run["steps"] + 1
    return {"params": params, "state": state, "optimizer": optimizer, "steps": steps}, value


# A process.

SIGNALS = {"step": signal.SIGKILL, "silence": signal.SIGSTOP}


class Task(NamedTuple):
    """What a process does."""

    folder: str
    processes: int
    devices: int
    """The number of devices of each process."""
    stop: int
    """The number of steps after which the run is complete."""
    process: int = 0
    port: int = 0
    victim: int = -1
    """The process that fails."""
    failure: str = ""
    """How it does: "step", "save" or "silence"; with "absence", it is never started."""
    failing_step: int = -1
    """In which step it fails, or in the checkpoint after which."""
    initialization_seconds: int = 60

    @property
    def path(self) -> Path:
        """The checkpoint."""
        return Path(self.folder, "run.safetensors.index.json")


def work(task: Task) -> None:
    """Train from the last checkpoint on, and say each loss."""
    signal.alarm(RUN_SECONDS)  # whatever became of the program that started this one
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", task.devices)
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    if jax.__version_info__[:2] == (0, 10):  # as in tests/conftest.py
        os.environ["XLA_FLAGS"] = "--xla_cpu_use_fusion_emitters=false"
    if task.failure == "absence":
        say(failed=time.time())
    if task.processes > 1:
        jax.distributed.initialize(
            f"127.0.0.1:{task.port}",
            task.processes,
            task.process,
            cluster_detection_method="deactivate",
            coordinator_bind_address=f"127.0.0.1:{task.port}",
            initialization_timeout=task.initialization_seconds,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    try:
        train(task)
    except Exception:
        traceback.print_exc()
        os._exit(1)  # an ordinary exit would wait for the others, and they for this process


def train(task: Task) -> None:
    """Train on all devices of all processes."""
    mesh = jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Auto,))
    x = jax.ShapeDtypeStruct((BATCH_SIZE, LENGTH), jnp.int32)
    plan = mlax.sharding.plan(MODEL, x, "fsdp", mesh, optimizer=OPTIMIZER)
    whole = NamedSharding(mesh, PartitionSpec())
    placed = {
        "params": plan.params, "state": plan.state, "optimizer": plan.optimizer, "steps": whole
    }
    shapes = jax.eval_shape(initial)
    if task.path.exists():
        like = jax.tree.map(lambda leaf, at: leaf.update(sharding=at), shapes, placed)
        run = mlax.load(task.path, like, checksum=True)
    else:
        run = jax.jit(initial, out_shardings=placed)()
    step = jax.jit(
        functools.partial(train_step, plan.apply), out_shardings=(placed, None), donate_argnums=0
    )

    shards = [shard for leaf in jax.tree.leaves(run) for shard in leaf.addressable_shards]
    say(nbytes=sum(shard.data.nbytes for shard in shards))
    for i in range(int(run["steps"]), task.stop):
        # Each process makes the rows that lie on its devices.
        shape = BATCH_SIZE, LENGTH + 1
        tokens = jax.make_array_from_callback(shape, plan.x, functools.partial(rows, i))
        run, loss = step(run, tokens)
        fails = task.process == task.victim and i == task.failing_step
        if fails and task.failure in SIGNALS:
            fail(SIGNALS[task.failure])
        say(step=i, loss=float(loss), rows=sum(len(s.data) for s in tokens.addressable_shards))
        if (i + 1) % SAVED_EVERY == 0:
            with killed_while_writing() if fails else contextlib.nullcontext():
                mlax.save(task.path, run, max_bytes=20_000, checksum=True)


def say(**what: Any) -> None:
    """Tell the program that started this process."""
    print(json.dumps(what), flush=True)


def fail(number: signal.Signals) -> None:
    """Send a signal to this process."""
    say(failed=time.time())
    os.kill(os.getpid(), number)


@contextlib.contextmanager
def killed_while_writing() -> Iterator[None]:
    """Kill this process when it has written some parts of a checkpoint."""
    calls = 0

    def write_some(*args: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 20:
            fail(signal.SIGKILL)
        write_part(*args)

    with mock.patch("mlax.checkpoint.saving.write_part", write_some):
        yield


# The program that starts them.

ROOT = Path(__file__).parent.parent
FAILURES = ["step", "save", "silence"]
WORDS = {
    "step": r"Gloo \w+ failed|Failed to send RPC to coordination service",
    "save": r"save: expected an answer from all processes, got UNKNOWN: Gloo \w+ failed",
    "silence": r"stopped sending heartbeats|heartbeat timeout",
    "absence": r"DEADLINE_EXCEEDED",
}
"""What at least one of the others says, by the failure."""


class Outcome(NamedTuple):
    """What the processes of a task did."""

    task: Task
    losses: dict[int, float]
    """The loss of each step."""
    rows: set[int]
    """How many rows of each batch each process made."""
    nbytes: set[int]
    """How many bytes of parameters and state each process had."""
    seconds: float
    """How long after the failure the others had ended."""
    words: str
    """What the others said of it."""


def outcome(task: Task) -> Outcome:
    """Start the processes of a task, and wait till all have ended but the one that fails."""
    logs = [Path(task.folder, f"{task.processes}-{i}.log") for i in range(task.processes)]
    start = time.time()
    with _started(task, logs) as processes:
        others = [process for i, process in processes.items() if i != task.victim]
        while any(process.poll() is None for process in others):
            if time.time() > start + RUN_SECONDS:
                raise TimeoutError(_story(f"{task} took more than {RUN_SECONDS} s", logs))
            time.sleep(0.02)
        end = time.time()
        if any(bool(process.returncode) is not bool(task.failure) for process in others):
            raise RuntimeError(_story(f"{task} ended with {[p.returncode for p in others]}", logs))
    text = "\n".join(log.read_text() for log in logs if log.exists())
    # C++ may write within a line of Python, but not within what Python writes at once.
    said = [json.loads(line) for line in re.findall(r'\{"[^{}]*\}', text)]
    losses: dict[int, float] = {}
    for line in said:
        if "loss" in line and losses.setdefault(line["step"], line["loss"]) != line["loss"]:
            raise RuntimeError(_story(f"{task}: processes have different losses", logs))
    words = re.search(WORDS.get(task.failure, ""), text)
    if words is None:
        raise RuntimeError(_story(f"{task}: no one says why", logs))
    seconds = end - max((line["failed"] for line in said if "failed" in line), default=end)
    rows = {line["rows"] for line in said if "rows" in line}
    nbytes = {line["nbytes"] for line in said if "nbytes" in line}
    return Outcome(task, losses, rows, nbytes, seconds, words[0])


@contextlib.contextmanager
def _started(task: Task, logs: list[Path]) -> Iterator[dict[int, subprocess.Popen[bytes]]]:
    """Start the processes of a task, and kill those that are left."""
    inherited = {
        name: value for name, value in os.environ.items()
        if not name.startswith(("JAX_", "XLA_")) and not name.lower().endswith("_proxy")
    }
    processes: dict[int, subprocess.Popen[bytes]] = {}
    with socket.socket() as holder:
        # Nobody else gets this port as long as it is bound; the coordinator shares it.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.bind(("127.0.0.1", 0))
        try:
            for i, log in enumerate(logs):
                if task.failure == "absence" and i == task.victim:
                    continue
                own = task._replace(port=holder.getsockname()[1], process=i)
                command = [sys.executable, "-m", "tests.processes", "--task", json.dumps(own)]
                with open(log, "wb") as output:
                    processes[i] = subprocess.Popen(
                        command, env=inherited, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT
                    )
            yield processes
        finally:
            for process in processes.values():
                process.kill()
                process.wait()


def _story(what: str, logs: list[Path]) -> str:
    texts = [f"{log.name}:\n{log.read_text()[-3000:]}" for log in logs if log.exists()]
    return "\n".join([what, *texts])


class Drama(NamedTuple):
    """What all did."""

    reference: Outcome
    """What one process does that is never stopped."""
    lonely: Outcome
    """What processes do if one never comes."""
    outcomes: list[Outcome]
    """What those did that went on one after the other."""
    statistics: float
    """How far their running statistics are from those of one process in the end."""


def drama(counts: Sequence[int], devices: int) -> Drama:
    """Train with so many processes, then so many, back again, and with a single one."""
    counts = [*counts, *reversed(counts[:-1]), 1]
    stop = SAVED_EVERY * len(counts)
    outcomes: list[Outcome] = []
    with contextlib.ExitStack() as stack:
        one, none, many = (stack.enter_context(tempfile.TemporaryDirectory()) for _ in range(3))
        pool = stack.enter_context(ThreadPoolExecutor())
        reference = pool.submit(outcome, Task(one, 1, 1, stop))
        task = Task(none, counts[0], devices, 1, victim=counts[0] - 1, failure="absence")
        lonely = pool.submit(outcome, task._replace(initialization_seconds=5))
        for i, count in enumerate(counts):
            task, saved = Task(many, count, devices, stop), SAVED_EVERY * (i + 1)
            if saved < stop:
                failure = FAILURES[i % len(FAILURES)]
                victim = 0 if failure == "step" else count - 1  # 0 is also the coordinator
                step = saved + (SAVED_EVERY - 1 if failure == "save" else 0)
                task = Task(many, count, devices, step + 1, 0, 0, victim, failure, step)
            outcomes.append(outcome(task))
            found = mlax.load(task.path, {"steps": np.int32(0)}, where="steps", checksum=True)
            if found["steps"] != saved:
                raise RuntimeError(f"{task}: expected a checkpoint of {saved} steps, got {found}")
        paths, like = [reference.result().task.path, task.path], jax.eval_shape(initial)
        pair = [mlax.load(path, like, where="state.*")["state"] for path in paths]
        leaves = zip(*map(jax.tree.leaves, pair), strict=True)
        statistics = max(float(jnp.max(jnp.abs(a - b)) / jnp.max(jnp.abs(a))) for a, b in leaves)
        return Drama(reference.result(), lonely.result(), outcomes, statistics)


def table(results: Drama) -> str:
    """Return what happened, a line for each group of processes."""
    lines = ["processes  devices  rows each  KB each  steps  loss off by  others ended  saying"]
    for group in [results.reference, *results.outcomes, results.lonely]:
        task, cells = group.task, ["", "", "", ""]
        if group.losses:
            cells[0] = str(max(group.rows))
            cells[1] = f"{max(group.nbytes) / 1e3:.0f}"
            cells[2] = f"{min(group.losses)}-{max(group.losses)}"
            cells[3] = f"{max(distances(results.reference, group)):.1e}"
        ended = f"{group.seconds:10.1f} s  {task.failure}: {group.words:.50}" * bool(task.failure)
        devices = task.processes * task.devices
        numbers = "{:>9}  {:>7}  {:>5}  {:>11}  {}".format(*cells, ended)
        lines.append(f"{task.processes:9}  {devices:7}  {numbers}")
    lines.append(f"running statistics in the end: off by {results.statistics:.1e}")
    return "\n".join(line.rstrip() for line in lines)


def distances(reference: Outcome, group: Outcome) -> list[float]:
    """Return the relative differences of losses."""
    return [abs(loss / reference.losses[step] - 1) for step, loss in group.losses.items()]


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.processes", description=__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--devices", type=int, default=2, help="of each process")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task:
        work(Task(*json.loads(options.task)))
        return
    for count in options.processes:
        if count < 2 or BATCH_SIZE % (count * options.devices):
            wanted = f"at least two processes, and devices that divide {BATCH_SIZE} rows"
            parser.error(f"expected {wanted}, got {count} processes of {options.devices}")
    start = time.perf_counter()
    print(table(drama(options.processes, options.devices)))
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
