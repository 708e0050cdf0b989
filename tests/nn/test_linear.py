"""`Linear`: its parameter."""

import jax
import jax.numpy as jnp
import numpy as np

from mlax import nn

KEY = jax.random.key(0)
X = jnp.array([[1.0, -2.0, 3.0], [0.5, 0.0, 1.0]])


def test_kernel() -> None:
    y, linear = nn.Linear(KEY, 2)(X, None)
    assert linear.linear_kernel.trainable is True
    assert linear.linear_kernel.data.shape == (3, 2)
    np.testing.assert_allclose(y, np.asarray(X) @ np.asarray(linear.linear_kernel.data), rtol=1e-6)


def test_transposed_kernel() -> None:
    y, linear = nn.Linear(KEY, 2, transposed_kernel=True)(X, None)
    assert linear.linear_kernel.data.shape == (2, 3)
    np.testing.assert_allclose(
        y, np.asarray(X) @ np.asarray(linear.linear_kernel.data).T, rtol=1e-6
    )


def test_parameters_are_stored_in_dtype_and_cast_to_that_of_x() -> None:
    y, linear = nn.Linear(KEY, 2, dtype=jnp.float16)(X, None)
    assert linear.linear_kernel.data.dtype == jnp.float16
    assert y.dtype == jnp.float32
    y, linear = linear(X.astype(jnp.bfloat16), None)
    assert y.dtype == jnp.bfloat16
    assert linear.linear_kernel.data.dtype == jnp.float16


def test_accum_dtype_is_that_of_the_result() -> None:
    y, _ = nn.Linear(KEY, 2, accum_dtype=jnp.float32)(X.astype(jnp.bfloat16), None)
    assert y.dtype == jnp.float32


def test_a_kernel_put_in_is_used() -> None:
    _, linear = nn.Linear(KEY, 2)(X, None)
    linear.linear_kernel.data = jnp.ones((3, 2))
    y, _ = linear(X, None)
    np.testing.assert_allclose(y, np.array([[2, 2], [1.5, 1.5]]))
