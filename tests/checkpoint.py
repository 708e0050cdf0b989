"""What checkpoints have to stand: kill -9, files from anywhere, sizes.

    python -m tests.checkpoint kill      kill a program that saves, 100 times, at random moments
    python -m tests.checkpoint fuzz      load 10,000 files with changes of all kinds
    python -m tests.checkpoint size      save and load 2 GB, beside safetensors.numpy if installed
"""

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import mlax

Bytes = bytearray

# Killed programs.

PATHS = ["model.safetensors", "model.safetensors.index.json"]


def versions(version: int) -> dict[str, Any]:
    """Return a tree of 2 MB in which every number is the version."""
    return {f"layer_{i}": np.full((128, 512), version, np.float32) for i in range(8)}


def save_version(path: Path, version: int) -> None:
    """Save a version, in two files if there is an index."""
    max_bytes = 1 << 20 if path.name.endswith(".index.json") else None
    mlax.save(path, versions(version), max_bytes=max_bytes, checksum=True)


def write_versions(path: Path) -> None:
    """Save one version after the other till the program is killed."""
    version = 0
    while True:
        version += 1
        save_version(path, version)
        print(version, flush=True)


def kill_writers(folder: Path, kills: int, seed: int = 0) -> int:
    """Kill a program that saves, again and again; return how many versions were complete."""
    draw = random.Random(seed)
    written = 0
    for i in range(kills):
        path = folder / PATHS[i % len(PATHS)]
        program = [sys.executable, "-m", "tests.checkpoint", "write", str(path)]
        with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None and writer.stdout.readline() == "1\n"
            time.sleep(draw.uniform(0.0, 0.06))
            writer.kill()
            said = [1, *map(int, writer.stdout.read().split())]
        loaded = mlax.load(path, versions(0), checksum=True)
        (version,) = {number for array in loaded.values() for number in np.unique(array).tolist()}
        assert version in (said[-1], said[-1] + 1), (version, said)  # killed before it was said
        written += int(version)
    for name in PATHS:
        save_version(folder / name, 0)
    left = sorted(file.name.replace(".safetensors", "") for file in folder.iterdir())
    assert len(left) == 2 + len(versions(0)) // 4, left
    return written


# Files from anywhere.

STRANGE: list[Any] = [
    -1, 0, 1, 2, 7, 2**31, 2**53, 2**62, 2**63, 2**64, 10**30, 1.5, 1e400, True, None, "", "F32",
    "BOOL", "I4", [], [0], [0, 0], [2**62, 4], [-1, -24], [0] * 40, {}, {"dtype": "F32"}, "x" * 300,
]


def pristine(folder: Path) -> tuple[Path, Any]:
    """Return a file, and the tree in it."""
    _, state = mlax.series(mlax.dense(2), mlax.batch_norm()).init(jax.random.key(0), np.ones(3))
    tree = {
        "kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "flags": np.array([True, False]),
        "half": np.arange(5).astype(jnp.bfloat16), "empty": np.zeros((0, 4), np.int8), "steps": 9,
        "state": jax.tree.map(np.asarray, state),
    }
    path = folder / "pristine.safetensors"
    mlax.save(path, tree, checksum=True)
    return path, tree


def mutated(data: bytes, draw: random.Random) -> bytes:
    """Return the bytes of a file with a change or a few."""
    changed = Bytes(data)
    for _ in range(draw.choice([1, 1, 1, 2, 5])):
        draw.choice(MUTATIONS)(changed, draw)
    return bytes(changed)


def flip(data: Bytes, draw: random.Random) -> None:
    """Change a bit, most often in the header."""
    length = 8 + int.from_bytes(data[:8], "little")
    most = length if draw.random() < 0.7 and length <= len(data) else len(data)
    if most:
        data[draw.randrange(most)] ^= 1 << draw.randrange(8)


def cut(data: Bytes, draw: random.Random) -> None:
    """Lose the end."""
    del data[draw.randrange(len(data) + 1) :]


def grow(data: Bytes, draw: random.Random) -> None:
    """Insert bytes."""
    place = draw.choice([draw.randrange(len(data) + 1), len(data)])
    data[place:place] = draw.randbytes(draw.randrange(1, 40))


