"""The safetensors format: named tensors in one file, read and written with only NumPy.

    8 bytes    n, the length of the header: an unsigned integer
    n bytes    the header, padded with spaces: {"NAME": {"dtype": "F32", "shape": [2, 3],
               "data_offsets": [0, 24]}, ..., "__metadata__": {"KEY": "TEXT", ...}}
    the rest   the elements of each tensor, row by row; no gaps, no overlaps, nothing after

All numbers are little-endian, and offsets count from the end of the header. `TensorFile` reads a
file, and trusts nothing in its header before checking it against the size of the file. `replacing`
writes one so that at any time its path leads to the old file or to the whole new one.
This module knows names and bytes; mlax/checkpoint/ knows what they mean.

Source: the format of https://github.com/huggingface/safetensors.
"""

import contextlib
import hashlib
import json
import math
import mmap
import operator
import os
import re
import secrets
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias

import ml_dtypes
import numpy as np

from mlax.errors import expected

if sys.platform != "win32":
    import fcntl

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]
"""A NumPy array of any dtype."""

DTYPES: dict[str, np.dtype[Any]] = {
    "BOOL": np.dtype(bool),
    "U8": np.dtype("u1"), "U16": np.dtype("<u2"), "U32": np.dtype("<u4"), "U64": np.dtype("<u8"),
    "I8": np.dtype("i1"), "I16": np.dtype("<i2"), "I32": np.dtype("<i4"), "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"), "F32": np.dtype("<f4"), "F64": np.dtype("<f8"),
    "C64": np.dtype("<c8"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn), "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E4M3FNUZ": np.dtype(ml_dtypes.float8_e4m3fnuz),
    "F8_E5M2FNUZ": np.dtype(ml_dtypes.float8_e5m2fnuz),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
"""The dtypes by their names in a header. Types smaller than a byte are not among them."""

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_MOST_HEADER_BYTES = 100_000_000  # the limit of the format
_MOST_AXES = 32
_BLOCK = 1 << 26
_ALIGNMENT = 64  # of arrays that jax takes over on a CPU; it copies others
_METADATA, _CHECKSUM = "__metadata__", "sha256"
_ZEROS = 64 * "0"


