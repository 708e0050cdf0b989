"""Tests of `mlax.shared` and `mlax.reuse` against plain JAX with one set of parameters."""

import gc
import weakref
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import AxisName, Key, Layer

KEY = jax.random.key(0)
X = jnp.array([1.0, -2.0, 0.5])
# Any: layers of all kinds stand beside each other.
AnyLayer = Layer[Any, Any, Any, Any]
TANH: AnyLayer = mlax.f(jnp.tanh)


def twice(layer: AnyLayer) -> AnyLayer:
    """Return the layer two times with tanh between."""
    return mlax.series(layer, TANH, layer)


def both(layer: AnyLayer) -> AnyLayer:
    """Return the layer on both entries of a tuple."""
    return mlax.parallel(layer, layer)


def logits(params: Any, x: jax.Array) -> jax.Array:
    """Return the products with the rows of an embedding."""
    return jnp.matmul(x, params.embedding.T)


def transposed(params: Any, x: jax.Array) -> jax.Array:
    """Return the product with the transposed kernel."""
    return jnp.matmul(x, params.kernel.T)


def notes(error: pytest.ExceptionInfo[BaseException]) -> list[str]:
    """Return the paths noted on an error."""
    return [n for n in getattr(error.value, "__notes__", []) if n.startswith("in ")]


def assert_grads(model: AnyLayer, x: Any, plain: Any, leaves: int) -> None:
    """Require output and gradients of `plain(leaves of params, x)`, for as many leaves."""
    params, state = model.init(KEY, x)
    values = jax.tree.leaves(params)
    assert len(values) == leaves

    def loss(params: Any) -> jax.Array:
        return sum_of_squares(model.apply(params, state, x)[0])

    def plain_loss(values: list[jax.Array]) -> jax.Array:
        return sum_of_squares(plain(values, x))

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    expected, expected_grads = jax.jit(jax.value_and_grad(plain_loss))(values)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    for leaf, other in zip(jax.tree.leaves(grads), expected_grads, strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-4, atol=1e-6)


def sum_of_squares(tree: Any) -> jax.Array:
    """Return the sum of the squares of all arrays."""
    return jnp.sum(jnp.stack([jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)]))


def test_one_set_of_parameters_at_two_places() -> None:
    model = mlax.shared(mlax.linear(3), twice)
    params, state = model.init(KEY, X)
    assert mlax.count(params) == 9
    assert mlax.paths(params) == ["shared.kernel"]
    kernel = np.asarray(params.shared.kernel)
    y, after = model.apply(params, state, X)
    np.testing.assert_allclose(y, np.tanh(np.asarray(X) @ kernel) @ kernel, rtol=1e-5)
    assert after == state
    assert_grads(model, X, lambda k, x: jnp.tanh(x @ k[0]) @ k[0], 1)


def test_the_parameters_are_those_of_the_first_place() -> None:
    params, _ = mlax.shared(mlax.linear(3), twice).init(KEY, X)
    composition = jax.random.fold_in(KEY, 0)
    first, _ = mlax.linear(3).init(jax.random.fold_in(composition, 0), X)
    np.testing.assert_array_equal(params.shared.kernel, first.kernel)


def test_a_siamese_pair() -> None:
    encoder: AnyLayer = mlax.series(mlax.linear(2), TANH)
    model: AnyLayer = mlax.series(
        mlax.shared(encoder, both), mlax.f(lambda ab: jnp.sum((ab[0] - ab[1]) ** 2))
    )

    def plain(kernels: Any, x: Any) -> jax.Array:
        a, b = (jnp.tanh(x[i] @ kernels[0]) for i in range(2))
        return jnp.sum((a - b) ** 2)

    assert_grads(model, (X, 2 * X), plain, 1)


def test_tied_weights() -> None:
    model: AnyLayer = mlax.shared(
        mlax.embed(7, 3), lambda tied: mlax.series(tied, mlax.linear(3), mlax.reuse(tied, logits))
    )
    tokens = jnp.array([0, 6, 3])

    def plain(leaves: Any, x: jax.Array) -> jax.Array:
        embedding, kernel = leaves
        return jnp.matmul(embedding[x] @ kernel, embedding.T)

    params, _ = model.init(KEY, tokens)
    assert mlax.count(params) == 7 * 3 + 9
    assert mlax.paths(params) == ["shared.embedding", "rest.1.kernel"]
    assert_grads(model, tokens, plain, 2)


def test_the_rest_of_the_composition_keeps_its_parameters() -> None:
    model: AnyLayer = mlax.shared(
        mlax.linear(3),
        lambda tied: mlax.series(enter=mlax.bias(-1), one=tied, mid=mlax.linear(3), two=tied),
    )
    params, _ = model.init(KEY, X)
    assert mlax.paths(params) == ["shared.kernel", "rest.enter.bias", "rest.mid.kernel"]
    assert_grads(model, X, lambda v, x: (x + v[1]) @ v[0] @ v[2] @ v[0], 3)