def lie_about_the_header(data: Bytes, draw: random.Random) -> None:
    """Give another length of the header."""
    lengths = [0, 1, 2, len(data) - 8, len(data), 10**8, 2**32, 2**63, 2**64 - 1]
    data[:8] = max(0, draw.choice(lengths)).to_bytes(8, "little")


def change_json(data: Bytes, draw: random.Random) -> None:
    """Change a value, a name or the order in the header, which stays JSON."""
    length = int.from_bytes(data[:8], "little")
    with contextlib.suppress(ValueError, RecursionError):  # another change came first
        header = json.loads(data[8 : 8 + length])
        places = list(_places(header)) if isinstance(header, dict) else []
        if not places:
            return
        holder, key = draw.choice(places)
        match draw.randrange(4):
            case 0:
                holder[key] = draw.choice(STRANGE)
            case 1 if isinstance(holder, dict):
                holder[f"{key}{draw.choice(['', 'x', '.y'])}"] = holder.pop(key)
            case 2 if isinstance(holder[key], int):
                holder[key] += draw.choice([-8, -1, 1, 4, 8, 24])
            case _:
                other, other_key = draw.choice(places)
                holder[key], other[other_key] = other[other_key], holder[key]
        text = json.dumps(header, check_circular=True).encode()
        if draw.random() < 0.1:
            text = text.replace(b'"shape":', b'"dtype":"F32","shape":', 1)  # twice
        data[: 8 + length] = len(text).to_bytes(8, "little") + text


def nest(data: Bytes, draw: random.Random) -> None:
    """Put a header of deep or huge JSON before the data."""
    length = 8 + int.from_bytes(data[:8], "little")
    text = draw.choice([b"[" * 100_000, b'{"a":' * 50_000, b'{"a":' + b"9" * 10_000 + b"}"])
    data[:length] = len(text).to_bytes(8, "little") + text


MUTATIONS: list[Callable[[Bytes, random.Random], None]] = [
    flip, flip, flip, cut, grow, lie_about_the_header, change_json, change_json, change_json, nest,
]


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield every container and key in a JSON value."""
    for key in value if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def load_mutated(folder: Path, count: int, seed: int = 0) -> tuple[int, int]:
    """Load changed files; return for how many the loader raised, and for how many it didn't.

    An error is a ValueError that names the file. What loads has the dtypes and shapes that were
    asked for, and the bytes that the header says. With its checksum a changed file never loads.
    No file takes more memory than some times its size.
    """
    draw = random.Random(seed)
    path, tree = pristine(folder)
    data = path.read_bytes()
    other = folder / "mutated.safetensors"
    refused = accepted = 0
    tracemalloc.start()
    for i in range(count):
        changed = mutated(data, draw)
        if changed == data:
            continue
        other.write_bytes(changed)
        tracemalloc.reset_peak()
        before, _ = tracemalloc.get_traced_memory()
        try:
            with warnings.catch_warnings(action="ignore"):  # of changed hyperparameters
                loaded = mlax.load(other, tree)
        except ValueError as error:
            assert "mutated.safetensors" in str(error), error
            refused += 1
        else:
            require_same_bytes(loaded, changed)
            accepted += 1
        _, peak = tracemalloc.get_traced_memory()
        assert peak - before < 1_000_000 + 60 * len(changed), (i, peak - before, len(changed))
        try:
            mlax.load(other, tree, checksum=True)
        except ValueError as error:
            assert "mutated.safetensors" in str(error), error
        else:
            raise AssertionError(f"file {i} has the checksum of another")
    tracemalloc.stop()
    return refused, accepted


def require_same_bytes(loaded: Any, data: bytes) -> None:
    """Require the arrays that the plainest possible reader finds in a file."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    names = mlax.paths(dict(sorted(loaded.items())))
    for name, leaf in zip(names, jax.tree.leaves(loaded), strict=True):
        start, stop = header[name]["data_offsets"]
        assert np.asarray(leaf).tobytes() == body[start:stop], name


# Sizes.

SHAPES = {f"layer_{i}": (8192, 4096) for i in range(16)}
SIZE = 4 * 16 * 8192 * 4096


