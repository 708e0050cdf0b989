"""Each model of `mlax.models` with adapters and in 8 bits, against the model with those kernels."""

import functools
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import models
from mlax.types import Quantized
from tests.models.cases import CASES, GPT_2, LLAMA, weights

NAMES = ["gpt2", "llama", "bert", "vit", "resnet_basic"]
RANK, ALPHA = 2, 3.0
for_each_model = pytest.mark.parametrize("name", NAMES)


class Model(NamedTuple):
    """A model and what it computes, made once."""

    params: Any
    state: Any
    apply: Any
    y: Any


@functools.cache
def made(name: str) -> Model:
    """Return a model with its output in inference."""
    params, state = jax.tree.map(jnp.asarray, weights(CASES[name]))
    apply = jax.jit(functools.partial(CASES[name].layer.apply, inference_mode=True))
    return Model(params, state, apply, apply(params, state, CASES[name].x)[0])


def require_close(y: Any, wanted: Any) -> None:
    for one, other in zip(jax.tree.leaves(y), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)


@functools.cache
def tuned(name: str) -> Any:
    """Return adapters that do something, their state, and the loss with output and gradient."""
    layer, x = CASES[name].layer, CASES[name].x
    model = mlax.lora(layer, "*kernel", RANK, alpha=ALPHA)
    params, state, _, _ = made(name)
    adapters, own = mlax.init_lora(model, jax.random.key(0), x, params, state)
    adapters = jax.tree.map(lambda leaf: leaf + 0.1, adapters)

    def loss(adapters: Any) -> Any:
        y, _ = model.apply(adapters, own, x, inference_mode=True)
        return sum(jnp.sum(leaf**2) for leaf in jax.tree.leaves(y)), y

    return adapters, own, jax.jit(jax.value_and_grad(loss, has_aux=True))


@for_each_model
def test_adapters(name: str) -> None:
    params, _, apply, _ = made(name)
    adapters, own, grads_of = tuned(name)
    merged, state = jax.jit(mlax.merge_lora)(adapters, own)
    (_, y), grads = grads_of(adapters)
    require_close(y, apply(merged, state, CASES[name].x)[0])
    assert jax.tree.structure(grads) == jax.tree.structure(adapters)
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(grads))

    found = dict(zip(mlax.paths(adapters), jax.tree.leaves(adapters), strict=True))
    kernels = {path for path in mlax.paths(params) if path.endswith("kernel")}
    assert set(found) == {f"{path}.{factor}" for path in kernels for factor in "ab"}
    assert mlax.count(adapters) < mlax.count(params) / 2

    def check(path: str, before: Any, after: Any) -> None:
        if path not in kernels:
            np.testing.assert_array_equal(after, before)
            return
        a, b = (np.asarray(found[f"{path}.{factor}"], np.float64) for factor in "ab")
        added = ALPHA / RANK * a @ b
        if "conv" in path:  # (out_channels, height, width, in_channels)
            added = added.T.reshape(before.shape)
        np.testing.assert_allclose(after, before + added, rtol=1e-5, atol=1e-5)

    mlax.map_with_path(check, params, merged)


@pytest.mark.parametrize("name", ["gpt2", "resnet_basic"])
def test_training_goes_on_from_a_file(name: str, tmp_path: Path) -> None:
    optax = pytest.importorskip("optax")
    optimizer = optax.adamw(1e-2)
    adapters, _, grads_of = tuned(name)

    @jax.jit
    def step(adapters: Any, moments: Any) -> Any:
        updates, moments = optimizer.update(grads_of(adapters)[1], moments, adapters)
        return optax.apply_updates(adapters, updates), moments

    kept = step(adapters, optimizer.init(adapters))
    mlax.save(tmp_path / "adapters", kept)
    loaded = mlax.load(tmp_path / "adapters", jax.tree.map(jnp.zeros_like, kept))
    assert jax.tree.structure(loaded) == jax.tree.structure(kept)
    wanted, found = step(*kept), step(*loaded)
    jax.tree.map(np.testing.assert_array_equal, found, wanted)
    losses = [grads_of(one)[0][0] for one in (adapters, kept[0], wanted[0])]
    assert losses[0] > losses[1] > losses[2]


