"""Tests of `lora`, against the layer with kernels W + (alpha / rank) a @ b."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax.types import Adapter, State

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (5, 8))
MODEL = mlax.series(
    body=mlax.repeat(mlax.transformer_block(mlax.attention(2), mlax.mlp(16)), 3),
    norm=mlax.batched(mlax.batch_norm()), head=mlax.dense(4),
)
TUNED = mlax.lora(MODEL, ["body.attention.*.kernel", "head.kernel"], rank=2, alpha=6)


def made() -> tuple[Any, Any, Any, Any]:
    """Return params and state of the model, adapters that do something, and their state."""
    params, state = MODEL.init(KEY, X)
    adapters, tuned = mlax.init_lora(TUNED, jax.random.key(2), X, params, state)
    adapters = jax.tree.map(lambda leaf: leaf + 0.1, adapters)
    return params, state, adapters, tuned


def test_it_starts_as_the_layer() -> None:
    params, state = MODEL.init(KEY, X)
    adapters, tuned = mlax.init_lora(TUNED, KEY, X, params, state)
    y, _ = TUNED.apply(adapters, tuned, X)
    np.testing.assert_array_equal(y, MODEL.apply(params, state, X)[0])
    assert all((leaf == 0).all() for path, leaf in zip(
        mlax.paths(adapters), jax.tree.leaves(adapters), strict=True) if path.endswith(".b"))
    assert len({leaf.tobytes() for leaf in map(np.asarray, adapters["head"].kernel)}) == 2
    first, second = adapters["body"]["attention"].query.kernel.a[:2]
    assert (first != second).any()


def test_kernels_are_those_of_the_paper() -> None:
    params, state, adapters, tuned = made()

    def full(leaf: Any, adapter: Adapter | None) -> Any:
        if adapter is None:
            return leaf
        a, b = (np.asarray(part, np.float64) for part in adapter)
        return jnp.asarray(np.asarray(leaf) + 3 * a @ b, jnp.float32)

    expected, after = MODEL.apply(jax.tree.map(full, params, adapters), state, X)
    y, tuned_after = jax.jit(TUNED.apply)(adapters, tuned, X)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    for one, other in zip(
        jax.tree.leaves(tuned_after.variables.layer), jax.tree.leaves(after), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_only_the_adapters_are_trained() -> None:
    _, _, adapters, tuned = made()
    grads = jax.grad(lambda adapters: jnp.sum(TUNED.apply(adapters, tuned, X)[0] ** 2))(adapters)
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(grads))
    assert {path.rsplit(".", 1)[0] for path in mlax.paths(adapters)} == {
        "head.kernel",
        *(f"body.attention.{name}.kernel" for name in ("query", "key", "value", "output")),
    }


def test_merged_params_are_those_of_the_layer() -> None:
    _, state, adapters, tuned = made()
    params, merged = mlax.merge_lora(adapters, tuned)
    assert jax.tree.structure(merged) == jax.tree.structure(state)
    np.testing.assert_allclose(
        MODEL.apply(params, merged, X)[0], TUNED.apply(adapters, tuned, X)[0], rtol=1e-5, atol=1e-5
    )
    layer = mlax.Layer(lambda rng, x: ({"w": jnp.ones((8, 2))}, ()), lambda p, s, x, *_: (x @ p["w"], s))
    adapters, tuned = mlax.lora(layer, "w", 1).init(KEY, X)
    _, bare = mlax.merge_lora(adapters, tuned)
    assert bare == () and not isinstance(bare, State)


def test_what_it_refuses() -> None:
    params, state = MODEL.init(KEY, X)
    with pytest.raises(ValueError, match="'heads.kernel' to match a path, got none among"):
        mlax.lora(MODEL, "heads.kernel", 2).init(KEY, X)
    with pytest.raises(ValueError, match=r"leaves \(..., inputs, outputs\), got head.bias"):
        mlax.lora(MODEL, "head.bias", 2).init(KEY, X)
    with pytest.raises(TypeError, match="layer to be one made by mlax.lora"):
        mlax.init_lora(MODEL, KEY, X, params, state)
    with pytest.raises(ValueError, match="init_lora: expected params.head.kernel"):
        wrong = params | {"head": mlax.dense(5).init(KEY, jnp.ones(8))[0]}
        mlax.init_lora(TUNED, KEY, X, wrong, state)
    with pytest.raises(TypeError, match="state to be that of mlax.lora"):
        mlax.merge_lora(params, state)
