"""Saving and loading trees of arrays: `mlax.save(path, tree)`, `mlax.load(path, like)`.

A file has the safetensors format (mlax/safetensors.py), the name of a tensor is the path of its
leaf (mlax/tree.py), and these leaves are encoded:

- A PRNG key is the uint32 data of the key; the metadata "keys" has its implementation.
- A Python bool, int or float is a scalar tensor of dtype bool, int64 or float64.

The metadata "hyperparameters" holds those of the models in the tree (mlax/fingerprint.py).

Only NumPy is needed. If you prefer orbax, it takes the same trees:

    with ocp.StandardCheckpointer() as orbax: orbax.save(directory, tree)
    with ocp.StandardCheckpointer() as orbax: tree = orbax.restore(directory, like)
"""

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.experimental import multihost_utils
from jax.sharding import AbstractMesh, NamedSharding, Sharding

from mlax.arguments import read_size
from mlax.errors import expected, message
from mlax.fingerprint import changes, fingerprint
from mlax.safetensors import DTYPES, Array, Layout, TensorFile, layout, parsed, partial_path
from mlax.safetensors import replacing, sync, write_checksum, write_part
from mlax.tree import Where, path_of, predicate, read_where, require_match

__all__ = ["LoadRule", "load", "save"]

T = TypeVar("T")

LoadRule: TypeAlias = tuple[str, str | None] | tuple[str, str, Callable[[Array], Array]]
"""An old name, the new one, and a function of the tensor if its layout changed too.

A star in the old name matches any text, and stands for the same text in the new one. None as the
new name drops the tensor. The function should return a view if it can, as `np.transpose` does: of a
view, each process reads only what it needs.
"""

_INDEX = ".index.json"
_MOST_BYTES = 5 << 30


class _Leaf(NamedTuple):
    """How a leaf is stored in a file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    key: str | None
    """The implementation of PRNG keys, None for other leaves."""

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        dtype, shape = self.dtype.name, self.shape
        if self.key is not None:
            dtype, shape = f"key of {self.key}", shape[:-1]
        return f"{dtype}[{','.join(map(str, shape))}]"


_NUMBERS = {bool: np.dtype(bool), int: np.dtype(np.int64), float: np.dtype(np.float64)}


def _leaf(owner: str, name: str, leaf: Any) -> _Leaf:
    """Return how a leaf is stored in a file, or raise if no file can hold it."""
    kind = _NUMBERS.get(type(leaf))
    if kind is _NUMBERS[int] and not -(2**63) <= leaf < 2**63:
        raise ValueError(message(owner, _shown(name), "a 64-bit integer", leaf))
    if kind is not None:
        return _Leaf(kind, (), None)
    arrays = jax.Array | np.ndarray | np.generic
    if owner == "load":
        arrays |= jax.ShapeDtypeStruct
    if not isinstance(leaf, arrays) or isinstance(leaf, Tracer):
        got = "a traced array" if isinstance(leaf, Tracer) else type(leaf).__name__
        raise TypeError(message(owner, _shown(name), "an array, key or real number", got))
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        implementations: list[object] = []

        def data_of(key: jax.Array) -> jax.Array:
            implementations.append(jax.random.key_impl(key))
            return jax.random.key_data(key)

        data = jax.eval_shape(data_of, leaf)
        return _Leaf(np.dtype(data.dtype), data.shape, str(implementations[0]))
    dtype = np.dtype(leaf.dtype)
    dtype = dtype.newbyteorder("<") if dtype.byteorder == ">" else dtype
    if dtype not in DTYPES.values():
        known = ", ".join(entry.name for entry in DTYPES.values())
        wanted = f"of a dtype among {known}"
        raise TypeError(message(owner, _shown(name), wanted, dtype.name, "cast it"))
    return _Leaf(dtype, tuple(leaf.shape), None)


def _shown(name: str) -> str:
    return name or "the tree"


def named(owner: str, tree: Any) -> dict[str, Any]:
    """Return the leaves by name, in jax's order."""
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = path_of(path)
        if name in leaves or name == "__metadata__":
            what = "leaves with distinct names, none of them __metadata__"
            raise ValueError(expected(owner, what, f"{name!r}", "rename a key of a dict"))
        leaves[name] = leaf
    return leaves


