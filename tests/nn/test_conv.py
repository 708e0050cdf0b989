"""`Conv`: its parameter."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from mlax import nn

KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("data_format", "x_shape", "kernel_shape", "specs"),
    [
        ("channel_last", (5, 6, 2), (4, 3, 1, 2), ("NHWC", "OHWI", "NHWC")),
        ("channel_first", (2, 5, 6), (4, 2, 3, 1), ("NCHW", "OIHW", "NCHW")),
        (("HCW", "IHWO", "WCH"), (5, 2, 6), (2, 3, 1, 4), ("NHCW", "IHWO", "NWCH")),
    ],
)
def test_kernel(
    data_format: Any, x_shape: tuple[int, ...], kernel_shape: tuple[int, ...], specs: Any
) -> None:
    x = jnp.sin(jnp.arange(60.0)).reshape(x_shape)
    y, conv = nn.Conv(KEY, 4, (3, 1), data_format=data_format)(x, None)
    kernel = conv.conv_kernel
    assert kernel.trainable is True
    assert kernel.data.shape == kernel_shape
    expected = lax.conv_general_dilated(
        x[None], kernel.data, (1, 1), "VALID", dimension_numbers=specs
    )
    np.testing.assert_allclose(y, expected[0], rtol=1e-5, atol=1e-6)


def test_the_initializer_is_called_with_the_documented_shape() -> None:
    shapes = []

    def initializer(key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        shapes.append(shape)
        return jnp.arange(np.prod(shape), dtype=dtype).reshape(shape)

    conv = nn.Conv(KEY, 6, (3, 1), feature_group_count=2, kernel_initializer=initializer)
    _, conv = conv(jnp.ones((5, 6, 4)), None)
    assert shapes == [(3, 1, 2, 6)]
    expected = np.arange(36.0).reshape(3, 1, 2, 6).transpose(3, 0, 1, 2)
    np.testing.assert_array_equal(conv.conv_kernel.data, expected)
