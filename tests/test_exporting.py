"""Tests of `export`: what a process without mlax computes is what the model computes here."""

import functools
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import mlax
from mlax.arguments import AnyLayer

RUN = """
import pickle, sys
import jax
sys.modules["mlax"] = None  # importing it raises
with open(sys.argv[1], "rb") as file:
    cases = pickle.load(file)
results = {}
for name, (blob, given, chunks) in cases.items():
    program, results[name] = jax.export.deserialize(bytearray(blob)), []
    for x in chunks:
        y = program.call(x, **given)
        if "state" in given:
            y, given["state"] = y
        results[name].append(jax.device_get(y))
with open(sys.argv[2], "wb") as file:
    pickle.dump(results, file)
"""


class Case(NamedTuple):
    """A model, what it is exported for, and what it is called with, one after the other."""

    layer: AnyLayer
    x: Any
    chunks: list[Any]
    more: dict[str, Any]


def gpt(**hparams: Any) -> AnyLayer:
    """Return a small language model."""
    attention = mlax.attention(2, causal=True, rotary=mlax.positions.rotary, **hparams)
    block = mlax.transformer_block(attention, mlax.mlp(16))
    return mlax.series(
        embed=mlax.embed(11, 8), body=mlax.repeat(block, 2), norm=mlax.layer_norm(),
        head=mlax.dense(11),
    )


def normal(*shape: int) -> jax.Array:
    """Return numbers of an input."""
    return jax.random.normal(jax.random.key(len(shape)), shape)


resnet = mlax.batched(
    mlax.series(
        mlax.conv(4, 3, padding="SAME"), mlax.batch_norm(), mlax.f(jax.nn.relu),
        mlax.global_avg_pool(), mlax.dense(2),
    )
)
tokens = np.arange(15, dtype=np.int32).reshape(3, 5) % 11
lstm = mlax.recurrent(mlax.lstm_cell(3))
memory = mlax.AttentionInputs(normal(3, 4), memory=normal(5, 4))

CASES = {
    "conv": Case(
        resnet, normal(2, 6, 6, 3), [normal(3, 6, 6, 3), normal(1, 6, 6, 3)],
        {"shapes": "batch, ...", "platforms": ("cpu", "cuda"), "weights": "beside"},
    ),
    "transformer": Case(
        gpt(window=3), tokens[:1, :2], [tokens, tokens[:1]], {"shapes": "batch, length"}
    ),
    "decoder": Case(
        gpt(cache_length=8), tokens[:1, :2], [tokens[:, :3], tokens[:, 3:]],
        {"shapes": "batch, length", "constraints": ["length <= 8"]},
    ),
    "lstm": Case(
        mlax.carried(lstm, decodes=True), normal(2, 4), [normal(3, 4), normal(1, 4)],
        {"shapes": "length, _", "weights": "beside"},
    ),
    "inputs": Case(mlax.attention(2), memory, [memory], {"weights": "beside"}),
    "tuples": Case(
        lstm, (normal(2, 4), (normal(3), normal(3))), [(normal(6, 4), (normal(3), normal(3)))],
        {"shapes": ("length, _", (None, None))},
    ),
}


def made(case: Case) -> tuple[Any, Any]:
    """Return params, and a state for the batch of the call, with statistics that are not new."""
    params, _ = case.layer.init(jax.random.key(0), case.x)
    state = mlax.init_state(case.layer, params, case.chunks[0])
    if case.layer is resnet:
        _, state = resnet.apply(params, state, 2 * case.x + 1)
    return params, state


def plain(x: Any) -> Any:
    """Return x as an exported program takes it."""
    return {"x": x.x, "memory": x.memory} if isinstance(x, mlax.AttentionInputs) else x


def exported(name: str, **more: Any) -> mlax.types.Artifact:
    """Return the artifact of a case."""
    case = CASES[name]
    return mlax.export(case.layer, *made(case), case.x, **{**case.more, **more})


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """Return what a process without mlax computes for each case."""
    cases = {}
    for name, case in CASES.items():
        program, weights, caches = exported(name)
        given = {"weights": weights, "state": caches}
        filled = {key: jax.device_get(arrays) for key, arrays in given.items() if arrays}
        chunks = [jax.device_get(plain(x)) for x in case.chunks]
        cases[name] = bytes(program.serialize()), filled, chunks
    folder = tmp_path_factory.mktemp("exported")
    (folder / "cases").write_bytes(pickle.dumps(cases))
    command = [sys.executable, "-c", RUN, str(folder / "cases"), str(folder / "results")]
    subprocess.run(command, check=True, timeout=300)
    results: dict[str, list[Any]] = pickle.loads((folder / "results").read_bytes())
    return results


@pytest.mark.parametrize("name", CASES)
def test_a_process_without_mlax_computes_the_same(
    name: str, elsewhere: dict[str, list[Any]]
) -> None:
    case = CASES[name]
    params, state = made(case)
    infer = jax.jit(functools.partial(case.layer.apply, inference_mode=True))
    assert len(elsewhere[name]) == len(case.chunks)
    for x, found in zip(case.chunks, elsewhere[name], strict=True):
        y, state = infer(params, state, x)
        assert jax.tree.structure(found) == jax.tree.structure(y)
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(y), strict=True):
            assert a.dtype == b.dtype
            np.testing.assert_allclose(a, b, 1e-5, 1e-6)