def test_shared_in_shared() -> None:
    """The inner layer is made of the outer one: both stand at several places."""
    model: AnyLayer = mlax.shared(
        mlax.linear(3),
        lambda a: mlax.shared(
            mlax.series(a, mlax.bias(-1)),
            lambda b: mlax.series(b, TANH, b, a, mlax.reuse(a, transposed)),
        ),
    )
    params, _ = model.init(KEY, X)
    assert mlax.count(params) == 9 + 3

    def plain(leaves: Any, x: jax.Array) -> jax.Array:
        kernel, bias = leaves
        x = jnp.tanh(x @ kernel + bias) @ kernel + bias
        return jnp.matmul(x @ kernel, kernel.T)

    assert_grads(model, X, plain, 2)


def test_two_shared_layers_side_by_side() -> None:
    model: AnyLayer = mlax.shared(
        mlax.linear(3),
        lambda a: mlax.series(
            mlax.shared(mlax.bias(-1), lambda b: mlax.series(b, a, b)),
            mlax.shared(mlax.scaler(-1), lambda c: mlax.series(c, a, TANH, c)),
            a,
        ),
    )

    def plain(leaves: Any, x: jax.Array) -> jax.Array:
        kernel, bias, scale = leaves
        x = (x + bias) @ kernel + bias
        return jnp.matmul(scale * jnp.tanh((scale * x) @ kernel), kernel)

    assert_grads(model, X, plain, 3)


def test_in_other_combinators() -> None:
    tied: AnyLayer = mlax.shared(mlax.linear(3), twice)

    def plain(values: Any, x: jax.Array) -> jax.Array:
        for kernel in values[0]:
            x = jnp.tanh(x @ kernel) @ kernel
        return x

    assert_grads(mlax.repeat(tied, 2), X, plain, 1)
    batch = jnp.stack([X, 2 * X])
    wrapped: AnyLayer = mlax.batched(mlax.remat(mlax.cast(tied, None, jnp.float32)))
    assert_grads(wrapped, batch, lambda k, x: jnp.tanh(x @ k[0]) @ k[0], 1)


def test_combinators_around_a_place() -> None:
    model: AnyLayer = mlax.shared(
        mlax.linear(3), lambda a: mlax.series(mlax.remat(a), mlax.residual(a), mlax.cast(a))
    )

    def plain(values: Any, x: jax.Array) -> jax.Array:
        kernel = values[0]
        x = x @ kernel
        return jnp.matmul(x + x @ kernel, kernel)

    assert_grads(model, X, plain, 1)


@pytest.mark.parametrize("around", [mlax.repeat, mlax.ensemble])
def test_copies_of_a_place_do_not_silently_have_parameters_of_their_own(around: Any) -> None:
    model: AnyLayer = mlax.shared(mlax.linear(3), lambda a: around(a, 4))
    try:
        params, _ = model.init(KEY, X)
    except (TypeError, ValueError) as error:
        assert str(error).startswith("shared: expected")
    else:
        assert mlax.count(params) == 9


def test_every_place_has_variables_of_its_own() -> None:
    x = np.random.default_rng(0).normal(3, 2, (8, 3)).astype(np.float32)
    norm: AnyLayer = mlax.series(mlax.z_norm(()), mlax.scaler(-1), mlax.f(lambda x: 2 * x + 1))
    model: AnyLayer = mlax.batched(mlax.shared(norm, twice))
    params, state = model.init(KEY, jnp.asarray(x))
    assert mlax.count(params) == 3
    y, after = model.apply(params, state, jnp.asarray(x))

    def normed(x: Any) -> Any:
        return 2 * (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) + 1

    hidden = np.tanh(normed(x))
    np.testing.assert_allclose(y, normed(hidden), rtol=1e-3, atol=1e-4)
    (first, *_), _, (second, *_) = after.variables
    np.testing.assert_allclose(first.mean, 0.1 * x.mean(0), rtol=1e-4)
    np.testing.assert_allclose(second.mean, 0.1 * hidden.mean(0), rtol=1e-4, atol=1e-6)


def test_keys_are_given_to_places_as_to_other_children() -> None:
    seen: list[Any] = []

    def spy(x: jax.Array, rng: Key) -> jax.Array:
        seen.append(rng)
        return x

    model = mlax.shared(mlax.f_rng(spy), twice)
    assert mlax.needs_rng(model.apply)
    assert not mlax.needs_rng(mlax.shared(mlax.linear(3), twice).apply)
    params, state = model.init(KEY, X)
    seen.clear()
    model.apply(params, state, X, KEY)
    assert seen == [jax.random.fold_in(KEY, i) for i in range(2)]


