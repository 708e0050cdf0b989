"""Tests of the default initializers against those of `jax.nn.initializers`, bit for bit."""

import functools
import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlax.initializers import Initializer, embedding_normal, initialize, lecun_normal
from tests.oracle import KEY

embedding = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal", out_axis=0)
both = pytest.mark.parametrize(
    ("initializer", "oracle"),
    [(lecun_normal, jax.nn.initializers.lecun_normal()), (embedding_normal, embedding)],
    ids=["lecun_normal", "embedding_normal"],
)
LONG = (150, 301)
"""Shape of an array that is drawn in three chunks, the last of which overlaps the one before."""


def assert_equal_bits(a: jax.Array, b: jax.Array) -> None:
    assert (a.shape, a.dtype) == (b.shape, b.dtype)
    assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize(
    "shape", [(1, 1), (3, 7), (2, 2, 16, 3), (2, 3, 5, 10), LONG]
)
@both
def test_the_bits_are_those_of_jax(
    initializer: Initializer, oracle: Initializer, shape: tuple[int, ...]
) -> None:
    assert_equal_bits(initializer(KEY, shape, jnp.float32), oracle(KEY, shape, jnp.float32))


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "complex64"])
@both
def test_the_bits_are_those_of_jax_in_any_dtype(
    initializer: Initializer, oracle: Initializer, dtype: str
) -> None:
    with jax.enable_x64(True):
        assert_equal_bits(initializer(KEY, LONG, dtype), oracle(KEY, LONG, dtype))


@pytest.mark.parametrize(
    "key",
    [jax.random.PRNGKey(3), jax.random.key(3, impl="rbg"), np.array([1, 2], np.uint32)],
    ids=["raw", "rbg", "numpy"],
)
@both
def test_the_key_may_be_of_any_kind(
    initializer: Initializer, oracle: Initializer, key: jax.Array
) -> None:
    assert_equal_bits(initializer(key, LONG, jnp.float32), oracle(key, LONG, jnp.float32))


@both
def test_the_bits_depend_on_the_shape_if_jax_says_so(
    initializer: Initializer, oracle: Initializer
) -> None:
    with jax.threefry_partitionable(False):
        assert_equal_bits(initializer(KEY, LONG, jnp.float32), oracle(KEY, LONG, jnp.float32))


def over_keys(draw: Callable[[jax.Array], jax.Array]) -> jax.Array:
    return jax.vmap(draw)(jax.random.split(KEY, 2))


def scanned(draw: Callable[[jax.Array], jax.Array]) -> jax.Array:
    result: jax.Array = jax.lax.map(draw, jax.random.split(KEY, 2))
    return result


@pytest.mark.parametrize(
    "transformed",
    [
        lambda draw: jax.jit(draw)(KEY),
        lambda draw: jax.jit(lambda: draw(KEY))(),
        over_keys,
        scanned,
        lambda draw: jax.jit(over_keys, static_argnums=0)(draw),
    ],
    ids=["jit", "jit without arguments", "vmap", "scan", "vmap in jit"],
)
@both
def test_the_bits_are_those_of_jax_under_transformations(
    initializer: Initializer, oracle: Initializer, transformed: Callable[[Any], jax.Array]
) -> None:
    assert_equal_bits(
        transformed(lambda key: initializer(key, LONG, jnp.float32)),
        transformed(lambda key: oracle(key, LONG, jnp.float32)),
    )


@pytest.mark.parametrize("shape", [(3, 2, 40, 100), (2, 17000)], ids=str)
@pytest.mark.parametrize("transformed", [lambda draw: draw, jax.jit], ids=["eager", "jit"])
@both
def test_a_draw_is_kept_in_any_order(
    initializer: Initializer, oracle: Initializer, shape: tuple[int, ...], transformed: Any
) -> None:
    keys = [jax.random.fold_in(KEY, i) for i in range(3)]
    whole, *others = (transformed(lambda key: oracle(key, shape, jnp.float32))(key) for key in keys)
    axes = (len(shape) - 1, *range(len(shape) - 1))
    draw = functools.partial(initialize, "", "", initializer, shape=shape, dtype=jnp.float32)
    transposed = transformed(lambda key: draw(key, axes=axes))(keys[0])
    assert_equal_bits(transposed, whole.transpose(axes))
    gates = transformed(lambda key: draw(key, gates=3))(KEY)
    assert_equal_bits(gates, jnp.concatenate([whole, *others], -1))


