"""Tests of `mlax.dense` against products written out."""

import jax
import jax.numpy as jnp
import pytest

from mlax.blocks.dense import dense
from tests.blocks.oracle import KEY, assert_layer_equals, normal


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 5, 3)])
def test_dense(shape: tuple[int, ...]) -> None:
    assert_layer_equals(
        dense(4),
        lambda params, x: (
            jnp.einsum("...i,io->...o", x, params["linear"].kernel) + params["bias"].bias
        ),
        normal(*shape),
    )


def test_without_bias() -> None:
    params, _ = dense.init(KEY, normal(3), 4, use_bias=False)
    assert list(params) == ["linear"]
    assert_layer_equals(
        dense(4, use_bias=False), lambda params, x: x @ params["linear"].kernel, normal(3)
    )


def test_initializers_and_dtypes() -> None:
    params, state = dense.init(
        KEY,
        jax.ShapeDtypeStruct((5, 3), jnp.bfloat16),
        2,
        kernel_initializer=jax.nn.initializers.constant(2.0),
        bias_initializer=jax.nn.initializers.constant(1.0),
        dtype=jnp.float16,
    )
    assert params["linear"].kernel.dtype == params["bias"].bias.dtype == jnp.float16
    y, _ = dense.apply(params, state, jnp.ones((5, 3), jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert y.tolist() == [[7.0] * 2] * 5


def test_errors() -> None:
    with pytest.raises(ValueError, match="dense: expected features to be a positive integer"):
        dense(0)
    with pytest.raises(TypeError, match="dense: expected dtype to be a dtype, got 'half a float'"):
        dense(1, dtype="half a float")
    with pytest.raises(ValueError, match="expected x with at least 1 axis") as info:
        dense(2).init(KEY, jnp.ones(()))
    assert any("dense" in note and "linear" in note for note in info.value.__notes__)
    with pytest.raises(TypeError, match="expected x to be of a floating dtype"):
        dense(2).init(KEY, jnp.ones(3, jnp.int32))
