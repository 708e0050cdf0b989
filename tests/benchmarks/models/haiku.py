"""Models with haiku."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tests.benchmarks.model import Dense, Encoder, Lstm, Make, Model, ResNet, Sizes, Tree
from tests.benchmarks.model import mean_square

hk: Any = importlib.import_module("haiku")  # Any: type checkers need not find it


def model_of(forward: Callable[[jax.Array], Any], sizes: Sizes) -> Model:
    """Return a function that uses haiku as a model."""
    init, apply = hk.transform_with_state(forward)

    def loss(params: Tree, state: Tree, x: jax.Array, key: Any) -> tuple[jax.Array, Tree]:
        y, state = apply(params, state, key, x)
        return mean_square(y), state

    return Model(lambda key: init(key, jnp.zeros(sizes.shape.shape)), loss)


def dense(sizes: Dense) -> Model:
    """Return dense layers with relu between them."""

    def forward(x: jax.Array) -> Any:
        *hidden, last = sizes.widths[1:]
        for width in hidden:
            x = jax.nn.relu(hk.Linear(width)(x))
        return hk.Linear(last)(x)

    return model_of(forward, sizes)


def resnet(sizes: ResNet) -> Model:
    """Return a ResNet with batch normalisation."""
    conv = functools.partial(hk.Conv2D, with_bias=False)

    def norm(x: jax.Array) -> jax.Array:
        y: jax.Array = hk.BatchNorm(True, True, 0.9, eps=1e-5)(x, True)
        return y

    def forward(x: jax.Array) -> Any:
        x = jax.nn.relu(norm(conv(sizes.channels[0], 3)(x)))
        for _, channels, strides in sizes.plan:
            y = jax.nn.relu(norm(conv(channels, 3, strides)(x)))
            y = norm(conv(channels, 3)(y))
            x = jax.nn.relu(y + (conv(channels, 1, strides)(x) if strides > 1 else x))
        return hk.Linear(10)(jnp.mean(x, (1, 2)))

    return model_of(forward, sizes)


def lstm(sizes: Lstm) -> Model:
    """Return an lstm, which starts with zeros."""

    def forward(x: jax.Array) -> Any:
        cell = hk.LSTM(sizes.features)
        return hk.dynamic_unroll(cell, x, cell.initial_state(sizes.batch), time_major=False)[0]

    return model_of(forward, sizes)


def encoder(sizes: Encoder) -> Model:
    """Return encoder blocks, one after the other."""
    width = sizes.features
    weights = hk.initializers.VarianceScaling(1.0)

    def norm(x: jax.Array) -> jax.Array:
        y: jax.Array = hk.LayerNorm(-1, True, True)(x)
        return y

    def dropout(x: jax.Array) -> jax.Array:
        y: jax.Array = hk.dropout(hk.next_rng_key(), sizes.rate, x)
        return y

    def forward(x: jax.Array) -> Any:
        for _ in range(sizes.blocks):
            attention = hk.MultiHeadAttention(sizes.heads, width // sizes.heads, w_init=weights)
            y = norm(x)
            x = x + dropout(attention(y, y, y))
            y = hk.Linear(width)(jax.nn.gelu(hk.Linear(sizes.hidden)(norm(x))))
            x = x + dropout(y)
        return x

    return model_of(forward, sizes)


MODELS: dict[str, Make] = {
    "mlp": dense, "dense100": dense, "resnet": resnet, "lstm": lstm, "encoder": encoder,
}
