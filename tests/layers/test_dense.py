"""Tests of `mlax.dense` against products written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlax.layers.dense import DenseParams, dense
from tests.oracle import KEY, assert_layer_equals, normal


@pytest.mark.parametrize("shape", [(3,), (5, 3), (2, 5, 3), (0, 3), (1, 3)])
def test_dense(shape: tuple[int, ...]) -> None:
    assert_layer_equals(
        dense(4),
        lambda params, x: jnp.einsum("...i,io->...o", x, params.kernel) + params.bias,
        normal(*shape),
    )


def test_without_bias() -> None:
    params, _ = dense.init(KEY, normal(3), 4, use_bias=False)
    assert params.bias is None
    assert_layer_equals(dense(4, use_bias=False), lambda params, x: x @ params.kernel, normal(3))


def test_kernel_and_bias_have_keys_of_their_own() -> None:
    kernel_key, bias_key = (jax.random.fold_in(KEY, i) for i in range(2))
    params, _ = dense.init(KEY, normal(3), 4, bias_initializer=jax.nn.initializers.normal())
    bias = jax.nn.initializers.normal()(bias_key, (4,))
    kernel = jax.nn.initializers.lecun_normal()(kernel_key, (3, 4), jnp.float32)
    np.testing.assert_array_equal(params.kernel, kernel)
    np.testing.assert_array_equal(np.asarray(params.bias), bias)


def test_x_may_have_other_leading_axes_than_in_init() -> None:
    params, state = dense.init(KEY, normal(3), 4)
    y, _ = dense.apply(params, state, jnp.ones((2, 5, 3)))
    np.testing.assert_allclose(y, np.broadcast_to(params.kernel.sum(0), (2, 5, 4)), rtol=1e-6)


def test_initializers_and_dtypes() -> None:
    params, state = dense.init(
        KEY,
        jax.ShapeDtypeStruct((5, 3), jnp.bfloat16),
        2,
        kernel_initializer=jax.nn.initializers.constant(2.0),
        bias_initializer=jax.nn.initializers.constant(1.0),
        dtype=jnp.float16,
    )
    assert [leaf.dtype for leaf in jax.tree.leaves(params)] == [jnp.float16] * 2
    y, _ = dense.apply(params, state, jnp.ones((5, 3), jnp.bfloat16))
    assert y.dtype == jnp.bfloat16
    assert y.tolist() == [[7.0] * 2] * 5


def test_wrong_argument_raises() -> None:
    with pytest.raises(ValueError, match="^dense: expected features to be a positive integer"):
        dense(0)
    with pytest.raises(TypeError, match="^dense: expected use_bias to be .*, got 'no'"):
        dense(1, use_bias="no")  # type: ignore[arg-type]  # the error is what is tested
    with pytest.raises(TypeError, match="^dense: expected dtype to be a dtype, got 'half a float'"):
        dense(1, dtype="half a float")
    with pytest.raises(ValueError, match=r"^dense: .*bias_initializer .*\(2,\), got \(1,\)"):
        dense(2, bias_initializer=lambda key, shape, dtype: jnp.ones(1)).init(KEY, jnp.ones(3))


def test_input_that_does_not_fit_raises() -> None:
    with pytest.raises(ValueError, match="^dense: expected x with at least 1 axis"):
        dense(2).init(KEY, jnp.ones(()))
    integers = jnp.ones(3, jnp.int32)
    with pytest.raises(TypeError, match="^dense: expected x to be of a floating dtype"):
        dense(2).init(KEY, integers)
    params, state = dense.init(KEY, jnp.ones(3), 2)
    with pytest.raises(TypeError, match="^dense: expected x to be of a floating dtype"):
        dense.apply(params, state, integers)
    with pytest.raises(ValueError, match=r"^dense: expected x with 3 features .*\(5, 2\)"):
        dense.apply(params, state, jnp.ones((5, 2)))


def test_bias_that_does_not_fit_the_kernel_raises() -> None:
    params, state = dense.init(KEY, jnp.ones(3), 2)
    for shape in ((1,), (), (3,)):
        wrong = DenseParams(params.kernel, jnp.ones(shape))
        with pytest.raises(ValueError, match=r"^dense: expected bias .*\(2,\).*got shape"):
            dense.apply(wrong, state, jnp.ones(3))


def test_parameters_of_another_model_raise() -> None:
    x = jnp.ones(3)
    full, with_bias = dense.init(KEY, x, 3)
    bare, without_bias = dense.init(KEY, x, 3, use_bias=False)
    with pytest.raises(TypeError, match="^dense: expected params.bias to be an array, got None"):
        dense.apply(bare, with_bias, x)
    with pytest.raises(TypeError, match="^dense: expected params.bias to be None, got an array of"):
        dense.apply(full, without_bias, x)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 3), bare)
    with pytest.raises(
        ValueError, match=r"^dense: expected params.kernel to be of 2 axes, .*\(3, 3"
    ):
        dense.apply(stacked, without_bias, x)


def test_integers_with_a_floating_bias_raise() -> None:
    x = jnp.ones(3, jnp.int32)
    params, state = dense.init(
        KEY, x, 2, kernel_initializer=jax.nn.initializers.ones, dtype=jnp.int32
    )
    assert params.bias is not None
    wrong = params._replace(bias=params.bias + 0.9)
    with pytest.raises(TypeError, match="^dense: expected x to be of a floating dtype"):
        dense.apply(wrong, state, x)


def test_where_ranks_are_not_promoted() -> None:
    x = normal(4, 3, 2)
    with jax.numpy_rank_promotion("raise"):
        params, state = dense.init(KEY, x, 5, bias_initializer=jax.random.normal)
        y, _ = dense.apply(params, state, x)
    assert params.bias is not None
    np.testing.assert_allclose(y, x @ params.kernel + params.bias, rtol=1e-5, atol=1e-5)
