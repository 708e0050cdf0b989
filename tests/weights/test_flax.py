"""Tables for modules of flax.linen, against the modules."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import pytest

import mlax
from mlax import Layer
from mlax.weights import Table, flax_conv, flax_dense, flax_gru_cell, flax_lstm_cell
from mlax.weights import flax_norm, flax_rnn_cell
from tests.oracle import KEY, normal
from tests.weights.parity import random, require_parity

linen: Any = pytest.importorskip("flax.linen")  # Any: flax is not typed
traverse_util: Any = pytest.importorskip("flax.traverse_util")  # Any: flax is not typed

X, H, C = normal(5, 4), normal(5, 3, seed=1), normal(5, 3, seed=2)


def require_module(
    module: Any, inputs: tuple[Any, ...], layer: Layer[Any, Any, Any, Any], x: Any, table: Table,
    output: Callable[[Any], Any] = lambda y: y,
) -> None:
    """Require that a module, called with inputs, and a layer with its weights agree.

    Args:
        module: a module of flax.linen.
        inputs: its inputs.
        layer: the layer under test.
        x: its input.
        table: the table under test.
        output: maps the output of the module to that of the layer.
    """
    shapes = jax.eval_shape(module.init, KEY, *inputs)
    named = traverse_util.flatten_dict(shapes, sep=".")
    tensors = {
        name: random(leaf.shape, seed) for seed, (name, leaf) in enumerate(named.items())
    }

    def run(tensors: Mapping[str, Any]) -> Any:
        variables = traverse_util.unflatten_dict(tensors, sep=".")
        return output(jax.jit(module.apply)(variables, *inputs))

    require_parity(layer, x, tensors, table, run)


def test_dense_conv_and_norms() -> None:
    module = linen.Sequential([
        linen.Conv(6, (3, 2), padding="VALID", feature_group_count=2),
        linen.BatchNorm(use_running_average=True), linen.Dense(3), linen.LayerNorm(),
        linen.Dense(2, use_bias=False),
    ])  # fmt: skip
    model = mlax.series(
        conv=mlax.conv(6, (3, 2), feature_group_count=2), bias=mlax.bias((0, 0, -1)),
        batch=mlax.batch_norm(), up=mlax.dense(3), layer=mlax.layer_norm(epsilon=1e-6),
        down=mlax.dense(2, use_bias=False),
    )
    table = [
        *flax_conv("layers_0", "conv", bias="bias"), *flax_norm("layers_1", "batch"),
        *flax_dense("layers_2", "up"), *flax_norm("layers_3", "layer"),
        *flax_dense("layers_4", "down"),
    ]
    image = normal(5, 6, 4)
    require_module(module, (image,), model, image, table)


def test_modules_that_are_not_inside_another() -> None:
    signal = normal(7, 4)
    conv, layer = linen.Conv(6, 3, padding="VALID", use_bias=False), mlax.conv(6, 3)
    require_module(conv, (signal,), layer, signal, flax_conv("", "", "OWI"))
    norm = linen.BatchNorm(use_running_average=True)
    require_module(norm, (signal,), mlax.batch_norm(), signal, flax_norm("", ""))


@pytest.mark.parametrize(
    ("module", "layer", "table"),
    [
        (linen.SimpleCell, mlax.rnn_cell, flax_rnn_cell),
        (linen.LSTMCell, mlax.lstm_cell, flax_lstm_cell),
        (linen.OptimizedLSTMCell, mlax.lstm_cell, flax_lstm_cell),
        (linen.GRUCell, mlax.gru_cell, flax_gru_cell),
    ],
)
def test_cells(module: Any, layer: Any, table: Any) -> None:
    has_pair = layer is mlax.lstm_cell  # (c, h) there, (h, c) here
    carry, h = ((C, H), (H, C)) if has_pair else (H, H)

    def output(result: Any) -> Any:
        return result[1], result[0][::-1] if has_pair else result[0]

    require_module(module(3), (carry, X), layer(3), (X, h), table("", ""), output)


def test_a_cell_in_a_loop() -> None:
    module = linen.Sequential([linen.RNN(linen.GRUCell(3)), linen.Dense(2)])
    model = mlax.series(mlax.carried(mlax.recurrent(mlax.gru_cell(3))), mlax.dense(2))
    table = [*flax_gru_cell("layers_0.cell", "0"), *flax_dense("layers_1", "1")]
    require_module(module, (X,), model, X, table)
