"""One of two processes, of two devices each, that save arrays which lie on all, and load them.

What fails in one of them fails in both, and leaves the files that were there.

    python -m tests.checkpoint_of_many FOLDER PORT PROCESS
"""

import contextlib
import sys
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import mlax

NUMBERS = np.arange(48, dtype=np.float32).reshape(8, 6)
FILES = [("one.safetensors", None), ("several.safetensors.index.json", 200)]
SPECS: dict[str, tuple[str | None, ...]] = {
    "rows": ("rows",), "columns": (None, "columns"), "both": ("rows", "columns"), "whole": (),
}


def main(folder: Path, port: str, process: int) -> None:
    """Save twice, load, and compare what lies here; then fail."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"localhost:{port}", 2, process)
    mesh = jax.make_mesh((2, 2), ("rows", "columns"))
    tree: dict[str, Any] = {"steps": 3}
    for name, spec in SPECS.items():
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        tree[name] = jax.make_array_from_callback(NUMBERS.shape, sharding, lambda i: NUMBERS[i])
    for name, max_bytes in FILES:
        for _ in range(2):
            mlax.save(folder / name, tree, max_bytes=max_bytes, checksum=True)
        loaded = mlax.load(folder / name, tree, checksum=True)
        assert loaded.pop("steps") == 3
        for key, array in loaded.items():
            assert array.sharding == tree[key].sharding
            for shard in array.addressable_shards:
                np.testing.assert_array_equal(shard.data, NUMBERS[shard.index])
        fail(folder / name, max_bytes, tree, process)


def fail(path: Path, max_bytes: int | None, tree: dict[str, Any], process: int) -> None:
    """Have a step fail in one process, then give the processes different trees."""
    steps = ["checkpoint.saving.replacing", "checkpoint.saving.write_part", "safetensors.sync"]
    for failing, step in [(0, steps[0]), (0, steps[1]), (1, steps[1]), (0, steps[2])]:
        with contextlib.ExitStack() as stack:
            text = rf"to write .*{path.parent.name}.*, got an error in \[{failing}\]"
            if process == failing:
                text = "disk full"
                stack.enter_context(mock.patch(f"mlax.{step}", side_effect=OSError(text)))
            stack.enter_context(pytest.raises(OSError, match=text))
            mlax.save(path, tree, max_bytes=max_bytes)
    with pytest.raises(ValueError, match=r"in all processes, got different ones in \[1\]"):
        mlax.save(path, tree | {"steps": 3.0} if process else tree, max_bytes=max_bytes)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
