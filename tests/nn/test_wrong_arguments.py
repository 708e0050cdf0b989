"""Wrong arguments of the classes: the errors are those of the pairs, and raised as early."""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import mlax
from mlax import nn

KEY = jax.random.key(0)
PAIRS: dict[Any, Any] = {
    nn.Bias: mlax.bias,
    nn.Conv: mlax.conv,
    nn.Embed: mlax.embed,
    nn.Linear: mlax.linear,
    nn.Scaler: mlax.scaler,
    nn.ZNorm: mlax.z_norm,
    nn.F: mlax.f,
    nn.FRng: mlax.f_rng,
}


def make(cls: Any, hparams: dict[str, Any]) -> Any:
    """Return a module of the class."""
    return cls(**hparams) if cls in (nn.F, nn.FRng) else cls(KEY, **hparams)


def error_of(function: Callable[[], Any]) -> tuple[type[Exception], str]:
    """Return the type and the text of what a function raises."""
    with pytest.raises((TypeError, ValueError)) as caught:
        function()
    return caught.type, str(caught.value)


@pytest.mark.parametrize(
    ("cls", "hparams", "name"),
    [
        (nn.Bias, {"in_features": 1.5}, "in_features"),
        (nn.Bias, {"in_features": -2}, "in_features"),
        (nn.Bias, {"in_features": -1, "bias_initializer": 0}, "bias_initializer"),
        (nn.Bias, {"in_features": -1, "dtype": "float33"}, "dtype"),
        (nn.Scaler, {"in_features": "all"}, "in_features"),
        (nn.Scaler, {"in_features": -1, "scaler_initializer": 1}, "scaler_initializer"),
        (nn.Scaler, {"in_features": -1, "dtype": "float33"}, "dtype"),
        (nn.Linear, {"out_features": 0}, "out_features"),
        (nn.Linear, {"out_features": "3"}, "out_features"),
        (nn.Linear, {"out_features": 3, "precision": 5}, "precision"),
        (nn.Linear, {"out_features": 3, "accum_dtype": "float33"}, "accum_dtype"),
        (nn.Linear, {"out_features": 3, "kernel_initializer": "glorot"}, "kernel_initializer"),
        (nn.Linear, {"out_features": 3, "dtype": "float33"}, "dtype"),
        (nn.Conv, {"out_channels": 0, "filter_shape": 3}, "out_channels"),
        (nn.Conv, {"out_channels": 2, "filter_shape": 0}, "filter_shape"),
        (nn.Conv, {"out_channels": 2, "filter_shape": 3, "strides": 0}, "strides"),
        (nn.Conv, {"out_channels": 2, "filter_shape": 3, "padding": "FULL"}, "padding"),
        (nn.Conv, {"out_channels": 2, "filter_shape": 3, "input_dilation": -1}, "input_dilation"),
        (nn.Conv, {"out_channels": 2, "filter_shape": 3, "filter_dilation": 0}, "filter_dilation"),
        (
            nn.Conv,
            {"out_channels": 2, "filter_shape": 3, "feature_group_count": 0},
            "feature_group_count",
        ),
        (
            nn.Conv,
            {"out_channels": 2, "filter_shape": 3, "batch_group_count": 0},
            "batch_group_count",
        ),
        (nn.Conv, {"out_channels": 2, "filter_shape": 3, "data_format": "NHWC"}, "data_format"),
        (nn.Embed, {"vocab_size": 0, "embed_dim": 3}, "vocab_size"),
        (nn.Embed, {"vocab_size": 3, "embed_dim": 2.5}, "embed_dim"),
        (nn.Embed, {"vocab_size": 3, "embed_dim": 2, "embed_initializer": 1}, "embed_initializer"),
        (nn.Embed, {"vocab_size": 3, "embed_dim": 2, "dtype": "float33"}, "dtype"),
        (nn.ZNorm, {"axis": "channels"}, "axis"),
        (nn.ZNorm, {"axis": 1.5}, "axis"),
        (nn.ZNorm, {"axis": 0, "epsilon": -1.0}, "epsilon"),
        (nn.ZNorm, {"axis": 0, "momentum": 1.5}, "momentum"),
        (nn.ZNorm, {"axis": 0, "momentum": "0.9"}, "momentum"),
        (nn.ZNorm, {"axis": 0, "mean_initializer": 0}, "mean_initializer"),
        (nn.ZNorm, {"axis": 0, "variance_initializer": 1}, "variance_initializer"),
        (nn.ZNorm, {"axis": 0, "dtype": "float33"}, "dtype"),
        (nn.F, {"train_fn": 3}, "train_fn"),
        (nn.F, {"train_fn": jnp.sin, "infer_fn": "cos"}, "infer_fn"),
        (nn.FRng, {"train_fn": None}, "train_fn"),
        (nn.FRng, {"train_fn": jnp.add, "infer_fn": 2}, "infer_fn"),
    ],
)
def test_at_construction(cls: Any, hparams: dict[str, Any], name: str) -> None:
    error, text = error_of(lambda: make(cls, hparams))
    assert re.match(rf"{PAIRS[cls].__name__}: expected {name} to be .*, got ", text)
    assert (error, text) == error_of(lambda: PAIRS[cls](**hparams))


