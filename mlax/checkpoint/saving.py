"""Saving: the leaves of a tree into one file or several, by one process or by all."""

import contextlib
import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from mlax.arguments import read_size
from mlax.checkpoint.leaves import INDEX, NUMBERS, Leaf, leaf_of, named
from mlax.errors import expected, message
from mlax.fingerprint import fingerprint
from mlax.module import Module
from mlax.safetensors import Array, Layout, layout, partial_path
from mlax.safetensors import replacing, sync, write_checksum, write_part


def save(
    path: str | os.PathLike[str], tree: Any, *, max_bytes: int | None = None,
    checksum: bool = False,
) -> None:
    """Write a tree of arrays to a file in the safetensors format.

    The leaves may be arrays of jax or NumPy, PRNG keys, and Python or NumPy numbers: params,
    states, modules, the state of an optimizer, the number of steps. Their names are those of
    `mlax.paths`. Arrays are written shard by shard. If some are on devices of other processes too,
    all processes must call this function, with a path on a file system that they share. Each writes
    its own shards, and the first one everything that is not a jax array.

    The path leads to the old file until the new one is complete and on disk. If the program, or one
    of several processes, is killed, the old one stays. The other processes wait for that one as in
    any collective: until `jax.distributed` misses its heartbeats, or the collective fails.

    Args:
        path: the file, such as "model.safetensors". If it ends in ".index.json", as in
            "model.safetensors.index.json", the tensors go into several files beside it, and the
            file says which is where, as on the HuggingFace hub.
        tree: any pytree.
        max_bytes: the most bytes in each of several files, unless a single tensor has more;
            None for 5 GiB.
        checksum: write a checksum, by which `load` can detect any changed bit. To compute it, the
            file is read once more.

    Raises:
        TypeError: a leaf is not an array or number, or the format lacks its dtype (int4).
        ValueError: two leaves have one path, an array was donated, a module is not set up, or
            processes pass other trees.
        OSError: the file can't be written, by this process or by another one.
        ConnectionError: another process ended. It is an OSError, too.

    >>> import jax.numpy as jnp, mlax, pathlib, tempfile
    >>> tree = {"params": {"kernel": jnp.ones((2, 3))}, "steps": 7}
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     mlax.save(pathlib.Path(folder, "model.safetensors"), tree, checksum=True)
    ...     mlax.load(pathlib.Path(folder, "model.safetensors"), tree, checksum=True)["steps"]
    7
    """
    path = Path(os.path.realpath(path))
    for part in jax.tree.leaves(tree, is_leaf=lambda node: isinstance(node, Module)):
        if isinstance(part, Module) and not part.initialized:
            what, way_out = "modules that are set up", "call it once, module(x, rng)"
            raise ValueError(expected("save", what, f"a new {type(part).__name__}", way_out))
    leaves = named("save", tree)
    kinds = {name: leaf_of("save", name, leaf) for name, leaf in leaves.items()}
    arrays = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, jax.Array)}
    for name, array in arrays.items():
        if array.is_deleted():
            got = "one that was donated"
            raise ValueError(message("save", name or "the tree", "an array", got))
    if max_bytes is not None:
        read_size("save", "max_bytes", max_bytes)
    if max_bytes is not None and not path.name.endswith(INDEX):
        wanted, way_out = f"a name ending in {INDEX} if max_bytes is given", "or leave it out"
        raise ValueError(message("save", "path", wanted, path.name, way_out))
    is_shared = not all(array.is_fully_addressable for array in arrays.values())
    keys = {name: kind.key for name, kind in kinds.items() if kind.key is not None}
    texts = {"keys": keys, "hyperparameters": fingerprint(tree)}
    metadata = {name: json.dumps(value) for name, value in texts.items() if value}
    writer = _Writer(leaves, kinds, metadata, checksum, is_shared)
    if path.name.endswith(INDEX):
        writer.write_several(path, 5 << 30 if max_bytes is None else max_bytes)
    else:
        writer.write(path, list(leaves), writer.token(path))


