"""Tests of the convolutions against `jax.lax` and convolutions of single channels."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mlax import Layer
from mlax.arguments import Padding, Sizes
from mlax.blocks.conv import conv_transpose, depthwise_conv, separable_conv
from tests.oracle import KEY, assert_close, assert_layer_equals, normal


@pytest.mark.parametrize(
    ("window", "strides", "padding", "dilation"),
    [
        ((2, 2), (2, 2), "VALID", None),
        ((3, 2), (2, 3), "VALID", None),
        ((3, 4), (2, 2), "SAME", None),
        ((1, 5), (2, 3), "same", None),
        ((3, 3), (1, 2), "SAME", (2, 1)),
        ((3, 2), (2, 2), "VALID", (1, 3)),
        ((3, 3), (2, 2), ((1, 2), (0, 1)), None),
    ],
)
def test_conv_transpose(
    window: Sizes, strides: Any, padding: Any, dilation: Any
) -> None:
    def oracle(params: Any, x: jax.Array) -> jax.Array:
        y: jax.Array = lax.conv_transpose(
            x[None],
            params.kernel.transpose(1, 2, 3, 0),
            strides,
            padding.upper() if isinstance(padding, str) else padding,
            dilation,
            ("NHWC", "HWIO", "NHWC"),
        )
        return y[0]

    layer = conv_transpose(
        3, filter_shape=window, strides=strides, padding=padding, filter_dilation=dilation
    )
    assert_layer_equals(layer, oracle, normal(4, 3, 2))


def test_conv_transpose_written_out() -> None:
    x = normal(4, 2)
    params, state = conv_transpose.init(KEY, x, 3, filter_shape=3, strides=2)
    y, _ = conv_transpose.apply(params, state, x)
    wanted = np.zeros((9, 3))
    for i in range(4):
        for j in range(3):
            wanted[2 * i + j] += np.asarray(params.kernel)[:, 2 - j] @ np.asarray(x)[i]
    assert_close(y, jnp.asarray(wanted))


@pytest.mark.parametrize("padding", ["SAME", "VALID", 1])
def test_conv_transpose_of_channels_that_come_first(padding: Padding) -> None:
    x = normal(4, 3, 2)
    hparams: dict[str, Any] = {"filter_shape": 2, "strides": 2, "padding": padding}
    params, state = conv_transpose.init(KEY, x, 3, **hparams)
    y, _ = conv_transpose.apply(params, state, x)
    first, state = conv_transpose.init(
        KEY, x.transpose(2, 0, 1), 3, **hparams, data_format="channel_first"
    )
    assert_close(first.kernel, params.kernel.transpose(0, 3, 1, 2))
    assert_close(
        conv_transpose.apply(first, state, x.transpose(2, 0, 1))[0], y.transpose(2, 0, 1)
    )


def single_channel(x: jax.Array, kernel: jax.Array, **options: Any) -> jax.Array:
    """Return the correlation of (height, width) with (height, width)."""
    y: jax.Array = lax.conv_general_dilated(
        x[None, :, :, None], kernel[:, :, None, None],
        dimension_numbers=("NHWC", "HWIO", "NHWC"), **options,
    )  # fmt: skip
    return y[0, :, :, 0]


@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize(("strides", "padding"), [((1, 1), "VALID"), ((2, 1), "SAME")])
def test_depthwise_conv(multiplier: int, strides: tuple[int, int], padding: str) -> None:
    def oracle(params: Any, x: jax.Array) -> jax.Array:
        channels = [
            single_channel(
                x[..., i // multiplier], kernel[..., 0], window_strides=strides, padding=padding
            )
            for i, kernel in enumerate(params.kernel)
        ]
        return jnp.stack(channels, -1)

    layer = depthwise_conv(
        (3, 2), channel_multiplier=multiplier, strides=strides, padding=padding
    )
    assert_layer_equals(layer, oracle, normal(5, 4, 3))


def test_separable_conv() -> None:
    def oracle(params: Any, x: jax.Array) -> jax.Array:
        channels = [
            single_channel(
                x[..., i // 2],
                kernel[..., 0],
                window_strides=(1, 1),
                padding="VALID",
                rhs_dilation=(2, 1),
            )
            for i, kernel in enumerate(params["depthwise"].kernel)
        ]
        pointwise = params["pointwise"].kernel[:, 0, 0]
        return jnp.einsum("hwi,oi->hwo", jnp.stack(channels, -1), pointwise)

    layer = separable_conv(5, filter_shape=2, channel_multiplier=2, filter_dilation=(2, 1))
    assert_layer_equals(layer, oracle, normal(5, 4, 3))


def test_specs() -> None:
    x = normal(4, 3, 2)
    wanted, state = separable_conv.init(KEY, x, 5, filter_shape=2)
    y, _ = separable_conv.apply(wanted, state, x)
    params, state = separable_conv.init(
        KEY, x.transpose(0, 2, 1), 5, filter_shape=2, data_format=("HCW", "IHWO", "CWH")
    )
    assert_close(
        jax.tree.map(lambda kernel: kernel.transpose(3, 1, 2, 0), params), wanted
    )
    assert_close(separable_conv.apply(params, state, x.transpose(0, 2, 1))[0], y.transpose(2, 1, 0))


def test_the_default_initializers_see_the_inputs_of_one_output() -> None:
    x, draw = normal(4, 4, 6), jax.nn.initializers.lecun_normal()
    wanted = draw(KEY, (3, 2, 6, 4), jnp.float32).transpose(3, 0, 1, 2)
    params, _ = conv_transpose.init(KEY, x, 4, filter_shape=(3, 2))
    np.testing.assert_array_equal(params.kernel, wanted)
    wanted = draw(KEY, (3, 2, 1, 12), jnp.float32).transpose(3, 0, 1, 2)
    depthwise, _ = depthwise_conv.init(KEY, x, (3, 2), channel_multiplier=2)
    np.testing.assert_array_equal(depthwise.kernel, wanted)


def test_the_depthwise_initializer_keeps_the_variance() -> None:
    params, state = depthwise_conv.init(KEY, jnp.ones((8, 8, 512)), 3)
    assert float(jnp.var(params.kernel)) == pytest.approx(1 / 9, rel=0.1)
    assert params.kernel.shape == (512, 3, 3, 1)


def test_half_precision() -> None:
    x = normal(4, 4, 2).astype(jnp.bfloat16)
    # Any: their parameters are of different types.
    layers: tuple[Layer[Any, Any, jax.Array, jax.Array], ...]
    layers = (
        conv_transpose(3, filter_shape=2),
        depthwise_conv(2),
        separable_conv(3, filter_shape=2),
    )
    for layer in layers:
        params, state = layer.init(KEY, x)
        assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(np.float32)}
        assert layer.apply(params, state, x)[0].dtype == jnp.bfloat16
    wide = separable_conv(3, filter_shape=2, accum_dtype=jnp.float32, dtype=jnp.bfloat16)
    params, state = wide.init(KEY, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(jnp.bfloat16)}
    assert wide.apply(params, state, x)[0].dtype == jnp.float32


def test_errors() -> None:
    x = normal(4, 4, 2)
    with pytest.raises(ValueError, match="conv_transpose: expected padding to be one of VALID, SAME"):
        conv_transpose(3, filter_shape=2, padding="SAME_LOWER")
    with pytest.raises(ValueError, match="conv_transpose: expected out_channels to be a positive"):
        conv_transpose(0, filter_shape=2)
    with pytest.raises(ValueError, match="conv_transpose: expected strides to be an integer or 2"):
        conv_transpose(3, filter_shape=2, strides=(1, 1, 1)).init(KEY, x)
    with pytest.raises(ValueError, match="depthwise_conv: expected channel_multiplier to be a pos"):
        depthwise_conv(2, channel_multiplier=0)
    with pytest.raises(ValueError, match="depthwise_conv: expected x with at least 2 axes"):
        depthwise_conv(2).init(KEY, normal(3))
    with pytest.raises(ValueError, match="depthwise_conv: expected data_format to be a spec of 3"):
        depthwise_conv(2, data_format=("HWDC", "HWDIO", "HWDC")).init(KEY, x)
    with pytest.raises(ValueError, match="separable_conv: expected filter_shape to be a positive"):
        separable_conv(3, filter_shape=-1)
    with pytest.raises(TypeError, match="expected x to be of a floating dtype"):
        separable_conv(3, filter_shape=2).init(KEY, jnp.ones((4, 4, 2), jnp.int32))
