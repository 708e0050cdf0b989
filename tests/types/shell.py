"""What the checkers know about the object shell: see `tests/types/composition.py`."""

from collections.abc import Sequence
from typing import Any, assert_type

import jax
from jax import Array

import mlax
from mlax import nn

key = jax.random.key(0)


class Block(mlax.Module):
    """A module as a user writes it."""

    def __init__(self, rng: Array, features: int) -> None:
        super().__init__()
        self.linear = nn.Linear(rng, features)
        self.gain = mlax.Parameter(trainable=True)

    def setup(self, x: Array) -> None:
        self.gain.data = jax.numpy.ones(())

    def forward(
        self,
        x: Array,
        rng: None = None,
        inference_mode: bool = False,
        batch_axis_name: mlax.AxisName = (),
    ) -> Array:
        gain: Array = self.gain.data
        y, self.linear = self.linear(x, rng, inference_mode, batch_axis_name)
        return gain * x + y


class Noise(mlax.Module):
    """A module that needs a key."""

    def forward(
        self,
        x: Array,
        rng: Array,
        inference_mode: bool = False,
        batch_axis_name: mlax.AxisName = (),
    ) -> Array:
        return x + jax.random.normal(rng, x.shape)


def calls(x: Array) -> None:
    linear = nn.Linear(key, 3, transposed_kernel=True)
    y, linear = linear(x, None)
    assert_type(linear, nn.Linear)
    assert_type(y, Array)
    z, block = Block(key, 3)(x, None)
    assert_type(z, Array)
    assert_type(block.apply(x, None, True), tuple[Array, Block])
    assert_type(block, Block)
    assert_type(block.linear, nn.Linear)
    trainables, rest = block.partition()
    assert_type(trainables.combine(rest), Block)
    assert_type(block.filter(inverse=True), Block)
    assert_type(nn.Series([linear, block, nn.F(jax.nn.relu)])(x, None), tuple[Any, nn.Series])
    assert_type(linear.forward(x), Array)

    nn.Linear(key)  # type: ignore[call-arg]
    nn.Linear(key, "3")  # type: ignore[arg-type]
    nn.Linear(key, 3, acum_dtype=None)  # type: ignore[call-arg]
    nn.Series([linear, jax.nn.relu])  # type: ignore[list-item]
    nn.ZNorm(key)  # type: ignore[call-arg]
    linear(x)  # type: ignore[call-arg]
    linear.linear_kernal  # type: ignore[attr-defined]
    block.combine(linear)  # type: ignore[arg-type]


def classes(x: Array) -> None:
    dense = nn.Dense(key, 3, use_bias=False)
    y, dense = dense(x, None)
    assert_type(y, Array)
    assert_type(dense, nn.Dense)
    assert_type(dense.features, int)
    assert_type(dense.use_bias, bool)
    assert_type(dense.kernel, mlax.Parameter)
    dropout = nn.Dropout(0.1, axis=0)
    assert_type(dropout(x, key), tuple[Array, nn.Dropout])
    assert_type(dropout.rate, float)
    norm = nn.BatchNorm(key, data_format="channel_first")
    assert_type(norm(x, None, False, "batch"), tuple[Array, nn.BatchNorm])
    assert_type(norm.moving_mean, mlax.Parameter)
    assert_type(nn.RMSNorm(key, axis=(0, 1))(x, None), tuple[Array, nn.RMSNorm])
    pool = nn.MaxPool((2, 2), strides=2)
    assert_type(pool(x, None), tuple[Array, nn.MaxPool])
    assert_type(pool.window_shape, int | Sequence[int])
    (h, (_, c)), lstm = nn.LSTMCell(key, 3)((x, (x, x)), None)
    assert_type(h, Array)
    assert_type(c, Array)
    assert_type(lstm, nn.LSTMCell)
    residual = nn.ResidualRng(nn.Series([dense]), dropout)
    assert_type(residual(x, key), tuple[Array, nn.ResidualRng])
    assert_type(residual.layer, mlax.Module)
    assert_type(residual.shortcut, mlax.Module | None)

    nn.Dense(key)  # type: ignore[call-arg]
    nn.Dense(key, 3, False)  # type: ignore[call-arg]
    nn.Dense(key, features="3")  # type: ignore[arg-type]
    nn.Dropout(0.1)  # type: ignore[call-arg]
    nn.BatchNorm(key, data_format="NHWC")  # type: ignore[arg-type]
    nn.MaxPool("2")  # type: ignore[arg-type]
    nn.GRUCell(key, 3)(x, None)[1].forget_bias  # type: ignore[attr-defined]
    nn.Residual(jax.nn.relu)  # type: ignore[arg-type]
    dense.features = "five"  # type: ignore[assignment]


def keys_by_name(rng: Array) -> None:
    keys = nn.split_keys(rng, "stem head")
    assert_type(keys, nn.Keys)
    assert_type(keys.stem, Array)
    stem, head = nn.split_keys(rng, ["stem", "head"])
    assert_type(stem, Array)
    assert_type(head, Array)

    nn.split_keys(rng, 3)  # type: ignore[arg-type]
    nn.split_keys("stem head", rng)  # type: ignore[arg-type]


def bridges(x: Array) -> None:
    layer = mlax.as_layer(Block(key, 3))
    assert_type(layer, mlax.Layer[Block, Block, Any, Any])
    mlax.as_layer(mlax.linear(3))  # type: ignore[arg-type]
    mlax.as_module(Block(key, 3), key)  # type: ignore[arg-type]