@pytest.mark.parametrize(
    ("cls", "hparams", "x", "name"),
    [
        (nn.Bias, {"in_features": (-1, 0)}, jnp.ones(3), "in_features"),
        (nn.Bias, {"in_features": (4,)}, jnp.ones(3), "in_features"),
        (nn.Bias, {"in_features": -1}, jnp.arange(3), "x"),
        (nn.Scaler, {"in_features": (2, 2)}, jnp.ones((2, 3)), "in_features"),
        (nn.Linear, {"out_features": 3}, jnp.ones(()), "x"),
        (nn.Linear, {"out_features": 3}, jnp.arange(3), "x"),
        (nn.Conv, {"out_channels": 2, "filter_shape": (2, 2)}, jnp.ones((4, 2)), "filter_shape"),
        (
            nn.Conv,
            {"out_channels": 2, "filter_shape": 2, "strides": (1, 1)},
            jnp.ones((4, 2)),
            "strides",
        ),
        (
            nn.Conv,
            {"out_channels": 2, "filter_shape": 2, "padding": (1, 1)},
            jnp.ones((4, 2)),
            "padding",
        ),
        (
            nn.Conv,
            {"out_channels": 4, "filter_shape": 2, "feature_group_count": 2},
            jnp.ones((4, 3)),
            "feature_group_count",
        ),
        (
            nn.Conv,
            {"out_channels": 2, "filter_shape": 2, "data_format": ("HWC", "HWIO", "HWC")},
            jnp.ones((4, 2)),
            "data_format",
        ),
        (nn.Conv, {"out_channels": 2, "filter_shape": 2}, jnp.ones(4), "x"),
        (nn.Embed, {"vocab_size": 3, "embed_dim": 2}, jnp.ones(3), "x"),
        (nn.ZNorm, {"axis": 2}, jnp.ones((4, 2)), "axis"),
        (nn.ZNorm, {"axis": "channel_last"}, jnp.ones(()), "x"),
    ],
)
def test_at_the_first_call(cls: Any, hparams: dict[str, Any], x: jax.Array, name: str) -> None:
    module = make(cls, hparams)
    error, text = error_of(lambda: module(x, None))
    assert re.match(rf"{PAIRS[cls].__name__}: expected {name} ", text)
    assert (error, text) == error_of(lambda: PAIRS[cls](**hparams).init(KEY, x))
    assert not module.initialized


@pytest.mark.parametrize(
    ("cls", "hparams", "x", "wrong"),
    [
        (nn.Bias, {"in_features": (-1,)}, jnp.ones(3), jnp.ones(4)),
        (nn.Scaler, {"in_features": (0, -1)}, jnp.ones((2, 3)), jnp.ones((3, 2))),
        (nn.Linear, {"out_features": 2}, jnp.ones(3), jnp.ones((3, 4))),
        (nn.Conv, {"out_channels": 2, "filter_shape": 2}, jnp.ones((4, 2)), jnp.ones((4, 3))),
        (nn.Conv, {"out_channels": 2, "filter_shape": 2}, jnp.ones((4, 2)), jnp.ones((4, 4, 2))),
        (nn.Embed, {"vocab_size": 3, "embed_dim": 2}, jnp.arange(3), jnp.ones(3)),
        (nn.ZNorm, {"axis": 0}, jnp.ones((4, 2)), jnp.ones((4, 3))),
    ],
)
def test_at_a_later_call(cls: Any, hparams: dict[str, Any], x: jax.Array, wrong: jax.Array) -> None:
    _, module = make(cls, hparams)(x, None)
    error, text = error_of(lambda: module(wrong, None))
    init, apply = PAIRS[cls](**hparams)
    assert (error, text) == error_of(lambda: apply(*init(KEY, x), wrong))
    assert text.startswith(f"{PAIRS[cls].__name__}: expected x ")
