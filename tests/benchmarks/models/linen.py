"""Models with flax.linen: a module for each block."""

import functools
import importlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from tests.benchmarks.model import Dense, Encoder, Lstm, Make, Model, ResNet, Sizes, Tree
from tests.benchmarks.model import mean_square

nn: Any = importlib.import_module("flax.linen")  # Any: flax is not typed


class Block(nn.Module):  # type: ignore[misc, no-any-unimported]  # flax is not typed
    """A module that does what a function does."""

    wire: Callable[[Any], Any]

    @nn.compact  # type: ignore[untyped-decorator]  # flax is not typed
    def __call__(self, x: jax.Array) -> Any:
        """Return what the function returns."""
        return self.wire(x)


def model_of(module: Any, sizes: Sizes) -> Model:
    """Return a module as a model."""

    def init(key: jax.Array) -> tuple[Tree, Tree]:
        params_key, dropout_key = jax.random.split(key)
        keys = {"params": params_key, "dropout": dropout_key}
        state = module.init(keys, jnp.zeros(sizes.shape.shape))
        params = state.pop("params")
        return params, state

    def loss(params: Tree, state: Tree, x: jax.Array, key: Any) -> tuple[jax.Array, Tree]:
        y, state = module.apply(
            {"params": params, **state}, x, mutable=["batch_stats"],
            rngs=None if key is None else {"dropout": key},
        )
        return mean_square(y), state

    return Model(init, loss)


def dense(sizes: Dense) -> Model:
    """Return dense layers with relu between them."""
    *hidden, last = sizes.widths[1:]
    layers = [layer for width in hidden for layer in (nn.Dense(width), nn.relu)]
    return model_of(nn.Sequential([*layers, nn.Dense(last)]), sizes)


def resnet(sizes: ResNet) -> Model:
    """Return a ResNet with batch normalisation."""
    norm = functools.partial(nn.BatchNorm, False, momentum=0.9, epsilon=1e-5)
    conv = functools.partial(nn.Conv, use_bias=False)

    def block(channels: int, strides: int, x: jax.Array) -> jax.Array:
        y = nn.relu(norm()(conv(channels, (3, 3), strides)(x)))
        y = norm()(conv(channels, (3, 3))(y))
        z: jax.Array = nn.relu(y + (conv(channels, (1, 1), strides)(x) if strides > 1 else x))
        return z

    def network(x: jax.Array) -> Any:
        x = nn.relu(norm()(conv(sizes.channels[0], (3, 3))(x)))
        for _, channels, strides in sizes.plan:
            x = Block(functools.partial(block, channels, strides))(x)
        return nn.Dense(10)(jnp.mean(x, (1, 2)))

    return model_of(Block(network), sizes)


def lstm(sizes: Lstm) -> Model:
    """Return an lstm, which starts with zeros."""
    return model_of(nn.RNN(nn.OptimizedLSTMCell(sizes.features)), sizes)


def encoder(sizes: Encoder) -> Model:
    """Return encoder blocks, one after the other."""
    norm = functools.partial(nn.LayerNorm, epsilon=1e-5)
    dropout = functools.partial(nn.Dropout, sizes.rate, deterministic=False)

    def block(x: jax.Array) -> Any:
        x = x + dropout()(nn.MultiHeadDotProductAttention(sizes.heads)(norm()(x)))
        y = nn.Dense(sizes.features)(nn.gelu(nn.Dense(sizes.hidden)(norm()(x))))
        return x + dropout()(y)

    return model_of(nn.Sequential([Block(block) for _ in range(sizes.blocks)]), sizes)


MODELS: dict[str, Make] = {
    "mlp": dense, "dense100": dense, "resnet": resnet, "lstm": lstm, "encoder": encoder,
}
