"""Tests of `lora`, against the layer with kernels W + (alpha / rank) a @ b."""

from collections.abc import Callable
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


def adapted(layer: Any, x: Any) -> tuple[Any, Any]:
    """Return adapters of rank 2 and the merged params, after a comparison of the outputs."""
    params, state = layer.init(KEY, x)
    tuned = mlax.lora(layer, "*kernel", 2, alpha=3)
    adapters, own = mlax.init_lora(tuned, KEY, x, params, state)
    adapters = jax.tree.map(lambda leaf: leaf + 0.1, adapters)
    y, _ = tuned.apply(adapters, own, x)
    merged, inner = mlax.merge_lora(adapters, own)
    assert jax.tree.structure(inner) == jax.tree.structure(state)
    np.testing.assert_allclose(y, layer.apply(merged, inner, x)[0], rtol=1e-5, atol=1e-5)
    return adapters, jax.tree.map(lambda one, other: one - other, merged, params)


IMAGE = jax.random.normal(jax.random.key(1), (5, 5, 8))


@pytest.mark.parametrize("spec", ["OHWI", "OIHW", "HWIO", "IOWH"])
def test_kernels_of_convolutions_are_matrices(spec: str) -> None:
    adapters, added = adapted(mlax.conv(6, (2, 3), data_format=("HWC", spec, "HWC")), IMAGE)
    a, b = adapters.kernel
    assert a.shape == (2 * 3 * 8, 2) and b.shape == (2, 6)
    inputs = spec.replace("O", "")
    sizes = dict(zip(inputs.replace("I", ""), (2, 3)), I=8)
    full = (1.5 * np.asarray(a) @ np.asarray(b)).reshape(*(sizes[axis] for axis in inputs), 6)
    wanted = np.einsum(f"{inputs}O->{spec}", full)
    np.testing.assert_allclose(added.kernel, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("format", ["channel_last", "channel_first"])
def test_each_copy_of_a_convolution_has_adapters(format: Any) -> None:
    layer = mlax.conv(8, 3, padding="SAME", data_format=format)
    x = IMAGE if format == "channel_last" else IMAGE.T
    adapters, added = adapted(mlax.ensemble(mlax.repeat(layer, 2), 3), x)
    assert adapters.kernel.a.shape == (3, 2, 72, 2) and adapters.kernel.b.shape == (3, 2, 2, 8)
    last = 1.5 * np.asarray(adapters.kernel.a[2, 1]) @ np.asarray(adapters.kernel.b[2, 1])
    np.testing.assert_allclose(added.kernel[2, 1].reshape(8, -1), last.T, rtol=1e-4, atol=1e-5)


def test_experts_are_copies() -> None:
    layer = mlax.series(mlax.repeat(mlax.series(
        mlax.moe(mlax.dense(8), 3), mlax.f(lambda routed: routed.y)), 2))
    adapters, _ = adapted(layer, X)
    moe = adapters[0][0]
    assert moe.experts.kernel.a.shape == (2, 3, 8, 2) and moe.router.kernel.b.shape == (2, 2, 3)


@pytest.mark.parametrize(
    "around",
    [
        mlax.batched, mlax.remat, lambda layer: mlax.cast(layer, compute_dtype=jnp.float32),
        lambda layer: mlax.repeat(layer, 3), lambda layer: mlax.batched(mlax.repeat(layer, 2)),
    ],
)
def test_combinators_of_one_layer_may_be_around_it(around: Any) -> None:
    plain, tuned = around(mlax.dense(8)), around(mlax.lora(mlax.dense(8), "kernel", 2))
    params, state = plain.init(KEY, X)
    adapters, own = mlax.init_lora(tuned, KEY, X, params, state)
    adapters = jax.tree.map(lambda leaf: leaf + 0.1, adapters)
    merged, inner = mlax.merge_lora(adapters, own)
    assert jax.tree.structure(inner) == jax.tree.structure(state)
    np.testing.assert_allclose(
        tuned.apply(adapters, own, X)[0], plain.apply(merged, inner, X)[0], rtol=1e-5, atol=1e-5
    )


def test_part_of_the_layer_may_be_in_8_bits() -> None:
    """The adapters are merged first then."""
    plain = mlax.series(mlax.dense(8), mlax.dense(4))
    part = mlax.series(mlax.quantized(mlax.dense(8)), mlax.dense(4))
    params, state = part.init(KEY, X)
    tuned = mlax.lora(part, "1.kernel", 2)
    adapters, own = mlax.init_lora(tuned, KEY, X, params, state)
    adapters = jax.tree.map(lambda leaf: leaf + 0.1, adapters)
    params, state = mlax.merge_lora(adapters, own)
    y, _ = part.apply(params, state, X)
    np.testing.assert_allclose(tuned.apply(adapters, own, X)[0], y, rtol=1e-5, atol=1e-5)
    first = state.variables[0].weights.kernel
    kernel = np.asarray(first.values, np.float32) * np.asarray(first.scale)
    merged = (params[0]._replace(kernel=jnp.asarray(kernel)), params[1])
    _, whole = plain.init(KEY, X)
    np.testing.assert_allclose(plain.apply(merged, whole, X)[0], y, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="'0.kernel' to match .*; kernels in mlax.quantized are"):
        mlax.lora(part, "0.kernel", 2).init(KEY, X)


def test_what_it_refuses() -> None:
    params, state = MODEL.init(KEY, X)
    with pytest.raises(ValueError, match="'heads.kernel' to match a path, got none among"):
        mlax.lora(MODEL, "heads.kernel", 2).init(KEY, X)
    for where, path in (("head.bias", "head.bias"), ("body.*", "body.attention.query.bias")):
        with pytest.raises(ValueError, match=rf"where to select leaves \(.*\), got {path} of"):
            mlax.lora(MODEL, where, 2).init(KEY, X)
    with pytest.raises(ValueError, match="lora: expected where to select a leaf, got none of "):
        mlax.lora(MODEL, lambda path, leaf: False, 2).init(KEY, X)
    with pytest.raises(ValueError, match=r"rank to be at most 4, as head.kernel is .*, got 5"):
        mlax.lora(MODEL, "head.kernel", 5).init(KEY, X)
    for alpha in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="alpha to be positive and finite"):
            mlax.lora(MODEL, "head.kernel", 2, alpha=alpha)
    foreign = mlax.Layer(lambda rng, x: ({"kernel": jnp.ones((2, 8, 4))}, ()), lambda *_: ((), ()))
    with pytest.raises(ValueError, match=r"got kernel of shape \(2, 8, 4\); leave it out"):
        mlax.lora(foreign, "kernel", 2).init(KEY, X)
    with pytest.raises(TypeError, match="layer to be one made by mlax.lora"):
        mlax.init_lora(MODEL, KEY, X, params, state)
    with pytest.raises(TypeError, match="layer to be one made by mlax.lora"):
        mlax.init_lora(mlax.series(TUNED), KEY, X, (params,), state)
    with pytest.raises(ValueError, match="init_lora: expected params.head.kernel"):
        wrong = params | {"head": mlax.dense(5).init(KEY, jnp.ones(8))[0]}
        mlax.init_lora(TUNED, KEY, X, wrong, state)
    with pytest.raises(TypeError, match="params to be of the same structure .* none at head.bias"):
        wrong = params | {"head": params["head"]._replace(bias=None)}
        mlax.init_lora(TUNED, KEY, X, wrong, state)
    for another in (None, params, mlax.dense(2).init(KEY, X)[1]):
        with pytest.raises(TypeError, match="init_lora: expected state to be what init returned"):
            mlax.init_lora(TUNED, KEY, X, params, another)
    with pytest.raises(TypeError, match="state.variables to be of the same .* none at norm.mean"):
        mlax.init_lora(TUNED, KEY, X, params, mlax.series(mlax.dense(4)).init(KEY, X)[1])
    with pytest.raises(ValueError, match=r"expected state.variables.norm.mean to be .*\(8,\)"):
        wide = jax.tree.map(lambda leaf: jnp.zeros(9), state)
        mlax.init_lora(TUNED, KEY, X, params, wide)
    with pytest.raises(TypeError, match="state to be that of mlax.lora, got that of series; put"):
        mlax.merge_lora(params, state)


