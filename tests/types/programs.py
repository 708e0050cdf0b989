"""What the checkers know about whole programs: decoding, plans, files, weights, models.

See `tests/types/composition.py`.
"""

from typing import Any, assert_type

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh, PartitionSpec

import mlax
from mlax import models, typed, types, weights
from mlax.types import (
    AttentionConfig,
    AttentionInputs,
    AttentionParams,
    ComposedConfig,
    DenseConfig,
    DenseParams,
    DictState,
    Layer,
    NormParams,
    Plan,
    Rules,
    State,
    Sublayers,
    TupleState,
)

key = jax.random.key(0)
x = jax.numpy.ones(3)

Params = tuple[DenseParams, NormParams]
ModelState = TupleState[
    tuple[State[tuple[()], DenseConfig], State[tuple[()], types.LayerNormConfig]]
]
Named = Layer[dict[str, Any], DictState, Array, Array]


def model() -> Layer[Params, ModelState, Array, Array]:
    return mlax.series(mlax.dense(4), mlax.layer_norm())


def gpt(cache_length: int | None = None) -> Named:
    attention = mlax.attention(4, causal=True, cache_length=cache_length)
    block = mlax.transformer_block(attention, mlax.mlp(8), norm=mlax.rms_norm())
    return mlax.series(embed=mlax.embed(9, 8), body=mlax.repeat(block, 2), head=mlax.dense(9))


def attending() -> None:
    attention: Layer[AttentionParams, State[Any, AttentionConfig], Array, Array]
    attention = mlax.attention(4)
    masked: Layer[AttentionParams, State[Any, AttentionConfig], AttentionInputs, Array]
    masked = mlax.attention(4)
    params, state = masked.init(key, AttentionInputs(x))
    assert_type(params.output.kernel, Array)
    y, _ = masked.apply(params, state, AttentionInputs(x, mask=x > 0))
    assert_type(y, Array)
    mlax.series(mlax.embed(9, 8), attention, mlax.mlp(8), mlax.mamba_block(8))

    @mlax.block(body=mlax.transformer_block(mlax.attention(2), mlax.mlp(8)))
    def encoder(sub: Sublayers, inputs: AttentionInputs) -> Array:
        y: Array = sub.body(inputs).x
        return y

    assert_type(encoder, Layer[dict[str, Any], DictState, AttentionInputs, Array])

    params.kernel  # type: ignore[attr-defined]
    mlax.attention("4")  # type: ignore[arg-type]
    mlax.attention(4, causl=True)  # type: ignore[call-arg]
    mlax.attention(4, implementation="flash")  # type: ignore[arg-type]
    mlax.attention(4, cache_policy="drop")  # type: ignore[arg-type]
    mlax.transformer_block(mlax.attention(4))  # type: ignore[call-arg]
    mlax.transformer_block(mlax.attention, mlax.mlp(3))  # type: ignore[arg-type]
    mlax.mlp(3, "gelu")  # type: ignore[arg-type]
    mlax.series(mlax.lru(3), mlax.mamba_block(3))  # type: ignore[misc]


def decoding(prompt: Array) -> None:
    params, _ = gpt().init(key, prompt)
    decoder = gpt(16)
    caches = mlax.init_state(decoder, params, prompt)
    assert_type(caches, DictState)
    drawn = mlax.generate(decoder.apply, params, caches, prompt, 10, temperature=0)
    assert_type(drawn, types.Generated)
    assert_type(mlax.beam_search(decoder.apply, params, caches, prompt, 10, 3), types.Beams)

    mlax.generate(decoder, params, caches, prompt, 10)  # type: ignore[arg-type]
    mlax.generate(decoder.apply, caches, params, prompt, 10)  # type: ignore[misc]
    mlax.generate(decoder.apply, params, caches, prompt, 10, top_q=1)  # type: ignore[call-arg]
    mlax.init_state(decoder, caches, prompt)  # type: ignore[misc]


