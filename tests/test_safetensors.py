"""The format: what others write is read and the other way round, and no header is believed."""

import io
import json
import os
import random
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import mlax
from mlax import safetensors
from mlax.safetensors import DTYPES, TensorFile, layout, replacing, write_part
from tests.checkpoint import load_mutated, mutated, pristine


def written(path: Path, header: Any, data: bytes = b"") -> Path:
    """Write a file by hand."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


def entry(dtype: Any = "F32", shape: Any = (2,), start: Any = 0, stop: Any = 8) -> dict[str, Any]:
    """Return an entry of a header."""
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def test_a_file_written_by_hand_is_read(tmp_path: Path) -> None:
    data = np.array([1.5, -2.0], "<f4").tobytes() + b"\1\0"
    header = {"b": entry("BOOL", [2, 1], 8, 10), "a": entry(), "__metadata__": {"x": "y"}}
    file = TensorFile(written(tmp_path / "a", header, data))
    assert file.metadata == {"x": "y"}
    assert file.view("a").tolist() == [1.5, -2.0]
    assert file.view("b").tolist() == [[True], [False]]
    assert not file.view("a").flags.writeable


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=DTYPES)
def test_all_bits_survive(dtype: np.dtype[Any], tmp_path: Path) -> None:
    bits = np.arange(64, dtype=np.uint8)
    array = (bits % 2).astype(bool) if dtype == bool else bits.view(dtype)
    mlax.save(tmp_path / "a", {"a": array})
    loaded = mlax.load(tmp_path / "a", {"a": array})["a"]
    assert loaded.dtype == dtype
    assert loaded.tobytes() == array.tobytes()


DAMAGED: dict[str, tuple[Any, str]] = {
    "no JSON": (b"{", "JSON in UTF-8"),
    "no UTF-8": (b'{"\xff": 0}', "JSON in UTF-8"),
    "no object": ([], "a JSON object"),
    "twice": (b'{"a": {"dtype": "U8", "dtype": "I8"}}', "twice"),
    "deep": (b"[" * 100_000, "recursion"),
    "NaN": (b'{"a": NaN}', "NaN is not a JSON number"),
    "digits": (b'{"a": ' + b"9" * 5000 + b"}", "JSON in UTF-8"),
    "metadata": ({"__metadata__": {"a": 1}}, "__metadata__ to be strings"),
    "entry": ({"a": 3}, "dtype, shape and data_offsets"),
    "more": ({"a": entry() | {"more": 1}}, "dtype, shape and data_offsets"),
    "dtype": ({"a": entry("F31")}, "a dtype among BOOL"),
    "dtype list": ({"a": entry(["F32"])}, "a dtype among BOOL"),
    "negative": ({"a": entry(shape=[-2])}, "a shape of"),
    "fraction": ({"a": entry(shape=[2.0])}, "a shape of"),
    "bool": ({"a": entry(shape=[True, 2])}, "a shape of"),
    "axes": ({"a": entry(shape=[1] * 33)}, "a shape of at most 32"),
    "huge": ({"a": entry(shape=[2**62, 2**62])}, "a shape that an array can have"),
    "huge and empty": ({"a": entry(shape=[2**62, 4, 0], stop=0)}, "a shape that an array can have"),
    "overflow": ({"a": entry(shape=[2**32, 2**32], stop=0)}, "a shape that an array can have"),
    "three offsets": ({"a": entry() | {"data_offsets": [0, 8, 8]}}, "two data_offsets"),
    "backwards": ({"a": entry(start=8, stop=0)}, "data_offsets 8 apart"),
    "too short": ({"a": entry(stop=4)}, "data_offsets 8 apart"),
    "beyond": ({"a": entry(shape=[20], stop=80)}, "a file of"),
    "behind": ({"a": entry(shape=[1], stop=4)}, "a file of"),
    "hole": ({"a": entry(shape=[1], start=4)}, "byte"),
    "overlap": ({"a": entry(), "b": entry()}, "byte"),
}


@pytest.mark.parametrize(("header", "text"), DAMAGED.values(), ids=DAMAGED)
def test_damage_is_named(header: Any, text: str, tmp_path: Path) -> None:
    path = written(tmp_path / "broken.safetensors", header, bytes(8))
    with pytest.raises(ValueError, match=text) as caught:
        TensorFile(path)
    assert str(caught.value).startswith(f"{path}: expected ")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("data", [b"", b"\1", b"\2" + bytes(7) + b"{", b"\xff" * 20], ids=repr)
def test_short_files_are_named(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(data)
    with pytest.raises(ValueError, match="short: expected a header"):
        TensorFile(tmp_path / "short")


def test_bytes_that_are_no_bools_are_named(tmp_path: Path) -> None:
    file = TensorFile(written(tmp_path / "a", {"a": entry("BOOL", [2], 0, 2)}, b"\1\2"))
    with pytest.raises(ValueError, match="expected 0 and 1 in 'a'"):
        file.view("a")


def test_changed_files_raise_or_are_what_they_say(tmp_path: Path) -> None:
    refused, accepted = load_mutated(tmp_path, 400, seed=1)
    assert refused > 300 and accepted > 10


@pytest.mark.parametrize("places", ["0 1 2", "0", "1", "2", "0 2", "1 2", "0 1", ""])
def test_parts_are_written_at_their_places(places: str) -> None:
    """NumPy's indexing is the oracle."""
    whole = np.arange(4 * 6 * 8, dtype=np.int16).reshape(4, 6, 8)
    tensor = layout({"a": (whole.dtype, whole.shape)}, {}).tensors["a"]
    file = io.BytesIO()
    cuts = [whole.shape[axis] // 2 if str(axis) in places else 0 for axis in range(3)]
    for corner in np.ndindex(2, 2, 2):
        sides = zip(cuts, corner, strict=True)
        index = tuple(slice(cut, None) if high else slice(cut) for cut, high in sides)
        write_part(file, tensor, index, whole[index])
    assert file.getvalue()[tensor.start :] == whole.tobytes()


def test_tensors_are_aligned() -> None:
    dtypes = ["i1", "<c8", "<f2", "<f8", "?", "<f4"]
    shapes = {str(i): (np.dtype(dtype), (3,)) for i, dtype in enumerate(dtypes)}
    planned = layout(shapes, {"a": "text"}, checksum=True)
    assert len(planned.header) % 64 == 0
    assert all(t.start % t.dtype.itemsize == 0 for t in planned.tensors.values())


def test_copies_are_aligned_private_and_made_in_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors, "_BLOCK", 64)
    whole = np.arange(600, dtype=np.float32).reshape(20, 30)
    mlax.save(tmp_path / "a", {"a": whole, "scalar": np.float32(3)})
    file = TensorFile(tmp_path / "a")
    indices: list[Any] = [..., np.s_[3:7], np.s_[:, 2:5], np.s_[::-2, 1], np.s_[5:5]]
    for index in indices:
        copy = file.copied(file.view("a")[index])
        np.testing.assert_array_equal(copy, whole[index])
        assert copy.size == 0 or copy.ctypes.data % 64 == 0
        assert copy.flags.writeable
    np.testing.assert_array_equal(file.copied(file.view("a").T), whole.T)
    assert file.copied(file.view("scalar")) == 3


