"""Tests of the statistics over arrays, mapped axes and meshes, against NumPy in float64."""

import functools
import re
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec
from jax.typing import DTypeLike

import mlax
from mlax import AxisName
from mlax.statistics import require_statistics, standardized, statistics, wide_dtype

Floats: TypeAlias = npt.NDArray[np.float64]
Parts: TypeAlias = tuple[jax.Array, jax.Array, jax.Array]


def parts(x: jax.Array, axes: tuple[int, ...], names: AxisName = ()) -> Parts:
    """Return (centred, mean, variance) as a plain tuple."""
    require_statistics("test", x, axes, names)
    centred, mean, variance = statistics("test", x, axes, names)
    return centred, mean, variance


compiled_parts = jax.jit(parts, static_argnames="axes")


def samples(*shape: int, mean: float = 0.0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(mean, size=shape), jnp.float32)


def assert_statistics(result: Parts, x: jax.Array, axes: tuple[int, ...]) -> None:
    centred, mean, variance = result
    exact = np.asarray(x, np.float64)
    exact_mean = exact.mean(axes, keepdims=True)
    np.testing.assert_allclose(centred, exact - exact_mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(mean, exact_mean.squeeze(axes), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(variance, exact.var(axes), rtol=1e-5, atol=1e-7)


def mesh_of(shape: dict[str, int]) -> Mesh:
    types = (AxisType.Auto,) * len(shape)
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=types)


def over_mesh(
    function: Callable[[jax.Array], Parts],
    shape: dict[str, int],
    sharded: AxisName,
    check_vma: bool = True,
) -> Callable[[jax.Array], Parts]:
    """Return the function, with the first axis sharded over axes of a mesh of 4 devices."""
    split, whole = PartitionSpec(sharded), PartitionSpec()
    mapped: Callable[[jax.Array], Parts] = jax.jit(
        jax.shard_map(
            function,
            mesh=mesh_of(shape),
            in_specs=split,
            out_specs=(split, whole, whole),
            check_vma=check_vma,
        )
    )
    return mapped


@pytest.mark.parametrize("axes", [(0,), (1,), (0, 2), (0, 1, 2)])
def test_axes(axes: tuple[int, ...]) -> None:
    x = samples(3, 4, 5)
    assert_statistics(compiled_parts(x, axes=axes), x, axes)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.int32, jnp.uint8])
def test_float32_whatever_the_dtype_of_x(dtype: DTypeLike) -> None:
    x = (samples(5, 4) * 10 + 50).astype(dtype)
    result = compiled_parts(x, axes=(0,))
    assert [part.dtype for part in result] == [jnp.float32] * 3
    assert_statistics(result, x, (0,))


@pytest.mark.parametrize("mean", [1e4, -1e6])
def test_mean_far_larger_than_the_spread(mean: float) -> None:
    x = samples(3000, 2, mean=mean)
    assert_statistics(compiled_parts(x, axes=(0,)), x, (0,))


@pytest.mark.parametrize("axes", [(), (0,)])
def test_vmapped(axes: tuple[int, ...]) -> None:
    x = samples(6, 2, mean=1e4)
    result = jax.vmap(
        lambda x: parts(x, axes, "batch"),
        out_axes=(0, None, None),
        axis_name="batch",
    )(x)
    assert_statistics(result, x, (0, *(axis + 1 for axis in axes)))


def test_vmapped_over_a_large_batch() -> None:
    x = samples(2**18, mean=1e4)
    result = jax.jit(
        jax.vmap(
            lambda x: parts(x, (), "batch"),
            out_axes=(0, None, None),
            axis_name="batch",
        )
    )(x)
    assert_statistics(result, x, (0,))


def test_vmapped_over_a_tuple_of_names() -> None:
    x = samples(3, 4, 2)

    def outer(x: jax.Array) -> Parts:
        return jax.vmap(
            lambda x: parts(x, (), ("outer", "inner")),
            out_axes=(0, None, None),
            axis_name="inner",
        )(x)

    result = jax.vmap(outer, out_axes=(0, None, None), axis_name="outer")(x)
    assert_statistics(result, x, (0, 1))