def training(params: Params, state: ModelState, x: Array) -> tuple[Params, ModelState]:
    """The state, whose config holds an Any, is an auxiliary value."""

    def loss(params: Params, state: ModelState, x: Array) -> tuple[Array, ModelState]:
        y, state = model().apply(mlax.freeze(params, "0.*"), state, x)
        return y.sum(), state

    @typed.jit(donate_argnums=(0, 1))
    def step(params: Params, state: ModelState, x: Array) -> tuple[Params, ModelState]:
        (value, state), grads = typed.value_and_grad(loss, has_aux=True)(params, state, x)
        assert_type(value, Array)
        return grads, state

    step(state, params, x)  # type: ignore[arg-type]
    return step(params, state, x)


def planned(mesh: Mesh) -> None:
    rules: Rules = [("0.bias", PartitionSpec()), "fsdp"]
    plan = mlax.sharding.plan(model(), x, rules, mesh)
    assert_type(plan, Plan[Params, ModelState, Array, Array])
    params, state = plan.init(key)
    assert_type(params[0].kernel, Array)
    assert_type(plan.apply(params, state, x), tuple[Array, ModelState])
    typed.jit(plan.apply, in_shardings=(plan.params, plan.state, plan.x))(params, state, x)

    plan.apply(state, params, x)  # type: ignore[arg-type]
    mlax.sharding.plan(model(), x, [("head",)], mesh)  # type: ignore[list-item]
    mlax.sharding.plan(model(), x, "data", 8)  # type: ignore[arg-type]


def files(params: Params, state: ModelState) -> None:
    mlax.save("model", {"params": params, "state": state})
    assert_type(mlax.load("model", (params, state)), tuple[Params, ModelState])
    mlax.load("model", params, where=["0.*"], cast=True, rules=[("stem.*", "0.*"), ("old", None)])
    assert_type(mlax.export(model(), params, state, x, platforms=("cpu",)), types.Artifact)

    mlax.save(params, "model")  # type: ignore[arg-type]
    mlax.load("model")  # type: ignore[call-arg]
    mlax.export(model(), state, params, x)  # type: ignore[misc]
    mlax.export(model(), params, state, x, weights="outside")  # type: ignore[arg-type]


def published(tensors: dict[str, np.ndarray[Any, Any]], tokens: Array) -> None:
    llama = models.llama(models.LLAMA_3_8B._replace(vocab_size=50))
    like = llama.init(key, tokens)
    params, state = weights.convert(tensors, models.LLAMA_HUGGINGFACE, like)
    assert_type(params, dict[str, Any])
    assert_type(state, State[dict[str, Any], ComposedConfig])
    table = [*weights.torch_linear("fc", "head"), weights.Rule("lm_head.*", None)]
    weights.convert(tensors, table, like)
    bert = models.bert(models.BERT_BASE)
    outputs, _ = bert.apply(*bert.init(key, tokens), models.BertInputs(tokens))
    assert_type(outputs, models.BertOutputs)
    bert.apply(*bert.init(key, tokens), tokens)
    images = models.resnet(models.RESNET_18)
    assert_type(images.apply(*images.init(key, x), x)[0], Array)
    mlax.testing.check_laws(images, x, skip={"gradients": "they take too long"})

    models.llama(models.GPT_2)  # type: ignore[arg-type]
    models.resnet("18")  # type: ignore[arg-type]
    bert.apply(*bert.init(key, tokens), (tokens, tokens))  # type: ignore[arg-type]
    weights.convert(tensors, [("fc", "head")], like)  # type: ignore[list-item]
    weights.convert(tensors, models.LLAMA_HUGGINGFACE)  # type: ignore[call-arg]
    mlax.testing.check_laws(mlax.dense, x)  # type: ignore[arg-type]


def around_a_model() -> None:
    params, state = model().init(key, x)
    (y, values), _ = mlax.tap(model(), ["0"]).apply(params, state, x)
    assert_type(y, Array)
    assert_type(values, dict[str, Any])
    changed = mlax.replaced(model(), "0", mlax.dense(4))
    assert_type(changed, types.AnyLayer)

    mlax.tap(model().apply)  # type: ignore[arg-type]
    mlax.replaced(model(), "0")  # type: ignore[call-arg]
    mlax.cast(model(), compute_dtype="bf16").apply(params, state, x)  # type: ignore[arg-type]
    mlax.frozen(model()).apply(params, state, x)  # type: ignore[arg-type]