def test_a_users_layer_is_shared_too() -> None:
    def init(rng: Key, x: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
        return jnp.full((), 2.0), {"calls": jnp.zeros(())}

    def apply(
        params: jax.Array,
        state: dict[str, jax.Array],
        x: jax.Array,
        rng: Key | None = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        return params * x, {"calls": state["calls"] + 1}

    model: AnyLayer = mlax.shared(Layer(init, apply), lambda a: mlax.series(a, a, a))
    params, state = model.init(KEY, X)
    y, after = model.apply(params, state, X)
    np.testing.assert_array_equal(y, 8 * np.asarray(X))
    np.testing.assert_array_equal(jax.tree.leaves(params), [2.0])
    np.testing.assert_array_equal(jax.tree.leaves(after), [1, 1, 1])


def test_two_inits_are_independent_and_equal_in_structure() -> None:
    model = mlax.shared(mlax.linear(3), twice)
    first, second = model.init(KEY, X), model.init(jax.random.key(1), X)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert not np.array_equal(first[0].shared.kernel, second[0].shared.kernel)
    jitted = jax.jit(lambda rng: model.init(rng, X))(KEY)
    np.testing.assert_allclose(jitted[0].shared.kernel, first[0].shared.kernel, rtol=1e-6)


def test_parameters_are_freed_with_their_tree() -> None:
    params, _ = mlax.shared(mlax.linear(3), twice).init(KEY, X)
    kernel = weakref.ref(params.shared.kernel)
    del params
    gc.collect()
    assert kernel() is None


def test_a_layer_that_is_used_nowhere_raises() -> None:
    with pytest.raises(ValueError, match="^shared: expected the composition to use the layer, got"):
        mlax.shared(mlax.linear(3), lambda tied: mlax.linear(3)).init(KEY, X)


def test_places_that_need_other_parameters_raise() -> None:
    wanted = r"^shared: expected the parameters at every place .*\[3, 4\].*, got .*\[4, 4\]"
    with pytest.raises(ValueError, match=wanted) as error:
        mlax.shared(mlax.linear(4), twice).init(KEY, X)
    (path,) = notes(error)
    assert path.startswith("in shared > series[2]")
    assert "_tied" not in path


def test_a_composition_that_is_no_function_of_a_layer_to_a_layer() -> None:
    wrong: list[Any] = [3, "twice"]  # wrong types on purpose
    for composition in wrong:
        with pytest.raises(TypeError, match="^shared: expected composition to be a function"):
            mlax.shared(mlax.linear(3), composition)
    pair: Any = mlax.linear  # wrong types on purpose
    with pytest.raises(TypeError, match="^shared: expected .*composition.* to be a layer, got <p"):
        mlax.shared(mlax.linear(3), lambda tied: pair)
    with pytest.raises(TypeError, match="^shared: expected .*composition.* to be a layer, got 3"):
        mlax.shared(mlax.linear(3), lambda tied: wrong[0])


def test_reuse_needs_a_place_before_it_and_a_tied_layer() -> None:
    before: AnyLayer = mlax.shared(
        mlax.linear(3), lambda tied: mlax.series(mlax.reuse(tied, transposed), tied)
    )
    wanted = "^reuse: expected the shared layer to stand before it, got no parameters"
    with pytest.raises(ValueError, match=wanted) as error:
        before.init(KEY, X)
    assert notes(error) == ["in shared > series[0] > reuse"]
    with pytest.raises(TypeError, match="^reuse: expected tied to be the layer that mlax.shared"):
        mlax.reuse(mlax.linear(3), transposed)
    wrong: Any = "transposed"  # wrong types on purpose
    with pytest.raises(TypeError, match="^reuse: expected fn to be a function, got 'transposed'"):
        mlax.shared(mlax.linear(3), lambda tied: mlax.series(tied, mlax.reuse(tied, wrong)))


@pytest.mark.parametrize("around", [mlax.repeat, mlax.ensemble])
@pytest.mark.parametrize("inner", ["tied", "reuse"])
def test_copies_of_a_later_place_raise(around: Any, inner: str) -> None:
    def composition(tied: AnyLayer) -> AnyLayer:
        again = tied if inner == "tied" else mlax.reuse(tied, transposed)
        return mlax.series(tied, around(again, 3))

    with pytest.raises(
        ValueError, match="^shared: expected the layer outside .* around mlax.shared"
    ):
        mlax.shared(mlax.linear(3), composition).init(KEY, X)


@pytest.mark.parametrize("first", [True, False])
def test_casts_of_the_parameters_of_a_place_raise(first: bool) -> None:
    def composition(tied: AnyLayer) -> AnyLayer:
        cast = mlax.cast(tied, jnp.bfloat16)
        return mlax.series(cast, tied) if first else mlax.series(tied, cast)

    wanted = "^shared: expected the parameters to stay in float32 .*, got bfloat16; put mlax.cast"
    with pytest.raises(ValueError, match=wanted):
        mlax.shared(mlax.linear(3), composition).init(KEY, X)