def test_inside_is_all_that_inference_keeps() -> None:
    program, weights, state = exported("conv", weights="inside")
    assert not weights and not state and program.platforms == ("cpu", "cuda")
    x = CASES["conv"].chunks[0]
    beside = exported("conv")
    assert not beside.state
    y = beside.program.call(x, weights=beside.weights)
    np.testing.assert_array_equal(program.call(x), y)


def test_weights_are_named_as_mlax_saves_them(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    params, state = made(CASES["conv"])
    mlax.save(tmp_path / "weights", {"params": params, "state": state})
    program, weights, _ = exported("conv")
    loaded = safetensors.load_file(tmp_path / "weights")
    x = CASES["conv"].chunks[0]
    found = program.call(x, weights=loaded)
    np.testing.assert_array_equal(found, program.call(x, weights=weights))
    assert set(loaded) == set(weights) >= {"params.0.kernel", "state.variables.1.mean"}


def test_only_what_inference_changes_is_state() -> None:
    """Not statistics, whatever carries them, and though a carry lies beside them."""
    norm = mlax.series(mlax.dense(3), mlax.batch_norm())
    layers: list[AnyLayer] = [
        mlax.batched(mlax.repeat(norm, 2)), mlax.batched(mlax.remat(norm)),
        mlax.batched(mlax.repeat(norm, 2, remat=True)), mlax.repeat(mlax.batched(norm), 2),
    ]
    for layer in layers:
        params, variables = layer.init(jax.random.key(0), normal(4, 3))
        assert not mlax.export(layer, params, variables, normal(4, 3)).state
    decoder = mlax.series(mlax.batched(norm), mlax.carried(lstm, decodes=True))
    params, variables = decoder.init(jax.random.key(0), normal(4, 3))
    artifact = mlax.export(decoder, params, variables, normal(4, 3), weights="beside")
    assert list(artifact.state) == ["state.variables.1.carry.0", "state.variables.1.carry.1"]
    assert "state.variables.0.1.mean" in artifact.weights


def test_a_carry_that_moves_is_state() -> None:
    """After two steps that let two carries change places, each is where it was."""

    def apply(
        params: Any, state: Any, x: Any, rng: Any = None, inference_mode: bool = False,
        batch_axis_name: Any = (),
    ) -> Any:
        step = jax.checkpoint(lambda both, row: ((both[1], both[0]), row))
        both, rows = jax.lax.scan(step, (2 * state["a"], state["a"]), state["rows"])
        return x, {"a": both[0], "b": state["b"], "rows": rows}

    state = {"a": jnp.ones(2), "b": jnp.ones(2), "rows": jnp.ones((2, 3))}
    artifact = mlax.export(mlax.Layer(lambda rng, x: ((), state), apply), (), state, jnp.ones(2))
    assert list(artifact.state) == ["state.a"]
    _, after = artifact.program.call(jnp.ones(2), state=artifact.state)
    np.testing.assert_array_equal(after["state.a"], [2, 2])


def test_containers_of_any_kind_in_x_and_y() -> None:
    class Pair(NamedTuple):
        second: Any
        first: Any

    x = {"a": [normal(2), None], "b": Pair(normal(3), {3: normal(4), 1: normal(5)}), "c": ()}
    layer = mlax.f(lambda x: (Pair(x["a"][0], x["b"].second), {"d": x["b"].first[1], "e": None}))
    program = mlax.export(layer, *layer.init(jax.random.key(0), x), x).program
    pair = {"second": normal(3), "first": {"3": normal(4), "1": normal(5)}}
    given = {"a": [normal(2), None], "b": pair, "c": ()}
    y = jax.export.deserialize(program.serialize()).call(given)
    expected = ({"first": normal(3), "second": normal(2)}, {"d": normal(5), "e": None})
    assert jax.tree.structure(y) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, y, expected)


def test_half_precision_stays() -> None:
    layer, x = mlax.dense(2, dtype=jnp.bfloat16), jnp.ones(3, jnp.bfloat16)
    params, state = layer.init(jax.random.key(0), x)
    y = mlax.export(layer, params, state, x).program.call(x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, layer.apply(params, state, x)[0])


def test_the_program_belongs_to_no_mesh() -> None:
    mesh = jax.make_mesh((8,), ("model",))
    layer, x = mlax.dense(8), normal(4)
    params, state = layer.init(jax.random.key(0), x)
    y, _ = layer.apply(params, state, x)
    kernel = jax.device_put(params.kernel, NamedSharding(mesh, PartitionSpec(None, "model")))
    program, _, _ = mlax.export(layer, params._replace(kernel=kernel), state, x)
    assert program.nr_devices == 1
    np.testing.assert_allclose(program.call(x), y, 1e-6)


