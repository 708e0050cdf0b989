"""`Dropout`: its key and its rate."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlax import nn
from mlax.layer import Key, needs_rng

KEY = jax.random.key(0)
X = jnp.ones((200, 3))
UNTYPED: Any = nn


def test_elements_are_zero_or_scaled_in_training() -> None:
    y, dropout = nn.Dropout(0.25, (0, 1))(X, KEY)
    assert jax.tree.leaves(dropout) == []
    assert set(np.unique(y)) == {np.float32(0), np.float32(1 / 0.75)}
    assert 0.65 < np.mean(y > 0) < 0.85
    other, _ = dropout(X, jax.random.key(1))
    assert not np.array_equal(y, other)


def test_the_mask_is_shared_along_other_axes() -> None:
    y, _ = nn.Dropout(0.5, 0)(X, KEY)
    np.testing.assert_array_equal(y, np.asarray(y)[:, :1].repeat(3, 1))


def test_inference_needs_no_key() -> None:
    y, dropout = nn.Dropout(0.5, 0)(X, None, True)
    np.testing.assert_array_equal(y, X)
    assert needs_rng(dropout.forward)
    with pytest.raises(ValueError, match="^dropout: expected rng to be a PRNG key in training"):
        dropout(X, None)


def test_a_series_gives_it_a_key() -> None:
    model = nn.SeriesRng([nn.F(jnp.negative), nn.Dropout(0.5, 0)])
    np.testing.assert_array_equal(model(X, KEY)[0], nn.Dropout(0.5, 0)(-X, KEY)[0])


def test_a_subclass_may_override_forward_alone() -> None:
    class Scheduled(nn.Dropout):
        def forward(
            self, x: jax.Array, rng: Key | None, inference_mode: bool = False,
            batch_axis_name: Any = (),
        ) -> jax.Array:
            return super().forward(x, rng, inference_mode) * (1 - self.rate)

    y, _ = Scheduled(0.5, 0)(X, KEY)
    assert set(np.unique(y)) == {np.float32(0), np.float32(1)}


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match=r"^Dropout: too many .*\(rate, axis\); it takes no key"):
        UNTYPED.Dropout(KEY, 0.5, 0)
    with pytest.raises(ValueError, match=r"^dropout: expected rate to be in \[0, 1\)"):
        nn.Dropout(1.5, 0)
    dropout = nn.Dropout(0.5, 0)
    with pytest.raises(ValueError, match=r"^dropout: expected rate to be in \[0, 1\)"):
        dropout.rate = 1.0
    assert dropout.rate == 0.5
