"""Tests of layers that come from stax and flax.linen, and of layers that go to stax."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax.testing import check_laws

stax: Any = pytest.importorskip("jax.example_libraries.stax")  # Any: it is not typed

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (5, 3))
IMAGES = jax.random.normal(jax.random.key(2), (4, 6, 6, 3))


def perceptron() -> Any:
    """Return a model of stax."""
    return stax.serial(stax.Dense(4), stax.Tanh, stax.Dense(2))


def test_a_stax_layer_keeps_its_params_and_numbers() -> None:
    layer = mlax.from_stax(perceptron())
    params, state = layer.init(KEY, jax.ShapeDtypeStruct((5, 3), jnp.float32))
    _, expected = perceptron()[0](KEY, (5, 3))
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    y, _ = layer.apply(params, state, X)
    np.testing.assert_array_equal(y, perceptron()[1](expected, X))


def test_stax_and_mlax_train_in_one_step() -> None:
    model = mlax.series(mlax.from_stax(perceptron()), mlax.dense(1))
    params, state = model.init(KEY, X)

    def loss(params: Any) -> Any:
        return jnp.mean(model.apply(params, state, X)[0] ** 2)

    grads = jax.jit(jax.grad(loss))(params)
    assert all(jnp.any(leaf != 0) for leaf in jax.tree.leaves(grads))
    assert mlax.paths(params)[0] == "0.0.0"


def test_dropout_of_stax_follows_the_mode_and_the_key() -> None:
    build = {mode: stax.Dropout(0.5, mode=mode) for mode in ("train", "test")}
    layer = mlax.from_stax(build["train"], inference=build["test"], needs_rng=True)
    params, state = layer.init(KEY, X)
    y, _ = layer.apply(params, state, X, KEY)
    np.testing.assert_array_equal(y, build["train"][1](params, X, rng=KEY))
    assert (y == 0).any()
    np.testing.assert_array_equal(layer.apply(params, state, X, inference_mode=True)[0], X)
    with pytest.raises(ValueError, match="PRNG key in training"):
        mlax.series(layer).apply(*mlax.series(layer).init(KEY, X), X)


def test_a_layer_of_mlax_is_a_layer_of_stax() -> None:
    init_fun, apply_fun = stax.serial(
        stax.Dense(4), mlax.to_stax(mlax.series(mlax.dense(3), mlax.f(jnp.tanh))), stax.Dense(2)
    )
    shape, params = init_fun(KEY, (-1, 3))
    assert shape == (-1, 2)
    y = jax.jit(apply_fun)(params, X)
    first, (params_of_mlax, _), last = params
    hidden = X @ first[0] + first[1]
    hidden = jnp.tanh(hidden @ params_of_mlax[0].kernel + params_of_mlax[0].bias)
    np.testing.assert_allclose(y, hidden @ last[0] + last[1], rtol=1e-5, atol=1e-6)
    grads = jax.grad(lambda params: apply_fun(params, X).sum())(params)
    assert jax.tree.structure(grads) == jax.tree.structure(params)


def test_there_and_back_is_the_same_layer() -> None:
    layer = mlax.from_stax(mlax.to_stax(mlax.dense(4)))
    (params, _), state = layer.init(KEY, X)
    jax.tree.map(np.testing.assert_array_equal, params, mlax.dense(4).init(KEY, X)[0])
    noisy = mlax.to_stax(mlax.dropout(0.5, (0, 1)))
    _, made = noisy[0](KEY, (5, 3))
    expected, _ = mlax.dropout(0.5, (0, 1)).apply((), made[1], X, KEY)
    np.testing.assert_array_equal(noisy[1](made, X, rng=KEY), expected)


def test_stax_has_no_place_for_statistics() -> None:
    init_fun, _ = mlax.to_stax(mlax.batched(mlax.batch_norm()))
    with pytest.raises(ValueError, match="a layer without variables.*mlax.from_stax"):
        init_fun(KEY, (-1, 3))


LOCAL = {"copies": "initialisers of stax and linen are local functions, which no pickle takes"}
NAMELESS = {"paths": "stax has no names"}


def test_layers_of_stax_obey_the_laws() -> None:
    check_laws(mlax.from_stax(perceptron()), np.asarray(X), skip=LOCAL | NAMELESS)
    with pytest.raises(TypeError, match=r"stax_layer to be \(init_fun, apply_fun\)"):
        mlax.from_stax(perceptron()[0])


def linen_model() -> Any:
    """Return a class of modules with statistics and dropout."""
    linen: Any = pytest.importorskip("flax.linen")  # Any: flax is not typed

    class Model(linen.Module):  # type: ignore[misc, no-any-unimported]  # flax is not typed
        features: int

        @linen.compact  # type: ignore[untyped-decorator]  # flax is not typed
        def __call__(self, x: Any, train: bool = False) -> Any:
            x = linen.Conv(self.features, (3, 3))(x)
            x = linen.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            return linen.Dropout(0.5, deterministic=not train)(x)

    return Model


def test_collections_of_linen_are_variables() -> None:
    module = linen_model()(4)
    layer = mlax.from_linen(
        module, mutable="batch_stats", rngs="dropout", training={"train": True}
    )
    params, state = layer.init(KEY, jax.ShapeDtypeStruct(IMAGES.shape, IMAGES.dtype))
    variables = module.init({"params": KEY}, IMAGES)
    jax.tree.map(np.testing.assert_allclose, params, variables["params"])
    y, after = jax.jit(layer.apply)(params, state, IMAGES, KEY)
    expected, changed = module.apply(
        variables, IMAGES, train=True, rngs={"dropout": KEY}, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    for one, other in zip(
        jax.tree.leaves(after), jax.tree.leaves(changed["batch_stats"]), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-6)
    y, same = layer.apply(params, after, IMAGES, inference_mode=True)
    expected = module.apply({"params": params, **changed}, IMAGES)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, same, after)


def test_linen_and_mlax_train_in_one_step() -> None:
    layer = mlax.from_linen(
        linen_model()(4), mutable=["batch_stats"], rngs=["dropout"], training={"train": True}
    )
    model = mlax.series(layer, mlax.f(lambda x: x.mean((1, 2))), mlax.dense(2))
    params, state = model.init(KEY, IMAGES)

    @jax.jit
    def step(params: Any, state: Any) -> Any:
        def loss(params: Any) -> Any:
            y, after = model.apply(params, state, IMAGES, KEY)
            return jnp.mean((y - 1) ** 2), after

        (value, after), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, grads), after, value

    losses = []
    for _ in range(5):
        params, state, value = step(params, state)
        losses.append(value)
    assert losses[-1] < losses[0]


def test_what_is_no_module_is_told_so() -> None:
    linen: Any = pytest.importorskip("flax.linen")  # Any: flax is not typed
    with pytest.raises(TypeError, match="module to be a flax.linen module.*an instance"):
        mlax.from_linen(linen.Dense).init(KEY, X)
    with pytest.raises(TypeError, match="rngs to be a name or several, got 3"):
        mlax.from_linen(linen.Dense(3), rngs=3)  # type: ignore[arg-type]  # the error is wanted
    layer = mlax.from_linen(linen.Dense(3))
    params, _ = layer.init(KEY, X)
    _, other = mlax.from_linen(linen.Dense(4)).init(KEY, X)
    with pytest.raises((TypeError, ValueError), match="from_linen: expected .*module"):
        layer.apply(params, other, X)
    check_laws(layer, np.asarray(X), skip=LOCAL)


def test_what_runs_in_inference_has_the_same_params() -> None:
    longer = stax.serial(stax.Dense(4), stax.Dense(2))
    model = mlax.series(a=mlax.from_stax(stax.serial(stax.Dense(4)), inference=longer))
    with pytest.raises(ValueError, match=r"params of inference .* \('float32\[4, 2\]'") as caught:
        model.init(KEY, X)
    assert "in series > a > from_stax" in caught.value.__notes__


def test_what_is_no_module_of_linen_is_told_at_once() -> None:
    for wrong in (4, mlax.dense(3), None):
        with pytest.raises(TypeError, match=r"module to be a flax.linen module, got .*linen.Dense"):
            mlax.from_linen(wrong)
