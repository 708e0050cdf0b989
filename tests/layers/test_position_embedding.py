"""Tests of `position_embedding` beyond its laws, and those of models that decode."""

import jax.numpy as jnp
import pytest

import mlax
from mlax.testing import FEATURES, Example


@pytest.mark.parametrize("feature", ["explicit_mesh", "rank_promotion"])
def test_given_positions_lie_and_broadcast_as_counted_ones(feature: str) -> None:
    x = jnp.ones((3, 2)), jnp.array([-1, 0, 1])
    FEATURES[feature](Example(mlax.position_embedding(5), x))
