"""Layers against flax.linen with the same weights, gradients included."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import mlax
from tests.oracle import KEY, assert_close, assert_layer_equals, normal

linen: Any = pytest.importorskip("flax.linen")  # Any: flax is not typed

X, IMAGE, H, C = normal(4, 6), normal(5, 5, 6), normal(4, 5, seed=3), normal(4, 5, seed=4)


def affine(params: Any) -> dict[str, jax.Array]:
    """Return the parameters of a normalisation."""
    return {"scale": params.scale, "bias": params.bias}


def gates(params: Any, names: str) -> dict[str, dict[str, jax.Array]]:
    """Return a fused projection in the layout of flax, for the inputs and the carry."""
    parts = [jnp.split(fused, len(names), -1) for fused in params[:3]]
    layers: dict[str, dict[str, jax.Array]] = {}
    for name, kernel, recurrent_kernel, bias in zip(names, *parts, strict=True):
        layers[f"i{name}"] = {"kernel": kernel, "bias": bias}
        layers[f"h{name}"] = {"kernel": recurrent_kernel}
    return layers


def test_dense() -> None:
    def oracle(params: Any, x: jax.Array) -> Any:
        return linen.Dense(3).apply({"params": params._asdict()}, x)

    assert_layer_equals(mlax.dense(3), oracle, X)


def test_layer_norm_and_rms_norm() -> None:
    assert_layer_equals(
        mlax.layer_norm(epsilon=1e-6),
        lambda params, x: linen.LayerNorm(epsilon=1e-6).apply({"params": affine(params)}, x),
        X,
    )
    assert_layer_equals(
        mlax.rms_norm(epsilon=1e-6),
        lambda params, x: linen.RMSNorm(epsilon=1e-6).apply({"params": {"scale": params.scale}}, x),
        X,
    )


def test_group_norm_and_instance_norm() -> None:
    for layer, module in (
        (mlax.group_norm(3, epsilon=1e-6), linen.GroupNorm(3, epsilon=1e-6)),
        (mlax.instance_norm(epsilon=1e-6), linen.InstanceNorm(epsilon=1e-6)),
    ):

        def oracle(params: Any, x: jax.Array, module: Any = module) -> Any:
            return module.apply({"params": affine(params)}, x[None])[0]

        assert_layer_equals(layer, oracle, IMAGE)


def test_batch_norm_and_its_statistics() -> None:
    layer = mlax.batched(mlax.batch_norm(epsilon=1e-5, momentum=0.9))
    y, state = layer.apply(*layer.init(KEY, X), X)
    module = linen.BatchNorm(use_running_average=False, epsilon=1e-5, momentum=0.9)
    expected, after = module.apply(module.init(KEY, X), X, mutable=["batch_stats"])
    assert_close(y, expected)
    statistics = after["batch_stats"]
    assert_close(jax.tree.leaves(state.variables), [statistics["mean"], statistics["var"]])


@pytest.mark.parametrize(("strides", "dilation", "groups"), [(1, 2, 1), (2, 1, 3)])
def test_causal_conv(strides: int, dilation: int, groups: int) -> None:
    module = linen.Conv(
        6, (3,), strides, "CAUSAL", kernel_dilation=dilation, feature_group_count=groups,
        use_bias=False,
    )

    def oracle(params: Any, x: jax.Array) -> Any:
        return module.apply({"params": {"kernel": jnp.moveaxis(params.kernel, 0, -1)}}, x)

    layer = mlax.conv(
        6, 3, strides, "CAUSAL", filter_dilation=dilation, feature_group_count=groups
    )
    assert_layer_equals(layer, oracle, X)


@pytest.mark.parametrize(("strides", "padding"), [(1, "SAME"), (2, "SAME"), (2, "VALID")])
def test_conv_transpose(strides: int, padding: str) -> None:
    module = linen.ConvTranspose(4, (3, 3), (strides, strides), padding, use_bias=False)

    def oracle(params: Any, x: jax.Array) -> Any:
        kernel = jnp.moveaxis(params.kernel, 0, -1)
        return module.apply({"params": {"kernel": kernel}}, x[None])[0]

    layer = mlax.conv_transpose(4, filter_shape=3, strides=strides, padding=padding)
    assert_layer_equals(layer, oracle, IMAGE)


def test_rnn_cell() -> None:
    def oracle(params: Any, x: Any) -> Any:
        layers = {
            "i": {"kernel": params.kernel, "bias": params.bias},
            "h": {"kernel": params.recurrent_kernel},
        }
        h, y = linen.SimpleCell(5).apply({"params": layers}, x[1], x[0])
        return y, h

    assert_layer_equals(mlax.rnn_cell(5), oracle, (X, H))


def test_lstm_cell() -> None:
    def oracle(params: Any, x: Any) -> Any:
        layers = gates(params, "ifgo")
        for name in "ifgo":  # flax keeps the bias with the carry
            layers[f"h{name}"]["bias"] = layers[f"i{name}"].pop("bias")
        h, c = x[1]
        (c, h), y = linen.OptimizedLSTMCell(5).apply({"params": layers}, (c, h), x[0])
        return y, (h, c)

    assert_layer_equals(mlax.lstm_cell(5), oracle, (X, (H, C)))


def test_gru_cell() -> None:
    def oracle(params: Any, x: Any) -> Any:
        layers = gates(params, "rzn")
        layers["hn"]["bias"] = params.recurrent_bias
        h, y = linen.GRUCell(5).apply({"params": layers}, x[1], x[0])
        return y, h

    assert_layer_equals(mlax.gru_cell(5), oracle, (X, H))