class _Writer(NamedTuple):
    """Writes leaves into files, alone or together with other processes."""

    leaves: dict[str, Any]
    kinds: dict[str, Leaf]
    metadata: dict[str, str]
    checksum: bool
    is_shared: bool
    """Whether other processes write into the same files."""

    @property
    def is_first(self) -> bool:
        """Whether this process creates the files."""
        return jax.process_index() == 0 or not self.is_shared

    def token(self, path: Path, max_bytes: int | None = None) -> str:
        """Return a part of the names of new files; it is the same in all processes."""
        token = secrets.token_bytes(4)
        if self.is_shared:
            plan = path.name, max_bytes, self.kinds, self.metadata, self.checksum
            digest = hashlib.sha256(repr(plan).encode()).digest()
            rows = _gathered(np.frombuffer(token + digest, np.uint8))
            others = np.flatnonzero((rows[:, 4:] != rows[0, 4:]).any(1)).tolist()
            if others:
                what = "the same names, shapes, dtypes and arguments in all processes"
                raise ValueError(expected("save", what, f"different ones in {others} than in 0"))
            token = rows[0, :4].tobytes()
        return token.hex()

    @contextlib.contextmanager
    def together(self, path: Path) -> Iterator[None]:
        """Do a step of writing a file in all processes; raise in each if it fails in any."""
        try:
            yield
        except Exception:
            if self.is_shared:
                _gathered(np.array(True))
            raise
        failed = np.flatnonzero(_gathered(np.array(False))).tolist() if self.is_shared else []
        if failed:
            got = f"an error in {failed}, which report it"
            raise OSError(expected("save", f"all processes to write {path}", got))

    def write(self, path: Path, names: list[str], token: str) -> None:
        """Write a file with the leaves of these names."""
        shapes = {name: self.kinds[name][:2] for name in names}
        planned = layout(shapes, self.metadata, self.checksum)
        with contextlib.ExitStack() as stack:
            with self.together(path):
                file = stack.enter_context(replacing(path, token)) if self.is_first else None
                if file is not None:
                    file.write(planned.header)
                    file.truncate(planned.size)
                    file.flush()
            with self.together(path):
                if file is not None:
                    self.write_parts(file, planned)
                else:
                    with open(partial_path(path, token), "r+b") as other:
                        self.write_parts(other, planned)
                        sync(other)
            with self.together(path):
                if file is not None and self.checksum:
                    write_checksum(file, planned.header)
                stack.close()

    def write_parts(self, file: BinaryIO, planned: Layout) -> None:
        """Write the parts of leaves that this process writes."""
        for name, tensor in planned.tensors.items():
            for index, part in self.parts(self.leaves[name]):
                write_part(file, tensor, index or (slice(None),) * len(tensor.shape), part)

    def parts(self, leaf: Any) -> Iterator[tuple[tuple[slice, ...], Array]]:
        """Yield the parts of a leaf that this process writes, with their places; () is all."""
        if not isinstance(leaf, jax.Array):
            if self.is_first:
                yield (), np.asarray(leaf, NUMBERS.get(type(leaf)))
            return
        if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if leaf.is_fully_addressable and not self.is_first:
            return
        for shard in leaf.addressable_shards:
            if shard.replica_id == 0:
                # An array caches its copy on the host; this one is freed after it was written.
                data, sharding = shard.data, shard.data.sharding
                alike = jax.make_array_from_single_device_arrays(data.shape, sharding, [data])
                yield shard.index, np.asarray(alike)

    def write_several(self, path: Path, max_bytes: int) -> None:
        """Write several files, then the index, which tells which of them count."""
        groups, token = self.groups(max_bytes), self.token(path, max_bytes)
        stem, suffix = os.path.splitext(path.name.removesuffix(INDEX))
        name_of = f"{stem}-{token}-{{:05}}-of-{len(groups):05}{suffix}".format
        files = {name_of(i): names for i, names in enumerate(groups, 1)}
        for file, names in files.items():
            self.write(path.with_name(file), names, token)
        with self.together(path):
            if self.is_first:
                self.write_index(path, files)
                start, stop = re.escape(stem), re.escape(suffix)
                former = rf"\.?{start}-[0-9a-f]{{8}}-\d+-of-\d+{stop}(\.[0-9a-f]{{8}}\.partial)?"
                for other in path.parent.iterdir():
                    if re.fullmatch(former, other.name) and other.name not in files:
                        other.unlink(missing_ok=True)

    def write_index(self, path: Path, files: Mapping[str, list[str]]) -> None:
        """Write which file has which leaves."""
        total = {"total_size": sum(kind.nbytes for kind in self.kinds.values())}
        places = {name: file for file, names in files.items() for name in names}
        with replacing(path) as index:
            text = json.dumps({"metadata": total, "weight_map": places}, indent=1)
            index.write(text.encode())

    def groups(self, max_bytes: int) -> list[list[str]]:
        """Return the names in each file."""
        groups: list[list[str]] = [[]]
        total = 0
        for name, kind in self.kinds.items():
            if groups[-1] and total + kind.nbytes > max_bytes:
                groups.append([])
                total = 0
            groups[-1].append(name)
            total += kind.nbytes
        return groups


def _gathered(mine: Array) -> Array:
    """Return an array from each process, stacked; this waits for all of them."""
    try:
        return np.asarray(multihost_utils.process_allgather(mine))
    except (jax.errors.JaxRuntimeError, ValueError) as error:  # which of the two is up to jax
        way_out = "the path leads to the old file, or the new one if that is complete"
        text = expected("save", "an answer from all processes", error, way_out)
        raise ConnectionError(text) from error