class Tensor(NamedTuple):
    """A tensor in a file."""

    dtype: np.dtype[Any]
    """Dtype of its elements."""
    shape: tuple[int, ...]
    """Lengths of its axes."""
    start: int
    """Where in the file its elements start."""

    @property
    def nbytes(self) -> int:
        """The number of its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


# Reading.


class TensorFile:
    """A file that is open for reading; it may be replaced meanwhile, but not cut short.

    Attributes:
        path: the path of the file.
        tensors: its tensors by name.
        metadata: the strings in its header by name.

    Raises:
        ValueError: the file is not what the format demands.
    """

    path: Path
    tensors: dict[str, Tensor]
    metadata: dict[str, str]

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            self._require(size >= 8, "a header", f"{size} bytes")
            length = int.from_bytes(file.read(8), "little")
            most = min(size - 8, _MOST_HEADER_BYTES)
            self._require(length <= most, f"a header of at most {most} bytes", length)
            header = parsed(path, file.read(length))
            self._start = 8 + length
            self.metadata = self._read_metadata(header.pop(_METADATA, {}))
            self.tensors = {name: self._read_tensor(name, entry) for name, entry in header.items()}
            self._require_no_gaps(size)
            self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ)

    def _require(self, holds: bool, what: str, got: object) -> None:
        if not holds:
            raise ValueError(expected(str(self.path), what, got, _DAMAGED))

    def _read_metadata(self, metadata: Any) -> dict[str, str]:
        metadata = {} if metadata is None else metadata
        is_text = isinstance(metadata, dict) and all(isinstance(v, str) for v in metadata.values())
        self._require(is_text, f"{_METADATA} to be strings by name", _shortened(metadata))
        return dict(metadata)

    def _read_tensor(self, name: str, entry: Any) -> Tensor:
        got = f"{_shortened(entry)} for {_shortened(name)}"
        is_known = isinstance(entry, dict) and {*entry} == {"dtype", "shape", "data_offsets"}
        self._require(is_known, "dtype, shape and data_offsets of a tensor", got)
        name_of_dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        is_known = isinstance(name_of_dtype, str) and name_of_dtype in DTYPES
        self._require(is_known, f"a dtype among {', '.join(DTYPES)}", got)
        is_known = _are_sizes(shape) and len(shape) <= _MOST_AXES
        self._require(is_known, f"a shape of at most {_MOST_AXES} lengths", got)
        self._require(_are_sizes(offsets) and len(offsets) == 2, "two data_offsets", got)
        start, stop = offsets
        tensor = Tensor(DTYPES[name_of_dtype], tuple(shape), self._start + start)
        room = math.prod(length or 1 for length in shape) * tensor.dtype.itemsize
        self._require(room < 2**63, "a shape that an array can have", got)
        self._require(start + tensor.nbytes == stop, f"data_offsets {tensor.nbytes} apart", got)
        return tensor

    def _require_no_gaps(self, size: int) -> None:
        stop, starts = self._start, [(t.start, t.nbytes, name) for name, t in self.tensors.items()]
        for start, nbytes, name in sorted(starts):
            what = f"the data of {_shortened(name)} at byte {stop}, right after the one before"
            self._require(start == stop, what, f"byte {start}")
            stop += nbytes
        self._require(stop == size, f"a file of {stop} bytes", f"one of {size}")

    def view(self, name: str) -> Array:
        """Return a tensor as a read-only view of the file; of its elements only bools are read."""
        tensor = self.tensors[name]
        view: Array = np.ndarray(tensor.shape, tensor.dtype, self._map, tensor.start)
        if tensor.dtype == bool:
            largest = view.view(np.uint8).max(initial=0)
            self._require(largest <= 1, f"0 and 1 in {_shortened(name)}, of dtype BOOL", largest)
        return view

    def copied(self, view: Array) -> Array:
        """Return a copy of a view of this file, or of a part of one.

        It is made in blocks, and after each the pages of the file leave memory.
        """
        raw = np.empty(view.nbytes + _ALIGNMENT, np.uint8)
        first = -raw.ctypes.data % _ALIGNMENT
        copy: Array = raw[first : first + view.nbytes].view(view.dtype).reshape(view.shape)
        source, target = (view, copy) if view.ndim else (view.reshape(1), copy.reshape(1))
        if source.flags.c_contiguous:
            source, target = source.reshape(-1), target.reshape(-1)
        rows = max(1, _BLOCK * len(source) // max(1, view.nbytes))
        for row in range(0, len(source), rows):
            target[row : row + rows] = source[row : row + rows]
            if view.nbytes >= _BLOCK >> 6:
                self._release()
        return copy

    def _release(self) -> None:
        """Let the pages of the file leave memory."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def require_checksum(self) -> None:
        """Require that the file has a checksum, and that it matches its bytes."""
        found = self.metadata.get(_CHECKSUM)
        if found is None:
            way_out = "save it with checksum=True, or load it without"
            raise ValueError(expected(str(self.path), "a checksum in the header", "none", way_out))
        self._map.seek(0)
        computed = _checksum(self._map, self._start, found)
        self._release()
        self._require(computed == found, f"the checksum {found[:8]}...", f"{computed[:8]}...")


_DAMAGED = "the file is damaged, or not in this format"


def parsed(path: Path, text: bytes) -> dict[str, Any]:
    """Return a JSON object without duplicate names, or raise an error that names the file."""
    try:
        value = json.loads(
            text.decode(), object_pairs_hook=_without_duplicates, parse_constant=_refused
        )
    except (ValueError, RecursionError) as error:  # decoding errors are ValueErrors
        got = f"an error: {_shortened(str(error))}"
        raise ValueError(expected(str(path), "JSON in UTF-8", got, _DAMAGED)) from None
    if not isinstance(value, dict):
        raise ValueError(expected(str(path), "a JSON object", type(value).__name__, _DAMAGED))
    return value


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _refused(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**63 for n in value)


def _shortened(value: object) -> str:
    text = repr(value) if not isinstance(value, int) else "a number"
    return text if len(text) <= 100 else f"{text[:100]}..."


# Writing.


class Layout(NamedTuple):
    """Where everything in a new file is."""

    header: bytes
    """The first bytes of the file, up to the first tensor."""
    tensors: dict[str, Tensor]
    """The tensors by name."""
    size: int
    """The size of the file."""


