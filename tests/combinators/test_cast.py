"""Tests of `mlax.cast`: dtypes of parameters, computation, output and statistics."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import Key, Layer

KEY = jax.random.key(0)
X = jnp.array([1.0, -2.0, 0.5])
# Any: layers of all kinds side by side.
AnyLayer = Layer[Any, Any, Any, Any]
BF16, F16, F32 = jnp.bfloat16, jnp.float16, jnp.float32

POLICY = ("params_dtype", "compute_dtype", "output_dtype")


def named(policy: Any) -> dict[str, Any]:
    """Return the three dtypes of a policy by name."""
    return dict(zip(POLICY, policy, strict=True))


def spy(seen: list[Any]) -> AnyLayer:
    """Return a function that appends the dtypes of its input to `seen`."""

    def note(x: Any) -> Any:
        seen.append(jax.tree.map(lambda leaf: leaf.dtype, x))
        return x

    return mlax.f(note)


@pytest.mark.parametrize(
    ("policy", "params_dtype", "inside", "output"),
    [
        ((None, None, None), F32, F32, F32),
        ((BF16, None, None), BF16, F32, F32),
        ((None, BF16, None), F32, BF16, BF16),
        ((None, None, F16), F32, F32, F16),
        ((F32, BF16, F32), F32, BF16, F32),
        (("float16", "bfloat16", np.float32), F16, BF16, F32),
    ],
)
def test_dtypes(policy: Any, params_dtype: Any, inside: Any, output: Any) -> None:
    seen: list[Any] = []
    model: AnyLayer = mlax.cast(mlax.series(mlax.linear(2), spy(seen)), **named(policy))
    params, state = model.init(KEY, X)
    assert params[0].kernel.dtype == params_dtype
    y, _ = model.apply(params, state, X)
    assert seen == [inside] * len(seen)
    assert seen
    assert y.dtype == output


def test_numbers_and_gradients_are_those_of_plain_casts() -> None:
    model = mlax.cast(
        mlax.linear(2), params_dtype=F32, compute_dtype=BF16, output_dtype=F32
    )
    params, state = model.init(KEY, X)

    def plain(kernel: jax.Array, x: jax.Array) -> jax.Array:
        return (x.astype(BF16) @ kernel.astype(BF16)).astype(F32)

    np.testing.assert_array_equal(model.apply(params, state, X)[0], plain(params.kernel, X))
    weights = jnp.array([1.0, 0.3])
    grads = jax.grad(lambda p, x: weights @ model.apply(p, state, x)[0], (0, 1))(params, X)
    expected = jax.grad(lambda k, x: weights @ plain(k, x), (0, 1))(params.kernel, X)
    assert grads[0].kernel.dtype == F32
    np.testing.assert_allclose(grads[0].kernel, expected[0], rtol=1e-2)
    np.testing.assert_allclose(grads[1], expected[1], rtol=1e-2)
    made = mlax.linear(2).init(jax.random.fold_in(KEY, 0), X)[0].kernel
    np.testing.assert_array_equal(params.kernel, made)
    half, _ = mlax.cast(mlax.linear(2), params_dtype=BF16).init(KEY, X)
    np.testing.assert_array_equal(half.kernel, made.astype(BF16))


def test_statistics_inside_are_float32() -> None:
    x = np.random.default_rng(0).normal(300, 0.5, (64, 3)).astype(np.float16)
    policy = named((BF16, F16, F32))
    model: AnyLayer = mlax.cast(mlax.z_norm(0), **policy)
    params, state = model.init(KEY, jnp.asarray(x, F32))
    assert state.variables.mean.dtype == F32
    y, after = model.apply(params, state, jnp.asarray(x, F32))
    exact = x.astype(np.float64)
    assert (y.dtype, after.variables.mean.dtype, after.variables.var.dtype) == (F32, F32, F32)
    np.testing.assert_allclose(after.variables.mean, 0.1 * exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(after.variables.var, 0.9 + 0.1 * exact.var(0), rtol=1e-5)
    expected = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    np.testing.assert_allclose(y, expected, atol=5e-3)
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_only_floating_arrays_are_cast() -> None:
    seen: list[Any] = []
    model: AnyLayer = mlax.cast(spy(seen), **named((BF16, BF16, F16)))
    x = {
        "f": X,
        "i": jnp.arange(3),
        "b": jnp.array([True]),
        "c": jnp.array([1j]),
        "k": KEY,
    }
    y, _ = model.apply(*model.init(KEY, x), x)
    for name in ("i", "b", "c", "k"):
        assert seen[-1][name] == y[name].dtype == x[name].dtype
    assert (seen[-1]["f"], y["f"].dtype) == (BF16, F16)


def test_layers_that_read_dtypes_in_init_see_those_of_the_computation() -> None:
    made: list[Any] = []

    def init(rng: Key, x: Any) -> tuple[tuple[()], tuple[()]]:
        made.append(x.dtype)
        return (), ()

    def apply(
        params: tuple[()],
        state: tuple[()],
        x: jax.Array,
        rng: Key | None = None,
        inference_mode: bool = False,
        batch_axis_name: mlax.AxisName = (),
    ) -> tuple[jax.Array, tuple[()]]:
        return x, state

    mlax.cast(Layer(init, apply), compute_dtype=BF16).init(KEY, X)
    half = jax.ShapeDtypeStruct((3,), F16)
    mlax.cast(Layer(init, apply), params_dtype=BF16).init(KEY, half)
    assert made == [BF16, F16]


def gain_init(rng: Key, x: Any) -> tuple[jax.Array, tuple[()]]:
    """Make a number in float32."""
    return jnp.full((), 2.0), ()


def gain_apply(
    params: jax.Array,
    state: tuple[()],
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: mlax.AxisName = (),
) -> tuple[jax.Array, tuple[()]]:
    """Return the number times x, in their promoted dtype."""
    return params * x, state


def cache_init(rng: Key, x: Any) -> tuple[tuple[()], jax.Array]:
    """Make a cache like x."""
    return (), jnp.zeros(x.shape, x.dtype)


def cache_apply(
    params: tuple[()],
    state: jax.Array,
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: mlax.AxisName = (),
) -> tuple[jax.Array, jax.Array]:
    """Return x and the previous x, and store x."""
    return x + state, x


@pytest.mark.parametrize("around", ["series", "block", "residual", "batched", "repeat", "cast"])
def test_init_and_apply_see_the_same_dtypes(around: str) -> None:
    gain, cache = Layer(gain_init, gain_apply), Layer(cache_init, cache_apply)
    inner: AnyLayer = mlax.series(gain, cache)
    x = jnp.stack([X, X])
    models: dict[str, AnyLayer] = {
        "series": inner,
        "block": mlax.block(a=gain, b=cache)(lambda sub, x: sub.b(sub.a(sub.a(x)))),
        "residual": mlax.residual(inner),
        "batched": mlax.batched(inner, state_axis=0),
        "repeat": mlax.repeat(inner, 3),
        "cast": mlax.series(mlax.cast(mlax.series(gain), output_dtype=F16), gain, cache),
    }
    model = mlax.cast(models[around], compute_dtype=BF16, output_dtype=F32)
    params, state = model.init(KEY, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(F32)}
    _, after = model.apply(params, state, x)
    caches = [leaf.dtype for leaf in jax.tree.leaves(state)]
    assert caches == [leaf.dtype for leaf in jax.tree.leaves(after)]
    assert set(caches) <= {jnp.dtype(BF16), jnp.dtype(F32)}
    assert set(caches) == {jnp.dtype(F32 if around == "cast" else BF16)}


def test_a_model_in_parts_of_different_precision() -> None:
    seen: list[Any] = []
    body: AnyLayer = mlax.repeat(mlax.residual(mlax.series(mlax.linear(3), spy(seen))), 2)
    model: AnyLayer = mlax.series(
        stem=mlax.linear(3), body=mlax.cast(body, **named((None, BF16, F32))), head=mlax.linear(2)
    )
    params, state = model.init(KEY, X)
    y, _ = jax.jit(model.apply)(params, state, X)
    assert set(seen) == {jnp.dtype(BF16)}
    assert y.dtype == F32
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(F32)}


def test_keys_and_inference() -> None:
    model = mlax.cast(mlax.dropout(0.5, 0), compute_dtype=BF16)
    assert mlax.needs_rng(model.apply)
    assert not mlax.needs_rng(mlax.cast(mlax.linear(2)).apply)
    params, state = model.init(KEY, X)
    y, _ = model.apply(params, state, X, inference_mode=True)
    np.testing.assert_array_equal(y, X.astype(BF16))
    noisy, _ = model.apply(params, state, X, KEY)
    expected, _ = mlax.dropout(0.5, 0).apply((), state_of_dropout(), X.astype(BF16), KEY)
    np.testing.assert_array_equal(noisy, expected)


def state_of_dropout() -> Any:
    """Return the state of the dropout above."""
    return mlax.dropout(0.5, 0).init(KEY, X)[1]


@pytest.mark.parametrize("name", POLICY)
def test_a_wrong_dtype_raises_at_once(name: str) -> None:
    with pytest.raises(TypeError, match=f"^cast: expected {name} to be a dtype, got 'floaty'"):
        mlax.cast(mlax.linear(2), **{name: "floaty"})


def test_equal_policies_make_equal_states() -> None:
    first = mlax.cast(mlax.linear(2), **named((F32, "bfloat16", F32))).init(KEY, X)
    second = mlax.cast(mlax.linear(2), **named(("float32", BF16, np.float32))).init(KEY, X)
    assert jax.tree.structure(first) == jax.tree.structure(second)


def test_numbers_of_python_are_cast_as_under_jit() -> None:
    layer: AnyLayer = mlax.cast(
        mlax.f(lambda pair: pair[0] * pair[1]), compute_dtype=jnp.bfloat16
    )
    x = (jnp.ones(3), 2.0)
    params, state = layer.init(KEY, x)
    eager, _ = layer.apply(params, state, x)
    jitted, _ = jax.jit(layer.apply)(params, state, x)
    assert eager.dtype == jitted.dtype == jnp.bfloat16
    np.testing.assert_array_equal(eager, jitted)


@pytest.mark.parametrize("name", ["params_dtype", "compute_dtype", "output_dtype"])
def test_a_dtype_that_is_not_floating_raises_at_once(name: str) -> None:
    hparams: dict[str, Any] = {name: jnp.int32}
    with pytest.raises(TypeError, match=f"^cast: expected {name} to be a real floating dtype, got int32"):
        mlax.cast(mlax.linear(2), **hparams)
