"""Tests of `mlax.functional` against plain NumPy in float64."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from jax import lax
from jax.sharding import AxisType, PartitionSpec
from jax.typing import DTypeLike

from mlax import AxisName, functional
from mlax.arguments import Axes, NormalizedAxis

Floats = npt.NDArray[np.float64]

KEY = jax.random.key(0)
X = jnp.ones((4, 3, 2))


def samples(*shape: int, mean: float = 0.0, seed: int = 0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(seed).normal(mean, size=shape), jnp.float32)


def exact(x: jax.Array) -> Floats:
    return np.asarray(x, np.float64)


def z_norm(x: jax.Array, axis: NormalizedAxis, epsilon: float = 1e-5) -> jax.Array:
    y: jax.Array = jax.jit(lambda x: functional.z_norm(x, axis, epsilon=epsilon))(x)
    return y


def test_identity() -> None:
    assert functional.identity(X) is X
    assert functional.identity(1, "two", None) == (1, "two", None)
    assert functional.identity() == ()


@pytest.mark.parametrize(
    ("axis", "drawn"),
    [(1, (1, 3, 1)), (-1, (1, 1, 2)), ([0, 1], (4, 3, 1)), ((), (1, 1, 1)), ((2, 0, 1), (4, 3, 2))],
)
def test_dropout_draws_along_axis_and_shares_along_the_others(
    axis: Axes, drawn: tuple[int, ...]
) -> None:
    x = samples(4, 3, 2)
    key = jax.random.PRNGKey(1) if axis == 1 else KEY  # a raw key works too
    y = functional.dropout(x, key, 0.4, axis)
    kept = np.broadcast_to(jax.random.bernoulli(key, 0.6, drawn), x.shape)
    np.testing.assert_allclose(y, np.where(kept, exact(x) / 0.6, 0), rtol=1e-5)


@pytest.mark.parametrize("rate", [0.1, 0.75, np.float32(0.5)])
def test_dropout_drops_as_often_as_rate_says(rate: float) -> None:
    y = functional.dropout(jnp.ones((100, 200)), KEY, rate, (0, 1))
    values = np.asarray(y)
    np.testing.assert_allclose(np.mean(values == 0), rate, atol=0.015)
    np.testing.assert_allclose(values[values != 0], 1 / (1 - rate), rtol=1e-6)


@pytest.mark.parametrize("rate", [0, 0.0])
def test_dropout_of_rate_zero_is_the_identity(rate: float) -> None:
    np.testing.assert_array_equal(functional.dropout(X, KEY, rate, 0), X)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_dropout_keeps_half_precision(dtype: DTypeLike) -> None:
    y = functional.dropout(jnp.ones(100, dtype), KEY, 0.5, 0)
    assert y.dtype == dtype
    assert set(np.asarray(y, np.float32).tolist()) == {0.0, 2.0}


def test_dropout_drops_infinity_and_nan_and_their_gradients() -> None:
    x = jnp.array([np.inf, -np.inf, np.nan, 1.0] * 8)
    kept = np.asarray(jax.random.bernoulli(KEY, 0.5, x.shape))
    y, backward = jax.vjp(lambda x: functional.dropout(x, KEY, 0.5, 0), x)
    np.testing.assert_array_equal(y, np.where(kept, 2 * np.asarray(x), 0))
    (by_x,) = backward(jnp.full(x.shape, np.inf))
    np.testing.assert_array_equal(by_x, np.where(kept, np.inf, 0))


def test_gradient_of_dropout() -> None:
    by_x = jax.grad(lambda x: jnp.sum(functional.dropout(x, KEY, 0.25, 0)))(jnp.ones(8))
    kept = np.asarray(jax.random.bernoulli(KEY, 0.75, (8,)))
    np.testing.assert_allclose(by_x, kept / 0.75, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"rate": 1.0}, ValueError, r"rate to be in \[0, 1\), got 1.0"),
        ({"rate": -0.5}, ValueError, r"rate to be in \[0, 1\), got -0.5"),
        ({"rate": "0.5"}, TypeError, r"rate to be a number in \[0, 1\), got '0.5'"),
        ({"axis": 3}, ValueError, r"axis to be in \[-3, 3\) for x with 3 axes, got 3"),
        ({"axis": (0, -4)}, ValueError, r"axis to be in .*, got \(0, -4\)"),
        ({"axis": (1, 1)}, ValueError, r"axis to be distinct axes, got \(1, 1\)"),
        ({"axis": None}, TypeError, "axis to be .*, got None"),
        ({"x": jnp.arange(3)}, TypeError, "x to be of a floating dtype.*, got int32"),
    ],
)
def test_wrong_argument_of_dropout_raises(
    arguments: dict[str, Any],  # wrong types on purpose
    error: type[Exception],
    text: str,
) -> None:
    arguments = dict[str, Any](x=X, rng=KEY, rate=0.5, axis=0) | arguments
    with pytest.raises(error, match=f"^dropout: expected {text}"):
        functional.dropout(**arguments)


@pytest.mark.parametrize("rng", [None, 0, "key"])
def test_dropout_without_a_key_raises(rng: Any) -> None:  # wrong types on purpose
    with pytest.raises((TypeError, ValueError), match="key"):
        functional.dropout(X, rng, 0.5, 0)


def pooled(
    x: npt.NDArray[Any],
    reduce: Callable[..., Any],
    fill: float,
    window: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[tuple[int, int]],
    input_dilation: Sequence[int],
    window_dilation: Sequence[int],
) -> npt.NDArray[Any]:
    """Reduce the windows of x (spatial..., channel)."""
    spatial = x.shape[:-1]
    lengths = [(n - 1) * d + 1 for n, d in zip(spatial, input_dilation, strict=True)]
    spread = np.full((*lengths, x.shape[-1]), fill, x.dtype)
    spread[tuple(slice(None, None, d) for d in input_dilation)] = x
    spread = np.pad(spread, [*pads, (0, 0)], constant_values=fill)
    spans = [(k - 1) * d + 1 for k, d in zip(window, window_dilation, strict=True)]
    shape = [(n - k) // s + 1 for n, k, s in zip(spread.shape, spans, strides, strict=False)]
    y = np.zeros((*shape, x.shape[-1]), x.dtype)
    for place in np.ndindex(*shape):
        region = tuple(
            slice(i * s, i * s + k, d)
            for i, s, k, d in zip(place, strides, spans, window_dilation, strict=True)
        )
        y[place] = reduce(spread[region], tuple(range(len(shape))))
    return y


def product(x: npt.NDArray[Any], axes: tuple[int, ...]) -> Any:
    return np.prod(x, axes)


POOLS: dict[str, tuple[Callable[..., jax.Array], Callable[..., Any], float]] = {
    "max_pool": (functional.max_pool, np.max, -np.inf),
    "sum_pool": (functional.sum_pool, np.sum, 0),
    "avg_pool": (functional.avg_pool, np.mean, 0),
    "pool": (lambda x, *args, **kw: functional.pool(x, 1, lax.mul, *args, **kw), product, 1),
}


@pytest.mark.parametrize(
    ("hparams", "window", "strides", "pads", "input_dilation", "window_dilation"),
    [
        ({"window_shape": 2}, (2, 2), (1, 1), [(0, 0)] * 2, (1, 1), (1, 1)),
        (
            {"window_shape": (3, 2), "strides": 2, "padding": 1},
            (3, 2),
            (2, 2),
            [(1, 1)] * 2,
            (1, 1),
            (1, 1),
        ),
        (
            {"window_shape": [2, 3], "strides": (1, 2), "padding": ((1, 2), 0)},
            (2, 3),
            (1, 2),
            [(1, 2), (0, 0)],
            (1, 1),
            (1, 1),
        ),
        (
            {"window_shape": 2, "input_dilation": 2, "window_dilation": (1, 3)},
            (2, 2),
            (1, 1),
            [(0, 0)] * 2,
            (2, 2),
            (1, 3),
        ),
        (
            {"window_shape": 2, "padding": (2, 1), "input_dilation": (1, 2), "window_dilation": 2},
            (2, 2),
            (1, 1),
            [(2, 2), (1, 1)],
            (1, 2),
            (2, 2),
        ),
        (
            {"window_shape": (2, 3), "strides": 2, "padding": "SAME"},
            (2, 3),
            (2, 2),
            [(0, 0), (1, 1)],
            (1, 1),
            (1, 1),
        ),
        (
            {"window_shape": (4, 2), "padding": "same_lower"},
            (4, 2),
            (1, 1),
            [(2, 1), (1, 0)],
            (1, 1),
            (1, 1),
        ),
    ],
    ids=["plain", "padded", "pairs", "dilated", "dilated and padded", "same", "same_lower"],
)
@pytest.mark.parametrize("name", POOLS)
def test_pools(
    name: str,
    hparams: dict[str, Any],  # values of many types
    window: tuple[int, ...],
    strides: tuple[int, ...],
    pads: list[tuple[int, int]],
    input_dilation: tuple[int, ...],
    window_dilation: tuple[int, ...],
) -> None:
    x = samples(6, 5, 2)
    function, reduce, fill = POOLS[name]
    expected = pooled(
        exact(x), reduce, fill, window, strides, pads, input_dilation, window_dilation
    )
    np.testing.assert_allclose(function(x, **hparams), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize(
    ("data_format", "to_channel_last"),
    [("channel_first", (1, 2, 3, 0)), ("HWCD", (0, 1, 3, 2)), ("WHDC", (0, 1, 2, 3))],
)
def test_data_formats_of_pools(
    name: str, data_format: str, to_channel_last: tuple[int, ...]
) -> None:
    x = samples(4, 3, 2, 5)
    function, reduce, fill = POOLS[name]
    moved = exact(x).transpose(to_channel_last)
    ones = (1,) * 3
    expected = pooled(moved, reduce, fill, (2, 1, 2), (2, 1, 1), [(0, 0)] * 3, ones, ones)
    y = function(x, (2, 1, 2), (2, 1, 1), data_format=data_format)
    np.testing.assert_allclose(exact(y).transpose(to_channel_last), expected, rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int32])
def test_max_pool_of_integers(dtype: DTypeLike) -> None:
    lowest = jnp.iinfo(dtype).min
    x = jnp.array([lowest, lowest, lowest + 3, lowest + 1], dtype)[:, None]
    y = functional.max_pool(x, 2, padding=((2, 0),))
    expected = np.array([lowest, lowest, lowest, lowest + 3, lowest + 3], jnp.dtype(dtype))
    np.testing.assert_array_equal(y, expected[:, None], strict=True)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_padding_of_max_pool_is_smaller_than_any_number(dtype: DTypeLike) -> None:
    y = functional.max_pool(jnp.full((1, 1), jnp.finfo(dtype).min, dtype), 1, padding=1)
    assert y.dtype == dtype
    np.testing.assert_array_equal(
        exact(y), [[-np.inf], [float(jnp.finfo(dtype).min)], [-np.inf]]
    )


def test_sum_pool_keeps_integers() -> None:
    y = functional.sum_pool(jnp.array([[1], [2], [3]]), 2)
    np.testing.assert_array_equal(y, np.array([[3], [5]], np.int32), strict=True)


@pytest.mark.parametrize(
    ("dtype", "wide"),
    [
        (np.int8, np.int32),
        (np.int16, np.int32),
        (np.uint8, np.uint32),
        (np.uint16, np.uint32),
        (np.bool_, np.int32),
    ],
)
def test_sum_pool_of_short_integers_does_not_wrap(dtype: Any, wide: Any) -> None:
    most = 1 if dtype is np.bool_ else np.iinfo(dtype).max
    x = np.full((3, 1), most, dtype)
    y = functional.sum_pool(jnp.asarray(x), 3)
    np.testing.assert_array_equal(y, np.array([[3 * int(most)]], wide), strict=True)
    mean = functional.avg_pool(jnp.asarray(x), 3)
    np.testing.assert_array_equal(mean, np.array([[most]], np.float32), strict=True)


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.int32])
def test_avg_pool_of_integers_gives_float32(dtype: DTypeLike) -> None:
    y = functional.avg_pool(jnp.array([[100], [127], [121], [1]], dtype), 3)
    np.testing.assert_array_equal(y, np.array([[116], [83]], np.float32), strict=True)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_summed_in_float32(dtype: DTypeLike) -> None:
    large = 256.0 if dtype == jnp.bfloat16 else 2048.0  # adding 1 to it changes nothing
    x = jnp.array([large, 1, 1, 1, 1], dtype)[:, None]
    total, mean = functional.sum_pool(x, 5), functional.avg_pool(x, 5)
    assert total.dtype == mean.dtype == dtype
    np.testing.assert_array_equal(exact(total), [[large + 4]])
    expected = np.float64(jnp.asarray((large + 4) / 5, dtype))
    np.testing.assert_array_equal(exact(mean), [[expected]])


@pytest.mark.parametrize(
    ("name", "value", "plain"),
    [
        ("window_shape", np.array([2, 1]), (2, 1)),
        ("strides", np.int64(2), 2),
        ("padding", np.array([[1, 0], [0, 1]]), ((1, 0), (0, 1))),
        ("input_dilation", np.array(2), 2),
        ("window_dilation", (np.int64(1), np.uint8(2)), (1, 2)),
    ],
)
def test_windows_may_be_integers_and_arrays_of_numpy(name: str, value: Any, plain: Any) -> None:
    x = samples(5, 4, 2)
    y = functional.max_pool(x, **dict[str, Any](window_shape=2) | {name: value})
    expected = functional.max_pool(x, **dict[str, Any](window_shape=2) | {name: plain})
    np.testing.assert_array_equal(y, expected, strict=True)


def test_pool_takes_any_function_of_two_scalars() -> None:
    x = jnp.array([[3.0], [4.0], [12.0]])
    y = functional.pool(x, 0.0, lambda a, b: jnp.hypot(a, b), 2)
    np.testing.assert_allclose(y, [[5], [np.hypot(4, 12)]], rtol=1e-6)


def test_gradient_of_max_pool_goes_to_the_largest() -> None:
    x = jnp.array([[1.0], [5.0], [2.0], [3.0]])
    weights = jnp.array([[1.0], [10.0], [100.0]])
    by_x = jax.grad(lambda x: jnp.sum(functional.max_pool(x, 2) * weights))(x)
    np.testing.assert_array_equal(by_x, [[0], [11], [0], [100]])


def test_gradients_of_sum_and_avg_pool() -> None:
    x = jnp.array([[1.0], [5.0], [2.0], [3.0]])
    weights = jnp.array([[1.0], [10.0], [100.0]])
    by_sum = jax.grad(lambda x: jnp.sum(functional.sum_pool(x, 2) * weights))(x)
    by_mean = jax.grad(lambda x: jnp.sum(functional.avg_pool(x, 2) * weights))(x)
    np.testing.assert_array_equal(by_sum, [[1], [11], [110], [100]])
    np.testing.assert_array_equal(by_mean, np.array([[1], [11], [110], [100]]) / 2)


@pytest.mark.parametrize("name", POOLS)
@pytest.mark.parametrize(
    ("hparams", "error", "text"),
    [
        ({"window_shape": 0}, ValueError, "window_shape to be a positive integer, got 0"),
        ({"window_shape": "2"}, TypeError, "window_shape to be .*, got '2'"),
        ({"window_shape": (2,)}, ValueError, r"window_shape to be .* 2 of them.*, got \(2,\)"),
        ({"strides": -2}, ValueError, "strides to be a positive integer, got -2"),
        ({"strides": 1.5}, TypeError, "strides to be a positive integer, got 1.5"),
        ({"strides": (1, 1, 1)}, ValueError, r"strides to be .*, got \(1, 1, 1\)"),
        ({"padding": "FULL"}, ValueError, "padding to be one of .*, got 'FULL'"),
        ({"padding": None}, TypeError, "padding to be .*, got None"),
        ({"padding": [1, 2, 3]}, ValueError, r"padding to be .*, got \[1, 2, 3\]"),
        ({"padding": [(1,), 2]}, ValueError, r"padding to be .*, got \[\(1,\), 2\]"),
        ({"input_dilation": 0}, ValueError, "input_dilation to be .*, got 0"),
        ({"input_dilation": (2,)}, ValueError, r"input_dilation to be .*, got \(2,\)"),
        ({"input_dilation": "x"}, TypeError, "input_dilation to be .*, got 'x'"),
        ({"window_dilation": (1, -1)}, ValueError, "window_dilation to be .*, got -1"),
        ({"window_dilation": [1]}, ValueError, r"window_dilation to be .*, got \[1\]"),
        ({"window_dilation": 2.0}, TypeError, "window_dilation to be .*, got 2.0"),
        ({"data_format": "NHWC"}, ValueError, "data_format to be .*, got 'NHWC'"),
        ({"data_format": "HW"}, ValueError, "data_format to be .*, got 'HW'"),
        ({"data_format": "HC"}, ValueError, r"data_format to be .*\(4, 3, 2\), got 'HC'"),
        ({"data_format": ("H", "W", "C")}, TypeError, "data_format to be .*, got .*'H'"),
    ],
)
def test_wrong_argument_of_a_pool_raises(
    name: str,
    hparams: dict[str, Any],  # wrong types on purpose
    error: type[Exception],
    text: str,
) -> None:
    with pytest.raises(error, match=f"^{name}: expected {text}"):
        POOLS[name][0](X, **({"window_shape": 2} | hparams))


@pytest.mark.parametrize("name", POOLS)
def test_pool_of_a_scalar_raises(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: expected x with at least .*, got shape \(\)"):
        POOLS[name][0](jnp.ones(()), 2)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"reduce_fn": 3}, "reduce_fn to be a function, got 3"),
        ({"init_value": "low"}, "init_value to be a number, got 'low'"),
        ({"init_value": (0, 1)}, r"init_value to be a number, got \(0, 1\)"),
    ],
)
def test_wrong_reduction_raises(
    arguments: dict[str, Any],  # wrong types on purpose
    text: str,
) -> None:
    arguments = dict[str, Any](init_value=0, reduce_fn=lax.add, window_shape=2) | arguments
    with pytest.raises(TypeError, match=f"^pool: expected {text}"):
        functional.pool(X, **arguments)


def normalized(x: jax.Array, axes: tuple[int, ...], epsilon: float = 1e-5) -> Floats:
    mean = exact(x).mean(axes, keepdims=True)
    variance = exact(x).var(axes, keepdims=True)
    normal: Floats = (exact(x) - mean) / np.sqrt(variance + epsilon)
    return normal


@pytest.mark.parametrize(
    ("axis", "axes"),
    [
        (1, (1,)),
        (-1, (2,)),
        ([0, -1], (0, 2)),
        (np.int64(0), (0,)),
        ("all", (0, 1, 2)),
        ("channel_last", (0, 1)),
        ("channel_first", (1, 2)),
    ],
)
def test_z_norm(axis: NormalizedAxis, axes: tuple[int, ...]) -> None:
    x = samples(4, 3, 2, mean=2)
    np.testing.assert_allclose(
        z_norm(x, axis), normalized(x, axes), rtol=1e-4, atol=1e-5
    )


def test_epsilon_of_z_norm_is_added_to_the_variance() -> None:
    x = samples(20)
    np.testing.assert_allclose(
        z_norm(x, 0, 2.0), normalized(x, (0,), 2.0), rtol=1e-5, atol=1e-6
    )
    np.testing.assert_array_equal(z_norm(jnp.full(4, 3.0), 0), np.zeros(4))


@pytest.mark.parametrize("mean", [1e4, -1e6])
def test_z_norm_with_a_mean_far_larger_than_the_spread(mean: float) -> None:
    x = samples(2000, mean=mean)
    np.testing.assert_allclose(
        z_norm(x, 0), normalized(x, (0,)), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_z_norm_of_numbers_whose_squares_overflow(dtype: DTypeLike) -> None:
    x = (1e25 * samples(50, mean=1)).astype(dtype)
    tolerance = float(jnp.finfo(dtype).eps) * 10
    np.testing.assert_allclose(exact(z_norm(x, 0)), normalized(x, (0,)), tolerance, tolerance)


def test_z_norm_of_a_single_element_warns() -> None:
    with pytest.warns(UserWarning, match="^z_norm: expected more than one element"):
        np.testing.assert_array_equal(functional.z_norm(X, ()), np.zeros(X.shape))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_z_norm_keeps_half_precision(dtype: DTypeLike) -> None:
    x = samples(3000, mean=100).astype(dtype)  # a sum that float16 cannot hold
    y = z_norm(x, 0)
    assert y.dtype == dtype
    tolerance = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(exact(y), normalized(x, (0,)), rtol=tolerance, atol=1e-5)


def test_z_norm_of_integers_gives_float32() -> None:
    y = z_norm(jnp.array([1, 2, 3]), 0)
    assert y.dtype == jnp.float32
    np.testing.assert_allclose(y, normalized(jnp.array([1, 2, 3]), (0,)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("axis", "axes"), [((), (0,)), ("channel_last", (0, 1))])
@pytest.mark.parametrize("name", ["batch", ("batch",)])
def test_z_norm_over_a_vmapped_axis(
    axis: NormalizedAxis, axes: tuple[int, ...], name: AxisName
) -> None:
    x = samples(50, 3, 2, mean=1e4)
    batched = jax.vmap(lambda x: functional.z_norm(x, axis, name), axis_name="batch")
    y = jax.jit(batched)(x)
    np.testing.assert_allclose(y, normalized(x, axes), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("shape", "names"), [((4,), ("a",)), ((2, 2), ("a", "b"))])
def test_z_norm_over_sharded_axes(shape: tuple[int, ...], names: tuple[str, ...]) -> None:
    x = samples(8, 3, mean=1e4)
    mesh = jax.make_mesh(shape, names, axis_types=(AxisType.Auto,) * len(shape))
    split = PartitionSpec(names)
    sharded = jax.jit(
        jax.shard_map(
            lambda x: functional.z_norm(x, 0, names if len(names) > 1 else names[0]),
            mesh=mesh,
            in_specs=split,
            out_specs=split,
        )
    )
    np.testing.assert_allclose(sharded(x), normalized(x, (0,)), rtol=1e-4, atol=1e-5)


def test_gradient_of_z_norm() -> None:
    x = samples(6, 2, mean=100)
    weights = np.random.default_rng(1).normal(size=(6, 2))
    by_x = jax.grad(lambda x: jnp.sum(z_norm(x, 0, 0.1) * weights))(x)
    centred = exact(x) - exact(x).mean(0)
    deviation = np.sqrt(exact(x).var(0) + 0.1)
    expected = (
        weights - weights.mean(0) - centred * np.mean(weights * centred, 0) / deviation**2
    ) / deviation
    np.testing.assert_allclose(by_x, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ({"axis": "rows"}, ValueError, 'axis to be "all".*, got \'rows\''),
        ({"axis": 3}, ValueError, r"axis to be in \[-3, 3\) .*, got 3"),
        ({"axis": (0, -3)}, ValueError, r"axis to be distinct axes, got \(0, -3\)"),
        ({"axis": 1.0}, TypeError, "axis to be .*, got 1.0"),
        ({"epsilon": -1e-5}, ValueError, "epsilon to be at least 0, got -1e-05"),
        ({"epsilon": "small"}, TypeError, "epsilon to be a number at least 0, got 'small'"),
        ({"x": jnp.ones((0, 3))}, ValueError, r"at least one element.*, got .*\(0, 3\)"),
        ({"x": jnp.ones(()), "axis": "channel_last"}, ValueError, r"x with .*, got shape \(\)"),
    ],
)
def test_wrong_argument_of_z_norm_raises(
    arguments: dict[str, Any],  # wrong types on purpose
    error: type[Exception],
    text: str,
) -> None:
    with pytest.raises(error, match=f"^z_norm: expected {text}"):
        functional.z_norm(**(dict[str, Any](x=X, axis=0) | arguments))


def test_unknown_axis_name_raises() -> None:
    with pytest.raises(NameError, match="nowhere"):
        functional.z_norm(X, 0, "nowhere")


def test_dot_product_attention_logits() -> None:
    query, key = samples(5, 4), samples(3, 4, seed=1)
    logits = functional.dot_product_attention_logits(query, key)
    np.testing.assert_allclose(logits, exact(query) @ exact(key).T / 2, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.uint8])
@pytest.mark.parametrize("depth", [4, 6])
def test_attention_logits_of_integers_keep_their_dtype(dtype: Any, depth: int) -> None:
    values = np.arange(3 * depth).reshape(3, depth) % 5
    query = (values - (2 if np.issubdtype(dtype, np.signedinteger) else 0)).astype(dtype)
    key = query[:2, ::-1].copy()
    logits = functional.dot_product_attention_logits(jnp.asarray(query), jnp.asarray(key))
    products = query.astype(np.int64) @ key.astype(np.int64).T
    assert logits.dtype == dtype
    np.testing.assert_array_equal(logits, np.trunc(products / 2).astype(dtype))


def test_attention_logits_of_bytes_are_summed_in_32_bits() -> None:
    wide = jnp.full((1, 16), 4, jnp.int8)
    assert functional.dot_product_attention_logits(wide, wide).item() == 64  # of 256 / 4


def test_apply_attention_weights() -> None:
    weights, value = samples(5, 3), samples(3, 4, seed=1)
    y = functional.apply_attention_weights(weights, value)
    np.testing.assert_allclose(y, exact(weights) @ exact(value), rtol=1e-5, atol=1e-6)


def test_attention_keeps_half_precision() -> None:
    half = samples(3, 3).astype(jnp.float16)
    assert functional.dot_product_attention_logits(half, half).dtype == jnp.float16
    assert functional.apply_attention_weights(half, half).dtype == jnp.float16


@pytest.mark.parametrize(
    ("function", "first", "second"),
    [
        (functional.dot_product_attention_logits, "query", "key"),
        (functional.apply_attention_weights, "attention_weights", "value"),
    ],
)
def test_wrong_argument_of_attention_raises(
    function: Callable[[jax.Array, jax.Array], jax.Array], first: str, second: str
) -> None:
    matrix = jnp.ones((3, 3))
    with pytest.raises(ValueError, match=rf"expected {first} with 2 axes, got shape \(3,\)"):
        function(matrix[0], matrix)
    with pytest.raises(ValueError, match=rf"expected {second} with 2 axes, got .*\(1, 3, 3\)"):
        function(matrix, matrix[None])
    with pytest.raises(ValueError, match=r"got shapes \(3, 3\) and \(2, 2\)"):
        function(matrix, matrix[:2, :2])
    with pytest.raises(TypeError, match=f"{first} and {second} of one dtype, .*and bfloat16"):
        function(matrix, matrix.astype(jnp.bfloat16))