# Saving.


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
        ValueError: two leaves have one path, an array was donated, or processes pass other trees.
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
    leaves = named("save", tree)
    kinds = {name: _leaf("save", name, leaf) for name, leaf in leaves.items()}
    arrays = {name: leaf for name, leaf in leaves.items() if isinstance(leaf, jax.Array)}
    for name, array in arrays.items():
        if array.is_deleted():
            raise ValueError(message("save", _shown(name), "an array", "one that was donated"))
    if max_bytes is not None:
        read_size("save", "max_bytes", max_bytes)
    if max_bytes is not None and not path.name.endswith(_INDEX):
        wanted, way_out = f"a name ending in {_INDEX} if max_bytes is given", "or leave it out"
        raise ValueError(message("save", "path", wanted, path.name, way_out))
    is_shared = not all(array.is_fully_addressable for array in arrays.values())
    keys = {name: kind.key for name, kind in kinds.items() if kind.key is not None}
    texts = {"keys": keys, "hyperparameters": fingerprint(tree)}
    metadata = {name: json.dumps(value) for name, value in texts.items() if value}
    writer = _Writer(leaves, kinds, metadata, checksum, is_shared)
    if path.name.endswith(_INDEX):
        writer.write_several(path, _MOST_BYTES if max_bytes is None else max_bytes)
    else:
        writer.write(path, list(leaves), writer.token(path))


class _Writer(NamedTuple):
    """Writes leaves into files, alone or together with other processes."""

    leaves: dict[str, Any]
    kinds: dict[str, _Leaf]
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
                yield (), np.asarray(leaf, _NUMBERS.get(type(leaf)))
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
        stem, suffix = os.path.splitext(path.name.removesuffix(_INDEX))
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


# Loading.


class _Stored(NamedTuple):
    """A tensor in an open file."""

    file: TensorFile
    values: Array
    """A view of the file."""
    key: str | None

    @property
    def kind(self) -> _Leaf:
        return _Leaf(self.values.dtype, self.values.shape, self.key)


def load(
    path: str | os.PathLike[str], like: T, *, where: Where = "*", cast: bool = False,
    rules: Sequence[LoadRule] = (), checksum: bool = False,
) -> T:
    """Return the tree that `save` wrote, or another program in the safetensors format.

    Every leaf of `like` must be in the file, with its shape and dtype, and everything in the file
    must be in `like`. Leaves come back as what they are in `like`: jax arrays with the same
    sharding, writable NumPy arrays, PRNG keys, numbers. The file is memory-mapped, and each process
    reads only the shards on its devices.

    If `like` has a model with other hyperparameters than the saved one, such as another epsilon
    or activation, a warning names them.

    Args:
        path: a file, or the index of several: see `save`.
        like: a tree of arrays, `jax.ShapeDtypeStruct`s or numbers. `jax.eval_shape` makes one.
        where: the leaves to load, as in `mlax.mask`: a pattern, several patterns, or a function
            of path and leaf. The others are returned as they are in `like`, and the file may have
            more than what is loaded.
        cast: whether one floating dtype may be read as another, and one integer dtype as another.
            A number that the new dtype can't hold raises an error.
        rules: how names and layouts changed since the file was written, applied in order: pairs of
            an old name and a new one, with stars, and a function as third entry for the layout. A
            rule that matches nothing is ignored, as rules serve files of several versions.
        checksum: whether to compare the checksum, which reads the file once more.

    Raises:
        ValueError: the file is damaged, or not in the format; or names, shapes or dtypes differ,
            all of which are listed by path.
        TypeError: an argument, or a leaf of `like`, is of the wrong type.
        OSError: there is no such file.

    >>> import jax, jax.numpy as jnp, mlax, pathlib, tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     file = pathlib.Path(folder, "model.safetensors")
    ...     mlax.save(file, {"body": {"w": jnp.ones((2, 3))}})
    ...     like = {"body": {"kernel": jax.ShapeDtypeStruct((3, 2), jnp.float32)}}
    ...     rules = [("*.w", "*.kernel", lambda w: w.T)]
    ...     jax.typeof(mlax.load(file, like, rules=rules)["body"]["kernel"])
    ShapedArray(float32[3,2])
    """
    path = Path(path)
    wants = predicate(read_where("load", where))
    leaves = named("load", like)
    require_match("load", where, list(leaves))
    wanted = {n: _leaf("load", n, leaf) for n, leaf in leaves.items() if wants(n, leaf)}
    rules = [_read_rule(rule) for rule in rules]
    files, places = _opened(path)
    if checksum:
        for file in files:
            file.require_checksum()
    keys = {file.path: _json_in_metadata(file, "keys") for file in files}
    stored = {n: _Stored(f, f.view(n), keys[f.path].get(n)) for n, f in places.items()}
    stored = _renamed(path, stored, rules)
    extra = [name for name in stored if name not in wanted and _wants(wants, name, stored[name])]
    _require_alike(path, wanted, stored, extra, cast)
    _warn_of_changes(path, files, like)
    loaded = [
        _loaded(path, name, leaf, wanted[name], stored[name]) if name in wanted else leaf
        for name, leaf in leaves.items()
    ]
    tree: T = jax.tree.unflatten(jax.tree.structure(like), loaded)
    return tree


