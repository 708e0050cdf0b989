"""Tests of `replaced`: a path is that of params."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import mlax

BLOCK = mlax.transformer_block(mlax.attention(2), mlax.mlp(16))
MODEL = mlax.batched(mlax.series(
    body=mlax.repeat(BLOCK, 3),
    tail=mlax.series(mlax.residual(mlax.dense(8)), mlax.dense(8)),
    moe=mlax.series(mlax.moe(mlax.dense(8), 4), mlax.f(lambda routed: routed.y)),
))
X = jax.ShapeDtypeStruct((2, 5, 8), jnp.float32)


@pytest.mark.parametrize(
    ("path", "new"),
    [
        ("body", mlax.dense(8)),
        ("body.attention", mlax.attention(4, causal=True)),
        ("body.mlp", mlax.dense(8)),
        ("tail.0.0", mlax.linear(8)),
        ("tail.1", mlax.dropout(0.5, (0, 1))),
        ("moe.0.experts", mlax.linear(8)),
    ],
)
def test_the_layer_at_the_path_changes_and_nothing_else(path: str, new: Any) -> None:
    changed = mlax.replaced(MODEL, path, new)
    before, _ = jax.eval_shape(MODEL.init, jax.random.key(0), X)
    after, _ = jax.eval_shape(changed.init, jax.random.key(0), X)

    def outside(params: Any) -> list[Any]:
        leaves = zip(mlax.paths(params), jax.tree.leaves(params), strict=True)
        return [(name, leaf) for name, leaf in leaves if not name.startswith(f"{path}.")]

    assert outside(before) == outside(after)
    assert repr(new) in repr(changed) and changed != MODEL
    assert changed.needs_rng is new.needs_rng


def test_the_empty_path_is_the_layer_itself() -> None:
    assert mlax.replaced(MODEL, "", mlax.dense(3)) == mlax.dense(3)
    assert mlax.replaced(MODEL, "tail.1", mlax.dense(8)) == MODEL


def test_blocks_are_named_layers() -> None:
    @mlax.block(first=mlax.dense(3), second=mlax.series(mlax.dense(3)))
    def net(sub: Any, x: Any) -> Any:
        return sub.second(sub.first(x))

    changed = mlax.replaced(net, "second.0", mlax.linear(3))
    assert repr(changed) == "net(first=dense(3), second=series(linear(3)))"
    params, _ = changed.init(jax.random.key(0), jnp.ones(2))
    assert mlax.paths(params) == ["first.kernel", "first.bias", "second.0.kernel"]


def test_what_is_not_there_is_told() -> None:
    with pytest.raises(ValueError, match="a layer at 'head', got series with body, tail, moe"):
        mlax.replaced(MODEL, "head", mlax.dense(3))
    with pytest.raises(ValueError, match="'body.mlp.up', got mlp with no layers of its own"):
        mlax.replaced(MODEL, "body.mlp.up", mlax.dense(3))
    with pytest.raises(TypeError, match="new to be a layer"):
        mlax.replaced(MODEL, "body", jnp.tanh)  # type: ignore[arg-type]  # the error is wanted
