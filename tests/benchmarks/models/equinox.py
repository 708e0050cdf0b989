"""Models with equinox: its layers in tuples, and functions of one example, mapped."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tests.benchmarks.model import Dense, Encoder, Lstm, Make, Model, ResNet, Tree, mean_square

eqx: Any = importlib.import_module("equinox")  # Any: type checkers need not find it


def model_of(
    build: Callable[[Any], Tree], forward: Callable[[Tree, Any, jax.Array, Any], Any]
) -> Model:
    """Return layers, and a function of (layers, state, x, key) for one example, as a model."""
    static: Tree = None  # everything but arrays; init sets it

    def init(key: jax.Array) -> tuple[Tree, Tree]:
        nonlocal static
        layers, state = eqx.nn.make_with_state(build)(key)
        params, static = eqx.partition(layers, eqx.is_inexact_array)
        return params, state

    def loss(params: Tree, state: Tree, x: jax.Array, key: Any) -> tuple[jax.Array, Tree]:
        layers = eqx.combine(params, static)
        keys = None if key is None else jax.random.split(key, len(x))
        y, state = jax.vmap(
            functools.partial(forward, layers), in_axes=(None, 0, 0), out_axes=(0, None),
            axis_name="batch",
        )(state, x, keys)
        return mean_square(y), state

    return Model(init, loss)


def dense(sizes: Dense) -> Model:
    """Return dense layers with relu between them."""

    def build(key: jax.Array) -> Tree:
        widths = sizes.widths
        keys = jax.random.split(key, len(widths) - 1)
        return [
            eqx.nn.Linear(*args, key=key)
            for *args, key in zip(widths[:-1], widths[1:], keys, strict=True)
        ]

    def forward(layers: Tree, state: Any, x: jax.Array, key: Any) -> Any:
        *hidden, last = layers
        for layer in hidden:
            x = jax.nn.relu(layer(x))
        return last(x), state

    return model_of(build, forward)


def resnet(sizes: ResNet) -> Model:
    """Return a ResNet with batch normalisation, channels first."""

    def norm(channels: int) -> Any:
        return eqx.nn.BatchNorm(channels, "batch", momentum=0.9, mode="batch")

    def conv(inputs: int, outputs: int, length: int, strides: int, key: jax.Array) -> Any:
        return eqx.nn.Conv2d(
            inputs, outputs, length, strides, padding="SAME", use_bias=False, key=key
        )

    def build(key: jax.Array) -> Tree:
        keys = iter(jax.random.split(key, 3 * len(sizes.plan) + 2))
        first, last = sizes.channels[0], sizes.channels[-1]
        stem = conv(3, first, 3, 1, next(keys)), norm(first)
        blocks = [
            (
                conv(inputs, outputs, 3, strides, next(keys)), norm(outputs),
                conv(outputs, outputs, 3, 1, next(keys)), norm(outputs),
                conv(inputs, outputs, 1, strides, next(keys)) if strides > 1 else None,
            )
            for inputs, outputs, strides in sizes.plan
        ]
        return stem, blocks, eqx.nn.Linear(last, 10, key=next(keys))

    def forward(layers: Tree, state: Any, x: jax.Array, key: Any) -> Any:
        (conv, norm), blocks, head = layers
        y, state = norm(conv(jnp.transpose(x, (2, 0, 1))), state)
        x = jax.nn.relu(y)
        for conv1, norm1, conv2, norm2, shortcut in blocks:
            y, state = norm1(conv1(x), state)
            y, state = norm2(conv2(jax.nn.relu(y)), state)
            x = jax.nn.relu(y + (x if shortcut is None else shortcut(x)))
        return head(jnp.mean(x, (1, 2))), state

    return model_of(build, forward)


def lstm(sizes: Lstm) -> Model:
    """Return an lstm, which starts with zeros."""
    features = sizes.features

    def forward(cell: Tree, state: Any, x: jax.Array, key: Any) -> Any:
        def step(carry: Tree, x: jax.Array) -> tuple[Tree, jax.Array]:
            carry = cell(x, carry)
            return carry, carry[0]

        zeros = jnp.zeros(features)
        return jax.lax.scan(step, (zeros, zeros), x)[1], state

    return model_of(lambda key: eqx.nn.LSTMCell(features, features, key=key), forward)


def encoder(sizes: Encoder) -> Model:
    """Return encoder blocks, one after the other."""
    width = sizes.features

    def block(key: jax.Array) -> Tree:
        attention_key, up, down = jax.random.split(key, 3)
        biases = {f"use_{name}_bias": True for name in ("query", "key", "value", "output")}
        return (
            eqx.nn.LayerNorm(width),
            eqx.nn.MultiheadAttention(sizes.heads, width, **biases, key=attention_key),
            eqx.nn.LayerNorm(width),
            eqx.nn.Linear(width, sizes.hidden, key=up),
            eqx.nn.Linear(sizes.hidden, width, key=down),
            eqx.nn.Dropout(sizes.rate),
        )

    def forward(layers: Tree, state: Any, x: jax.Array, key: Any) -> Any:
        keys = jax.random.split(key, 2 * sizes.blocks)
        for i, (norm1, attention, norm2, up, down, dropout) in enumerate(layers):
            y = jax.vmap(norm1)(x)
            x = x + dropout(attention(y, y, y), key=keys[2 * i])
            y = jax.vmap(down)(jax.nn.gelu(jax.vmap(up)(jax.vmap(norm2)(x))))
            x = x + dropout(y, key=keys[2 * i + 1])
        return x, state

    return model_of(lambda key: [block(k) for k in jax.random.split(key, sizes.blocks)], forward)


MODELS: dict[str, Make] = {
    "mlp": dense, "dense100": dense, "resnet": resnet, "lstm": lstm, "encoder": encoder,
}
