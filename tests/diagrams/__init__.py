"""Diagrams to look at: NAME.svg is that of the model NAME below.

If a test says that one has changed, draw all of them anew, and look at them:

    python -m tests.diagrams
"""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import mlax
from mlax.types import Sublayers

Model = tuple[mlax.Layer[Any, Any, Any, Any], Any]

FOLDER = Path(__file__).parent


def floats(*shape: int) -> jax.ShapeDtypeStruct:
    """Return a shape."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def norm_conv(channels: int, strides: int = 1) -> mlax.Layer[Any, Any, Any, Any]:
    """Return a convolution with its norm."""
    conv = mlax.conv(channels, 3, strides, "SAME")
    return mlax.series(conv, mlax.batch_norm(), mlax.f(jax.nn.relu))


def gpt() -> Model:
    """Return the language model of README.md."""
    block = mlax.transformer_block(mlax.attention(12, causal=True), mlax.mlp(3072))
    model = mlax.series(
        embed=mlax.embed(50_257, 768), positions=mlax.position_embedding(1024),
        body=mlax.repeat(block, 12), norm=mlax.layer_norm(), head=mlax.dense(50_257),
    )
    return model, jax.ShapeDtypeStruct((8, 1024), jnp.int32)


def resnet() -> Model:
    """Return equal residuals, and one with a shortcut."""
    body = (mlax.residual(mlax.series(norm_conv(16), norm_conv(16))) for _ in range(3))
    wider = mlax.residual(norm_conv(32, 2), mlax.conv(32, 1, 2))
    head = mlax.series(mlax.global_avg_pool(), mlax.dense(10))
    model = mlax.batched(
        mlax.series(stem=norm_conv(16), body=mlax.series(*body, wider), head=head)
    )
    return model, floats(8, 32, 32, 3)


def lstm() -> Model:
    """Return loops over time, one of them with layers inside."""

    @mlax.block(gate=mlax.dense(32), cell=mlax.gru_cell(32))
    def gated(sub: Sublayers, inputs: Any) -> Any:
        x, h = inputs
        y, h = sub.cell((x, h))
        return y * jax.nn.sigmoid(sub.gate(x)), h

    model = mlax.series(
        embed=mlax.embed(96, 16), lower=mlax.carried(mlax.recurrent(mlax.lstm_cell(32))),
        upper=mlax.carried(mlax.recurrent(gated)), head=mlax.dense(96),
    )
    return model, jax.ShapeDtypeStruct((100,), jnp.int32)


def bidirectional() -> Model:
    """Return a wiring whose outputs go around each other."""
    model = mlax.bidirectional(mlax.gru_cell(4), mlax.gru_cell(4))
    return model, (floats(7, 3), (floats(4), floats(4)))


def by_sum(x: jax.Array) -> jax.Array:
    """Return an index."""
    return (x.sum() > 0).astype(int)


def branches() -> Model:
    """Return one of each combinator with layers side by side."""
    inception = mlax.branch(mlax.dense(8), mlax.series(mlax.dense(4), mlax.dense(8)), mlax.series())
    model = mlax.series(
        inception, mlax.concatenate(), mlax.f(lambda x: (x, x)),
        mlax.parallel(mlax.dense(4), mlax.f(jnp.tanh)), mlax.concatenate(),
        mlax.switch(by_sum, mlax.dense(4), mlax.dense(4)),
        mlax.ensemble(mlax.dense(2), 5),
    )
    return model, floats(4, 8)


def unet() -> Model:
    """Return a wiring with arrows that pass each other."""

    @mlax.block(
        down_1=mlax.dense(8), down_2=mlax.dense(4), bottom=mlax.dense(4), up_2=mlax.dense(8),
        up_1=mlax.dense(8),
    )
    def unet(sub: Sublayers, x: jax.Array) -> Any:
        first = sub.down_1(x)
        second = sub.down_2(first)
        y = sub.up_2(jnp.concatenate([second, sub.bottom(second)], -1))
        return x + sub.up_1(jnp.concatenate([first, y], -1))

    return unet, floats(4, 8)


def siamese() -> Model:
    """Return a layer that is called twice."""

    @mlax.block(encoder=mlax.series(mlax.dense(16), mlax.f(jnp.tanh)), head=mlax.dense(1))
    def siamese(sub: Sublayers, pair: tuple[jax.Array, jax.Array]) -> Any:
        left, right = pair
        return sub.head((sub.encoder(left) - sub.encoder(right)) ** 2)

    return siamese, (floats(3), floats(3))


def moe() -> Model:
    """Return a mixture of experts."""
    return mlax.series(mlax.moe(mlax.mlp(16), 4), mlax.f(lambda routed: routed.y)), floats(6, 8)


MODELS = {
    make.__name__: make
    for make in (gpt, resnet, lstm, bidirectional, branches, unet, siamese, moe)
}