@pytest.mark.parametrize(
    ("shape", "names"),
    [({"d": 4}, "d"), ({"d": 4}, ("d",)), ({"a": 2, "b": 2}, ("a", "b"))],
    ids=["name", "tuple", "two names"],
)
def test_sharded(shape: dict[str, int], names: AxisName) -> None:
    x = samples(8, 3, mean=1e4)
    result = over_mesh(lambda x: parts(x, (0,), names), shape, names)(x)
    assert_statistics(result, x, (0,))


def test_sharded_over_a_part_of_the_mesh() -> None:
    x = samples(8, 3)
    split, by_a = PartitionSpec(("a", "b")), PartitionSpec("a")
    centred, mean, variance = jax.jit(
        jax.shard_map(
            lambda x: jax.tree.map(jnp.atleast_2d, parts(x, (0,), "b")),
            mesh=mesh_of({"a": 2, "b": 2}),
            in_specs=split,
            out_specs=(split, by_a, by_a),
        )
    )(x)
    for i in range(2):
        half = slice(4 * i, 4 * i + 4)
        assert_statistics((centred[half], mean[i], variance[i]), x[half], (0,))


def test_shards_with_means_of_their_own() -> None:
    x = samples(8, 3) + jnp.repeat(jnp.array([0.0, 1e3, -5.0, 300.0]), 2)[:, None]
    centred, mean, variance = over_mesh(lambda x: parts(x, (0,), "d"), {"d": 4}, "d")(x)
    exact = np.asarray(x, np.float64)
    np.testing.assert_allclose(mean, exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(variance, exact.var(0), rtol=1e-6)
    np.testing.assert_allclose(centred, exact - exact.mean(0), atol=1e-3)


@pytest.mark.parametrize(
    ("shape", "sharded", "names"),
    [
        ({"d": 4}, "d", ("batch", "d")),
        ({"d": 4}, "d", ("d", "batch")),
        ({"a": 2, "b": 2}, ("a", "b"), ("a", "b", "batch")),
    ],
)
def test_vmapped_within_shards(
    shape: dict[str, int], sharded: AxisName, names: tuple[str, ...]
) -> None:
    x = samples(8, 3, mean=1e4)
    mapped = jax.vmap(
        lambda x: parts(x, (), names),
        out_axes=(0, None, None),
        axis_name="batch",
    )
    # jax does not follow which values vary over the mesh through reductions within vmap.
    assert_statistics(over_mesh(mapped, shape, sharded, check_vma=False)(x), x, (0,))


def test_pmapped() -> None:
    x = samples(4, 5, mean=1e4)
    per_device = jax.pmap(lambda x: parts(x, (0,), "devices"), axis_name="devices")
    centred, means, variances = per_device(x)
    assert_statistics((centred, means[0], variances[0]), x, (0, 1))


@pytest.mark.parametrize(("names", "count"), [("d", 1), (("batch", "d"), 1), ("batch", 0)])
def test_one_all_reduce(names: AxisName, count: int) -> None:
    mapped = jax.vmap(lambda x: parts(x, (0,), names), axis_name="batch")
    compiled = (
        jax.jit(
            jax.shard_map(
                mapped,
                mesh=mesh_of({"d": 4}),
                in_specs=PartitionSpec("d"),
                out_specs=PartitionSpec("d"),
                check_vma=False,
            )
        )
        .lower(jnp.ones((8, 3)))
        .compile()
        .as_text()
    )
    assert compiled is not None
    assert len(re.findall(r" all-reduce(?:-start)?\(", compiled)) == count
    assert not re.search(r" (?:all-gather|all-to-all|collective-permute)(?:-start)?\(", compiled)


@pytest.mark.parametrize("sharded", [False, True])
def test_gradients(sharded: bool) -> None:
    x = samples(8, 3, mean=10)
    by_centred = np.random.default_rng(1).normal(size=(8, 3))
    by_mean = np.array([1.0, -2.0, 0.5])
    by_variance = np.array([-1.0, 3.0, 2.0])
    function = over_mesh(lambda x: parts(x, (0,), "d"), {"d": 4}, "d")
    if not sharded:
        function = functools.partial(compiled_parts, axes=(0,))

    def loss(x: jax.Array) -> jax.Array:
        centred, mean, variance = function(x)
        return (
            jnp.sum(by_centred * centred)
            + jnp.sum(by_mean * mean)
            + jnp.sum(by_variance * variance)
        )

    exact = np.asarray(x, np.float64)
    expected = (
        by_centred
        - by_centred.mean(0)
        + by_mean / 8
        + by_variance * 2 * (exact - exact.mean(0)) / 8
    )
    np.testing.assert_allclose(jax.grad(loss)(x), expected, rtol=1e-4, atol=1e-5)


def test_no_element_raises() -> None:
    with pytest.raises(ValueError, match=r"^test: expected at least one element.*got .*\(0, 3\)"):
        require_statistics("test", jnp.ones((0, 3)), (0,), ())


@pytest.mark.parametrize("names", ["batch", ("batch",)])
def test_an_empty_batch_raises(names: AxisName) -> None:
    def mean(x: jax.Array) -> jax.Array:
        return parts(x, (), names)[1]

    empty = jax.vmap(mean, out_axes=None, axis_name="batch")
    with pytest.raises(ValueError, match="^test: expected at least one example .*'batch'.*empty"):
        empty(jnp.ones((0, 3)))


def test_complex_numbers_raise() -> None:
    with pytest.raises(TypeError, match="^test: expected x to be of a real dtype, got complex64"):
        require_statistics("test", jnp.ones(3, jnp.complex64), (0,), ())


@pytest.mark.parametrize("name", ["nowhere", ("nowhere",)])
def test_unknown_axis_name_raises(name: AxisName) -> None:
    with pytest.raises(NameError, match="nowhere"):
        require_statistics("test", jnp.ones(3), (0,), name)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32, jnp.int32, jnp.bool_])
