"""What all layers of one array do with an input that is not an array."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax

KEY = jax.random.key(0)
LAYERS: tuple[mlax.Layer[Any, Any, Any, Any], ...] = (
    mlax.linear(3),
    mlax.bias((0, -1)),
    mlax.scaler((0, -1)),
    mlax.conv(3, 1),
    mlax.embed(3, 3),
    mlax.z_norm("all"),
    mlax.dropout(0.5, 0),
    mlax.max_pool(2),
    mlax.avg_pool(2),
    mlax.sum_pool(2),
    mlax.dense(3),
    mlax.conv_transpose(3, filter_shape=1),
    mlax.depthwise_conv(1),
    mlax.batch_norm(),
    mlax.layer_norm(),
    mlax.rms_norm(),
    mlax.group_norm(1),
    mlax.instance_norm(),
    mlax.global_avg_pool(),
    mlax.adaptive_avg_pool(1),
)


@pytest.mark.parametrize("layer", LAYERS, ids=repr)
@pytest.mark.parametrize(
    ("x", "got"), [(1.0, "1.0"), ([1.0], "a list"), ((jnp.ones(3), jnp.ones(3)), "a tuple")]
)
def test_what_is_no_array_raises(
    layer: mlax.Layer[Any, Any, Any, Any], x: Any, got: str
) -> None:
    with pytest.raises(TypeError, match=rf"^\w+: expected x to be an array, got {got}$"):
        layer.init(KEY, x)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "layer", [layer for layer in LAYERS if layer != mlax.embed(3, 3)], ids=repr
)
def test_float64_of_numpy_is_taken_in_the_dtype_that_jax_has_for_it(
    layer: mlax.Layer[Any, Any, Any, Any],
) -> None:
    x = np.random.default_rng(0).normal(size=(4, 4))
    params, state = layer.init(KEY, x)
    y, _ = layer.apply(params, state, x, KEY)
    expected, _ = layer.apply(params, state, jnp.asarray(x), KEY)
    np.testing.assert_array_equal(y, expected, strict=True)