@both
def test_shapes_are_known_without_a_key(initializer: Initializer, oracle: Initializer) -> None:
    def draw(key: jax.Array) -> jax.Array:
        return initializer(key, LONG, jnp.bfloat16)

    key = jax.eval_shape(lambda: KEY)
    assert jax.eval_shape(draw, key) == jax.ShapeDtypeStruct(LONG, jnp.bfloat16)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0), (2, 0, 3)])
@both
def test_empty_arrays(
    initializer: Initializer, oracle: Initializer, shape: tuple[int, ...]
) -> None:
    assert_equal_bits(initializer(KEY, shape, jnp.float32), jnp.zeros(shape))


@pytest.mark.parametrize("shape", [(), (3,)])
@both
def test_a_shape_without_fans_raises(
    initializer: Initializer, oracle: Initializer, shape: tuple[int, ...]
) -> None:
    wanted = r"_normal: expected shape to be of at least two axes, got \(.*\); pass an initializer"
    with pytest.raises(ValueError, match=wanted):
        initializer(KEY, shape, jnp.float32)


@both
def test_a_key_that_is_used_twice_is_found(initializer: Initializer, oracle: Initializer) -> None:
    with jax.debug_key_reuse(True):
        key = jax.random.key(1)
        initializer(key, (2, 3), jnp.float32)
        with pytest.raises(jax.errors.KeyReuseError):
            initializer(key, (2, 3), jnp.float32)


@pytest.mark.parametrize("explicit", [False, True])
@both
def test_keys_may_be_sharded(
    initializer: Initializer, oracle: Initializer, explicit: bool
) -> None:
    kind = jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((2,), ("copy",), axis_types=(kind,))
    with jax.set_mesh(mesh):
        keys = jax.device_put(jax.random.split(KEY, 2), jax.NamedSharding(mesh, jax.P("copy")))
        copies = jax.vmap(lambda key: initializer(key, LONG, jnp.float32))(keys)
        assert copies.sharding.is_equivalent_to(keys.sharding, copies.ndim)
        expected = jax.vmap(lambda key: oracle(key, LONG, jnp.float32))(keys)
        assert_equal_bits(copies, expected)


@both
def test_it_can_be_pickled(initializer: Initializer, oracle: Initializer) -> None:
    assert pickle.loads(pickle.dumps(initializer)) is initializer


@both
def test_a_compiled_program_needs_little_more_than_the_array(
    initializer: Initializer, oracle: Initializer
) -> None:
    draw = functools.partial(initialize, "", "", initializer, dtype=jnp.float32)
    for drawn in (
        lambda key: initializer(key, (500, 500), jnp.float32),
        lambda key: draw(key, shape=(500, 500), axes=(1, 0)),
        lambda key: draw(key, shape=(5, 250, 200), axes=(2, 0, 1)),
        lambda key: draw(key, shape=(500, 125), gates=4),
    ):
        memory: Any = jax.jit(drawn).lower(KEY).compile().memory_analysis()
        assert memory.output_size_in_bytes == 10**6
        assert memory.temp_size_in_bytes < 0.25 * 10**6


PROGRAM = """
import resource, sys, jax, mlax

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

layer, shape = {
    "transposed": (lambda n: mlax.linear(4 * n, transposed_kernel=True), (2048,)),
    "conv": (lambda n: mlax.conv(4 * n, 4), (8, 8, 128)),
}[sys.argv[1]]
key, x = jax.random.key(0), jax.ShapeDtypeStruct(shape, "float32")
jax.block_until_ready(layer(4).init(key, x))
before = peak()
kernel = jax.block_until_ready(layer(1000).init(key, x)[0].kernel)
print((peak() - before) / kernel.nbytes)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in other units")
@pytest.mark.parametrize("layer", ["transposed", "conv"])
def test_init_needs_little_more_memory_than_the_kernel(layer: str) -> None:
    program = [sys.executable, "-c", PROGRAM, layer]
    done = subprocess.run(program, check=True, capture_output=True, text=True, timeout=120)
    assert float(done.stdout) < 1.25
