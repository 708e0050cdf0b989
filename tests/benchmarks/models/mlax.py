"""Models as the README writes them."""

import functools
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp

import mlax
from mlax import nn
from tests.benchmarks.model import Dense, Encoder, Lstm, Make, Model, ResNet, Sizes, Tree
from tests.benchmarks.model import cross_entropy, mean_square

AnyLayer: TypeAlias = mlax.Layer[Any, Any, Any, Any]

relu = mlax.f(jax.nn.relu)


def model_of(layer: AnyLayer, sizes: Sizes) -> Model:
    """Return a layer for one example as a model for a batch."""
    init, apply = mlax.batched(layer)

    def loss(params: Tree, state: Tree, x: jax.Array, key: Any) -> tuple[jax.Array, Tree]:
        y, state = apply(params, state, x, key)
        return mean_square(y), state

    return Model(lambda key: init(key, sizes.shape), loss)


def dense(sizes: Dense) -> Model:
    """Return dense layers with relu between them."""
    *hidden, last = sizes.widths[1:]
    layers = [layer for width in hidden for layer in (mlax.dense(width), relu)]
    return model_of(mlax.series(*layers, mlax.dense(last)), sizes)


def three(sizes: Dense) -> Model:
    """Return the same as three layers each."""
    *hidden, last = sizes.widths[1:]
    layers: list[AnyLayer] = []
    for width in hidden:
        layers += mlax.linear(width), mlax.bias(-1), relu
    return model_of(mlax.series(*layers, mlax.linear(last), mlax.bias(-1)), sizes)


def module(sizes: Dense) -> Model:
    """Return the same as one module, which goes in and out of a step."""

    def init(key: jax.Array) -> tuple[Tree, Tree]:
        keys = jax.random.split(key, len(sizes.widths) - 1)
        layers: list[mlax.Module] = []
        for key, width in zip(keys, sizes.widths[1:], strict=True):
            layers += nn.Dense(key, width), nn.F(jax.nn.relu)
        _, model = nn.Series(layers[:-1])(jnp.zeros(sizes.widths[0]), None)
        return model.partition()

    def loss(params: Tree, state: Tree, x: jax.Array, key: Any) -> tuple[jax.Array, Tree]:
        y, model = jax.vmap(
            params.combine(state).__call__, (0, None, None, None), (0, None), axis_name="batch"
        )(x, None, False, "batch")
        return mean_square(y), model.partition()[1]

    return Model(init, loss, lambda params, state: params.combine(state), lambda m: m.partition())


def repeated(sizes: Dense) -> Model:
    """Return residual dense layers with relu, by `mlax.repeat`."""
    block = mlax.residual(mlax.series(mlax.dense(sizes.widths[0]), relu))
    return model_of(mlax.repeat(block, len(sizes.widths) - 1), sizes)


def resnet(sizes: ResNet) -> Model:
    """Return a ResNet with batch normalisation."""

    def conv(channels: int, strides: int = 1) -> AnyLayer:
        return mlax.series(mlax.conv(channels, 3, strides, "SAME"), mlax.batch_norm())

    def block(channels: int, strides: int) -> AnyLayer:
        body = mlax.series(conv(channels, strides), relu, conv(channels))
        shortcut = mlax.conv(channels, 1, strides) if strides > 1 else None
        return mlax.series(mlax.residual(body, shortcut), relu)

    stem = mlax.series(conv(sizes.channels[0]), relu)
    blocks = mlax.series(*(block(channels, strides) for _, channels, strides in sizes.plan))
    head = mlax.series(mlax.global_avg_pool(), mlax.dense(10))
    return model_of(mlax.series(stem, blocks, head), sizes)


def lstm(sizes: Lstm) -> Model:
    """Return an lstm, which starts with zeros."""
    init, apply = mlax.batched(mlax.recurrent(mlax.lstm_cell(sizes.features)))
    carry = jax.ShapeDtypeStruct((sizes.batch, sizes.features), jnp.float32)

    def loss(params: Tree, state: Tree, x: jax.Array, key: Any) -> tuple[jax.Array, Tree]:
        zeros = jnp.zeros(carry.shape)
        (ys, _), state = apply(params, state, (x, (zeros, zeros)))
        return mean_square(ys), state

    return Model(lambda key: init(key, (sizes.shape, (carry, carry))), loss)


def attend(sizes: Encoder, projections: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
    """Return the attention of q, k, v, all (length, features)."""
    q, k, v = (x.reshape(len(x), sizes.heads, -1) for x in projections)
    logits = jnp.einsum("qhd,khd->hqk", q, k) / jnp.sqrt(q.shape[-1])
    if sizes.vocabulary:
        logits = jnp.where(jnp.tri(len(q), dtype=bool), logits, -jnp.inf)
    y = jnp.einsum("hqk,khd->qhd", jax.nn.softmax(logits), v)
    return y.reshape(projections[0].shape)


def encoder_block(sizes: Encoder) -> AnyLayer:
    """Return an encoder block."""
    width = sizes.features
    attention = mlax.series(
        mlax.layer_norm(),
        mlax.branch(mlax.dense(width), mlax.dense(width), mlax.dense(width)),
        mlax.f(functools.partial(attend, sizes)),
        mlax.dense(width),
        mlax.dropout(sizes.rate, (0, 1)),
    )
    mlp = mlax.series(
        mlax.layer_norm(),
        mlax.dense(sizes.hidden),
        mlax.f(jax.nn.gelu),
        mlax.dense(width),
        mlax.dropout(sizes.rate, (0, 1)),
    )
    return mlax.series(mlax.residual(attention), mlax.residual(mlp))


def encoder(sizes: Encoder) -> Model:
    """Return encoder blocks, one after the other."""
    return model_of(mlax.series(*(encoder_block(sizes) for _ in range(sizes.blocks))), sizes)


def encoder_repeat(sizes: Encoder) -> Model:
    """Return the same by `mlax.repeat`."""
    return model_of(mlax.repeat(encoder_block(sizes), sizes.blocks), sizes)


def gpt_repeat(sizes: Encoder) -> Model:
    """Return a language model, its blocks by `mlax.repeat`."""
    init, apply = mlax.batched(
        mlax.series(
            mlax.embed(sizes.vocabulary, sizes.features),
            mlax.bias((-1, -1), jax.nn.initializers.normal()),
            mlax.repeat(encoder_block(sizes), sizes.blocks),
            mlax.layer_norm(),
            mlax.dense(sizes.vocabulary),
        )
    )
    tokens = jax.ShapeDtypeStruct((sizes.batch, sizes.length), jnp.int32)

    def loss(params: Tree, state: Tree, x: jax.Array, key: Any) -> tuple[jax.Array, Tree]:
        logits, state = apply(params, state, x[:, :-1], key)
        return cross_entropy(logits, x[:, 1:]), state

    return Model(lambda key: init(key, tokens), loss)


MODELS: dict[str, Make] = {
    "mlp": dense,
    "dense100": dense,
    "resnet": resnet,
    "lstm": lstm,
    "encoder": encoder,
    "encoder-repeat": encoder_repeat,
    "gpt-repeat": gpt_repeat,
    "residual100-repeat": repeated,
    "residual100-unrolled": repeated,
    "layers300": three,
    "module100": module,
}
