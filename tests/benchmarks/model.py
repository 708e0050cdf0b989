"""What all contenders have in common: sizes, inputs, the losses and the training step."""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

LEARNING_RATE = 1e-8
"""So small that thousands of steps leave the numbers as they are: denormal ones are slow."""

Tree: TypeAlias = Any
"""A pytree of arrays."""


class Dense(NamedTuple):
    """Dense layers with relu between them."""

    batch: int
    widths: tuple[int, ...]
    """Of the input and of each layer."""

    @property
    def shape(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the input."""
        return jax.ShapeDtypeStruct((self.batch, self.widths[0]), jnp.float32)


class ResNet(NamedTuple):
    """A stem, residual blocks and a head of 10 classes; all but the first channels halve x."""

    batch: int
    length: int
    channels: tuple[int, ...]
    blocks: int
    """For each number of channels."""

    @property
    def shape(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the input."""
        return jax.ShapeDtypeStruct((self.batch, self.length, self.length, 3), jnp.float32)

    @property
    def plan(self) -> list[tuple[int, int, int]]:
        """Channels in, channels out and strides of each block."""
        before = [self.channels[0], *self.channels]
        return [
            (outputs if i else inputs, outputs, 1 if i or not stage else 2)
            for stage, (inputs, outputs) in enumerate(zip(before, self.channels, strict=False))
            for i in range(self.blocks)
        ]


class Lstm(NamedTuple):
    """An lstm over time, which starts with zeros."""

    batch: int
    length: int
    features: int

    @property
    def shape(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the input."""
        return jax.ShapeDtypeStruct((self.batch, self.length, self.features), jnp.float32)


class Encoder(NamedTuple):
    """Pre-norm blocks of attention and a gelu layer, with dropout on the output of both."""

    batch: int
    length: int
    features: int
    heads: int
    hidden: int
    blocks: int
    rate: float
    vocabulary: int = 0
    """If not 0: tokens in, causal attention, and the cross-entropy of the next token."""

    @property
    def shape(self) -> jax.ShapeDtypeStruct:
        """Shape and dtype of the input."""
        if self.vocabulary:
            return jax.ShapeDtypeStruct((self.batch, self.length + 1), jnp.int32)
        return jax.ShapeDtypeStruct((self.batch, self.length, self.features), jnp.float32)


Sizes: TypeAlias = Dense | ResNet | Lstm | Encoder

ENCODER = Encoder(batch=8, length=128, features=128, heads=4, hidden=512, blocks=4, rate=0.1)

SIZES: dict[str, Sizes] = {
    "mlp": Dense(128, (64, 256, 256, 10)),
    "dense100": Dense(32, (64,) * 101),
    "resnet": ResNet(batch=32, length=32, channels=(16, 32, 64), blocks=2),
    "lstm": Lstm(batch=32, length=64, features=128),
    "encoder": ENCODER,
    "encoder-repeat": ENCODER,
    "gpt-repeat": ENCODER._replace(vocabulary=256),
    "residual100-repeat": Dense(32, (64,) * 101),
    "residual100-unrolled": Dense(32, (64,) * 101),
    "layers300": Dense(8, (8,) * 101),
    "module100": Dense(8, (8,) * 101),
}
"""The rows: "-repeat" is `mlax.repeat` beside a scan, "-unrolled" the same beside a loop."""


class Model(NamedTuple):
    """A model as a contender writes it."""

    init: Callable[[jax.Array], tuple[Tree, Tree]]
    """`init(key)` returns params, all of them trained, and state."""
    loss: Callable[[Tree, Tree, jax.Array, jax.Array | None], tuple[jax.Array, Tree]]
    """`loss(params, state, x, key)` returns the loss of a batch, and state."""
    pack: Callable[[Tree, Tree], Tree] = lambda params, state: (params, state)
    """Makes what goes in and out of a step."""
    unpack: Callable[[Tree], tuple[Tree, Tree]] = lambda carry: carry


Make: TypeAlias = Callable[[Any], Model]
"""A model for sizes."""


def mean_square(y: jax.Array) -> jax.Array:
    """Return the loss of all models but of those of language."""
    return jnp.mean(jnp.square(y))


def cross_entropy(logits: jax.Array, tokens: jax.Array) -> jax.Array:
    """Return the loss of logits (batch, length, vocabulary) for tokens (batch, length)."""
    logs = jax.nn.log_softmax(logits)
    return -jnp.mean(jnp.take_along_axis(logs, tokens[..., None], axis=-1))


def example(sizes: Sizes) -> jax.Array:
    """Return the input that all contenders get."""
    key = jax.random.key(2)
    if isinstance(sizes, Encoder) and sizes.vocabulary:
        return jax.random.randint(key, sizes.shape.shape, 0, sizes.vocabulary)
    return jax.random.normal(key, sizes.shape.shape)


def arguments(model: Model, sizes: Sizes) -> tuple[Tree, jax.Array | None, jax.Array]:
    """Return what the first step gets: the packed params and state, the key if needed, and x."""
    key = jax.random.key(1) if isinstance(sizes, Encoder) else None
    return model.pack(*model.init(jax.random.key(0))), key, example(sizes)


def training_step(model: Model) -> Callable[..., tuple[Tree, jax.Array | None, jax.Array]]:
    """Return a new function: `step(carry, key, x)` returns the next carry and key, and the loss."""

    def step(carry: Tree, key: Any, x: jax.Array) -> tuple[Tree, jax.Array | None, jax.Array]:
        params, state = model.unpack(carry)
        used = None
        if key is not None:
            key, used = jax.random.split(key)
        gradient = jax.value_and_grad(model.loss, has_aux=True)
        (value, state), grads = gradient(params, state, x, used)
        params = jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, grads)
        return model.pack(params, state), key, value

    return step
