"""`ZNorm`: its running statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlax import nn

KEY = jax.random.key(0)
BATCH = np.random.default_rng(0).normal(3.0, 2.0, (6, 4, 2)).astype(np.float32)


def on_batch(module: nn.ZNorm, inference_mode: bool = False) -> tuple[jax.Array, nn.ZNorm]:
    """Run the module over the batch, with the name of its axis."""
    y, module = jax.vmap(module.__call__, (0, None, None, None), (0, None), axis_name="N")(
        jnp.asarray(BATCH), None, inference_mode, "N"
    )
    return y, module


def test_statistics_are_not_trained() -> None:
    _, module = nn.ZNorm(KEY, "all")(jnp.ones(3), None)
    assert module.moving_mean.trainable is False
    assert module.moving_var.trainable is False
    assert jax.tree.leaves(module.filter()) == []


@pytest.mark.parametrize(
    ("axis", "over"),
    [
        (0, (0, 1)),
        ("channel_last", (0, 1)),
        ((), (0,)),
        ("channel_first", (0, 2)),
        ("all", (0, 1, 2)),
    ],
)
def test_training_over_a_batch(axis: object, over: tuple[int, ...]) -> None:
    module = nn.ZNorm(KEY, axis, epsilon=1e-3, momentum=0.75)  # type: ignore[arg-type]  # all kinds
    mean, var = BATCH.mean(over, keepdims=True), BATCH.var(over, keepdims=True)
    moving_mean, moving_var = np.zeros_like(mean), np.ones_like(var)
    for _ in range(2):
        y, module = on_batch(module)
        np.testing.assert_allclose(y, (BATCH - mean) / np.sqrt(var + 1e-3), rtol=1e-4, atol=1e-5)
        moving_mean = 0.75 * moving_mean + 0.25 * mean
        moving_var = 0.75 * moving_var + 0.25 * var
        np.testing.assert_allclose(
            module.moving_mean.data, np.squeeze(moving_mean, over), rtol=1e-5
        )
        np.testing.assert_allclose(module.moving_var.data, np.squeeze(moving_var, over), rtol=1e-5)


def test_inference_uses_the_running_statistics_and_keeps_them() -> None:
    _, module = on_batch(nn.ZNorm(KEY, ()))
    module.moving_mean.data = jnp.full((4, 2), 2.0)
    module.moving_var.data = jnp.full((4, 2), 9.0)
    before = module.moving_mean.data
    y, module = on_batch(module, True)
    np.testing.assert_allclose(y, (BATCH - 2) / np.sqrt(9 + 1e-5), rtol=1e-5)
    np.testing.assert_array_equal(module.moving_mean.data, before)
    np.testing.assert_array_equal(module.moving_var.data, 9)


def test_the_first_call_may_be_in_inference_mode() -> None:
    y, module = on_batch(nn.ZNorm(KEY, ()), True)
    np.testing.assert_allclose(y, BATCH / np.sqrt(1 + 1e-5), rtol=1e-5)
    assert module.initialized
