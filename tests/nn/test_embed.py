"""`Embed`: its parameter, and indices out of range."""

import jax
import jax.numpy as jnp
import numpy as np

from mlax import nn

KEY = jax.random.key(0)


def test_rows() -> None:
    x = jnp.array([[0, 3], [2, 0]])
    y, embed = nn.Embed(KEY, 4, 3)(x, None)
    rows = np.asarray(embed.embed_kernel.data)
    assert embed.embed_kernel.trainable is True
    assert rows.shape == (4, 3)
    np.testing.assert_array_equal(y, rows[np.asarray(x)])


def test_an_index_past_the_end_gives_the_fill_value() -> None:
    y, _ = nn.Embed(KEY, 4, 3)(jnp.array([1, 4, 1000]), None)
    assert not jnp.isnan(y[0]).any()
    assert jnp.isnan(y[1:]).all()


def test_a_scalar_gives_one_row() -> None:
    y, embed = nn.Embed(KEY, 4, 3, dtype=jnp.bfloat16)(jnp.array(2), None)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, embed.embed_kernel.data[2])
