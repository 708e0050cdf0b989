"""Tests of `mlax.composed`: layers that depend on the shape of the input."""

import inspect
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import Layer
from mlax.types import Size

KEY = jax.random.key(0)
X = jnp.array([1.0, -2.0, 0.5])
# Any: layers of all kinds side by side.
AnyLayer = Layer[Any, Any, Any, Any]


@mlax.composed()
def widen(x: jax.ShapeDtypeStruct, times: Size, bias: bool = True) -> AnyLayer:
    """A linear layer that is `times` as wide as its input."""
    wide: AnyLayer = mlax.linear(times * x.shape[-1])
    return mlax.series(kernel=wide, bias=mlax.bias(-1)) if bias else wide


@mlax.composed()
def normed(x: jax.ShapeDtypeStruct) -> AnyLayer:
    """Normalisation with a scale."""
    return mlax.series(mlax.z_norm(()), mlax.scaler(-1))


@mlax.composed()
def noisy(x: jax.ShapeDtypeStruct) -> AnyLayer:
    """A layer that needs a key without declaring it."""
    return mlax.dropout(0.5, 0)


def notes(error: pytest.ExceptionInfo[BaseException]) -> list[str]:
    """Return the paths noted on an error."""
    return [n for n in getattr(error.value, "__notes__", []) if n.startswith("in ")]


def test_values_and_the_key_of_the_block_itself() -> None:
    model = widen(times=2)
    params, state = model.init(KEY, X)
    assert mlax.paths(params) == ["kernel.kernel", "bias.bias"]
    kernel = mlax.linear(6).init(jax.random.fold_in(KEY, 0), X)[0].kernel
    np.testing.assert_array_equal(params["kernel"].kernel, kernel)
    bare, _ = widen(2, bias=False).init(KEY, X)
    np.testing.assert_array_equal(bare.kernel, mlax.linear(6).init(KEY, X)[0].kernel)
    params["bias"] = mlax.bias(-1).init(KEY, jnp.ones(6))[0]._replace(bias=jnp.arange(6.0))
    y, after = model.apply(params, state, X)
    np.testing.assert_allclose(y, np.asarray(X) @ np.asarray(kernel) + np.arange(6), rtol=1e-5)
    assert after == state


def test_the_block_sees_shapes_of_what_it_gets_in_a_composition() -> None:
    model: AnyLayer = mlax.series(mlax.linear(4), widen(3, False), widen(2, False))
    params, state = model.init(KEY, jax.ShapeDtypeStruct((3,), jnp.float32))
    assert [p.kernel.shape for p in params] == [(3, 4), (4, 12), (12, 24)]
    expected = np.asarray(X)
    for p in params:
        expected = expected @ np.asarray(p.kernel)
    np.testing.assert_allclose(jax.jit(model.apply)(params, state, X)[0], expected, rtol=1e-4)


def test_a_pair_with_a_signature_a_name_and_a_doc() -> None:
    assert repr(widen) == "<pair widen>"
    assert widen.__name__ == "widen"
    assert widen.__doc__ == "A linear layer that is `times` as wide as its input."
    assert list(inspect.signature(widen).parameters) == ["times", "bias"]
    assert list(inspect.signature(widen.init).parameters) == ["rng", "x", "times", "bias"]
    assert repr(widen(2)) == "widen(2)"
    assert repr(mlax.series(w=widen(2, bias=False))) == "series(w=widen(2, bias=False))"
    assert pickle.loads(pickle.dumps(widen)) is widen
    assert pickle.loads(pickle.dumps(widen(2))) == widen(2)
    params, state = widen.init(KEY, X, times=2)
    assert jax.tree.structure((params, state)) == jax.tree.structure(widen(2).init(KEY, X))
    y, _ = widen.apply(params, state, X)
    assert y.shape == (6,)


def test_statistics_over_the_batch_and_inference() -> None:
    x = np.random.default_rng(0).normal(3, 2, (8, 3)).astype(np.float32)
    model = mlax.batched(normed())
    params, state = model.init(KEY, jnp.asarray(x))
    y, after = model.apply(params, state, jnp.asarray(x))
    expected = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(after.variables[0].mean, 0.1 * x.mean(0), rtol=1e-4)
    z, unchanged = model.apply(params, after, jnp.asarray(x), inference_mode=True)
    assert not np.allclose(z, y)
    np.testing.assert_array_equal(unchanged.variables[0].mean, after.variables[0].mean)


def test_wrong_hyperparameters_raise_at_once() -> None:
    with pytest.raises(ValueError, match="^widen: expected times to be a positive integer, got 0"):
        widen(0)
    with pytest.raises(ValueError, match="^widen: expected times to be a positive integer, got 0"):
        widen.init(KEY, X, times=0)
    with pytest.raises(TypeError, match="^widen: .*'tims'; expected widen\\(times, bias\\)"):
        widen(2, tims=2)  # type: ignore[call-arg]  # wrong on purpose


def test_errors_have_the_path() -> None:
    model = mlax.series(body=widen(2))
    params, state = model.init(KEY, X)
    with pytest.raises(ValueError, match="^linear: expected x with 3 features") as error:
        model.apply(params, state, X[:2])
    assert notes(error) == ["in series > body > series > kernel > linear"]
    with pytest.raises(ValueError, match="^linear: expected x with 3 features") as error:
        widen.apply(params["body"], widen(2).init(KEY, X)[1], X[:2])
    assert notes(error) == ["in widen > series > kernel > linear"]


def test_a_block_that_needs_a_key_or_makes_no_layer_raises_in_init() -> None:
    with pytest.raises((TypeError, ValueError), match="^noisy: expected .*key") as error:
        mlax.series(noisy()).init(KEY, X)
    assert notes(error) == ["in series[0] > noisy"]

    def wrong(x: Any) -> Any:  # wrong types on purpose
        return mlax.linear

    with pytest.raises(TypeError, match="^wrong: expected .* to be a layer, got <pair linear>"):
        mlax.composed()(wrong)().init(KEY, X)
