"""`BatchNorm`, `LayerNorm`, `RMSNorm`, `GroupNorm` and `InstanceNorm`: numbers and parameters."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlax import nn
from mlax.layer import AxisName

KEY = jax.random.key(0)
BATCH = np.random.default_rng(0).normal(3.0, 2.0, (5, 3, 4)).astype(np.float32)
X = jnp.asarray(BATCH[0])
SCALE = np.array([1.0, 2.0, -1.0, 0.5], np.float32)
SHIFT = np.array([0.0, 1.0, 5.0, -2.0], np.float32)


def scaled_to_unit(x: Any, axis: Any) -> Any:
    """Return x with mean 0 and variance 1 along `axis`."""
    return (x - x.mean(axis, keepdims=True)) / np.sqrt(x.var(axis, keepdims=True) + 1e-5)


def on_batch(module: nn.BatchNorm, inference_mode: bool = False) -> tuple[jax.Array, nn.BatchNorm]:
    """Run the module over the batch, with the name of its axis."""
    y, module = jax.vmap(module.__call__, (0, None, None, None), (0, None), axis_name="N")(
        jnp.asarray(BATCH), None, inference_mode, "N"
    )
    return y, module


@pytest.mark.parametrize(
    ("norm", "expected"),
    [
        (nn.LayerNorm(KEY), scaled_to_unit(BATCH[0], 1)),
        (nn.GroupNorm(KEY, 2), scaled_to_unit(BATCH[0].reshape(3, 2, 2), (0, 2)).reshape(3, 4)),
        (nn.InstanceNorm(KEY), scaled_to_unit(BATCH[0], 0)),
        (nn.BatchNorm(KEY), scaled_to_unit(BATCH[0], 0)),
    ],
    ids=lambda case: type(case).__name__,
)
def test_normal_times_scale_plus_bias(norm: Any, expected: Any) -> None:
    y, norm = norm(X, None)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    assert norm.scale.trainable is norm.bias.trainable is True
    norm.scale.data, norm.bias.data = jnp.asarray(SCALE), jnp.asarray(SHIFT)
    y, norm = norm(X, None)
    np.testing.assert_allclose(y, expected * SCALE + SHIFT, rtol=1e-4, atol=1e-4)


def test_rms_norm_has_a_scale_alone() -> None:
    norm = nn.RMSNorm(KEY)
    norm.scale.data = jnp.asarray(SCALE)
    norm.initialized = True
    y, norm = norm(X, None)
    root = np.sqrt((BATCH[0] ** 2).mean(1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(y, BATCH[0] / root * SCALE, rtol=1e-5)
    assert len(jax.tree.leaves(norm)) == 1
    assert not hasattr(norm, "bias")


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.BatchNorm(KEY, use_scale=False, use_bias=False),
        lambda: nn.LayerNorm(KEY, use_scale=False, use_bias=False),
        lambda: nn.RMSNorm(KEY, use_scale=False),
        lambda: nn.GroupNorm(KEY, 2, use_scale=False, use_bias=False),
        lambda: nn.InstanceNorm(KEY, use_scale=False, use_bias=False),
    ],
)
def test_parameters_that_are_not_used_stay_empty(make: Callable[[], Any]) -> None:
    _, norm = make()(X, None)
    assert norm.scale.data is None
    assert jax.tree.leaves(norm.filter()) == []


def test_batch_norm_in_training() -> None:
    module = nn.BatchNorm(KEY, momentum=0.75)
    mean, var = BATCH.mean((0, 1)), BATCH.var((0, 1))
    moving_mean, moving_var = np.zeros(4), np.ones(4)
    for _ in range(2):
        y, module = on_batch(module)
        np.testing.assert_allclose(y, (BATCH - mean) / np.sqrt(var + 1e-5), rtol=1e-4, atol=1e-5)
        moving_mean = 0.75 * moving_mean + 0.25 * mean
        moving_var = 0.75 * moving_var + 0.25 * var
        np.testing.assert_allclose(module.moving_mean.data, moving_mean, rtol=1e-5)
        np.testing.assert_allclose(module.moving_var.data, moving_var, rtol=1e-5)
    assert module.moving_mean.trainable is module.moving_var.trainable is False


def test_momentum_that_is_set_later_takes_effect() -> None:
    _, module = on_batch(nn.BatchNorm(KEY))
    module.momentum = 0.0
    _, module = jax.jit(on_batch)(module)
    np.testing.assert_allclose(module.moving_mean.data, BATCH.mean((0, 1)), rtol=1e-5)


def test_batch_norm_set_by_hand_in_inference() -> None:
    module = nn.BatchNorm(KEY, epsilon=0.0)
    module.scale.data, module.bias.data = jnp.asarray(SCALE), jnp.asarray(SHIFT)
    module.moving_mean.data, module.moving_var.data = jnp.full(4, 2.0), jnp.full(4, 9.0)
    module.initialized = True
    y, module = on_batch(module, True)
    np.testing.assert_allclose(y, (BATCH - 2) / 3 * SCALE + SHIFT, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(module.moving_mean.data, 2)


def test_an_axis_that_the_scale_does_not_fit_raises() -> None:
    _, norm = nn.LayerNorm(KEY)(X, None)
    norm.axis = "all"
    with pytest.raises(ValueError, match="^layer_norm: expected x to fit parameters of shape"):
        norm(X, None)


def test_a_subclass_may_override_setup_alone() -> None:
    class Small(nn.BatchNorm):
        def setup(self, x: jax.Array) -> None:
            super().setup(x)
            self.scale.data = jnp.full(x.shape[-1], self.momentum)

    y, _ = jax.jit(lambda module, x: module(x, None))(Small(KEY, momentum=0.5), X)
    np.testing.assert_allclose(y, scaled_to_unit(BATCH[0], 0) / 2, rtol=1e-4, atol=1e-5)


def test_a_subclass_may_override_forward_alone() -> None:
    class Counted(nn.LayerNorm):
        def forward(
            self, x: jax.Array, rng: None = None, inference_mode: bool = False,
            batch_axis_name: AxisName = (),
        ) -> jax.Array:
            scale: jax.Array = self.scale.data
            return super().forward(x, None, inference_mode) + scale

    y, _ = Counted(KEY)(X, None)
    np.testing.assert_allclose(y, scaled_to_unit(BATCH[0], 1) + 1, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("module", "x"),
    [
        (nn.BatchNorm(KEY), jnp.ones(4)),
        (nn.ZNorm(KEY, ()), jnp.ones(4)),
        (nn.LayerNorm(KEY), jnp.ones((4, 1))),
    ],
    ids=lambda case: type(case).__name__,
)
def test_a_single_element_warns_at_the_line_of_the_user(module: Any, x: jax.Array) -> None:
    with pytest.warns(UserWarning, match="_norm: expected more than one element") as warned:
        module(x, None)
    assert [warning.filename for warning in warned] == [__file__]


def test_a_dtype_of_integers_raises() -> None:
    with pytest.raises(TypeError, match="dtype to be a real floating dtype, got int32"):
        nn.BatchNorm(KEY, dtype=jnp.int32)
    with pytest.raises(TypeError, match="dtype to be a real floating dtype, got int32"):
        nn.ZNorm(KEY, 0, dtype=jnp.int32)


def test_numbers_whose_squares_overflow() -> None:
    y, _ = nn.LayerNorm(KEY)(1e25 * X, None)
    np.testing.assert_allclose(y, scaled_to_unit(BATCH[0], 1), rtol=1e-4, atol=1e-4)
