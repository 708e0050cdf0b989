"""Small models that together cover the library.

Functions in a state are pickled by their names, so those of this module have to keep them.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

import mlax
from mlax import nn
from mlax.arguments import AnyLayer
from mlax.layer import Key


class Model(NamedTuple):
    """A layer for a batch, with an input."""

    layer: AnyLayer
    """The layer."""
    x: Any
    """A pytree of NumPy arrays."""


def _normal(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def uniform(key: Key, shape: Sequence[int], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Draw an array as one row, which takes a quarter of the time to compile."""
    row: jax.Array = jax.random.uniform(key, (math.prod(shape),), dtype, -0.5, 0.5)
    return row.reshape(shape)


relu = mlax.f(jax.nn.relu)

perceptron = mlax.series(
    mlax.linear(8),
    mlax.bias(-1, uniform),
    mlax.batch_norm(),
    relu,
    mlax.dropout(0.5, 0),
    mlax.dense(3),
    mlax.scaler(-1),
)

resnet = mlax.series(
    stem=mlax.series(
        mlax.conv(4, 3, 2, "SAME", kernel_initializer=uniform), mlax.batch_norm(), relu,
        mlax.max_pool(2),
    ),
    body=mlax.residual(
        mlax.series(
            mlax.separable_conv(
                4, filter_shape=3, padding="SAME", depthwise_initializer=uniform,
                pointwise_initializer=uniform,
            ),
            mlax.group_norm(2), relu, mlax.dropout(0.2, -1),
        )
    ),
    tail=mlax.stochastic_depth(mlax.residual(mlax.series(mlax.instance_norm(), relu)), 0.5),
    up=mlax.conv_transpose(3, filter_shape=2, strides=2, kernel_initializer=uniform),
    head=mlax.series(mlax.avg_pool(2, 2), mlax.adaptive_avg_pool(2), mlax.flatten(), mlax.dense(2)),
)


def _with_dropout(cell: AnyLayer) -> AnyLayer:
    """Return a cell with dropout of its output."""
    dropped: AnyLayer = mlax.series(cell, mlax.parallel(mlax.dropout(0.3, 0), mlax.series()))
    return dropped


@mlax.block(
    lstm=mlax.recurrent(_with_dropout(mlax.lstm_cell(4))),
    backwards=mlax.recurrent(mlax.rnn_cell(4, kernel_initializer=uniform), reverse=True),
    both=mlax.bidirectional(mlax.gru_cell(3), mlax.gru_cell(3)),
)
def recurrences(sub: Any, inputs: tuple[jax.Array, jax.Array]) -> Any:
    """Cells of each kind; the carries start with numbers of the input."""
    xs, h = inputs
    xs, (_, c) = sub.lstm((xs, (h, h)))
    xs, h = sub.backwards((xs, h))
    ys, carries = sub.both((xs, (h[:3], c[:3])))
    return ys, carries


@mlax.block(
    norm=mlax.rms_norm(),
    mix=mlax.dense(6, kernel_initializer=uniform),
    drop=mlax.dropout(0.1, (0, 1)),
)
def mixer(sub: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """A layer of the language model."""
    x, mask = inputs
    return x + sub.drop(jax.nn.gelu(sub.mix(sub.norm(x)))) * mask[:, None], mask


@mlax.block(
    embed=mlax.embed(7, 6),
    position=mlax.parameter((4, 6), uniform),
    body=mlax.repeat(mixer, 2),
    norm=mlax.layer_norm(),
)
def language_model(sub: Any, inputs: tuple[jax.Array, jax.Array]) -> jax.Array:
    """A model whose last layer shares the weights of the first."""
    tokens, mask = inputs
    x, _ = sub.body((sub.embed(tokens) + sub.position(), mask))
    logits: jax.Array = sub.norm(x) @ sub.embed.params.embedding.T
    return logits


def is_positive(x: jax.Array) -> jax.Array:
    """Return 1 if the sum of x is positive, else 0."""
    return (x.sum() > 0).astype(jnp.int32)


copies = mlax.series(
    mlax.switch(
        is_positive,
        mlax.series(mlax.dense(4), mlax.dropout(0.5, 0)),
        mlax.series(mlax.linear(4), mlax.f(jnp.tanh)),
    ),
    mlax.repeat(mlax.series(mlax.dense(4), mlax.z_norm(()), mlax.dropout(0.2, 0)), 3),
    mlax.ensemble(
        mlax.series(
            mlax.remat(mlax.linear(2, kernel_initializer=uniform)), mlax.dropout(0.5, 0)
        ),
        2,
    ),
    mlax.branch(mlax.cast(mlax.dense(3), output_dtype=jnp.float32), mlax.frozen(mlax.dense(3))),
    mlax.add(),
)


def network(rng: Key) -> nn.SeriesRng:
    """Return a module of the documented classes."""
    keys = nn.split_keys(rng, "conv norm linear bias scaler")
    return nn.SeriesRng(
        [
            nn.Conv(keys.conv, 4, 3, padding="SAME"),
            nn.ZNorm(keys.norm, "channel_last"),
            nn.F(jax.nn.relu),
            nn.MaxPool(2, 2),
            nn.Dropout(0.5, -1),
            nn.Residual(nn.Series([nn.Linear(keys.linear, 4), nn.Bias(keys.bias, (0, 0, -1))])),
            nn.Scaler(keys.scaler, (0, 0, -1)),
        ]
    )


TOKENS = np.array([[0, 6, 2, 1], [3, 3, 5, 4]], np.int32)

MODELS = {
    "perceptron": Model(mlax.batched(perceptron), _normal(3, 4)),
    "resnet": Model(mlax.batched(resnet), _normal(2, 8, 8, 2)),
    "recurrences": Model(mlax.batched(recurrences), (_normal(2, 5, 3), _normal(2, 4))),
    "language_model": Model(mlax.batched(language_model), (TOKENS, np.float32(TOKENS > 1))),
    "copies": Model(mlax.batched(copies), _normal(3, 4)),
    "classes": Model(mlax.batched(mlax.as_layer(network)), _normal(2, 4, 4, 2)),
}
"""The models, by the name of their files."""
