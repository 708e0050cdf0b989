"""`Bias` and `Scaler`: their parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlax import nn

KEY = jax.random.key(0)

SHAPES = pytest.mark.parametrize(
    ("in_features", "x_shape", "shape"),
    [
        (-1, (3,), (3,)),
        (1, (3,), (1,)),
        (0, (3,), ()),
        ([0, -1], (2, 3), (3,)),
        ((2, 0, 1), (2, 3, 4), (2, 1)),
        ((), (2, 3), ()),
        ((-1, 3), (2, 3), (2, 3)),
    ],
)


@SHAPES
def test_bias_has_one_dimension_for_each_non_zero_entry(
    in_features: Any, x_shape: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    x = jnp.ones(x_shape)
    y, bias = nn.Bias(KEY, in_features)(x, None)
    assert bias.bias_kernel.trainable is True
    assert bias.bias_kernel.data.shape == shape
    np.testing.assert_array_equal(y, x)


@SHAPES
def test_scaler_has_one_dimension_for_each_non_zero_entry(
    in_features: Any, x_shape: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    x = jnp.full(x_shape, 3.0)
    y, scaler = nn.Scaler(KEY, in_features)(x, None)
    assert scaler.scaler_kernel.trainable is True
    assert scaler.scaler_kernel.data.shape == shape
    np.testing.assert_array_equal(y, x)


def test_values() -> None:
    x = jnp.arange(6.0).reshape(2, 3)
    _, bias = nn.Bias(KEY, (-1, 0))(x, None)
    bias.bias_kernel.data = jnp.array([10.0, 20.0])
    np.testing.assert_array_equal(bias(x, None)[0], [[10, 11, 12], [23, 24, 25]])
    _, scaler = nn.Scaler(KEY, (0, 3))(x, None)
    scaler.scaler_kernel.data = jnp.array([1.0, 0.0, 2.0])
    np.testing.assert_array_equal(scaler(x, None)[0], [[0, 0, 4], [3, 0, 10]])
