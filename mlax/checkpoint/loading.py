"""Loading: the leaves of a tree from one file or several, each process what lies on its devices."""

import contextlib
import json
import os
import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, NamedSharding, Sharding

from mlax.checkpoint.leaves import INDEX, NUMBERS, Leaf, leaf_of, named
from mlax.errors import expected, message
from mlax.fingerprint import changes, fingerprint
from mlax.safetensors import Array, TensorFile, parsed
from mlax.tree import Where, predicate, read_where, require_match

T = TypeVar("T")

LoadRule: TypeAlias = tuple[str, str | None] | tuple[str, str, Callable[[Array], Array]]
"""An old name, the new one, and a function of the tensor if its layout changed too.

A star in the old name matches any text, and stands for the same text in the new one. None as the
new name drops the tensor. The function should return a view if it can, as `np.transpose` does: of a
view, each process reads only what it needs.
"""


class _Stored(NamedTuple):
    """A tensor in an open file."""

    file: TensorFile
    values: Array
    """A view of the file."""
    key: str | None

    @property
    def kind(self) -> Leaf:
        return Leaf(self.values.dtype, self.values.shape, self.key)


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
    wanted = {n: leaf_of("load", n, leaf) for n, leaf in leaves.items() if wants(n, leaf)}
    rules = [_read_rule(rule) for rule in rules]
    files, places = _opened(path)
    if checksum:
        for file in files:
            file.require_checksum()
    keys = {file.path: _json_in_metadata(file, "keys") for file in files}
    stored = {n: _Stored(f, f.view(n), keys[f.path].get(n)) for n, f in places.items()}
    stored = _renamed(path, stored, rules)
    extra = [
        name for name, (_, values, _) in stored.items() if name not in wanted
        and wants(name, jax.ShapeDtypeStruct(values.shape, values.dtype))
    ]
    _require_alike(path, wanted, stored, extra, cast)
    _warn_of_changes(path, files, like)
    loaded = [
        _loaded(path, name, leaf, wanted[name], stored[name]) if name in wanted else leaf
        for name, leaf in leaves.items()
    ]
    tree: T = jax.tree.unflatten(jax.tree.structure(like), loaded)
    return tree


def _opened(path: Path) -> tuple[list[TensorFile], dict[str, TensorFile]]:
    """Return the files, and where each tensor is."""
    if not path.name.endswith(INDEX):
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
    path: Path, wanted: Mapping[str, Leaf], stored: Mapping[str, _Stored], extra: list[str],
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


def _loaded(path: Path, name: str, leaf: Any, kind: Leaf, stored: _Stored) -> Any:
    """Return a tensor as what the leaf of `like` is."""

    def read(index: Any = ...) -> Array:
        part = stored.file.copied(stored.values[index])
        return part if part.dtype == kind.dtype else _cast(path, name, part, kind.dtype)

    if type(leaf) in NUMBERS:
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