def layout(
    shapes: Mapping[str, tuple[np.dtype[Any], tuple[int, ...]]], metadata: Mapping[str, str],
    checksum: bool = False,
) -> Layout:
    """Return the layout of a file with tensors of these dtypes, which are in DTYPES, and shapes."""
    start = 0
    tensors: dict[str, Tensor] = {}
    by_size = sorted(shapes.items(), key=lambda item: -item[1][0].itemsize)  # keeps all aligned
    for name, (dtype, shape) in by_size:
        tensors[name] = Tensor(dtype, shape, start)
        start += tensors[name].nbytes
    texts = {**metadata, _CHECKSUM: _ZEROS} if checksum else dict(metadata)
    entries: dict[str, Any] = {_METADATA: texts} if texts else {}
    for name, tensor in tensors.items():
        offsets = [tensor.start, tensor.start + tensor.nbytes]
        dtype_name = _NAMES[tensor.dtype]
        entries[name] = {"dtype": dtype_name, "shape": tensor.shape, "data_offsets": offsets}
    text = json.dumps(entries, ensure_ascii=False, separators=(",", ":")).encode()
    length = len(text) + -(8 + len(text)) % _ALIGNMENT
    if length > _MOST_HEADER_BYTES:
        what = f"names and metadata of at most {_MOST_HEADER_BYTES} bytes"
        raise ValueError(expected("safetensors", what, length, "save fewer, larger arrays"))
    header = length.to_bytes(8, "little") + text.ljust(length)
    placed = {n: t._replace(start=len(header) + t.start) for n, t in tensors.items()}
    return Layout(header, placed, len(header) + start)


def write_part(file: BinaryIO, tensor: Tensor, index: tuple[slice, ...], part: Array) -> None:
    """Write `part` as tensor[index]: each run of adjacent elements at its place."""
    if not part.size:
        return
    starts = [where.indices(length)[0] for where, length in zip(index, tensor.shape, strict=True)]
    strides = [math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape))]
    divided = [axis for axis, n in enumerate(tensor.shape) if part.shape[axis] != n]
    outer = divided[-1] if divided else 0  # a run spans all axes after this one
    little_endian = np.ascontiguousarray(part, tensor.dtype)
    runs = little_endian.reshape(*part.shape[:outer], -1).view(np.uint8)
    first = sum(map(operator.mul, starts, strides))
    for place in np.ndindex(*part.shape[:outer]):
        element = first + sum(map(operator.mul, place, strides))
        file.seek(tensor.start + element * tensor.dtype.itemsize)
        file.write(runs[place].data)


def write_checksum(file: BinaryIO, header: bytes) -> None:
    """Put the checksum of a complete file into its header."""
    file.flush()
    file.seek(0)
    checksum = _checksum(file, len(header), _ZEROS)
    file.seek(0)
    file.write(header.replace(_stated(_ZEROS), _stated(checksum), 1))


def _checksum(file: BinaryIO | mmap.mmap, start: int, stated: str) -> str:
    """Return the checksum of everything but the stated one, for which zeros are read."""
    digest = hashlib.sha256(file.read(start).replace(_stated(stated), _stated(_ZEROS), 1))
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def _stated(checksum: str) -> bytes:
    return f'"{_CHECKSUM}":"{checksum}"'.encode()


def partial_path(path: Path, token: str) -> Path:
    """Return where a writer writes the file that it will move to a path."""
    return path.with_name(f".{path.name}.{token}.partial")


@contextlib.contextmanager
def replacing(path: Path, token: str = "") -> Iterator[BinaryIO]:
    """Open a file beside `path`, and move it there once it is complete and on disk.

    If the block raises, or the program is killed, `path` is as it was. What killed programs left
    beside it is removed the next time: a lock tells that no one writes there any more.
    """
    _remove_abandoned(path)
    partial = partial_path(path, token or secrets.token_hex(4))
    try:
        with open(partial, "x+b") as file:
            _lock(file)
            yield file
            sync(file)
            os.replace(partial, path)
        sync_directory(path.parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sync(file: BinaryIO) -> None:
    """Return once everything written is on disk."""
    file.flush()
    os.fsync(file.fileno())


def sync_directory(path: Path) -> None:
    """Return once the names in a directory are on disk."""
    if os.name == "posix":
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _lock(file: BinaryIO) -> bool:
    """Lock a file until it is closed, or its program killed; return whether that succeeded."""
    if sys.platform == "win32":
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # locked, or on a file system without locks
        return False
    return True


def _remove_abandoned(path: Path) -> None:
    for other in path.parent.iterdir():
        if re.fullmatch(rf"\.{re.escape(path.name)}\.[0-9a-f]{{8}}\.partial", other.name):
            with contextlib.suppress(OSError), open(other, "r+b") as file:
                if _lock(file):
                    other.unlink()