@pytest.mark.parametrize("factor", ["a", "b"])
@pytest.mark.parametrize("change", ["rank", "ones", "copies"])
def test_adapters_of_another_shape_are_refused(factor: str, change: str) -> None:
    """They would be multiplied with another factor, or broadcast."""
    _, _, adapters, tuned = made()
    kernel = adapters["head"].kernel
    leaf = getattr(kernel, factor)
    wrong = {
        "rank": jnp.ones((8, 3)) if factor == "a" else jnp.ones((3, 4)),
        "ones": leaf[:1] if factor == "a" else leaf[:, :1],
        "copies": leaf[None],
    }[change]
    bad = adapters | {"head": adapters["head"]._replace(kernel=kernel._replace(**{factor: wrong}))}
    uses: list[Callable[[], Any]] = [
        lambda: TUNED.apply(bad, tuned, X), lambda: mlax.merge_lora(bad, tuned)
    ]
    for use in uses:
        with pytest.raises(ValueError, match=rf"lora: expected params.head.kernel.{factor} to be"):
            use()


def test_a_block_reads_the_adapted_params() -> None:
    """As for tied weights."""
    tokens = jnp.arange(3)

    @mlax.block(embed=mlax.embed(9, 4), head=mlax.dense(4))
    def tied(sub: Any, x: Any) -> Any:
        return sub.head(sub.embed(x)) @ sub.embed.params.embedding.T

    params, state = tied.init(KEY, tokens)
    for new in (mlax.lora(mlax.embed(9, 4), "*", 2), mlax.quantized(mlax.embed(9, 4)),
                mlax.lora(mlax.quantized(mlax.embed(9, 4)), "*", 2)):
        changed = mlax.replaced(tied, "embed", new)
        own, own_state = changed.init(KEY, tokens)
        own = jax.tree.map(lambda leaf: leaf + 0.1, own)
        y, _ = changed.apply(own, own_state, tokens)
        embedding, inner = own["embed"], own_state.config.children[0].state(
            own_state.variables["embed"])
        if isinstance(embedding.embedding, Adapter):
            embedding, inner = mlax.merge_lora(embedding, inner)
        else:
            embedding, inner = mlax.merge_quantized(embedding, inner)
        wanted, _ = tied.apply({"embed": embedding, "head": own["head"]}, state, tokens)
        np.testing.assert_allclose(y, wanted, rtol=1e-5, atol=1e-5)


def test_adapters_and_other_params_that_come_back_from_a_file() -> None:
    model: Any = mlax.series(mlax.dense(4), mlax.layer_norm())
    layers: list[Any] = [mlax.lora(model, "0.kernel", 2), mlax.quantized(model, "0.kernel")]
    for layer in layers:
        params, state = layer.init(KEY, X)
        read = [{"kernel": params[0].kernel, "bias": params[0].bias}, params[1]]
        wanted = r"^\w+: expected params to be of the same structure .*, got a list; .* by path: "
        with pytest.raises(TypeError, match=wanted):
            layer.apply(read, state, X)