@pytest.mark.parametrize(
    ("x", "match"),
    [
        (np.ones((2, 6, 6), np.float32), "Rank mismatch"),
        (np.ones((2, 6, 6, 4), np.float32), "(?s)shape.*3.*4"),
        (np.ones((2, 6, 6, 3), np.int32), "Dtype mismatch"),
    ],
)
def test_a_wrong_x_raises(x: Any, match: str) -> None:
    program, weights, _ = exported("conv")
    with pytest.raises(ValueError, match=match):
        program.call(x, weights=weights)


def test_missing_weights_raise() -> None:
    with pytest.raises(ValueError, match="(?s)structure.*weights"):
        exported("conv").program.call(CASES["conv"].chunks[0])


def test_shapes_do_for_weights_beside() -> None:
    layer, x = mlax.dense(2), normal(3)
    shapes, state = jax.eval_shape(layer.init, jax.random.key(0), x)
    program, weights, _ = mlax.export(layer, shapes, state, x, weights="beside")
    y = program.call(x, weights={name: np.ones(a.shape, a.dtype) for name, a in weights.items()})
    np.testing.assert_allclose(y, jnp.sum(x) + jnp.ones(2), 1e-6)
    with pytest.raises(TypeError, match='export: expected params.kernel .*"beside"'):
        mlax.export(layer, shapes, state, x)


def test_wrong_arguments_raise() -> None:
    with pytest.raises(ValueError, match='export: expected platforms to be some of .*for "gpu"'):
        exported("lstm", platforms=["gpu"])
    with pytest.raises(ValueError, match="'cudda'"):
        exported("lstm", platforms=["cpu", "cudda"])
    with pytest.raises(TypeError, match="in a tuple, got 'cuda'"):
        exported("lstm", platforms="cuda")
    with pytest.raises(ValueError, match=r"each once, got \('cpu', 'cpu'\)"):
        exported("lstm", platforms=("cpu", "cpu"))
    with pytest.raises(ValueError, match="export: expected weights to be .*'within'"):
        exported("lstm", weights="within")
    with pytest.raises(TypeError, match="export: .*layer.*as in dense"):
        mlax.export(mlax.dense, (), (), normal(3))  # type: ignore[arg-type]  # on purpose
    params, state = made(CASES["lstm"])
    with pytest.raises((TypeError, ValueError), match="state"):
        mlax.export(mlax.dense(3), params, state, normal(3))


def test_a_layer_that_always_needs_a_key_raises_with_its_path() -> None:
    noise = mlax.f_rng(lambda x, rng: x + jax.random.normal(rng, x.shape))
    layer = mlax.series(mlax.dense(3), noise)
    with pytest.raises(Exception) as caught:
        mlax.export(layer, *layer.init(jax.random.key(0), normal(3)), normal(3))
    assert "series[1]" in "".join(caught.value.__notes__)


def test_a_question_about_a_symbolic_length_names_the_way_out() -> None:
    with pytest.raises(Exception, match="'length' > '8'") as caught:
        exported("decoder", constraints=())
    assert "constraints=" in "".join(caught.value.__notes__)


def test_weights_that_no_file_can_hold_raise() -> None:
    zeros: Any = np.broadcast_to(np.float32(0), (2**14, 2**15))  # 4 bytes
    _, state = mlax.linear(2**15).init(jax.random.key(0), normal(1))
    with pytest.raises(ValueError, match='less than 2 GiB .*got 2,147,483,648 .*"beside"'):
        mlax.export(mlax.linear(2**15), mlax.types.LinearParams(zeros), state, jnp.ones(2**14))


def test_shapes_may_be_like_what_the_program_takes() -> None:
    config = mlax.models.BertConfig(9, 4, 2, 4, 1, 1, 4)
    model, tokens = mlax.models.bert(config), jnp.array([[1, 2]])
    x = mlax.models.BertInputs(tokens, mask=tokens > 0)
    params, state = model.init(jax.random.key(0), x)
    more: dict[str, Any] = {"constraints": ["l <= 4"], "weights": "beside"}
    ours = x._replace(tokens="b, l", mask="b, l")
    for shapes in (ours, {"tokens": "b, l", "mask": "b, l"}, "b, l"):
        program, _, _ = mlax.export(model, params, state, x, shapes, **more)
        assert [str(aval) for aval in program.in_avals[:2]] == ["bool[b,l]", "int32[b,l]"]
    text = r"a string, or a tree of them like x, got {}; x is {{'mask': 'bool\[1, 2\]', 'tokens"
    for wrong, got in ((("b, l", "b, l"), "a tuple"), (3, "3"), ({"token": "b, l"}, "a dict")):
        with pytest.raises(TypeError, match=text.format(got)):
            mlax.export(model, params, state, x, wrong, **more)


def test_keys_of_dicts_become_texts() -> None:
    layer, x = mlax.f(lambda x: x[0] - x[1]), {0: jnp.full(3, 5.0), 1: jnp.ones(3)}
    program, _, _ = mlax.export(layer, (), layer.init(jax.random.key(0), x)[1], x)
    y = program.call({"0": x[0], "1": x[1]})
    np.testing.assert_array_equal(y, [4, 4, 4])
