"""What is saved comes back bit for bit, or an error says what differs, or a warning does."""

import functools
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import mlax
import mlax.checkpoint.saving
from mlax import nn
from mlax.fingerprint import changes, fingerprint
from mlax.safetensors import TensorFile, write_part
from tests.checkpoint import kill_writers

KEY = jax.random.key(0)
X = np.ones((2, 3), np.float32)
Spec = tuple[str | tuple[str, ...] | None, ...]


def model(epsilon: float = 1e-5, activation: Callable[..., Any] = jax.nn.relu) -> Any:
    """Return a layer with variables and hyperparameters."""
    body = mlax.series(mlax.batch_norm(epsilon=epsilon), mlax.f(activation))
    return mlax.batched(mlax.series(head=mlax.dense(2), body=mlax.repeat(body, 2)))


@functools.cache
def trained() -> dict[str, Any]:
    """Return everything that a training program keeps."""
    params, state = model().init(KEY, X)
    mask = {"head": True, "body": False}
    optimizer = optax.masked(optax.adam(optax.cosine_decay_schedule(1e-3, 9)), mask)
    return {
        "params": params, "state": state, "opt_state": optimizer.init(params),
        "key": jax.random.key(3), "keys": jax.random.split(jax.random.key(4, impl="rbg"), 3),
        "raw": jax.random.PRNGKey(1), "step": 7, "rate": 0.1, "done": True, "none": None,
        "numpy": np.arange(6, dtype=np.uint16).reshape(2, 3), "number": np.float16(1.5),
        "half": jnp.arange(3, dtype=jnp.bfloat16), "byte": jnp.ones(2, jnp.float8_e5m2),
        "big": np.arange(2.0).astype(">f4"), "x.y": (jnp.zeros((0, 2)),),
    }


def on(mesh: jax.sharding.Mesh, *spec: str | tuple[str, ...] | None) -> NamedSharding:
    """Return where an array lies."""
    return NamedSharding(mesh, PartitionSpec(*spec))


