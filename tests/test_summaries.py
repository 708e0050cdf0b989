"""Tests of `summary`: each column against what it stands for."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh
from jax.sharding import PartitionSpec as P

import mlax
from mlax.types import Flops, Row, Sublayers

X = jax.ShapeDtypeStruct((4, 6, 8), jnp.float32)


def gpt(copies: int = 3) -> mlax.Layer[Any, Any, Any, Any]:
    """Return a small language model."""
    block = mlax.transformer_block(
        mlax.attention(2, causal=True), mlax.mlp(16), dropout_rate=0.5
    )
    return mlax.series(
        embed=mlax.embed(11, 8), body=mlax.repeat(block, copies), head=mlax.dense(11)
    )


TOKENS = jnp.zeros((4, 6), int)


def row(table: Any, path: str) -> Row:
    """Return the row of a path."""
    found: Row = next(row for row in table.rows if ".".join(row.path) == path)
    return found


def test_rows_are_the_layers_by_the_paths_of_their_params() -> None:
    table = mlax.summary(gpt(), TOKENS)
    params, _ = gpt().init(jax.random.key(0), TOKENS)
    places = {".".join(row.path) for row in table.rows}
    assert {path.rsplit(".", 1)[0] for path in mlax.paths(params["head"])} == {"kernel", "bias"}
    assert {"", "embed", "body", "body.attention", "body.mlp.up", "body.dropout"} <= places
    assert row(table, "body").kinds == ("repeat", "transformer_block", "block")
    for path in ("", "body", "body.mlp"):
        part: Any = params
        for key in path.split(".") if path else []:
            part = part[key]
        assert row(table, path).params == mlax.count(part)
        assert row(table, path).nbytes == mlax.nbytes(part)


def test_outputs_are_those_of_a_tap() -> None:
    table = mlax.summary(gpt(), TOKENS)
    params, state = gpt().init(jax.random.key(0), TOKENS)
    places = [".".join(row.path) for row in table.rows if row.path]
    tapped = mlax.tap(gpt(), places)
    (y, values), _ = tapped.apply(params, state, TOKENS, jax.random.key(1))
    assert row(table, "").output.shape == y.shape
    for path in places:
        assert row(table, path).output.shape == values[path].shape


def test_operations_go_to_the_layer_that_they_are_in() -> None:
    table = mlax.summary(gpt(), TOKENS)
    tokens, block = 4 * 6, 4 * 2 * 24 * 8 * 8 + 2 * 2 * 4 * 6 * 6 * 8
    assert row(table, "head").forward == Flops(2 * tokens * 8 * 11)
    assert row(table, "body.attention").forward == Flops(3 * block)
    assert row(table, "body.mlp.up").forward == Flops(3 * 2 * tokens * 8 * 16)
    for path in ("", "head", "body", "body.attention", "body.mlp.down"):
        found = row(table, path)
        assert found.backward.total == 2 * found.forward.total > 0
    assert row(table, "").forward.total == sum(
        row(table, path).forward.total for path in ("embed", "body", "head")
    )
    inference = mlax.summary(gpt(), TOKENS, inference_mode=True)
    assert row(inference, "").backward == Flops(0)
    assert row(inference, "").forward == row(table, "").forward


def test_shared_layers_and_products_of_a_wiring_count() -> None:
    @mlax.block(embed=mlax.embed(5, 8), twice=mlax.dense(8))
    def tied(sub: Sublayers, tokens: Any) -> Any:
        x = sub.twice(sub.twice(sub.embed(tokens)))
        return x @ sub.embed.params.embedding.T

    table = mlax.summary(tied, jnp.zeros(3, int))
    assert row(table, "twice").forward.total == 2 * 2 * 3 * 8 * 8
    assert row(table, "").forward.total == 2 * 2 * 3 * 8 * 8 + 2 * 3 * 8 * 5
    assert row(table, "").backward.total == 2 * row(table, "").forward.total


def test_statistics_and_caches_are_state() -> None:
    model = mlax.batched(mlax.series(mlax.conv(4, 3), mlax.batch_norm()))
    table = mlax.summary(model, jnp.zeros((2, 5, 5, 3)))
    assert row(table, "1").variables == 2 * 4 * 4 and row(table, "0").variables == 0
    decoder = mlax.attention(2, causal=True, cache_length=10)
    table = mlax.summary(decoder, X, inference_mode=True)
    assert row(table, "").variables == 4 * (4 * 10 * 8 * 2 + 4 * 10 + 1)


def test_loops_that_are_not_known_are_marked() -> None:
    def newton(x: Any) -> Any:
        return jax.lax.while_loop(lambda x: jnp.any(x > 1), lambda x: x @ x, x)

    table = mlax.summary(mlax.f(newton), jnp.ones((3, 3)), inference_mode=True)
    assert table.rows[0].forward == Flops(54, frozenset({"while"}))
    assert "54?" in str(table) and "a loop of unknown length counts once" in str(table)


def test_the_table_fits_and_folds() -> None:
    table = str(mlax.summary(gpt(40), TOKENS))
    assert max(map(len, table.splitlines())) <= 80
    assert len(str(mlax.summary(gpt(), TOKENS, depth=1)).splitlines()) == 2 + 4
    assert len(str(mlax.summary(gpt(), TOKENS, depth=0)).splitlines()) == 2 + 1
    page = mlax.summary(mlax.f(lambda x: {"<": x}), X)._repr_html_()
    assert page.startswith("<table>") and page.count("<tr>") == 2 and "f32[4,6,8]" in page


def test_a_mesh_divides_bytes_by_rules() -> None:
    mesh = AbstractMesh((4, 2), ("data", "model"))
    rules = [("body.mlp.*.kernel", P(None, "data", "model")), ("*.kernel", P())]
    whole = mlax.summary(gpt(), TOKENS)
    table = mlax.summary(gpt(), TOKENS, mesh=mesh, rules=rules)
    kernels = 4 * 3 * 2 * 8 * 16
    assert row(whole, "").nbytes - row(table, "").nbytes == kernels * 7 // 8
    assert row(table, "body.mlp").params == row(whole, "body.mlp").params
    assert mlax.summary(gpt(), TOKENS, mesh=mesh, rules=None).rows == whole.rows
    with pytest.raises(ValueError, match="expected rule 0, 'haed.bias', to match a path, got none"):
        mlax.summary(gpt(), TOKENS, mesh=mesh, rules=[("haed.bias", P())])
    with pytest.raises(ValueError, match="attention.query.kernel .*mesh axes, 'data', 'model', got"):
        mlax.summary(gpt(), TOKENS, mesh=mesh, rules=[("*.kernel", P("modle"))])
    with pytest.raises(ValueError, match=r"of head.bias .*'data' of the mesh, 4, .*\(11,\)"):
        mlax.summary(gpt(), TOKENS, mesh=mesh, rules=[("head.bias", P("data"))])


def test_nothing_is_made_and_errors_have_the_path() -> None:
    huge = mlax.series(mlax.dense(2**20), mlax.dense(2**24))
    table = mlax.summary(huge, jax.ShapeDtypeStruct((2**20,), jnp.bfloat16))
    assert row(table, "").params == sum(math.prod(s) + s[1] for s in ((2**20, 2**20), (2**20, 2**24)))
    with pytest.raises(ValueError) as caught:
        mlax.summary(mlax.series(body=mlax.series(mlax.conv(4, (3, 3)))), jnp.ones((2, 2)))
    assert any("series > body[0] > conv" in note for note in caught.value.__notes__)


def test_outputs_may_be_python_numbers() -> None:
    @mlax.block(a=mlax.dense(4))
    def wire(sub: Sublayers, x: Any) -> Any:
        return sub.a(x), 0.5, 3

    table = mlax.summary(mlax.series(b=wire), jnp.ones(4))
    assert "b wire                 (f32[4], f32[], i32…" in str(table)
    assert row(table, "").backward == Flops(2 * 2 * 4 * 4)


def test_a_model_without_a_gradient_says_what_to_do() -> None:
    model = mlax.series(
        mlax.dense(3), mlax.f(lambda x: jax.lax.while_loop(lambda x: x[0] > 1, jnp.sqrt, x))
    )
    with pytest.raises(ValueError, match="Reverse-mode") as caught:
        mlax.summary(model, jnp.ones(2))
    text = "summary: for a model without a gradient, pass inference_mode=True"
    assert text in caught.value.__notes__
    assert row(mlax.summary(model, jnp.ones(2), inference_mode=True), "0").forward.total == 12


def test_what_is_no_input_or_mesh_is_told() -> None:
    for call in (mlax.summary, mlax.diagram):
        with pytest.raises(TypeError, match="expected arrays, or .* got 'text' at b.1$"):
            call(mlax.f(lambda x: x["a"]), {"a": jnp.ones(2), "b": (1, "text")})
        with pytest.raises(TypeError, match="got 'text' at 1\n") as caught:
            call(mlax.series(mlax.series(a=mlax.f(lambda x: (x, "text")))), jnp.ones(2))
        assert any("> series[0] > series > a > f" in note for note in caught.value.__notes__)
    with pytest.raises(TypeError, match="summary: expected mesh to be a mesh, or None, got 3"):
        mlax.summary(gpt(), TOKENS, mesh=3)  # type: ignore[arg-type]  # on purpose
