"""Tests of `replaced`: a path is that of params."""

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
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


def test_layers_that_a_function_of_x_makes() -> None:
    """They are made when x is known, with another one at the path."""
    layer = mlax.residual(mlax.mlp(16))
    changed = mlax.replaced(mlax.replaced(layer, "0.up", mlax.linear(3)), "0.down", mlax.linear(4))
    assert repr(changed) == (
        "residual(replaced(replaced(mlp(16), 'up', linear(3)), 'down', linear(4)))"
    )
    assert pickle.loads(pickle.dumps(changed)) == changed
    x = jax.random.normal(jax.random.key(1), (4,))
    params, state = changed.init(jax.random.key(0), x)
    y, _ = changed.apply(params, state, x)
    up, down = (params[0][name].kernel for name in ("up", "down"))
    np.testing.assert_allclose(y, x + jax.nn.gelu(x @ up) @ down, rtol=1e-4, atol=1e-5)
    drops = mlax.series(mlax.dense(3), mlax.dropout(0.5, 0))
    with_dropout = mlax.replaced(mlax.mlp(16), "up", drops)
    params, state = with_dropout.init(jax.random.key(0), x)
    assert with_dropout.needs_rng and not mlax.replaced(mlax.mlp(16), "up", mlax.dense(3)).needs_rng
    with pytest.raises(ValueError, match="rng to be a PRNG key in training"):
        with_dropout.apply(params, state, x)


def test_the_path_goes_through_tap() -> None:
    changed = mlax.replaced(mlax.tap(mlax.series(a=mlax.dense(3)), "a"), "a", mlax.linear(3))
    assert changed == mlax.tap(mlax.series(a=mlax.linear(3)), "a")


def test_names_are_quoted_as_in_paths() -> None:
    model = mlax.series(**{"a.b": mlax.series(c=mlax.dense(3)), "a": mlax.series(b=mlax.dense(3))})
    params, _ = jax.eval_shape(model.init, jax.random.key(0), jnp.ones(2))
    assert "'a.b'.c.kernel" in mlax.paths(params)
    changed = mlax.replaced(mlax.replaced(model, "'a.b'.c", mlax.linear(3)), "a.b", mlax.linear(4))
    params, _ = jax.eval_shape(changed.init, jax.random.key(0), jnp.ones(2))
    shapes = {path: leaf.shape for path, leaf in zip(
        mlax.paths(params), jax.tree.leaves(params), strict=True)}
    assert shapes == {"'a.b'.c.kernel": (2, 3), "a.b.kernel": (3, 4)}


@pytest.mark.parametrize("path", [0, 1, None, [], ["tail", "1"], ("tail",), False])
def test_a_path_is_a_string(path: Any) -> None:
    """And nothing else means the layer itself."""
    with pytest.raises(TypeError, match="replaced: expected path to be a string, as in mlax.paths"):
        mlax.replaced(MODEL, path, mlax.dense(3))


def test_what_is_not_there_is_told() -> None:
    with pytest.raises(ValueError, match="a layer at 'head', got series with body, tail, moe"):
        mlax.replaced(MODEL, "head", mlax.dense(3))
    with pytest.raises(ValueError, match="'tail.0.0.x', got dense with no layers of its own"):
        mlax.replaced(MODEL, "tail.0.0.x", mlax.dense(3))
    with pytest.raises(ValueError, match="'tail.11', got series with 0, 1"):
        mlax.replaced(MODEL, "tail.11", mlax.dense(3))
    missing = mlax.replaced(MODEL, "body.mlp.side", mlax.dense(3))
    with pytest.raises(ValueError, match="a layer at 'side', got mlp with up, down"):
        missing.init(jax.random.key(0), X)
    with pytest.raises(TypeError, match="new to be a layer"):
        mlax.replaced(MODEL, "body", jnp.tanh)  # type: ignore[arg-type]  # the error is wanted
