"""Layers against PyTorch with the same weights, gradients included, where it is installed."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import Layer
from mlax.combinators.bidirectional import bidirectional
from mlax.layers.cells import gru_cell, lstm_cell, rnn_cell
from mlax.blocks.conv import conv_transpose, depthwise_conv
from mlax.layers.dense import dense
from mlax.layers.norms import batch_norm, group_norm, instance_norm, layer_norm, rms_norm
from mlax.layers.global_pool import adaptive_avg_pool
from tests.oracle import KEY, assert_close, normal, outputs_and_gradients, randomized

torch = pytest.importorskip("torch")


def tensor(value: Any) -> Any:
    return torch.tensor(np.asarray(value))


def unchanged(x: Any) -> Any:
    return x


def channels_first(x: jax.Array) -> jax.Array:
    return jnp.moveaxis(x, -1, 0)[None]


def compare(
    layer: Layer[Any, Any, Any, Any],
    x: Any,
    module: Any,
    weights: Callable[[Any], dict[str, jax.Array]] = lambda params: {},
    to_torch: Callable[[Any], Any] = unchanged,
    output_to_torch: Callable[[Any], Any] | None = None,
    call: Callable[[Any, Any], Any] = lambda module, x: module(x),
) -> None:
    """Require equal outputs and gradients.

    Args:
        layer: the layer under test.
        x: its input.
        module: the module of PyTorch.
        weights: maps params, or their gradient, to the parameters of the module.
        to_torch: maps x, or its gradient, to the input of the module.
        output_to_torch: maps y to the output of the module; None means `to_torch`.
        call: calls the module.
    """
    params, state = layer.init(KEY, x)
    params = randomized(params)
    with torch.no_grad():
        named = dict(module.named_parameters())
        assert set(named) == set(weights(params))
        for name, value in weights(params).items():
            named[name].copy_(tensor(value))
    inputs = jax.tree.map(lambda leaf: tensor(leaf).requires_grad_(), to_torch(x))
    outputs = jax.tree.leaves(call(module, inputs))
    totals = [(leaf * tensor(normal(*leaf.shape, seed=2))).sum() for leaf in outputs]
    torch.stack(totals).sum().backward()

    y, (params_gradient, x_gradient) = outputs_and_gradients(
        lambda params, x: (output_to_torch or to_torch)(layer.apply(params, state, x)[0]),
        params,
        x,
    )
    assert_close(jax.tree.leaves(y), [leaf.detach().numpy() for leaf in outputs])
    x_gradients = [leaf.grad.numpy() for leaf in jax.tree.leaves(inputs)]
    assert_close(jax.tree.leaves(to_torch(x_gradient)), x_gradients)
    for name, gradient in weights(params_gradient).items():
        if not name.startswith("bias_hh"):  # gradients of a sum of biases that is one bias here
            assert_close(gradient, named[name].grad.numpy())


def test_dense() -> None:
    compare(
        dense(4),
        normal(5, 3),
        torch.nn.Linear(3, 4),
        lambda p: {"weight": p.kernel.T, "bias": p.bias},
    )


def scale_and_bias(params: Any) -> dict[str, jax.Array]:
    return {"weight": params.scale, "bias": params.bias}


@pytest.mark.parametrize(
    ("layer", "module"),
    [
        (batch_norm(), lambda: torch.nn.BatchNorm2d(6)),
        (group_norm(3), lambda: torch.nn.GroupNorm(3, 6)),
        (instance_norm(), lambda: torch.nn.InstanceNorm2d(6, affine=True)),
    ],
    ids=["batch_norm", "group_norm", "instance_norm"],
)
def test_norms_of_images(layer: Layer[Any, Any, Any, Any], module: Any) -> None:
    compare(layer, 1 + normal(5, 4, 6), module(), scale_and_bias, channels_first)


def test_batch_norm_in_inference() -> None:
    module = torch.nn.BatchNorm1d(3, momentum=0.2)
    batch = 1 + normal(8, 3)
    layer = mlax.batched(batch_norm(momentum=0.8))
    params, state = layer.init(KEY, batch)
    _, state = layer.apply(params, state, batch)
    module(tensor(batch))
    assert_close(state.variables.mean, module.running_mean.numpy())
    assert_close(0.8 + (state.variables.var - 0.8) * 8 / 7, module.running_var.numpy())
    with torch.no_grad():
        module.running_var.copy_(tensor(state.variables.var))
        wanted = module.eval()(tensor(batch)).numpy()
    assert_close(layer.apply(params, state, batch, inference_mode=True)[0], wanted)


def test_layer_norm_and_rms_norm() -> None:
    x = 1 + normal(5, 4, 6)
    compare(layer_norm(), x, torch.nn.LayerNorm(6), scale_and_bias)
    compare(layer_norm(axis=(1, 2)), x, torch.nn.LayerNorm((4, 6)), scale_and_bias)
    compare(
        rms_norm(), x, torch.nn.RMSNorm(6, eps=1e-6), lambda params: {"weight": params.scale}
    )


@pytest.mark.parametrize(
    ("padding", "output_padding"), [((0, 0), (0, 0)), ((1, 2), (0, 0)), ((1, 0), (1, 0))]
)
@pytest.mark.parametrize("dilation", [(1, 1), (1, 2)])
def test_conv_transpose(
    padding: tuple[int, int], output_padding: tuple[int, int], dilation: tuple[int, int]
) -> None:
    pads = tuple(
        (d * (k - 1) - p, d * (k - 1) - p + o)
        for d, k, p, o in zip(dilation, (3, 4), padding, output_padding, strict=True)
    )
    compare(
        conv_transpose(
            5, filter_shape=(3, 4), strides=(2, 3), padding=pads, filter_dilation=dilation
        ),
        normal(4, 3, 2),
        torch.nn.ConvTranspose2d(
            2, 5, (3, 4), (2, 3), padding, output_padding, bias=False, dilation=dilation
        ),
        lambda p: {"weight": p.kernel.transpose(3, 0, 1, 2)[:, :, ::-1, ::-1]},
        channels_first,
    )


def test_the_kernel_of_pytorch_as_the_docstring_has_it() -> None:
    module = torch.nn.ConvTranspose2d(2, 5, (3, 4), 2, bias=False)
    weight = module.weight.detach().numpy()
    x = normal(4, 3, 2)
    wanted = module(tensor(channels_first(x)))[0].detach().numpy()
    params, state = conv_transpose.init(KEY, x, 5, filter_shape=(3, 4), strides=2)
    kernel = jnp.asarray(weight[:, :, ::-1, ::-1].transpose(1, 2, 3, 0))
    y, _ = conv_transpose.apply(params._replace(kernel=kernel), state, x)
    assert_close(y, wanted.transpose(1, 2, 0))
    x = x.transpose(2, 0, 1)
    params, state = conv_transpose.init(
        KEY, x, 5, filter_shape=(3, 4), strides=2, data_format="channel_first"
    )
    kernel = jnp.asarray(weight[:, :, ::-1, ::-1].transpose(1, 0, 2, 3))
    assert_close(conv_transpose.apply(params._replace(kernel=kernel), state, x)[0], wanted)


def test_depthwise_conv() -> None:
    compare(
        depthwise_conv((3, 2), channel_multiplier=2, strides=(1, 2), padding=1),
        normal(5, 4, 3),
        torch.nn.Conv2d(3, 6, (3, 2), (1, 2), 1, groups=3, bias=False),
        lambda params: {"weight": params.kernel.transpose(0, 3, 1, 2)},
        channels_first,
    )


@pytest.mark.parametrize("output_shape", [(1, 1), (3, 4), (7, 5)])
def test_adaptive_avg_pool(output_shape: tuple[int, int]) -> None:
    compare(
        adaptive_avg_pool(output_shape),
        normal(5, 4, 3),
        torch.nn.AdaptiveAvgPool2d(output_shape),
        to_torch=channels_first,
    )


def cell_weights(params: Any, suffix: str = "_l0") -> dict[str, jax.Array]:
    bias_hh = jnp.zeros_like(params.bias)
    if hasattr(params, "recurrent_bias"):
        bias_hh = bias_hh.at[-len(params.recurrent_bias) :].set(params.recurrent_bias)
    return {
        f"weight_ih{suffix}": params.kernel.T,
        f"weight_hh{suffix}": params.recurrent_kernel.T,
        f"bias_ih{suffix}": params.bias,
        f"bias_hh{suffix}": bias_hh,
    }


@pytest.mark.parametrize(
    ("layer", "make"),
    [
        (rnn_cell(3), lambda **options: torch.nn.RNN(2, 3, **options)),
        (lstm_cell(3), lambda **options: torch.nn.LSTM(2, 3, **options)),
        (gru_cell(3), lambda **options: torch.nn.GRU(2, 3, **options)),
    ],
    ids=["rnn", "lstm", "gru"],
)
@pytest.mark.parametrize("directions", [1, 2])
def test_recurrent(layer: Layer[Any, Any, Any, Any], make: Any, directions: int) -> None:
    arrays = 2 if "lstm" in repr(layer) else 1

    def carry(seed: int) -> Any:
        parts = tuple(normal(3, seed=seed + i) for i in range(arrays))
        return parts if arrays > 1 else parts[0]

    def to_torch(x: Any) -> Any:
        """Stack the carries of the directions, as PyTorch does."""
        xs, h = x
        return xs, jax.tree.map(lambda *rows: jnp.stack(rows), *(h if directions > 1 else (h,)))

    def weights(params: Any) -> dict[str, jax.Array]:
        if directions == 1:
            return cell_weights(params)
        return cell_weights(params["forward"]) | cell_weights(params["backward"], "_l0_reverse")

    compare(
        mlax.recurrent(layer) if directions == 1 else bidirectional(layer, layer),
        (normal(4, 2), carry(1) if directions == 1 else (carry(1), carry(5))),
        make(bidirectional=directions > 1),
        weights,
        to_torch,
        call=lambda module, x: module(*x),
    )