TASKS = [
    "save_file", "save", "save with a checksum", "load_file", "load_file", "arrays of jax",
    "on 8 devices", "arrays of NumPy", "a checksum", "one array",
]


def save_arrays(path: Path, like: Any, checksum: bool = False) -> None:
    """Save 2 GB."""
    tree = {name: jnp.full(leaf.shape, 1.0) for name, leaf in like.items()}
    with measured("mlax.save" + checksum * ", checksum"):
        mlax.save(path, jax.block_until_ready(tree), checksum=checksum)


def save_with_safetensors(path: Path, like: Any) -> None:
    """Save 2 GB without waiting for the disk."""
    from safetensors.numpy import save_file

    tree = {name: np.ones(leaf.shape, np.float32) for name, leaf in like.items()}
    with measured("safetensors.numpy.save_file"):
        save_file(tree, path.with_name("other.safetensors"))


def load_arrays(path: Path, like: Any, name: str, checksum: bool = False) -> None:
    """Load 2 GB."""
    with measured(f"mlax.load, {name}"):
        jax.block_until_ready(mlax.load(path, like, checksum=checksum))


def load_with_safetensors(path: Path, like: Any) -> None:
    """Load 2 GB."""
    from safetensors.numpy import load_file

    with measured("safetensors.numpy.load_file"):
        assert len(load_file(path)) == len(like)


def measure(path: Path, what: str) -> None:
    """Do one thing in a program of its own, and print how it went."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    mesh = jax.make_mesh((2, 4), ("rows", "columns"))
    jax.block_until_ready(jnp.ones(3))
    sharding = NamedSharding(mesh, PartitionSpec("rows", "columns"))
    like = {n: jax.ShapeDtypeStruct(shape, jnp.float32) for n, shape in SHAPES.items()}
    match what:
        case "save":
            save_arrays(path, like)
        case "save with a checksum":
            save_arrays(path, like, checksum=True)
        case "save_file":
            save_with_safetensors(path, like)
        case "arrays of jax":
            load_arrays(path, like, what)
        case "a checksum":
            load_arrays(path, like, what, checksum=True)
        case "on 8 devices":
            placed = jax.tree.map(lambda leaf: leaf.update(sharding=sharding), like)
            load_arrays(path, placed, what)
        case "arrays of NumPy":
            one = np.zeros((), np.float32)
            load_arrays(path, {n: np.broadcast_to(one, s) for n, s in SHAPES.items()}, what)
        case "one array":
            path, shape = path.with_name("one.safetensors"), (16 * 8192, 4096)
            mlax.save(path, np.broadcast_to(np.float32(1), shape))
            load_arrays(path, jax.ShapeDtypeStruct(shape, jnp.float32), what)
        case _:
            load_with_safetensors(path, like)


@contextlib.contextmanager
def measured(name: str) -> Iterator[None]:
    """Print the time of what follows, and how far the memory of the process rose over it."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before, start = _memory("VmRSS"), time.perf_counter()
    yield
    seconds, peak = time.perf_counter() - start, (_memory("VmHWM") - before) / SIZE
    speed = SIZE / seconds / 1e9
    print(f"{name:30} {seconds:6.2f} s {speed:6.2f} GB/s, peak {peak:.3f} of the file")


def _memory(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return 1024 * int(line.split()[1])


def main() -> None:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(prog="python -m tests.checkpoint", description=__doc__)
    parser.add_argument("what", choices=["kill", "fuzz", "size", "write", "measure"])
    parser.add_argument("arguments", nargs="*")
    options = parser.parse_args()
    if options.what == "write":
        write_versions(Path(options.arguments[0]))
    if options.what == "measure":
        measure(Path(options.arguments[0]), options.arguments[1])
        return
    with tempfile.TemporaryDirectory() as name:
        start, folder = time.perf_counter(), Path(name)
        match options.what:
            case "kill":
                print(f"100 kills, the file was whole each time: {kill_writers(folder, 100)} saves")
            case "fuzz":
                print("%d files refused, %d loaded as they are" % load_mutated(folder, 10_000))
            case _:
                for task in TASKS:
                    command = [sys.executable, "-m", "tests.checkpoint", "measure"]
                    subprocess.run([*command, str(folder / "large.safetensors"), task], check=True)
        print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