def _wants(wants: Callable[[str, Any], bool], name: str, stored: _Stored) -> bool:
    return wants(name, jax.ShapeDtypeStruct(stored.values.shape, stored.values.dtype))


def _opened(path: Path) -> tuple[list[TensorFile], dict[str, TensorFile]]:
    """Return the files, and where each tensor is."""
    if not path.name.endswith(_INDEX):
        only = TensorFile(path)
        return [only], dict.fromkeys(only.tensors, only)
    places: Any = parsed(path, path.read_bytes()).get("weight_map")
    if not isinstance(places, dict) or not all(map(_is_plain, places.values())):
        what, got = "weight_map to name files beside it", repr(places)
        raise ValueError(expected(str(path), what, f"{got:.100}"))
    files = {name: TensorFile(path.with_name(name)) for name in sorted({*places.values()})}
    found = {(tensor, name) for name, file in files.items() for tensor in file.tensors}
    if found != set(places.items()):
        tensor, name = min(found ^ set(places.items()))
        what = f"exactly the tensors that {path.name} says"
        raise ValueError(expected(str(path.with_name(name)), what, f"another place for {tensor}"))
    return list(files.values()), {tensor: files[name] for tensor, name in places.items()}


def _is_plain(name: Any) -> bool:
    """Return whether this is the name of a file, and not a path that leads elsewhere."""
    if not isinstance(name, str):
        return False
    return name == os.path.basename(name) and name not in ("", ".", "..") and "\0" not in name


def _json_in_metadata(file: TensorFile, name: str) -> Any:
    """Return what `save` wrote into the metadata, {} if another program wrote the file."""
    with contextlib.suppress(ValueError, RecursionError):
        value = json.loads(file.metadata.get(name, "{}"))
        if isinstance(value, dict):
            return value
    return {}


def _read_rule(rule: Any) -> LoadRule:
    """Require a rule."""
    if isinstance(rule, tuple) and len(rule) in (2, 3) and isinstance(rule[0], str):
        old, new, *functions = rule
        if new is None or isinstance(new, str) and old.count("*") == new.count("*"):
            if all(map(callable, functions)):
                return rule
    wanted = "tuples of two names with the same number of stars, and maybe a function"
    raise ValueError(message("load", "rules", wanted, repr(rule)))


def _renamed(
    path: Path, stored: dict[str, _Stored], rules: Sequence[LoadRule]
) -> dict[str, _Stored]:
    for rule in rules:
        old, new, *functions = rule
        pattern = re.compile("(.*)".join(map(re.escape, old.split("*"))), re.DOTALL)
        renamed: dict[str, _Stored] = {}
        for name, tensor in stored.items():
            match = pattern.fullmatch(name)
            if match and new is None:
                continue
            if match and new is not None:
                texts = (*match.groups(), "")
                name = "".join(map("".join, zip(new.split("*"), texts, strict=True)))
                for function in functions:
                    try:
                        values = np.asarray(function(tensor.values))
                    except Exception as error:
                        error.add_note(f"load: in the rule {old!r}, {new!r} for {name} of {path}")
                        raise
                    tensor = tensor._replace(values=values)
            if name in renamed:
                got = f"two named {name!r} after the rule {old!r}, {new!r}"
                raise ValueError(expected("load", f"one tensor of {path} for each name", got))
            renamed[name] = tensor
        stored = renamed
    return stored


