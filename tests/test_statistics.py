"""Tests of the statistics over arrays, mapped axes and meshes, against NumPy in float64."""

import functools
import re
from collections.abc import Callable
from typing import TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec
from jax.typing import DTypeLike

from mlax import AxisName
from mlax.statistics import statistics

Parts: TypeAlias = tuple[jax.Array, jax.Array, jax.Array]


def parts(x: jax.Array, axes: tuple[int, ...], names: AxisName = ()) -> Parts:
    """Return (centred, mean, variance) as a plain tuple."""
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


@pytest.mark.parametrize("axes", [(), (0,), (1,), (0, 2), (0, 1, 2)])
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
        statistics("test", jnp.ones((0, 3)), (0,), ())


@pytest.mark.parametrize("names", ["batch", ("batch",)])
def test_an_empty_batch_raises(names: AxisName) -> None:
    def mean(x: jax.Array) -> jax.Array:
        return parts(x, (), names)[1]

    empty = jax.vmap(mean, out_axes=None, axis_name="batch")
    with pytest.raises(ValueError, match="^test: expected at least one example .*'batch'.*empty"):
        empty(jnp.ones((0, 3)))


def test_complex_numbers_raise() -> None:
    with pytest.raises(TypeError, match="^test: expected x to be of a real dtype, got complex64"):
        statistics("test", jnp.ones(3, jnp.complex64), (0,), ())


@pytest.mark.parametrize("name", ["nowhere", ("nowhere",)])
def test_unknown_axis_name_raises(name: AxisName) -> None:
    with pytest.raises(NameError, match="nowhere"):
        statistics("test", jnp.ones(3), (0,), name)