def test_a_failed_write_leaves_everything_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(KeyError), replacing(path) as file:
        file.write(b"new")
        raise KeyError
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [(path.name, b"old")]


def test_a_file_is_on_the_disk_before_its_path_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.safetensors"
    calls: list[tuple[str, object]] = []
    path.write_bytes(b"old")
    replace, fsync = os.replace, os.fsync

    def watched_replace(source: Path, target: Path) -> None:
        calls.append(("replace", source.read_bytes()))
        replace(source, target)

    def watched_fsync(file: int) -> None:
        calls.append(("fsync", os.fstat(file).st_ino))
        fsync(file)

    monkeypatch.setattr(os, "replace", watched_replace)
    monkeypatch.setattr(os, "fsync", watched_fsync)
    with replacing(path) as file:
        file.write(b"new")
        inode = os.fstat(file.fileno()).st_ino
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and path.stat().st_ino == inode
    directory = tmp_path.stat().st_ino
    assert calls == [("fsync", inode), ("replace", b"new"), ("fsync", directory)]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is counted by Linux")
def test_a_file_that_was_read_leaves_the_memory(tmp_path: Path) -> None:
    mlax.save(tmp_path / "a", {"a": np.ones(8 << 20, np.float32)}, checksum=True)

    def of_files() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return sum(int(line.split()[1]) << 10 for line in lines if line.startswith("RssFile"))

    before = of_files()
    file = TensorFile(tmp_path / "a")
    copy = file.copied(file.view("a"))
    assert of_files() - before < copy.nbytes / 4
    file.require_checksum()
    assert of_files() - before < copy.nbytes / 4