def test_the_wide_dtype_is_float32_where_promotion_is_strict(dtype: DTypeLike) -> None:
    with jax.numpy_dtype_promotion("strict"):
        assert wide_dtype(dtype) == jnp.float32
        assert wide_dtype(jnp.float64) == jnp.float64
        assert wide_dtype(jnp.complex64) == jnp.complex64


def normalized(x: Floats, epsilon: float, centred: bool) -> Floats:
    """Return the formula over the last axis, in float64."""
    value = x - x.mean(-1, keepdims=True) if centred else x
    normal: Floats = value / np.sqrt((value**2).mean(-1, keepdims=True) + epsilon)
    return normal


def gradient(x: Floats, weights: Floats, epsilon: float, centred: bool) -> Floats:
    """Return the gradient of the weighted sum of `normalized`, in float64."""
    value = x - x.mean(-1, keepdims=True) if centred else x
    spread = np.sqrt((value**2).mean(-1, keepdims=True) + epsilon)
    by_value = (
        weights - value / spread**2 * (weights * value).mean(-1, keepdims=True)
    ) / spread
    by_x: Floats = by_value - by_value.mean(-1, keepdims=True) if centred else by_value
    return by_x


@pytest.mark.parametrize("centred", [True, False])
@pytest.mark.parametrize("epsilon", [1e-5, 1e-30, 0.0])
def test_numbers_whose_squares_leave_the_range_are_normalised(
    epsilon: float, centred: bool
) -> None:
    magnitudes = [1e-25, 1e-10, 1.0, 1e10, 1e15, 1e18, 1e20, 1e25, 1e38]
    x = np.random.default_rng(0).normal(1, 0.5, (9, 16)) * np.array(magnitudes)[:, None]
    x = x.astype(np.float32).astype(np.float64)
    weights = np.random.default_rng(1).normal(size=x.shape)

    def weighted(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        y = standardized("test", x, (1,), epsilon, centred)
        return jnp.sum(weights * y), y

    (_, y), by_x = jax.jit(jax.value_and_grad(weighted, has_aux=True))(jnp.asarray(x, jnp.float32))
    exact, exact_by_x = normalized(x, epsilon, centred), gradient(x, weights, epsilon, centred)
    np.testing.assert_allclose(y, exact, rtol=1e-4, atol=1e-37)
    slopes = np.abs(exact_by_x).max(1, keepdims=True)
    rounded = np.maximum(slopes, 1e-34)  # 1e-38 is flushed to zero
    np.testing.assert_allclose(by_x / rounded, exact_by_x / rounded, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("centred", [True, False])
def test_gradients_of_normalised_numbers_to_second_order(centred: bool) -> None:
    x, epsilon = samples(2, 5, mean=1), jnp.float32(0.1)

    def plain(x: jax.Array, epsilon: jax.Array) -> jax.Array:
        value = x - x.mean(1, keepdims=True) if centred else x
        return value / jnp.sqrt(jnp.square(value).mean(1, keepdims=True) + epsilon)

    def ours(x: jax.Array, epsilon: jax.Array) -> jax.Array:
        return standardized("test", x, (1,), epsilon, centred)  # type: ignore[arg-type]  # traced

    def derivatives(function: Callable[[jax.Array, jax.Array], jax.Array]) -> jax.Array:
        first = jax.grad(lambda *a: jnp.sum(jnp.sin(function(*a))), (0, 1))
        both = jax.jit(lambda *a: (first(*a), jax.jacfwd(first)(*a)))(x, epsilon)
        return jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(both)])

    np.testing.assert_allclose(
        derivatives(ours), derivatives(plain), rtol=1e-3, atol=1e-5
    )


