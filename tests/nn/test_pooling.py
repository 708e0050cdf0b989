"""`MaxPool`, `AvgPool` and `SumPool`: numbers, and what they hold."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlax import nn
from mlax.layer import AxisName

X = jnp.asarray(np.random.default_rng(0).normal(size=(4, 6, 2)), jnp.float32)
BLOCKS = np.asarray(X).reshape(2, 2, 3, 2, 2)
UNTYPED: Any = nn


@pytest.mark.parametrize(
    ("pool", "expected"),
    [
        (nn.MaxPool(2, 2), BLOCKS.max((1, 3))),
        (nn.AvgPool(2, 2), BLOCKS.mean((1, 3))),
        (nn.SumPool((2, 2), strides=(2, 2)), BLOCKS.sum((1, 3))),
    ],
    ids=["max", "avg", "sum"],
)
def test_windows(pool: Any, expected: Any) -> None:
    y, pool = pool(X, None)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    assert jax.tree.leaves(pool) == []
    pool.data_format = "channel_first"
    first, _ = pool(jnp.moveaxis(X, 2, 0), None)
    np.testing.assert_allclose(np.moveaxis(first, 0, 2), expected, rtol=1e-5, atol=1e-6)


def test_integers_stay_integers() -> None:
    y, _ = nn.MaxPool(2)(jnp.array([[-3], [-5], [2]]), None)
    np.testing.assert_array_equal(y, [[-3], [2]])
    assert y.dtype == jnp.int32


def test_a_subclass_may_override_forward_alone() -> None:
    class RootMeanSquare(nn.AvgPool):
        def forward(
            self, x: jax.Array, rng: None = None, inference_mode: bool = False,
            batch_axis_name: AxisName = (),
        ) -> jax.Array:
            return jnp.sqrt(super().forward(x**2))

    y, _ = RootMeanSquare(2, 2)(X, None)
    np.testing.assert_allclose(y, np.sqrt((BLOCKS**2).mean((1, 3))), rtol=1e-5)


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match=r"^AvgPool: missing .*'window_shape'.*it takes no key"):
        UNTYPED.AvgPool()
    with pytest.raises(TypeError, match="^max_pool: expected window_shape to be a positive int"):
        UNTYPED.MaxPool(jax.random.key(0), 2)
    with pytest.raises(ValueError, match="^sum_pool: expected window_shape to be an integer or 2"):
        nn.SumPool((2,))(X, None)
    pool = nn.MaxPool(2)
    with pytest.raises(ValueError, match="^max_pool: expected strides to be a positive integer"):
        pool.strides = 0
