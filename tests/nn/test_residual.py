"""`Residual` and `ResidualRng`: sums, keys, submodules, and paths in errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import nn
from mlax.layer import needs_rng

KEY = jax.random.key(0)
X = jnp.array([1.0, -2.0, 3.0])
UNTYPED: Any = nn


def uniform(x: jax.Array, rng: Any) -> jax.Array:
    """Return random numbers."""
    return jax.random.uniform(rng, x.shape)


def test_x_is_added() -> None:
    y, module = nn.Residual(nn.F(jnp.square))(X, None)
    np.testing.assert_array_equal(y, [2, 2, 12])
    assert module.shortcut is None
    assert not needs_rng(module.forward)


def test_the_output_of_a_shortcut_is_added() -> None:
    y, module = nn.Residual(nn.Dense(KEY, 2), nn.Linear(KEY, 2))(X, None)
    layer, shortcut = module.layer, module.shortcut
    assert isinstance(layer, nn.Dense) and isinstance(shortcut, nn.Linear)
    kernels = np.asarray(layer.kernel.data) + np.asarray(shortcut.linear_kernel.data)
    np.testing.assert_allclose(y, np.asarray(X) @ kernels, rtol=1e-5)
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(module)]
    assert paths == [".layer.kernel.data", ".layer.bias.data", ".shortcut.linear_kernel.data"]


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
def test_keys(make_key: Any) -> None:
    """A single module that needs a key gets it unchanged; of two, each gets a part of it."""
    rng = make_key(3)
    noise = nn.FRng(uniform)
    for layer, shortcut in ((noise, None), (noise, nn.F(jnp.zeros_like))):
        y, _ = nn.ResidualRng(layer, shortcut)(jnp.zeros(3), rng)
        np.testing.assert_array_equal(y, uniform(X, rng))
    y, _ = nn.ResidualRng(nn.FRng(uniform), nn.FRng(uniform))(X, rng)
    parts = [uniform(X, jax.random.fold_in(rng, j)) for j in range(2)]
    np.testing.assert_array_equal(y, parts[1] + parts[0])


def test_inference_needs_no_key() -> None:
    y, _ = nn.ResidualRng(nn.Dropout(0.5, 0))(X, None, True)
    np.testing.assert_array_equal(y, 2 * X)


def test_what_submodules_change_is_kept() -> None:
    module = nn.Residual(nn.ZNorm(KEY, "all", momentum=0.0), nn.BatchNorm(KEY, momentum=0.0))

    @jax.jit
    def step(module: nn.Residual, batch: jax.Array) -> nn.Residual:
        call = jax.vmap(module.__call__, (0, None, None, None), (0, None), axis_name="N")
        return call(batch, None, False, "N")[1]

    module = step(module, jnp.stack([X, 3 * X]))
    layer, shortcut = module.layer, module.shortcut
    assert isinstance(layer, nn.ZNorm) and isinstance(shortcut, nn.BatchNorm)
    np.testing.assert_allclose(layer.moving_mean.data, 4 / 3, rtol=1e-5)
    np.testing.assert_allclose(shortcut.moving_mean.data, 2 * X, rtol=1e-5)


def test_submodules_may_be_exchanged() -> None:
    _, module = nn.Residual(nn.F(jnp.square))(X, None)
    module.layer, module.shortcut = nn.F(jnp.negative), nn.F(jnp.zeros_like)
    y, module = jax.jit(lambda module, x: module(x, None))(module, X)
    np.testing.assert_array_equal(y, -X)
    wrong: Any = jnp.sin
    with pytest.raises(TypeError, match="^Residual: expected shortcut to be a module.*nn.F.sin"):
        module.shortcut = wrong


# Errors


@pytest.mark.parametrize("cls", [nn.Residual, nn.ResidualRng])
def test_other_shapes_or_dtypes_raise(cls: Any) -> None:
    wanted = "expected the output of the layer to be float32.3., got"
    with pytest.raises(ValueError, match=rf"^{cls.__name__}: {wanted} float32\[2\]; pass"):
        cls(nn.Linear(KEY, 2))(X, KEY)
    with pytest.raises(ValueError, match=rf"^{cls.__name__}: {wanted} int32\[3\]"):
        cls(nn.F(lambda x: x.astype(int)))(X, KEY)
    with pytest.raises(TypeError, match=f"^{cls.__name__}: expected x to be an array, got a tu"):
        cls(nn.F(lambda x: x))((X, X), KEY)


def test_errors_in_submodules_have_a_path() -> None:
    inner = nn.ResidualRng(nn.Series([nn.Conv(KEY, 2, 3)]))
    module = nn.SeriesRng([nn.Residual(nn.F(jnp.sin), inner)])
    with pytest.raises(ValueError, match="conv: expected x with at least 2 axes") as caught:
        module(X, KEY)
    path = "in SeriesRng[0] > Residual.shortcut > ResidualRng.layer > Series[0] > Conv"
    assert caught.value.__notes__ == [path]


def test_a_missing_key_is_named() -> None:
    for cls in (nn.Residual, nn.ResidualRng):
        with pytest.raises(ValueError, match="^dropout: expected rng to be a PRNG key") as caught:
            cls(nn.Dropout(0.5, 0))(X, None)
        path, *advice = caught.value.__notes__
        assert path == f"in {cls.__name__}.layer > Dropout"
        assert bool(advice) == (cls is nn.Residual)


def test_wrong_arguments() -> None:
    with pytest.raises(TypeError, match=r"^Residual: missing .*'layer'.*; pass a module"):
        UNTYPED.Residual()
    with pytest.raises(TypeError, match="^ResidualRng: expected layer to be a module.*as_module"):
        UNTYPED.ResidualRng(mlax.dense(3))
