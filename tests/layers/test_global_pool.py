"""Tests of `flatten`, `global_avg_pool` and `adaptive_avg_pool` against NumPy."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlax.layers.global_pool import adaptive_avg_pool, flatten, global_avg_pool
from mlax.types import DataFormat
from tests.oracle import KEY, assert_close, assert_layer_equals, normal


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 4)])
def test_flatten(shape: tuple[int, ...]) -> None:
    x = normal(*shape)
    params, state = flatten.init(KEY, x)
    y, _ = flatten.apply(params, state, x)
    np.testing.assert_array_equal(y, np.asarray(x).reshape(-1))
    assert jax.tree.structure(flatten().init(KEY, x)) == jax.tree.structure((params, state))


@pytest.mark.parametrize(
    ("data_format", "axes"),
    [("channel_last", (0, 1)), ("channel_first", (1, 2)), ("HCW", (0, 2))],
)
def test_global_avg_pool(data_format: DataFormat, axes: tuple[int, ...]) -> None:
    def oracle(params: Any, x: jax.Array) -> jax.Array:
        return x.sum(axes) / math.prod(x.shape[axis] for axis in axes)

    assert_layer_equals(global_avg_pool(data_format=data_format), oracle, normal(4, 3, 2))


@pytest.mark.parametrize(
    ("shape", "output_shape"),
    [((6, 4), (3, 2)), ((7, 5), (3, 4)), ((3, 2), (5, 2)), ((7, 5), 1), ((2, 3), 3), ((9,), 4)],
)
def test_adaptive_avg_pool(shape: tuple[int, ...], output_shape: Any) -> None:
    counts = output_shape if isinstance(output_shape, tuple) else (output_shape,) * len(shape)

    def window(i: int, length: int, count: int) -> slice:
        return slice(math.floor(i * length / count), math.ceil((i + 1) * length / count))

    def oracle(params: Any, x: jax.Array) -> jax.Array:
        means = []
        for index in np.ndindex(*counts):
            windows = tuple(map(window, index, shape, counts))
            means.append(x[windows].reshape(-1, x.shape[-1]).mean(0))
        return jnp.stack(means).reshape(*counts, -1)

    x = normal(*shape, 2)
    assert_layer_equals(adaptive_avg_pool(output_shape), oracle, x)
    first = jnp.moveaxis(x, -1, 0)
    params, state = adaptive_avg_pool.init(
        KEY, first, output_shape, data_format="channel_first"
    )
    y, _ = adaptive_avg_pool.apply(params, state, first)
    assert_close(y, jnp.moveaxis(oracle((), x), -1, 0))


@pytest.mark.parametrize("layer", [global_avg_pool(), adaptive_avg_pool(1)], ids=repr)
def test_dtypes(layer: Any) -> None:
    x = jnp.full((1000, 1), 100, jnp.float16)
    params, state = layer.init(KEY, x)
    y, _ = layer.apply(params, state, x)
    assert y.dtype == jnp.float16 and y.ravel().tolist() == [100.0]
    y, _ = layer.apply(params, state, jnp.array([[1], [2]], jnp.int32))
    assert y.dtype == jnp.float32 and y.ravel().tolist() == [1.5]


def test_errors() -> None:
    for name, layer in (("global_avg_pool", global_avg_pool()), ("adaptive", adaptive_avg_pool(2))):
        with pytest.raises(ValueError, match=f"{name}.*: expected x with at least 2 axes"):
            layer.init(KEY, normal(3))
        with pytest.raises(ValueError, match=f"{name}.*: expected x with at least one element"):
            layer.init(KEY, jnp.ones((0, 3)))
    with pytest.raises(ValueError, match="global_avg_pool: expected data_format to be"):
        global_avg_pool(data_format="channels_last")  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match="adaptive_avg_pool: expected output_shape to be a posi"):
        adaptive_avg_pool(0)
    with pytest.raises(ValueError, match="adaptive_avg_pool: expected output_shape to be an int"):
        adaptive_avg_pool((1, 2)).init(KEY, normal(4, 2))
    params, state = adaptive_avg_pool.init(KEY, normal(4, 4, 2), 2)
    with pytest.raises(ValueError, match=r"adaptive_avg_pool: expected x with 3 axes.*\(4, 2\)"):
        adaptive_avg_pool.apply(params, state, normal(4, 2))


@pytest.mark.parametrize(("length", "count"), [(7, 3), (6, 3), (3, 5), (10, 4)])
def test_infinity_and_nan_stay_in_their_windows(length: int, count: int) -> None:
    layer: Any = adaptive_avg_pool(count)
    for place in range(length):
        x = normal(length, 2).at[place, 0].set(jnp.inf).at[place, 1].set(jnp.nan)
        y, _ = layer.apply(*layer.init(KEY, x), x)
        for i in range(count):
            start, stop = math.floor(i * length / count), math.ceil((i + 1) * length / count)
            wanted = np.asarray(x[start:stop]).mean(0)
            np.testing.assert_allclose(y[i], wanted, rtol=1e-5, atol=1e-6)


def test_cotangents_of_one_window_stay_in_it() -> None:
    layer = adaptive_avg_pool(3)
    x = normal(7, 1)
    params, state = layer.init(KEY, x)
    _, backward = jax.vjp(lambda x: layer.apply(params, state, x)[0], x)
    (by_x,) = backward(jnp.array([[1.0], [jnp.inf], [1.0]]))  # windows 0:3, 2:5, 4:7
    np.testing.assert_allclose(
        by_x.ravel(), [1 / 3, 1 / 3, np.inf, np.inf, np.inf, 1 / 3, 1 / 3], rtol=1e-6
    )


@pytest.mark.parametrize("layer", [global_avg_pool(), adaptive_avg_pool(1)], ids=repr)
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16])
def test_means_of_short_integers_do_not_wrap(layer: Any, dtype: Any) -> None:
    x = np.full((5, 1), np.iinfo(dtype).max, dtype)
    y, _ = layer.apply(*layer.init(KEY, x), x)
    assert y.ravel().tolist() == [float(np.iinfo(dtype).max)]


@pytest.mark.parametrize("layer", [global_avg_pool(), adaptive_avg_pool(2)], ids=repr)
def test_half_precision_where_promotion_is_strict(layer: Any) -> None:
    x = normal(5, 2).astype(jnp.bfloat16)
    with jax.numpy_dtype_promotion("strict"):
        y, _ = layer.apply(*layer.init(KEY, x), x)
    assert y.dtype == jnp.bfloat16