def data_of(leaf: Any) -> Any:
    """Return the numbers of a leaf, for keys their data."""
    is_key = isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def require_equal(found: Any, wanted: Any) -> None:
    """Require equal structures, types, dtypes, places and bits."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert type(a) is type(b)
        if isinstance(b, jax.Array):
            assert a.dtype == b.dtype and a.sharding == b.sharding and a.committed == b.committed
        assert data_of(a).dtype == data_of(b).dtype.newbyteorder("=")
        assert data_of(a).astype(data_of(b).dtype).tobytes() == data_of(b).tobytes()


@pytest.mark.parametrize("name", ["a.safetensors", "a.safetensors.index.json"])
def test_everything_comes_back_as_it_was(name: str, tmp_path: Path) -> None:
    max_bytes = 100 if name.endswith("json") else None
    mlax.save(tmp_path / name, trained(), max_bytes=max_bytes, checksum=True)
    require_equal(mlax.load(tmp_path / name, trained(), checksum=True), trained())
    assert len(list(tmp_path.iterdir())) == (4 if name.endswith("json") else 1)


def test_the_names_are_the_paths(tmp_path: Path) -> None:
    mlax.save(tmp_path / "a", trained())
    tensors = TensorFile(tmp_path / "a").tensors
    assert sorted(tensors) == sorted(mlax.paths(trained()))
    assert {"params.body.0.scale", "state.variables.body.0.mean", "'x.y'.0"} <= tensors.keys()


def test_a_leaf_alone_and_an_empty_tree(tmp_path: Path) -> None:
    for tree in [jnp.ones(3), 5, (), {"a": None}]:
        mlax.save(tmp_path / "a", tree)
        require_equal(mlax.load(tmp_path / "a", tree), tree)


def test_a_module_comes_back(tmp_path: Path) -> None:
    _, module = nn.Series([nn.Linear(KEY, 4), nn.ZNorm(KEY, "all")])(X[0], None)
    mlax.save(tmp_path / "a", module)
    _, like = nn.Series([nn.Linear(jax.random.key(1), 4), nn.ZNorm(KEY, "all")])(X[0], None)
    require_equal(jax.tree.leaves(mlax.load(tmp_path / "a", like)), jax.tree.leaves(module))


def test_shapes_are_enough(tmp_path: Path) -> None:
    """The step that is compiled for what `init` made runs with what `load` returns."""
    mlax.save(tmp_path / "a", (*model().init(KEY, X), KEY))
    like = jax.eval_shape(lambda: (*model().init(KEY, X), KEY))
    params, state, key = mlax.load(tmp_path / "a", like)
    traced = []

    @jax.jit
    def step(*arguments: Any) -> Any:
        traced.append(arguments)
        return model().apply(*arguments)

    y, _ = step(*model().init(KEY, X), X, key)
    np.testing.assert_array_equal(step(params, state, X, KEY)[0], y)
    assert len(traced) == 1


def test_names_that_would_be_one_raise(tmp_path: Path) -> None:
    for tree in [{1: {5: 1}, 1.5: 2}, {"__metadata__": 1}]:
        with pytest.raises(ValueError, match="distinct names"):
            mlax.save(tmp_path / "a", tree)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("leaf", "text"),
    [
        ("text", "expected a.b to be an array, key or real number, got str"),
        (jnp.ones(2, jnp.int4), "expected a.b to be of a dtype among .*, got int4; cast it"),
        (np.array([None]), "got object"), (np.ones(2, complex), "got complex128"),
        (jax.ShapeDtypeStruct((), jnp.float32), "got ShapeDtypeStruct"),
    ],
    ids=str,
)
def test_what_no_file_can_hold_raises(leaf: Any, text: str, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=text):
        mlax.save(tmp_path / "a", {"a": {"b": leaf}})
    assert not list(tmp_path.iterdir())


def test_donated_arrays_raise(tmp_path: Path) -> None:
    array = jnp.ones(3)
    array.delete()
    with pytest.raises(ValueError, match="expected a.0 to be an array, got one that was donated"):
        mlax.save(tmp_path / "a", {"a": [array]})


def test_several_files_need_an_index(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a name ending in .index.json if max_bytes is given"):
        mlax.save(tmp_path / "a.safetensors", 1, max_bytes=3)


def test_numbers_that_are_too_large_and_tracers_raise(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="the tree to be a 64-bit integer"):
        mlax.save(tmp_path / "a", 2**63)
    with pytest.raises(TypeError, match="got a traced array"):
        jax.jit(lambda x: mlax.save(tmp_path / "a", x))(1)
    assert not list(tmp_path.iterdir())


# Strictness.


def test_one_error_lists_everything(tmp_path: Path) -> None:
    saved = {"a": np.ones(2), "b": np.ones((2, 3)), "c": np.ones(2), "d": KEY, "e": 1, "f": X}
    like = {
        "a": np.ones(2), "b": np.ones((3, 2)), "z": np.ones(2, np.int8), "d": np.ones(2, np.uint32),
        "e": True, "f": jnp.ones((2, 3), jnp.bfloat16),
    }
    mlax.save(tmp_path / "a", saved)
    with pytest.raises(ValueError) as caught:
        mlax.load(tmp_path / "a", like)
    assert str(caught.value).splitlines() == [
        f"load: expected {tmp_path / 'a'} to hold the leaves of like, got different ones; "
        "cast=True casts floating to floating and integer to integer, where= loads a part, rules= rename",
        "  missing: z, int8[2]",
        "  unexpected: c, float64[2]",
        "  other shape: b, float64[3,2] in like, float64[2,3] in the file",
        "  other dtype: d, uint32[2] in like, key of threefry2x32[] in the file",
        "  other dtype: e, bool[] in like, int64[] in the file",
        "  other dtype: f, bfloat16[2,3] in like, float32[2,3] in the file",
    ]


def test_keys_of_another_implementation_raise(tmp_path: Path) -> None:
    mlax.save(tmp_path / "a", KEY)
    with pytest.raises(ValueError, match=r"key of rbg\[\] in like, key of threefry2x32\[\] in"):
        mlax.load(tmp_path / "a", jax.random.key(0, impl="rbg"))
    with pytest.raises(ValueError, match="key of threefry2x32"):
        mlax.load(tmp_path / "a", np.asarray(jax.random.key_data(KEY)), cast=True)


def test_dtypes_are_cast_when_told(tmp_path: Path) -> None:
    saved: Any = {"x": np.array([1.0, np.inf, 1 + 2**-9], np.float32), "n": np.arange(3)}
    mlax.save(tmp_path / "a", saved)
    like: Any = {"x": jnp.zeros(3, jnp.bfloat16), "n": np.zeros(3, np.uint8)}
    loaded = mlax.load(tmp_path / "a", like, cast=True)
    assert loaded["x"].dtype == jnp.bfloat16 and loaded["n"].dtype == np.uint8
    assert loaded["x"].tolist() == [1.0, np.inf, 1.0] and loaded["n"].tolist() == [0, 1, 2]
    wide = mlax.load(tmp_path / "a", {"x": np.zeros(3), "n": 0 * saved["n"]}, cast=True)
    assert wide["x"].dtype == np.float64 and wide["x"].tolist() == saved["x"].tolist()
    with pytest.raises(ValueError, match=r"n, float32\[3\] in like, int64\[3\] in the file"):
        mlax.load(tmp_path / "a", like | {"n": np.zeros(3, np.float32)}, cast=True)


@pytest.mark.parametrize(
    ("saved", "like"),
    [
        (np.array([0, 300]), np.zeros(2, np.uint8)), (np.array([0, -1]), np.zeros(2, np.uint64)),
        (np.array([0, 1e6]), np.zeros(2, np.float16)),
        (np.array([0, 1e6]), np.zeros(2, ml_dtypes.float8_e4m3fn)),
    ],
    ids=str,
)
def test_a_cast_that_loses_numbers_raises(saved: Any, like: Any, tmp_path: Path) -> None:
    mlax.save(tmp_path / "a", {"n": saved})
    with pytest.raises(ValueError, match=f"expected n of .* to fit {like.dtype.name}, got "):
        mlax.load(tmp_path / "a", {"n": like}, cast=True)


def test_wide_numbers_are_not_cast_by_jax(tmp_path: Path) -> None:
    mlax.save(tmp_path / "a", np.ones(2))
    like = jax.ShapeDtypeStruct((2,), np.float64)
    with pytest.raises(ValueError, match=r"to be float64\[2\], got float32; set jax_enable_x64"):
        mlax.load(tmp_path / "a", like)


def test_a_part_is_loaded_when_told(tmp_path: Path) -> None:
    mlax.save(tmp_path / "a", {"body": {"w": X, "b": X}, "head": X})
    like: Any = {"body": {"w": 0 * X, "b": 0 * X}, "new": 0 * X}
    loaded = mlax.load(tmp_path / "a", like, where="body.*")
    assert loaded["body"]["w"].sum() == 6 and loaded["new"] is like["new"]
    loaded = mlax.load(tmp_path / "a", like, where=lambda path, _: path == "body.b")
    assert loaded["body"]["b"].sum() == 6 and loaded["body"]["w"] is like["body"]["w"]
    with pytest.raises(ValueError, match=r"different.*\n  missing: new"):
        mlax.load(tmp_path / "a", like, where=["body.*", "new"])
    with pytest.raises(ValueError, match=r"different.*\n  unexpected: body.b, float32\[2,3\]$"):
        mlax.load(tmp_path / "a", {"body": {"w": X}}, where="body.*")
    with pytest.raises(ValueError, match="load: expected 'bodi.*' to match a path"):
        mlax.load(tmp_path / "a", like, where="bodi.*")


# Rules.


def test_rules_are_applied_in_their_order(tmp_path: Path) -> None:
    old = {"h[0]": {"w": X, "b": X[0]}, "h[1]": {"w": 2 * X, "b": X[1]}, "old": KEY}
    mlax.save(tmp_path / "a", old)
    like: Any = {"body": [{"kernel": X.T, "bias": X[0]}] * 2, "key": KEY}
    rules: list[mlax.types.LoadRule] = [
        ("'h[*]'.*", "body.*.*"), ("*.w", "*.kernel", np.transpose), ("*.b", "*.beta"),
        ("*.beta", "*.bias"), ("old", "key"), ("*.rotary", None),
    ]
    loaded = mlax.load(tmp_path / "a", like, rules=rules)
    np.testing.assert_array_equal(loaded["body"][1]["kernel"], 2 * X.T)
    assert loaded["body"][0]["bias"].tolist() == X[0].tolist() and data_of(loaded["key"])[1] == 0
    rules = [("old", None), ("*.b", None), ("'h[1]'.w", None), ("'h[0]'.w", "x")]
    np.testing.assert_array_equal(mlax.load(tmp_path / "a", {"x": X}, rules=rules)["x"], X)


def test_wrong_rules_raise(tmp_path: Path) -> None:
    mlax.save(tmp_path / "a", {"a": 1, "b": 2})
    with pytest.raises(ValueError, match="two named 'a' after the rule 'b', 'a'"):
        mlax.load(tmp_path / "a", {"a": 1}, rules=[("b", "a")])
    wrong: list[Any] = [("*.a", "b"), "ab", ("a",), ("a", "b", 3), ("a", 1), ("a", "b", abs, abs)]
    for rule in wrong:
        with pytest.raises(ValueError, match="expected rules to be tuples of two names"):
            mlax.load(tmp_path / "a", {"a": 1}, rules=[rule])


# Hyperparameters.


def test_changed_hyperparameters_are_named(tmp_path: Path) -> None:
    mlax.save(tmp_path / "a", dict(zip(("params", "state"), model().init(KEY, X), strict=True)))
    params, state = model(1e-3, jax.nn.gelu).init(KEY, X)
    with pytest.warns(UserWarning, match="had other hyperparameters") as caught:
        mlax.load(tmp_path / "a", {"params": params, "state": state})
    assert str(caught[0].message).splitlines()[1:] == [
        "  state.body.0.epsilon: 1e-05 when saved, 0.001 now",
        "  state.body.1.train_fn: relu when saved, gelu now",
    ]
    assert caught[0].filename == __file__
    mlax.load(tmp_path / "a", {"params": params}, where="params.*")  # no model, no warning


def test_fingerprints() -> None:
    def of(layer: Any, x: Any = X[0]) -> Any:
        return fingerprint(layer.init(KEY, x)[1])

    def stacked(*numbers: int) -> Any:
        layer: Any = mlax.bias(-1)
        for n in numbers:
            layer = mlax.repeat(layer, n)
        return of(layer)

    assert changes(of(model(), X), of(model(), X)) == []
    assert changes(stacked(2, 3), stacked(3, 2)) == ["n: 3, 2 when saved, 2, 3 now"]
    tanh, rate = mlax.series(mlax.f(jnp.tanh)), mlax.series(mlax.dropout(0.1, 0))
    other = mlax.series(mlax.dropout(0.2, 0))
    assert changes(of(tanh), of(rate)) == ["0: f when saved, dropout now"]
    assert changes(of(rate), of(other)) == ["0.rate: 0.1 when saved, 0.2 now"]
    partial = functools.partial(jax.nn.gelu, approximate=False)
    assert of(mlax.f(partial))[""]["train_fn"] == "partial(gelu, approximate=False)"


def test_the_fingerprint_of_a_module() -> None:
    found = [fingerprint(nn.Series([nn.Dropout(rate, 0), nn.F(jnp.tanh)])) for rate in (0.1, 0.2)]
    assert changes(*found) == ["layers.data.0.rate: 0.1 when saved, 0.2 now"]


def test_files_are_the_same_in_every_program(tmp_path: Path) -> None:
    """Nothing in the header depends on addresses or on the hashes of a process."""
    program = (
        "import sys, jax, mlax; layer = mlax.series(mlax.f(lambda x: x), mlax.dropout(0.1, 0));"
        "tree = {'a': layer.init(jax.random.key(0), jax.ShapeDtypeStruct((3,), 'f4'))[1],"
        "'b': mlax.State((), frozenset('abcdef')), 'c': 1.0};"
        "mlax.save(sys.argv[1], tree, checksum=True)"
    )
    processes = []
    for name in "12":
        environment = {**os.environ, "PYTHONHASHSEED": name, "JAX_PLATFORMS": "cpu"}
        command = [sys.executable, "-c", program, str(tmp_path / name)]
        processes.append(subprocess.Popen(command, env=environment))
    assert [process.wait(100) for process in processes] == [0, 0]
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


# Damage.


def test_a_checksum_finds_every_bit(tmp_path: Path) -> None:
    path = tmp_path / "a"
    mlax.save(path, {"a": X, "b": X, "state": model().init(KEY, X)[1]}, checksum=True)
    like = {"a": X, "b": X, "state": model().init(KEY, X)[1]}
    data = path.read_bytes()
    for place in [*range(8, len(data), 41), len(data) - 1]:
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ValueError, match=re.escape(str(path))):
            mlax.load(path, like, checksum=True)
    path.write_bytes(data)
    require_equal(mlax.load(path, like, checksum=True), like)
    mlax.save(path, like)
    with pytest.raises(ValueError, match="expected a checksum in the header, got none"):
        mlax.load(path, like, checksum=True)


@pytest.mark.parametrize(
    "index",
    [
        {}, [], {"weight_map": []}, {"weight_map": {"a": 1}}, {"weight_map": {"a": ["f"]}},
        {"weight_map": {"a": "../f"}}, {"weight_map": {"a": "folder/f"}}, {"weight_map": {"a": ""}},
        {"weight_map": {}}, {"weight_map": {"a": "f", "c": "f"}}, {"weight_map": {"a": "f"}},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_index_raises(index: Any, tmp_path: Path) -> None:
    mlax.save(tmp_path / "f", {"a": 1, "b": 2})
    (tmp_path / "a.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=re.escape(str(tmp_path))):
        mlax.load(tmp_path / "a.index.json", {"a": 0})


def test_a_missing_file_raises(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        mlax.load(tmp_path / "a", {})


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors.index.json"
    mlax.save(path, {"a": X, "b": X}, max_bytes=1)
    (part,) = tmp_path.glob("*-00002-of-00002.safetensors")
    part.unlink()
    with pytest.raises(FileNotFoundError, match=part.name):
        mlax.load(path, {"a": X, "b": X})


def test_an_index_of_the_hub_is_read(tmp_path: Path) -> None:
    reference = pytest.importorskip("safetensors.numpy")
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for name, file in zip("ab", files, strict=True):
        reference.save_file({name: X}, tmp_path / file, metadata={"format": "pt"})
    index = {"metadata": {"total_size": 48}, "weight_map": dict(zip("ab", files, strict=True))}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = mlax.load(tmp_path / "model.safetensors.index.json", {"a": X, "b": X})
    np.testing.assert_array_equal(loaded["b"], X)


def test_several_files(tmp_path: Path) -> None:
    """They are replaced together, and those of former times go."""
    path = tmp_path / "m.safetensors.index.json"
    tree = {name: np.full(10, i, np.float32) for i, name in enumerate("abcd")}
    (tmp_path / ".m-01234567-00001-of-00009.safetensors.89abcdef.partial").write_bytes(b"killed")
    (tmp_path / "m-of-mine.safetensors").write_bytes(b"kept")
    for _ in range(2):
        mlax.save(path, tree, max_bytes=80)
    index = json.loads(path.read_text())
    files = sorted(set(index["weight_map"].values()))
    assert len(files) == 2 and index["metadata"] == {"total_size": 160}
    assert {p.name for p in tmp_path.iterdir()} == {path.name, "m-of-mine.safetensors", *files}
    assert re.fullmatch(r"m-[0-9a-f]{8}-00001-of-00002\.safetensors", files[0])
    mlax.save(path, tree, max_bytes=1)
    require_equal(mlax.load(path, tree), tree)


def test_a_program_killed_while_it_saves_leaves_a_whole_file(tmp_path: Path) -> None:
    kill_writers(tmp_path, 3)


def test_what_is_loaded_does_not_depend_on_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a"
    mlax.save(path, {"jax": jnp.ones(10_000), "numpy": np.ones(10_000)})
    loaded: Any = mlax.load(path, {"jax": jnp.ones(10_000), "numpy": np.zeros(10_000)})
    with open(path, "r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert (loaded["jax"] == 1).all() and (loaded["numpy"] == 1).all()
    loaded["numpy"][:] = 2
    assert jax.jit(lambda x: x + 1, donate_argnums=0)(loaded["jax"])[0] == 2


# Many devices.


@pytest.mark.parametrize(
    ("saved", "loaded"),
    [((), ("x", "y")), (("x", "y"), ("y", "x")), (("x",), (None, "x")), ((None, ("x", "y")), ())],
    ids=str,
)
def test_shards_are_read_on_another_mesh(saved: Spec, loaded: Spec, tmp_path: Path) -> None:
    whole = np.arange(16 * 32, dtype=np.float32).reshape(16, 32)
    then = jax.device_put(whole, on(jax.make_mesh((2, 4), ("x", "y")), *saved))
    keys = jax.random.split(KEY, 16)
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    mlax.save(tmp_path / "a", {"w": then, "k": jax.device_put(keys, on(mesh, *saved[:1]))})
    like = {
        "w": jax.ShapeDtypeStruct((16, 32), np.float32, sharding=on(mesh, *loaded)),
        "k": jax.device_put(keys, on(mesh, *loaded[:1])),
    }
    now = mlax.load(tmp_path / "a", like)
    assert now["w"].sharding == like["w"].sharding and now["k"].sharding == like["k"].sharding
    np.testing.assert_array_equal(now["w"], whole)
    np.testing.assert_array_equal(data_of(now["k"]), data_of(keys))


def test_each_number_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def watched(file: Any, tensor: Any, index: Any, part: Any) -> None:
        written.append(part.shape)
        write_part(file, tensor, index, part)

    monkeypatch.setattr(mlax.checkpoint.saving, "write_part", watched)
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    mlax.save(tmp_path / "a", jax.device_put(np.ones((16, 32)), on(mesh, None, "y")))
    assert written == [(16, 16)] * 2


def test_each_device_reads_its_own_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlax.save(tmp_path / "a", np.ones((16, 32), np.float32))
    copied, read = TensorFile.copied, []

    def watched(file: TensorFile, view: Any) -> Any:
        read.append(view.shape)
        return copied(file, view)

    monkeypatch.setattr(TensorFile, "copied", watched)
    sharding = on(jax.make_mesh((4, 2), ("x", "y")), "y", "x")
    like = jax.ShapeDtypeStruct((32, 16), np.float32, sharding=sharding)
    mlax.load(tmp_path / "a", like, rules=[("", "", np.transpose)])
    assert read == [(16, 4)] * 8


def test_shapes_on_an_abstract_mesh_are_placed_on_the_current_one(tmp_path: Path) -> None:
    mesh = jax.make_mesh((4, 2), ("x", "y"))
    array = jax.device_put(jnp.ones((8, 2)), on(mesh, "x"))
    mlax.save(tmp_path / "a", array)
    with jax.set_mesh(mesh):
        like = jax.eval_shape(lambda x: 2 * x, array)
        require_equal(mlax.load(tmp_path / "a", like), jax.device_put(array, on(mesh, "x", None)))
    with pytest.raises(ValueError, match="on a mesh of devices"):
        mlax.load(tmp_path / "a", like)


def test_memory(tmp_path: Path) -> None:
    """(Of mapped files: python -m tests.checkpoint size.)"""
    tree = {str(i): np.ones(1 << 20, np.float32) for i in range(8)}
    tracemalloc.start()
    mlax.save(tmp_path / "a", tree)
    assert tracemalloc.get_traced_memory()[1] < 0.1 * mlax.nbytes(tree)
    loaded = mlax.load(tmp_path / "a", tree)
    assert tracemalloc.get_traced_memory()[1] < 1.1 * mlax.nbytes(loaded)
    tracemalloc.stop()


def test_two_processes_write_one_file(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    program = [sys.executable, "-m", "tests.checkpoint_of_many", str(tmp_path), port]
    processes = [
        subprocess.Popen([*program, str(i)], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        for i in range(2)
    ]
    try:
        errors = [process.communicate(timeout=100)[1].decode() for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], errors
    whole = np.arange(48, dtype=np.float32).reshape(8, 6)
    like = {**dict.fromkeys(("rows", "columns", "both", "whole"), whole), "steps": 3}
    for name in ["one.safetensors", "several.safetensors.index.json"]:
        require_equal(mlax.load(tmp_path / name, like, checksum=True), like)
    assert not [file for file in tmp_path.iterdir() if file.suffix == ".partial"]


def test_orbax_takes_the_same_trees(tmp_path: Path) -> None:
    """The two lines in the docstring of mlax.checkpoint, onto another mesh."""
    ocp = pytest.importorskip("orbax.checkpoint")
    params, state = model().init(KEY, X)
    w = jax.device_put(np.ones((8, 4)), on(jax.make_mesh((8,), "x"), "x"))
    tree = {"params": params, "state": state, "w": w}
    mesh = jax.make_mesh((2, 4), ("x", "y"))
    like = tree | {"w": jax.ShapeDtypeStruct((8, 4), w.dtype, sharding=on(mesh, "x", "y"))}
    directory = tmp_path / "orbax"
    recipe = (mlax.checkpoint.__doc__ or "").split("the same trees:\n\n")[1]
    names = {"ocp": ocp, "directory": directory, "tree": tree, "like": like}
    exec(textwrap.dedent(recipe), names)
    restored: Any = names["tree"]
    assert restored["w"].sharding == like["w"].sharding
    require_equal(jax.tree.map(np.asarray, restored), jax.tree.map(np.asarray, tree))


def test_a_module_that_is_not_set_up_has_nothing_to_save(tmp_path: Path) -> None:
    for tree in (nn.Linear(KEY, 3), {"model": nn.Series([nn.Linear(KEY, 3)]), "step": 1}):
        with pytest.raises(ValueError, match="^save: expected modules that are set up, got a new "):
            mlax.save(tmp_path / "model.safetensors", tree)
