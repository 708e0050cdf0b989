"""`Dense`: its parameters."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlax import nn
from mlax.layer import AxisName

KEY = jax.random.key(0)
X = jnp.array([[1.0, -2.0, 3.0], [0.5, 0.0, 1.0]])
W = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]], np.float32)
B = np.array([7.0, -8.0], np.float32)


def test_kernel_and_bias() -> None:
    y, dense = nn.Dense(KEY, 2, bias_initializer=jax.random.normal)(X, None)
    assert dense.kernel.trainable is dense.bias.trainable is True
    kernel, bias = np.asarray(dense.kernel.data), np.asarray(dense.bias.data)
    assert kernel.shape == (3, 2)
    assert bias.shape == (2,)
    np.testing.assert_allclose(y, np.asarray(X) @ kernel + bias, rtol=1e-5)


def test_without_bias_its_parameter_stays_empty() -> None:
    y, dense = nn.Dense(KEY, 2, use_bias=False)(X, None)
    assert dense.bias.data is None
    np.testing.assert_allclose(y, np.asarray(X) @ np.asarray(dense.kernel.data), rtol=1e-5)


def test_parameters_set_by_hand_need_no_setup() -> None:
    dense = nn.Dense(KEY, 2)
    dense.kernel.data, dense.bias.data = W, B
    dense.initialized = True
    np.testing.assert_allclose(dense(X, None)[0], np.asarray(X) @ W + B)


def test_a_bias_that_is_not_used_is_left_alone() -> None:
    _, dense = nn.Dense(KEY, 2, bias_initializer=jax.nn.initializers.ones)(X, None)
    with_bias, _ = dense(X, None)
    dense.use_bias = False
    np.testing.assert_allclose(dense(X, None)[0] + 1, with_bias, rtol=1e-5)
    dense.use_bias = True
    np.testing.assert_array_equal(dense(X, None)[0], with_bias)


def test_other_features_than_the_kernel_has_raise() -> None:
    _, dense = nn.Dense(KEY, 2)(X, None)
    dense.features = 5
    with pytest.raises(ValueError, match=r"^Dense: expected kernel of shape \(any, 5\), .*, got"):
        dense(X, None)
    dense.initialized = False
    assert dense(X, None)[0].shape == (2, 5)


def test_a_subclass_may_override_setup_alone() -> None:
    class Constant(nn.Dense):
        def setup(self, x: jax.Array) -> None:
            self.kernel.data = jnp.full((x.shape[-1], self.features), 2.0)
            self.bias.data = jnp.arange(2.0)

    y, _ = jax.jit(lambda module, x: module(x, None))(Constant(KEY, 2), X)
    np.testing.assert_allclose(y, 2 * np.asarray(X).sum(1, keepdims=True) + [0, 1])


def test_a_subclass_may_override_forward_alone() -> None:
    class Shifted(nn.Dense):
        def forward(
            self, x: jax.Array, rng: None = None, inference_mode: bool = False,
            batch_axis_name: AxisName = (),
        ) -> jax.Array:
            first: jax.Array = self.kernel.data[0]
            return super().forward(x) + first * self.features

    y, module = Shifted(KEY, 2)(X, None)
    kernel = np.asarray(module.kernel.data)
    np.testing.assert_allclose(y, np.asarray(X) @ kernel + 2 * kernel[0], rtol=1e-5)