def test_infinity_and_nan_are_normalised_to_nan_in_their_row_alone() -> None:
    x = jnp.array([[1.0, jnp.inf], [1.0, jnp.nan], [1.0, 3.0]])
    y = standardized("test", x, (1,), 0.0)
    assert jnp.isnan(y[0, 1]) and jnp.isnan(y[1]).all()
    np.testing.assert_allclose(y[2], [-1, 1])


def test_no_element_of_standardized_raises() -> None:
    with pytest.raises(ValueError, match=r"^test: expected at least one element.*got .*\(0, 3\)"):
        standardized("test", jnp.ones((0, 3)), (0,), 0.0)


def test_statistics_of_a_single_element_warn_at_the_line_of_the_user() -> None:
    wanted = "^test: expected more than one element .*; map a batch with mlax.batched"
    with pytest.warns(UserWarning, match=wanted) as warned:
        compiled_parts(jnp.ones(3), axes=())
        compiled_parts(jnp.zeros(3), axes=())
    assert [warning.filename for warning in warned] == [__file__]  # one trace, one warning


def test_a_batch_of_one_example_warns() -> None:
    one: Callable[[jax.Array], jax.Array] = jax.vmap(
        lambda x: parts(x, (), "batch")[0], axis_name="batch"
    )
    with pytest.warns(UserWarning, match="^test: expected more than one .*; pass several examples"):
        one(jnp.ones((1, 3)))


@pytest.mark.parametrize("size", [1.0, 1e15, 1e25, 3e38])
def test_equal_numbers_give_zeros_and_a_finite_gradient(size: float) -> None:
    x = jnp.full(4, size)
    layer = mlax.layer_norm()
    params, state = layer.init(jax.random.key(0), x)
    assert not layer.apply(params, state, x)[0].any()
    gradient = jax.grad(lambda x: layer.apply(params, state, x)[0][0])(x)
    np.testing.assert_allclose(gradient, np.array([0.75, -0.25, -0.25, -0.25]) / 1e-5**0.5, 1e-4)
