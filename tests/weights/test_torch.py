"""Tables for modules of PyTorch, against the modules, where it is installed."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import AttentionInputs, Layer
from mlax.weights import Table, convert, torch_attention, torch_conv, torch_gru, torch_linear
from mlax.weights import torch_lstm, torch_norm, torch_rnn
from tests.oracle import KEY, normal
from tests.weights.parity import random, require_parity

torch = pytest.importorskip("torch")
nn = torch.nn

X, H, C = normal(5, 4), normal(5, 3, seed=1), normal(5, 3, seed=2)


def require_module(
    module: Any, call: Callable[..., Any], layer: Layer[Any, Any, Any, Any], x: Any, table: Table,
    **options: Any,
) -> None:
    """Require that a module, called with the arrays in x, and a layer with its weights agree."""
    tensors = {
        name: random(tensor.shape, seed) if tensor.is_floating_point() else tensor.numpy()
        for seed, (name, tensor) in enumerate(module.state_dict().items())
    }

    def run(tensors: Mapping[str, Any]) -> Any:
        weights = {name: torch.tensor(tensor) for name, tensor in tensors.items()}
        lacking, unknown = module.load_state_dict(weights, strict=False)
        assert set(lacking) <= set(options.get("left_out", ())) and not unknown
        with torch.no_grad():
            y = call(module.eval(), *(torch.tensor(np.asarray(a)) for a in jax.tree.leaves(x)))
        return jax.tree.map(lambda tensor: tensor.numpy(), y)

    require_parity(layer, x, tensors, table, run, **options)


def test_linear_and_layer_norm() -> None:
    module = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 2, bias=False))
    head = mlax.dense(2, use_bias=False)
    model = mlax.series(stem=mlax.dense(3), body=mlax.layer_norm(), head=head)
    table = [*torch_linear("0", "stem"), *torch_norm("1", "body"), *torch_linear("2", "head")]
    require_module(module, nn.Sequential.forward, model, X, table)


def test_batch_norm() -> None:
    layer = mlax.batch_norm(data_format="channel_first")
    require_module(
        nn.BatchNorm2d(3), lambda module, x: module(x[None])[0], layer, normal(3, 2, 4),
        torch_norm("", ""), left_out=("num_batches_tracked",),
    )


@pytest.mark.parametrize(
    ("module", "shape", "layer", "kernel"),
    [
        (nn.Conv1d(4, 6, 3, 2), (7,), mlax.conv(6, 3, 2), "OWI"),
        (nn.Conv2d(4, 6, (3, 2), groups=2), (5, 4),
         mlax.conv(6, (3, 2), feature_group_count=2), "OHWI"),
        (nn.Conv2d(4, 6, (3, 2)), (5, 4),
         mlax.conv(6, (3, 2), data_format=("HWC", "HWIO", "HWC")), "HWIO"),
        (nn.Conv3d(4, 6, (1, 3, 2)), (2, 5, 4), mlax.conv(6, (1, 3, 2)), "ODHWI"),
    ],
    ids=["1d", "groups", "HWIO", "3d"],
)  # fmt: skip
def test_conv(module: Any, shape: tuple[int, ...], layer: Any, kernel: str) -> None:
    model = mlax.series(conv=layer, bias=mlax.bias((*(0 for _ in shape), -1)))
    require_module(
        module, lambda module, x: module(x.movedim(-1, 0)[None])[0].movedim(0, -1), model,
        normal(*shape, 4), torch_conv("", "conv", kernel, bias="bias"),
    )


def test_conv_with_the_channels_first_and_without_bias() -> None:
    require_module(
        nn.Conv2d(4, 6, (3, 2), bias=False), lambda module, x: module(x[None])[0],
        mlax.conv(6, (3, 2), data_format="channel_first"), normal(4, 5, 4),
        torch_conv("", "", "OIHW"),
    )


@pytest.mark.parametrize(
    ("module", "cell", "table"),
    [
        (nn.RNN, mlax.rnn_cell, torch_rnn), (nn.LSTM, mlax.lstm_cell, torch_lstm),
        (nn.GRU, mlax.gru_cell, torch_gru),
    ],
)
def test_layers_of_cells_in_both_directions(module: Any, cell: Any, table: Any) -> None:
    def start(xs: Any) -> Any:
        h = (jnp.zeros(3), jnp.zeros(3)) if cell is mlax.lstm_cell else jnp.zeros(3)
        return h, h

    def both() -> Any:
        return mlax.carried(mlax.bidirectional(cell(3), cell(3)), start)

    rules = [
        rule
        for layer in range(2)
        for rule in (
            *table("rnn", f"{layer}.forward", layer),
            *table("rnn", f"{layer}.backward", layer, reverse=True),
        )
    ]
    require_module(
        nn.ModuleDict({"rnn": module(4, 3, 2, bidirectional=True)}),
        lambda module, x: module["rnn"](x)[0], mlax.series(both(), both()), X, rules, adds=True,
    )


def test_layers_of_cells_in_a_loop() -> None:
    model = mlax.repeat(mlax.carried(mlax.recurrent(mlax.gru_cell(4))), 3)
    table = torch_gru("", "", "{layer}")
    require_module(nn.GRU(4, 4, 3), lambda gru, x: gru(x)[0], model, X, table, adds=True)


def test_cells() -> None:
    def of_one(module: Any, x: Any, h: Any) -> Any:
        y = module(x, h)
        return y, y

    def of_two(module: Any, x: Any, h: Any, c: Any) -> Any:
        new = module(x, (h, c))
        return new[0], new

    for module, call, layer, h, table in (
        (nn.RNNCell(4, 3), of_one, mlax.rnn_cell(3), H, torch_rnn),
        (nn.GRUCell(4, 3), of_one, mlax.gru_cell(3), H, torch_gru),
        (nn.LSTMCell(4, 3), of_two, mlax.lstm_cell(3), (H, C), torch_lstm),
    ):
        require_module(module, call, layer, (X, h), table("", "", None), adds=True)


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_attention(fused: bool, bias: bool) -> None:
    require_module(
        nn.ModuleDict({"mha": nn.MultiheadAttention(4, 2, bias=bias)}),
        lambda module, x: module["mha"](x, x, x)[0],
        mlax.series(attention=mlax.attention(2, fused=fused, use_bias=bias)), X,
        torch_attention("mha", "attention"),
    )


def test_attention_to_a_memory_of_other_features() -> None:
    require_module(
        nn.MultiheadAttention(4, 2, kdim=3, vdim=3), lambda module, x, m: module(x, m, m)[0],
        mlax.attention(2), AttentionInputs(X, memory=normal(6, 3)),
        torch_attention("", "", separate=True),
    )


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "float8_e4m3fn", "float64"])
def test_tensors_may_have_a_gradient_and_be_of_any_floating_dtype(dtype: str) -> None:
    weight = torch.randn(3, 4).to(getattr(torch, dtype))
    bias = torch.zeros(3, requires_grad=dtype != "float8_e4m3fn")
    given = {"weight": weight.t().contiguous().t().requires_grad_(True), "bias": bias}
    params, _ = convert(given, torch_linear("", ""), mlax.dense(3).init(KEY, X))
    assert params.kernel.dtype == jnp.dtype(dtype)
    np.testing.assert_array_equal(params.kernel.astype(float), weight.double().numpy().T)


def test_a_tensor_that_numpy_does_not_take_is_named() -> None:
    given = {"weight": torch.eye(4).to_sparse(), "bias": torch.zeros(4)}
    with pytest.raises(TypeError) as caught:
        convert(given, torch_linear("", ""), mlax.dense(3).init(KEY, X))
    assert caught.value.__notes__ == ["convert: in the tensor weight"]


def test_a_convolution_along_one_axis_has_a_spec_of_its_own() -> None:
    model = mlax.conv(8, 3)
    given = {"c.weight": np.ones((8, 3, 3))}  # 3 channels, width 3
    like = jax.eval_shape(model.init, KEY, normal(7, 3))
    with pytest.raises(ValueError, match=r"by OIHW->OHWI; .*kernel=\"OWI\" of a convolution along"):
        convert(given, torch_conv("c", ""), like)
    assert convert(given, torch_conv("c", "", "OWI"), like)[0].kernel.shape == (8, 3, 3)