@for_each_model
def test_8_bits(name: str, tmp_path: Path) -> None:
    layer, x = CASES[name].layer, CASES[name].x
    params, state, apply, exact = made(name)
    small = mlax.quantized(layer)
    others, own = mlax.init_quantized(small, x, params, state)
    assert not any(path.endswith(("kernel", "embedding")) for path in mlax.paths(others))
    merged, inner = jax.jit(mlax.merge_quantized)(others, own)
    y, _ = jax.jit(functools.partial(small.apply, inference_mode=True))(others, own, x)
    require_close(y, apply(merged, inner, x)[0])
    for one, other in zip(jax.tree.leaves(y), jax.tree.leaves(exact), strict=True):
        assert 0 < abs(one - other).max() < 0.15 * abs(other).max()

    def check(path: str, before: Any, after: Any) -> None:
        if not path.endswith(("kernel", "embedding")):
            np.testing.assert_array_equal(after, before)
            return
        shared: Any = -1 if path.endswith("embedding") else (-3, -2, -1) if "conv" in path else -2
        most = np.max(abs(before), shared, keepdims=True)
        assert (abs(after - before) <= most / 254 * 1.001).all() and (after != before).any()

    mlax.map_with_path(check, params, merged)
    mlax.save(tmp_path / "small", own)
    loaded = mlax.load(tmp_path / "small", jax.tree.map(jnp.zeros_like, own))
    jax.tree.map(np.testing.assert_array_equal, loaded, own)


def test_adapters_of_a_model_in_8_bits() -> None:
    """QLoRA, in the language model that then decodes."""
    x, (params, state, apply, _) = CASES["gpt2"].x, made("gpt2")
    small = mlax.quantized(models.gpt2(GPT_2))
    others, small_state = mlax.init_quantized(small, x, params, state)
    model = mlax.lora(small, "body.*.kernel", RANK)
    adapters, own = mlax.init_lora(model, jax.random.key(0), x, others, small_state)
    assert all(isinstance(leaf, Quantized) for leaf in jax.tree.leaves(
        own.variables.layer.weights["body"], is_leaf=lambda node: isinstance(node, Quantized)))
    adapters = jax.tree.map(lambda leaf: leaf + 0.1, adapters)
    y, after = jax.jit(model.apply)(adapters, own, x)
    assert jax.tree.structure(after) == jax.tree.structure(own)
    merged, inner = jax.jit(mlax.merge_lora)(adapters, own)
    require_close(y, apply(merged, inner, x)[0])

    decoder = mlax.lora(
        mlax.quantized(models.gpt2(GPT_2, cache_length=8)), "body.*.kernel", RANK
    )
    caches = mlax.init_state(decoder, adapters, x, own)
    found, _ = jax.jit(functools.partial(decoder.apply, inference_mode=True))(adapters, caches, x)
    require_close(found, y)


def test_a_new_head() -> None:
    """On the features of the trained model."""
    llama, x = models.llama(LLAMA), CASES["llama"].x
    model = mlax.replaced(llama, "head", mlax.dense(3))
    params, state, _, _ = made("llama")
    head, _ = mlax.dense(3).init(jax.random.key(0), jnp.ones(LLAMA.features))
    own = {**params, "head": head}
    y, _ = jax.jit(model.apply)(own, mlax.init_state(model, own, x), x)
    (_, values), _ = jax.jit(mlax.tap(llama, "norm").apply)(params, state, x)
    require_close(y, np.asarray(values["norm"]) @ np.asarray(head.kernel))


@pytest.mark.parametrize(
    ("name", "around", "path", "same"),
    [
        ("gpt2", mlax.remat, "body.mlp.up", mlax.dense(128)),
        ("llama", lambda one: one, "body.mlp", mlax.mlp(48, jnp.tanh, gated=True, use_bias=False)),
        ("vit", functools.partial(mlax.cast, compute_dtype=jnp.bfloat16), "head", mlax.dense(5)),
        ("resnet_basic", mlax.tap, "stages.0.0.body.0.conv", mlax.conv(8, 3, 1, 1)),
        ("bert", mlax.frozen, "body.mlp.down", mlax.dense(32)),
    ],
)
def test_layers_of_models_are_replaced(name: str, around: Any, path: str, same: Any) -> None:
    new = mlax.Layer(lambda rng, x: ({"new": jnp.ones(1)}, ()), lambda p, s, x, *_: (x, s))
    model = around(CASES[name].layer)
    changed = mlax.replaced(model, path, mlax.series(first=same, second=new))
    params, _ = jax.eval_shape(changed.init, jax.random.key(0), CASES[name].x)
    assert set(mlax.paths(params)) == {f"{path}.second.new"} | {
        p.replace(path, f"{path}.first") if p.startswith(f"{path}.") else p
        for p in mlax.paths(made(name).params)
    }