def _require_alike(
    path: Path, wanted: Mapping[str, _Leaf], stored: Mapping[str, _Stored], extra: list[str],
    cast: bool,
) -> None:
    """Raise an error with everything that differs, if anything does."""
    lines = [f"missing: {name}, {kind}" for name, kind in wanted.items() if name not in stored]
    lines += [f"unexpected: {name}, {stored[name].kind}" for name in extra]
    ways_out = {"where= loads a part, rules= rename"} if lines else set()
    for name, kind in wanted.items():
        found = stored[name].kind if name in stored else kind
        if found.key != kind.key:
            lines.append(f"other dtype: {name}, {kind} in like, {found} in the file")
        elif found.shape != kind.shape:
            lines.append(f"other shape: {name}, {kind} in like, {found} in the file")
        elif found.dtype != kind.dtype and not (cast and _can_cast(found.dtype, kind.dtype)):
            lines.append(f"other dtype: {name}, {kind} in like, {found} in the file")
            ways_out |= {"cast=True casts floating to floating and integer to integer"}
    if lines:
        what, way_out = f"{path} to hold the leaves of like", ", ".join(sorted(ways_out))
        error = expected("load", what, "different ones", way_out)
        raise ValueError("\n  ".join([error, *lines]))


def _can_cast(old: np.dtype[Any], new: np.dtype[Any]) -> bool:
    kinds = (np.floating, np.integer, np.complexfloating)
    return any(jnp.issubdtype(old, kind) and jnp.issubdtype(new, kind) for kind in kinds)


def _warn_of_changes(path: Path, files: Sequence[TensorFile], like: Any) -> None:
    saved = _json_in_metadata(files[0], "hyperparameters") if files else {}
    if all(isinstance(entries, dict) for entries in saved.values()):
        lines = changes(saved, fingerprint(like))
        if lines:
            text = "\n  ".join([f"load: the model in {path} had other hyperparameters", *lines])
            warnings.warn(text, stacklevel=3)


def _loaded(path: Path, name: str, leaf: Any, kind: _Leaf, stored: _Stored) -> Any:
    """Return a tensor as what the leaf of `like` is."""

    def read(index: Any = ...) -> Array:
        part = stored.file.copied(stored.values[index])
        return part if part.dtype == kind.dtype else _cast(path, name, part, kind.dtype)

    if type(leaf) in _NUMBERS:
        return read().item()
    if isinstance(leaf, np.generic):
        return read()[()]
    if isinstance(leaf, np.ndarray):
        return read()
    sharding = _sharding(name, leaf)
    if sharding is None:
        array = jax.device_put(read())
    else:
        array = jax.make_array_from_callback(kind.shape, sharding, read)
    if array.dtype != kind.dtype:
        way_out = "set jax_enable_x64, or use NumPy arrays"
        raise ValueError(message("load", name, str(kind), array.dtype.name, way_out))
    return array if kind.key is None else jax.random.wrap_key_data(array, impl=kind.key)


def _cast(path: Path, name: str, part: Array, dtype: np.dtype[Any]) -> Array:
    """Return numbers in another dtype, which must hold all of them up to rounding."""
    is_integer = jnp.issubdtype(dtype, np.integer)
    if not is_integer and part.dtype.itemsize == 1:
        part = part.astype(np.float32)  # NumPy can't cast between one-byte dtypes
    with np.errstate(all="ignore"):
        new = part.astype(dtype)
        lost = new != part
        if not is_integer:
            lost = np.isfinite(part) & ~np.isfinite(new) | ~np.isnan(part) & np.isnan(new)
    if lost.any():
        what = f"{name} of {path} to fit {dtype.name}"
        raise ValueError(expected("load", what, part[lost].item(0)))
    return new


def _sharding(name: str, leaf: Any) -> Sharding | None:
    """Return the sharding of a new array; None if jax may choose, as for the array in `like`."""
    sharding: Sharding | None = leaf.sharding
    if isinstance(leaf, jax.Array) and not leaf.committed:
        return None
    if isinstance(sharding, NamedSharding) and isinstance(sharding.mesh, AbstractMesh):
        mesh = jax.sharding.get_mesh()
        if mesh.abstract_mesh != sharding.mesh:
            way_out = "call load within jax.set_mesh(mesh), or give like a NamedSharding of a mesh"
            raise ValueError(message("load", name, "on a mesh of devices", sharding.mesh, way_out))
        return NamedSharding(mesh, sharding.spec, memory_kind=sharding.memory_kind)
    return sharding