def test_what_killed_programs_left_goes_but_not_what_others_write(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    abandoned = tmp_path / ".a.safetensors.0123abcd.partial"
    of_another = tmp_path / ".b.safetensors.0123abcd.partial"
    for left in [abandoned, of_another]:
        left.write_bytes(b"part")
    with replacing(path) as first:
        assert not abandoned.exists() and of_another.exists()
        with replacing(path) as second:
            second.write(b"second")
        first.write(b"first")
    assert path.read_bytes() == b"first"
    assert {p.name for p in tmp_path.iterdir()} == {path.name, of_another.name}


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "file")
    mlax.save(tmp_path / "link", {"a": 1})
    assert (tmp_path / "link").is_symlink() and mlax.load(tmp_path / "file", {"a": 0}) == {"a": 1}


# Beside the reference.


def arrays() -> dict[str, Any]:
    """Return arrays of the dtypes that safetensors.numpy reads."""
    return {
        "a.kernel": np.arange(6, dtype=np.float32).reshape(2, 3), "scalar": np.array(1.5),
        "": np.arange(3), "empty": np.zeros((0, 2), np.int8), "flags": np.array([True, False]),
        "c": np.array([1 + 2j], np.complex64), "é \"'\n": np.ones(2, np.float16),
    }


def test_the_reference_reads_what_we_write(tmp_path: Path) -> None:
    reference = pytest.importorskip("safetensors.numpy")
    shapes = {name: (array.dtype, array.shape) for name, array in arrays().items()}
    planned = layout(shapes, {"text": "é"}, checksum=True)
    with replacing(tmp_path / "a") as file:
        file.write(planned.header)
        for name, array in arrays().items():
            write_part(file, planned.tensors[name], (slice(None),) * array.ndim, array)
        file.truncate(planned.size)
    loaded = reference.load_file(tmp_path / "a")
    assert loaded.keys() == arrays().keys()
    for name, array in arrays().items():
        assert loaded[name].dtype == array.dtype
        np.testing.assert_array_equal(loaded[name], array)


def test_we_read_what_the_reference_writes(tmp_path: Path) -> None:
    reference = pytest.importorskip("safetensors.numpy")
    several = arrays() | {"bf": np.arange(4).astype(ml_dtypes.bfloat16)}
    reference.save_file(several, tmp_path / "a", metadata={"format": "np"})
    file = TensorFile(tmp_path / "a")
    assert file.tensors.keys() == several.keys() and file.metadata == {"format": "np"}
    for name, array in several.items():
        assert file.view(name).dtype == array.dtype
        np.testing.assert_array_equal(file.view(name), array)


def test_we_refuse_what_the_reference_refuses(tmp_path: Path) -> None:
    """And accept what it accepts."""
    reference = pytest.importorskip("safetensors")
    draw = random.Random(3)
    data = pristine(tmp_path)[0].read_bytes()
    other = tmp_path / "other"
    verdicts = set()
    for _ in range(300):
        other.write_bytes(mutated(data, draw))
        try:
            with reference.safe_open(other, "np"):
                accepts = True
        except reference.SafetensorError:
            accepts = False
        try:
            TensorFile(other)
        except ValueError as error:
            assert not accepts, error
        else:
            assert accepts, other.read_bytes()[:2000]
        verdicts.add(accepts)
    assert verdicts == {True, False}
