"""Tests of the normalisations against their formulas written out."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import Layer, State
from mlax.layers.norms import (
    NormParams,
    batch_norm,
    group_norm,
    instance_norm,
    layer_norm,
    rms_norm,
)
from mlax.pair import PairBase
from tests.oracle import (
    KEY,
    assert_close,
    assert_layer_equals,
    cast,
    normal,
    outputs_and_gradients,
    randomized,
)


def standardized(x: jax.Array, axes: tuple[int, ...], epsilon: float = 1e-5) -> jax.Array:
    centred = x - x.sum(axes, keepdims=True) / np.prod([x.shape[axis] for axis in axes])
    variance = (centred**2).sum(axes, keepdims=True) / np.prod([x.shape[axis] for axis in axes])
    return jnp.divide(centred, jnp.sqrt(variance + epsilon))


def affine(params: NormParams, y: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    assert params.scale is not None and params.bias is not None
    return y * params.scale.reshape(shape) + params.bias.reshape(shape)


@pytest.mark.parametrize(
    ("norm", "x_shape", "axes", "shape"),
    [
        (layer_norm(), (5,), (0,), (5,)),
        (layer_norm(), (2, 3, 5), (2,), (5,)),
        (layer_norm(axis=(-1, 0), epsilon=0.5), (2, 3, 5), (0, 2), (2, 1, 5)),
        (layer_norm(axis="all"), (2, 5), (0, 1), (2, 5)),
        (instance_norm(), (4, 3, 2), (0, 1), (2,)),
        (instance_norm(data_format="channel_first"), (2, 4, 3), (1, 2), (2, 1, 1)),
        (instance_norm(data_format="HCW", epsilon=0.5), (4, 2, 3), (0, 2), (2, 1)),
        (batch_norm(), (4, 3, 2), (0, 1), (2,)),
        (batch_norm(data_format="channel_first"), (2, 4, 3), (1, 2), (2, 1, 1)),
        (batch_norm(epsilon=0.5, data_format="WC"), (4, 2), (0,), (2,)),
    ],
    ids=repr,
)
def test_mean_and_variance(
    norm: Layer[Any, Any, Any, Any],
    x_shape: tuple[int, ...],
    axes: tuple[int, ...],
    shape: tuple[int, ...],
) -> None:
    epsilon = 0.5 if "0.5" in repr(norm) else 1e-5
    assert_layer_equals(
        norm,
        lambda params, x: affine(params, standardized(x, axes, epsilon), shape),
        2 + normal(*x_shape),
    )


@pytest.mark.parametrize("x_shape", [(6,), (4, 6), (3, 4, 6)])
@pytest.mark.parametrize("groups", [1, 2, 6])
def test_group_norm(x_shape: tuple[int, ...], groups: int) -> None:
    if groups == 6 and len(x_shape) == 1:
        return  # one element in a group has no variance

    def oracle(params: NormParams, x: jax.Array) -> jax.Array:
        size = 6 // groups
        parts = [x[..., i * size : (i + 1) * size] for i in range(groups)]
        axes = tuple(range(x.ndim))
        return affine(params, jnp.concatenate([standardized(p, axes) for p in parts], -1), (6,))

    assert_layer_equals(group_norm(groups), oracle, 2 + normal(*x_shape))


def test_group_norm_of_channels_that_come_first() -> None:
    x = normal(4, 3)
    params, state = group_norm.init(KEY, x, 2, data_format="channel_first")
    y, _ = group_norm.apply(params, state, x)
    wanted = jnp.concatenate([standardized(x[:2], (0, 1)), standardized(x[2:], (0, 1))])
    assert_close(y, wanted)


@pytest.mark.parametrize(
    ("norm", "axes", "shape"),
    [
        (rms_norm(), (2,), (5,)),
        (rms_norm(axis=(0, 2), epsilon=1e-6), (0, 2), (2, 1, 5)),
        (rms_norm(axis="all"), (0, 1, 2), (2, 3, 5)),
    ],
    ids=repr,
)
def test_rms_norm(
    norm: Layer[Any, Any, Any, Any], axes: tuple[int, ...], shape: tuple[int, ...]
) -> None:
    def oracle(params: Any, x: jax.Array) -> jax.Array:
        count = np.prod([x.shape[axis] for axis in axes])
        root = jnp.sqrt((x**2).sum(axes, keepdims=True) / count + 1e-6)
        y: jax.Array = x / root * params.scale.reshape(shape)
        return y

    assert_layer_equals(norm, oracle, normal(2, 3, 5))


def test_batch_norm_over_a_batch() -> None:
    batch = 3 + normal(4, 5, 3, 2)
    norm = batch_norm(momentum=0.8)
    params, state = norm.init(KEY, batch[0])
    params = randomized(params)

    def train(params: Any, batch: jax.Array) -> Any:
        return jax.vmap(
            lambda x: norm.apply(params, state, x, None, False, "batch"),
            out_axes=(0, None),
            axis_name="batch",
        )(batch)

    got = outputs_and_gradients(lambda params, batch: train(params, batch)[0], params, batch)
    wanted = outputs_and_gradients(
        lambda params, batch: affine(params, standardized(batch, (0, 1, 2)), (2,)), params, batch
    )
    assert_close(got, wanted)

    _, after = train(params, batch)
    exact = np.asarray(batch, np.float64)
    assert_close(after.variables.mean, 0.2 * exact.mean((0, 1, 2)))
    assert_close(after.variables.var, 0.8 + 0.2 * exact.var((0, 1, 2)))

    y, unchanged = norm.apply(params, after, batch[0], inference_mode=True)
    mean, var = after.variables
    assert_close(y, affine(params, (batch[0] - mean) / np.sqrt(var + 1e-5), (2,)))
    assert_close(unchanged.variables, after.variables)


@pytest.mark.parametrize("pair", [batch_norm, layer_norm, instance_norm, group_norm])
@pytest.mark.parametrize(("use_scale", "use_bias"), [(False, True), (True, False), (False, False)])
def test_without_scale_or_bias(
    pair: PairBase[Any, Any, Any, Any], use_scale: bool, use_bias: bool
) -> None:
    x = normal(4, 2)
    groups = {"groups": 1} if pair is group_norm else {}
    params, state = pair.bind(**groups).init(KEY, x)
    reduced, reduced_state = pair.bind(use_scale=use_scale, use_bias=use_bias, **groups).init(KEY, x)
    assert (reduced.scale is not None, reduced.bias is not None) == (use_scale, use_bias)
    assert len(jax.tree.leaves(reduced)) == use_scale + use_bias
    scale, bias = jnp.array([2.0, 3.0]), jnp.array([1.0, 5.0])
    full = params._replace(
        scale=scale if use_scale else jnp.ones(2), bias=bias if use_bias else jnp.zeros(2)
    )
    reduced = reduced._replace(
        scale=scale if use_scale else None, bias=bias if use_bias else None
    )
    assert_close(pair.apply(reduced, reduced_state, x)[0], pair.apply(full, state, x)[0])


NORMS: list[Layer[Any, Any, Any, Any]] = [
    batch_norm(),
    layer_norm(),
    instance_norm(),
    group_norm(2),
    rms_norm(),
]


@pytest.mark.parametrize("norm", NORMS, ids=repr)
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_rounded_once(norm: Layer[Any, Any, Any, Any], dtype: Any) -> None:
    x = (100 + normal(8, 4)).astype(dtype)
    params, state = norm.init(KEY, x)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, state))} == {np.dtype(np.float32)}
    params = randomized(params)
    y, after = norm.apply(params, state, x)
    exact, _ = norm.apply(params, state, x.astype(jnp.float32))
    assert y.dtype == dtype
    np.testing.assert_array_equal(y, exact.astype(dtype))
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} <= {np.dtype(np.float32)}


@pytest.mark.parametrize("norm", NORMS, ids=repr)
def test_parameters_in_half_precision(norm: Layer[Any, Any, Any, Any]) -> None:
    x = normal(8, 4)
    params, state = norm.init(KEY, x)
    halves = cast(randomized(params), jnp.bfloat16)
    y, _ = norm.apply(halves, state, x)
    assert y.dtype == jnp.float32
    assert_close(y, norm.apply(cast(halves, jnp.float32), state, x)[0])


def test_running_statistics_are_never_in_half_precision() -> None:
    params, state = batch_norm.init(KEY, normal(4, 2), dtype=jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {np.dtype(jnp.bfloat16)}
    assert {leaf.dtype for leaf in state.variables} == {np.dtype(np.float32)}


@pytest.mark.parametrize("norm", NORMS, ids=repr)
def test_a_mean_far_larger_than_the_spread(norm: Layer[Any, Any, Any, Any]) -> None:
    x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32) + np.float32(3e4)
    params, state = norm.init(KEY, x)
    y = norm.apply(params, state, jnp.asarray(x))[0]
    exact = x.astype(np.float64)
    name, _, _ = repr(norm).partition("(")
    if name == "rms_norm":
        assert_close(y, exact / np.sqrt((exact**2).mean(-1, keepdims=True)))
    elif name == "layer_norm":
        spread = np.sqrt(exact.var(-1, keepdims=True) + 1e-5)
        np.testing.assert_allclose(y, (exact - exact.mean(-1, keepdims=True)) / spread, 1e-4, 1e-4)
    else:
        grouped = exact.reshape(64, 2, 2) if name == "group_norm" else exact[..., None]
        centred = grouped - grouped.mean((0, 2), keepdims=True)
        wanted = centred / np.sqrt(grouped.var((0, 2), keepdims=True) + 1e-5)
        np.testing.assert_allclose(y, wanted.reshape(64, 4), 1e-4, 1e-4)


@pytest.mark.parametrize("norm", [norm for norm in NORMS if "batch" not in repr(norm)], ids=repr)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("magnitude", [1e-25, 1e25])
def test_numbers_whose_squares_leave_the_range(
    norm: Layer[Any, Any, Any, Any], dtype: Any, magnitude: float
) -> None:
    x = jnp.asarray(magnitude * np.random.default_rng(0).normal(1, 1, (6, 4)), dtype)
    params, state = norm.init(KEY, x)
    exact = np.asarray(x, np.float64)
    name, _, _ = repr(norm).partition("(")
    if name == "rms_norm":
        wanted = exact / np.sqrt((exact**2).mean(-1, keepdims=True) + 1e-6)
    else:
        grouped = exact.reshape(6, 2, 2) if name == "group_norm" else exact[..., None]
        axes = (1, 2) if name == "layer_norm" else (0, 2)
        centred = grouped - grouped.mean(axes, keepdims=True)
        wanted = (centred / np.sqrt(grouped.var(axes, keepdims=True) + 1e-5)).reshape(6, 4)
    tolerance = 10 * float(jnp.finfo(dtype).eps)
    y = np.asarray(norm.apply(params, state, x)[0], np.float64)
    np.testing.assert_allclose(y, wanted, tolerance, tolerance * np.abs(wanted).max())


@pytest.mark.parametrize(
    ("norm", "shape"),
    [
        (layer_norm(), (3, 1)),
        (group_norm(2), (2,)),
        (instance_norm(), (1, 3)),
        (batch_norm(), (3,)),
    ],
    ids=repr,
)
def test_a_single_element_warns(norm: Layer[Any, Any, Any, Any], shape: tuple[int, ...]) -> None:
    """It warns as soon as it can be known: when there is an x, or a batch."""
    name, _, _ = repr(norm).partition("(")
    layers = mlax.series(mlax.f(jnp.sin), norm)
    with pytest.warns(UserWarning, match=f"^{name}: expected more than one element") as warned:
        params, state = layers.init(KEY, normal(*shape))
        if name == "batch_norm":
            layers.apply(params, state, normal(*shape))
    assert [warning.filename for warning in warned] == [__file__]
    layers.apply(params, state, normal(*shape), None, True)


@pytest.mark.parametrize("norm", NORMS, ids=repr)
def test_half_precision_where_promotion_is_strict(norm: Layer[Any, Any, Any, Any]) -> None:
    x = normal(4, 2).astype(jnp.bfloat16)
    expected, _ = norm.apply(*norm.init(KEY, x), x)
    with jax.numpy_dtype_promotion("strict"):
        params, state = norm.init(KEY, x)
        gradient = jax.grad(lambda x: norm.apply(params, state, x)[0].sum())(x)
        y, _ = norm.apply(params, state, x)
    np.testing.assert_array_equal(y, expected)
    assert gradient.dtype == jnp.bfloat16


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64])
def test_parameters_that_are_not_real_and_floating_raise(dtype: Any) -> None:
    for pair in (batch_norm, layer_norm, rms_norm, group_norm, instance_norm):
        with pytest.raises(TypeError, match=f"^{pair.__name__}: expected dtype to be a real flo"):
            pair.bind(dtype=dtype, **({"groups": 2} if pair is group_norm else {}))


def test_rms_norm_of_large_half_precision_numbers_and_of_zeros() -> None:
    x = jnp.array([3e4, -3e4], jnp.float16)
    params, state = rms_norm.init(KEY, x)
    assert rms_norm.apply(params, state, x)[0].tolist() == [1.0, -1.0]
    gradient = jax.grad(lambda x: rms_norm.apply(params, state, x)[0].sum())(jnp.zeros(2))
    assert jnp.isfinite(gradient).all()


def test_the_rank_may_differ_from_that_in_init() -> None:
    params, state = layer_norm.init(KEY, normal(3))
    x = normal(5, 3)
    assert_close(layer_norm.apply(params, state, x)[0], standardized(x, (1,)))


def test_equal_hyperparameters_give_equal_states() -> None:
    x = normal(4, 2)
    for norm in NORMS:
        assert jax.tree.structure(norm.init(KEY, x)) == jax.tree.structure(norm.init(KEY, x))
    one, other = (layer_norm.init(KEY, x, axis=axis)[1] for axis in ([-1], (-1,)))
    assert one == other and hash(one.config) == hash(other.config)


def test_errors() -> None:
    x = normal(4, 2)
    with pytest.raises(ValueError, match=r"group_norm: expected groups to be a divisor .*\(2\)"):
        group_norm(3).init(KEY, x)
    with pytest.raises(ValueError, match="group_norm: expected groups to be a positive integer"):
        group_norm(0)
    with pytest.raises(ValueError, match="batch_norm: expected momentum to be in"):
        batch_norm(momentum=1.1)
    with pytest.raises(ValueError, match="rms_norm: expected epsilon to be at least 0"):
        rms_norm(epsilon=-1.0)
    with pytest.raises(ValueError, match="layer_norm: expected axis to be in"):
        layer_norm(axis=2).init(KEY, x)
    with pytest.raises(ValueError, match="instance_norm: expected data_format to be"):
        instance_norm(data_format="channels_last")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match="instance_norm: expected x with at least 2 axes"):
        instance_norm().init(KEY, normal(3))
    with pytest.raises(TypeError, match="layer_norm: expected use_scale .*, got the function ones"):
        layer_norm.bind(use_scale=jax.nn.initializers.ones)
    with pytest.raises(TypeError, match="rms_norm: expected use_scale to be .*, got None"):
        rms_norm.bind(use_scale=None)
    for norm in NORMS:
        with pytest.raises(TypeError, match="expected x to be of a floating dtype"):
            norm.init(KEY, jnp.ones((4, 2), jnp.int32))
        with pytest.raises(TypeError, match="expected x to be of a real dtype, got complex64"):
            norm.init(KEY, jnp.ones((4, 2), jnp.complex64))
        params, state = norm.init(KEY, x)
        with pytest.raises(ValueError, match=r"^\w+_norm: expected x to fit") as info:
            norm.apply(params, state, normal(4, 6))
        assert not str(info.value).startswith("z_norm")
        with pytest.raises(TypeError, match="expected x to be of a real dtype, got complex64"):
            norm.apply(params, state, jnp.ones((4, 2), jnp.complex64))
        with pytest.raises(TypeError, match="expected x to be of a floating dtype"):
            norm.apply(params, state, jnp.ones((4, 2), jnp.int32))


def test_an_unbound_batch_axis_is_named() -> None:
    layers = mlax.series(norm=batch_norm())
    params, state = layers.init(KEY, normal(2))
    with pytest.raises(NameError, match="^batch_norm: expected the batch axis 'batch'") as info:
        layers.apply(params, state, normal(2), None, False, "batch")
    assert any("norm" in note for note in info.value.__notes__)


def test_the_initializers_get_keys_of_their_own() -> None:
    params, state = layer_norm.init(
        KEY,
        normal(4),
        scaler_initializer=jax.random.normal,
        bias_initializer=jax.random.normal,
    )
    assert isinstance(state, State)
    assert params.scale is not None and params.bias is not None
    assert not np.allclose(params.scale, params.bias)


def test_parameters_that_are_used_in_one_model_and_not_in_another_raise() -> None:
    x = normal(4)
    full, with_bias = layer_norm.init(KEY, x)
    bare, without_bias = layer_norm.init(KEY, x, use_bias=False)
    with pytest.raises(TypeError, match="^layer_norm: expected params.bias .* an array, got None"):
        layer_norm.apply(bare, with_bias, x)
    with pytest.raises(TypeError, match="^layer_norm: expected params.bias to be None, got an ar"):
        layer_norm.apply(full, without_bias, x)


def test_an_empty_batch_does_not_reach_the_running_statistics() -> None:
    model = mlax.batched(batch_norm())
    params, state = model.init(KEY, normal(2, 3))
    with pytest.raises(ValueError, match="^batch_norm: expected at least one example along"):
        model.apply(params, state, jnp.ones((0, 3)))
