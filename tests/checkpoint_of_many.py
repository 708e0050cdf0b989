"""One of two processes, of two devices each, that save arrays which lie on all, and load them.

    python -m tests.checkpoint_of_many FOLDER PORT PROCESS
"""

import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

import mlax

NUMBERS = np.arange(48, dtype=np.float32).reshape(8, 6)
SPECS: dict[str, tuple[str | None, ...]] = {
    "rows": ("rows",), "columns": (None, "columns"), "both": ("rows", "columns"), "whole": (),
}


def main(folder: Path, port: str, process: int) -> None:
    """Save twice, load, and compare what lies here."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"localhost:{port}", 2, process)
    mesh = jax.make_mesh((2, 2), ("rows", "columns"))
    tree: dict[str, Any] = {"steps": 3}
    for name, spec in SPECS.items():
        sharding = NamedSharding(mesh, PartitionSpec(*spec))
        tree[name] = jax.make_array_from_callback(NUMBERS.shape, sharding, lambda i: NUMBERS[i])
    for name, max_bytes in [("one.safetensors", None), ("several.safetensors.index.json", 200)]:
        for _ in range(2):
            mlax.save(folder / name, tree, max_bytes=max_bytes, checksum=True)
        loaded = mlax.load(folder / name, tree, checksum=True)
        assert loaded.pop("steps") == 3
        for key, array in loaded.items():
            assert array.sharding == tree[key].sharding
            for shard in array.addressable_shards:
                np.testing.assert_array_equal(shard.data, NUMBERS[shard.index])


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
