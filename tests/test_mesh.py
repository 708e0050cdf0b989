"""Layers on meshes: where outputs lie, what shards draw, and gradients of sharded batches."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import mlax
from mlax import nn
from mlax.functional import batch_mean
from mlax.layer import Key
from mlax.types import AnyLayer

KEY = jax.random.key(0)


def mesh_of(types: AxisType) -> Any:
    return jax.make_mesh((4, 2), ("data", "model"), (types,) * 2)


def put(a: Any, *spec: Any) -> Any:
    return jax.device_put(a, NamedSharding(jax.sharding.get_mesh(), P(*spec)))


def normal(*shape: int) -> Any:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


@pytest.fixture
def explicit() -> Any:
    with jax.set_mesh(mesh_of(AxisType.Explicit)):
        yield


# out_sharding


@pytest.mark.parametrize("make", [mlax.linear, functools.partial(mlax.dense, use_bias=False)])
@pytest.mark.parametrize(
    ("x_spec", "kernel_spec", "out", "y_spec"),
    [
        ((None, "model"), ("model", None), P(), (None, None)),
        ((None, "model"), ("model", None), P("model"), ("model", None)),
        ((None, None), (None, "model"), None, (None, "model")),
        ((None, "model"), (None, None), None, (None, None)),
    ],
)
def test_a_product_lies_where_it_is_told(
    explicit: None, make: Any, x_spec: Any, kernel_spec: Any, out: Any, y_spec: Any
) -> None:
    x, kernel = normal(8, 6, 4), normal(4, 2)
    layer = mlax.batched(make(2, out_sharding=out))
    params, state = layer.init(KEY, x)
    params = jax.tree.map(lambda _: put(kernel, *kernel_spec), params)
    y, _ = jax.jit(layer.apply)(params, state, put(x, "data", *x_spec))
    np.testing.assert_allclose(y, x @ kernel, 1e-5, 1e-5)
    assert y.sharding.spec == P("data", *y_spec)


def test_the_gradient_of_a_row_parallel_product(explicit: None) -> None:
    x, kernel = normal(8, 4), normal(4, 2)
    layer = mlax.batched(mlax.linear(2, out_sharding=P()))
    params, state = layer.init(KEY, x)
    params = jax.tree.map(lambda _: put(kernel, "model"), params)

    def loss(params: Any, x: Any) -> jax.Array:
        return jnp.sum(jnp.square(layer.apply(params, state, x)[0]))

    gradient = jax.jit(jax.grad(loss))(params, put(x, "data", "model"))
    np.testing.assert_allclose(gradient.kernel, 2 * x.T @ (x @ kernel), 1e-4, 1e-4)
    assert gradient.kernel.sharding.spec == P("model", None)


@pytest.mark.parametrize("make", [mlax.linear, mlax.dense])
def test_an_ambiguous_product_names_the_layer_and_the_way_out(explicit: None, make: Any) -> None:
    layer = mlax.series(make(2))
    params, state = layer.init(KEY, normal(4))
    params = jax.tree.map(lambda a: put(a, "model") if a.ndim == 2 else a, params)
    with pytest.raises(ValueError, match=r"expected out_sharding to be given.*PartitionSpec") as got:
        jax.jit(layer.apply)(params, state, put(normal(4), "model"))
    assert any(f"in series[0] > {make.__name__}" in note for note in got.value.__notes__)


@pytest.mark.parametrize("spec", [(), ("model",), (None, "model")])
@pytest.mark.parametrize("out", [None, P()])
def test_rows_of_an_embedding_lie_where_they_are_told(explicit: None, spec: Any, out: Any) -> None:
    table, x = normal(12, 4), np.arange(24).reshape(8, 3) % 12
    layer = mlax.batched(mlax.embed(12, 4, out_sharding=out))
    params, state = layer.init(KEY, x)
    params = jax.tree.map(lambda _: put(table, *spec), params)
    y, _ = jax.jit(layer.apply)(params, state, put(x, "data"))
    np.testing.assert_array_equal(y, table[x])
    last = spec[1] if len(spec) == 2 and out is None else None
    assert y.sharding.spec == P("data", None, last)


@pytest.mark.parametrize(
    ("x_last", "kernel_spec", "out", "y_last"),
    [
        (None, ("model",), None, "model"),
        ("model", (), None, None),
        ("model", (None, None, None, "model"), P(), None),
    ],
)
def test_a_convolution_lies_where_it_is_told(
    explicit: None, x_last: Any, kernel_spec: Any, out: Any, y_last: Any
) -> None:
    x, kernel = normal(8, 5, 5, 4), normal(6, 3, 3, 4)
    layer = mlax.batched(mlax.conv(6, 3, out_sharding=out))
    params, state = layer.init(KEY, x)
    params = jax.tree.map(lambda _: put(kernel, *kernel_spec), params)
    y, _ = jax.jit(layer.apply)(params, state, put(x, "data", None, None, x_last))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))
    np.testing.assert_allclose(y, np.einsum("nhwcij,oijc->nhwo", windows, kernel), 1e-4, 1e-4)
    assert y.sharding.spec == P("data", None, None, y_last)


def test_out_sharding_is_ignored_without_explicit_axes() -> None:
    layer = mlax.linear(2, out_sharding=P("model"))
    params, state = layer.init(KEY, normal(4))
    assert layer.apply(params, state, normal(4))[0].shape == (2,)
    with jax.set_mesh(mesh_of(AxisType.Auto)):
        assert jax.jit(layer.apply)(params, state, normal(4))[0].shape == (2,)


def test_out_sharding_has_to_be_a_partition_spec() -> None:
    with pytest.raises(TypeError, match=r"linear: expected out_sharding to be a PartitionSpec"):
        mlax.linear(2, out_sharding="model")  # type: ignore[arg-type] # wrong on purpose


def test_modules_have_out_sharding_as_an_attribute(explicit: None) -> None:
    x = normal(8, 4)
    _, linear = nn.Linear(KEY, 2)(x[0], None)
    linear.linear_kernel.data = put(normal(4, 2), "model")
    linear.out_sharding = P()
    y, _ = jax.vmap(linear.__call__, (0, None), (0, None))(put(x, "data", "model"), None)
    np.testing.assert_allclose(y, x @ normal(4, 2), 1e-5, 1e-5)


def test_parameters_may_lie_on_no_mesh(explicit: None) -> None:
    layer = mlax.batched(mlax.series(mlax.conv(4, 3), mlax.flatten(), mlax.dense(2)))
    x = normal(8, 5, 5, 2)
    params, state = layer.init(KEY, x)

    def gradient(x: Any) -> Any:
        return jax.grad(lambda params: jnp.sum(layer.apply(params, state, x)[0] ** 2))(params)

    got, expected = jax.jit(gradient)(put(x, "data")), gradient(x)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, 1e-4, 1e-4)


# Loops


@pytest.mark.parametrize("cell", [mlax.lstm_cell(3), mlax.gru_cell(3)], ids=["lstm", "gru"])
def test_a_carry_of_zeros_follows_the_batch(explicit: None, cell: AnyLayer) -> None:
    xs, zeros = normal(8, 5, 2), jnp.zeros((8, 3))
    h = (zeros, zeros) if cell == mlax.lstm_cell(3) else zeros
    layer = mlax.batched(mlax.recurrent(cell))
    params, state = layer.init(KEY, (xs, h))
    (expected, _), _ = layer.apply(params, state, (xs, h))
    (ys, _), _ = jax.jit(layer.apply)(params, state, (put(xs, "data"), h))
    np.testing.assert_allclose(ys, expected, 1e-5, 1e-5)
    assert ys.sharding.spec[0] == "data"


def running_sum(xh: Any) -> Any:
    total = xh[0] + xh[1]
    return total, total


@pytest.mark.parametrize("make", [mlax.recurrent, lambda cell: mlax.as_layer(nn.Recurrent(cell))])
def test_a_carry_of_zeros_without_batched(make: Any) -> None:
    layer = make(nn.F(running_sum) if make is not mlax.recurrent else mlax.f(running_sum))
    xs = normal(5, 8, 2)
    params, state = layer.init(KEY, (xs, jnp.zeros((8, 2))))

    def total(xs: Any) -> Any:
        return layer.apply(params, state, (xs, jnp.zeros(xs.shape[1:])))[0][1]

    with jax.set_mesh(mesh_of(AxisType.Explicit)):
        h = jax.jit(total)(put(xs, None, "data"))
        assert h.sharding.spec == P("data", None)
    np.testing.assert_allclose(h, xs.sum(0), 1e-5, 1e-5)
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    checked = jax.shard_map(total, mesh=mesh, in_specs=P(None, "data"), out_specs=P("data"))
    np.testing.assert_allclose(jax.jit(checked)(xs), xs.sum(0), 1e-5, 1e-5)


@pytest.mark.parametrize("check_vma", [True, False])
def test_branches_that_vary_and_branches_that_do_not(check_vma: bool) -> None:
    zeros = mlax.f(lambda x: jnp.zeros(x.shape))
    layer = mlax.switch(lambda x: jnp.int32(1), mlax.f(jnp.sin), zeros)
    params, state = layer.init(KEY, normal(1, 2))
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    y = jax.jit(
        jax.shard_map(
            lambda x: layer.apply(params, state, x)[0],
            mesh=mesh, in_specs=P("data"), out_specs=P("data"), check_vma=check_vma,
        )
    )(normal(8, 2))
    assert not y.any()


# Keys


def on_shards(apply: Any, check_vma: bool = False) -> Any:
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    return jax.jit(
        jax.shard_map(
            apply, mesh=mesh, in_specs=(P("data"), P()), out_specs=P("data"), check_vma=check_vma
        )
    )


def drawn(layer: AnyLayer, x: Any, key: Key, names: Any) -> Any:
    params, state = layer.init(KEY, x)
    return layer.apply(params, state, x, key, False, names)[0]


NOISY: dict[str, AnyLayer] = {
    "dropout": mlax.dropout(0.5, axis=(0, 1)),
    "stochastic_depth": mlax.stochastic_depth(mlax.f(jnp.negative), 0.5),
    "f_rng": mlax.f_rng(lambda x, rng: x * jax.random.normal(rng, x.shape)),
    "series": mlax.series(mlax.dropout(0.2, 0), mlax.dropout(0.2, 1)),
    "module": mlax.as_layer(nn.SeriesRng([nn.Dropout(0.5, (0, 1))])),
}


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("name", NOISY)
def test_shards_draw_different_numbers(name: str, check_vma: bool) -> None:
    x = np.ones((64, 16), np.float32)
    sharded = on_shards(lambda x, key: drawn(NOISY[name], x, key, "data"), check_vma)(x, KEY)
    shards = np.asarray(sharded).reshape(8, 8, 16)
    assert len({shard.tobytes() for shard in shards}) > (1 if name == "stochastic_depth" else 7)


def test_shards_draw_different_numbers_under_a_vmap_of_the_users() -> None:
    layer = mlax.dropout(0.5, 0)

    def apply(x: Any, key: Key) -> Any:
        keys = jax.random.split(key, len(x))
        return jax.vmap(lambda x, key: drawn(layer, x, key, ("batch", "data")), axis_name="batch")(
            x, keys
        )

    y = on_shards(apply)(np.ones((16, 32), np.float32), KEY)
    assert len({row.tobytes() for row in np.asarray(y)}) == 16


def test_without_its_name_an_axis_is_not_one_of_the_batch() -> None:
    y = on_shards(lambda x, key: drawn(mlax.dropout(0.5, 1), x, key, ()))(np.ones((8, 32)), KEY)
    assert len({row.tobytes() for row in np.asarray(y)}) == 1


def nested(layer: AnyLayer) -> AnyLayer:
    return mlax.batched(mlax.batched(layer, axis_name="tokens"))


@pytest.mark.parametrize("around", [mlax.batched, nested, lambda a: mlax.series(mlax.batched(a))])
def test_what_a_shard_draws_is_what_its_examples_would_draw_unsharded(around: Any) -> None:
    layer = around(mlax.series(mlax.dropout(0.5, 0), mlax.residual(mlax.dropout(0.5, 0))))
    x = np.ones((16, 4, 8) if around is nested else (16, 8), np.float32)
    expected = drawn(layer, x, KEY, ())
    np.testing.assert_array_equal(
        on_shards(lambda x, key: drawn(layer, x, key, "data"))(x, KEY), expected
    )


def test_two_mesh_axes_of_the_batch() -> None:
    layer = mlax.batched(mlax.dropout(0.5, 0))
    x = np.ones((16, 8), np.float32)
    names = ("data", "model")
    y = jax.jit(
        jax.shard_map(
            lambda x, key: drawn(layer, x, key, names), mesh=mesh_of(AxisType.Auto),
            in_specs=(P(names), P()), out_specs=P(names), check_vma=False,
        )
    )(x, KEY)
    np.testing.assert_array_equal(y, drawn(layer, x, KEY, ()))


# Errors


@pytest.mark.parametrize(
    ("layer", "x_spec", "kernel_spec"),
    [
        (mlax.linear(4, out_sharding=P("nope")), (), ()),
        (mlax.embed(8, 4), ("model",), (None, "model")),
        (mlax.max_pool(3), ("data",), ()),
        (mlax.adaptive_avg_pool(2), ("data",), ()),
        (mlax.flatten(), (None, None, "data"), ()),
        (mlax.group_norm(2), (None, None, "data"), ()),
    ],
    ids=lambda value: getattr(value, "__name__", None) or repr(value),
)
@pytest.mark.parametrize("wrap", [lambda layer: layer, mlax.series], ids=["bare", "in_series"])
def test_errors_name_the_layer_that_can_not_use_arrays_where_they_lie(
    explicit: None, layer: AnyLayer, x_spec: Any, kernel_spec: Any, wrap: Any
) -> None:
    is_embed = "embed" in repr(layer)
    x = np.arange(8) if is_embed else normal(8, 8, 4)
    model = wrap(layer)
    with pytest.raises(Exception) as error:  # noqa: PT011 -- its class is private to JAX
        params, state = model.init(KEY, x)
        if kernel_spec:
            params = jax.tree.map(lambda kernel: put(kernel, *kernel_spec), params)
        model.apply(params, state, put(x, *x_spec))
    name = repr(layer).partition("(")[0]
    notes = [note for note in error.value.__notes__ if note.startswith(f"{name}: ")]
    assert len(notes) == 1
    assert "jax.sharding.reshard" in notes[0]


# Gradients and means


@pytest.mark.parametrize("types", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("in_context", [True, False])
@pytest.mark.parametrize(
    "layer",
    [
        mlax.conv(4, 3, 2, "SAME", feature_group_count=2),
        mlax.conv(6, (2, 3), 1, ((1, 2), 0), 2, (1, 2), 2, data_format="channel_first"),
    ],
    ids=["plain", "dilated"],
)
def test_the_gradient_of_a_kernel_in_groups(
    types: AxisType, in_context: bool, layer: AnyLayer
) -> None:
    x = normal(8, 4, 6, 6) if "first" in repr(layer) else normal(8, 6, 6, 4)
    params, state = layer.init(KEY, x[0])
    if types is AxisType.Explicit and not in_context:
        pytest.skip("JAX wants a context for explicit axes")

    def gradient(x: Any) -> Any:
        def loss(params: Any) -> Any:
            y = jax.vmap(lambda x: layer.apply(params, state, x)[0])(x)
            return jnp.sum(jnp.square(y))

        return jax.grad(loss)(params).kernel

    def sum_of_single_gradients() -> Any:
        return sum(np.asarray(gradient(x[i : i + 1])) for i in range(8))

    mesh = mesh_of(types)
    sharded = jax.device_put(x, NamedSharding(mesh, P("data")))
    if in_context:
        with jax.set_mesh(mesh):
            got = jax.jit(gradient)(sharded)
    else:
        got = jax.jit(gradient)(sharded)
    np.testing.assert_allclose(got, sum_of_single_gradients(), 1e-4, 1e-4)


@pytest.mark.parametrize("x_spec", [("data",), ("data", None, None, "model"), ()], ids=str)
@pytest.mark.parametrize("kernel_spec", [("model",), (None, None, None, "model")], ids=str)
def test_the_gradients_of_a_sharded_kernel_in_groups(
    explicit: None, x_spec: Any, kernel_spec: Any
) -> None:
    x = normal(8, 6, 6, 4)
    layer = mlax.batched(mlax.conv(8, 3, 1, "SAME", feature_group_count=2, out_sharding=P()))
    params, state = layer.init(KEY, x)

    def loss(params: Any, x: Any) -> Any:
        return jnp.sum(jnp.square(layer.apply(params, state, x)[0]))

    gradients = jax.jit(jax.grad(loss, (0, 1)))
    sharded = jax.tree.map(lambda kernel: put(kernel, *kernel_spec), params)
    got = gradients(sharded, put(x, *x_spec))
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(gradients(params, x)), strict=True):
        np.testing.assert_allclose(a, b, 1e-4, 1e-4)


def test_the_forward_derivative_of_a_kernel_in_groups() -> None:
    x = normal(6, 6, 4)
    layer = mlax.conv(4, 3, 2, "SAME", feature_group_count=2)
    params, state = layer.init(KEY, x)

    def f(x: Any, kernel: Any) -> Any:
        return layer.apply(params._replace(kernel=kernel), state, x)[0]

    forward, reverse = (jac(f, (0, 1))(x, params.kernel) for jac in (jax.jacfwd, jax.jacrev))
    for a, b in zip(forward, reverse, strict=True):
        np.testing.assert_allclose(a, b, 1e-5, 1e-5)


@pytest.mark.parametrize("accum_dtype", [None, jnp.float32])
def test_the_gradient_of_a_kernel_in_groups_in_half_precision(accum_dtype: Any) -> None:
    x = normal(6, 4)
    layer = mlax.conv(4, 3, feature_group_count=2, accum_dtype=accum_dtype)
    params, state = layer.init(KEY, x)

    def gradient(x: Any) -> Any:
        return jax.grad(lambda params: layer.apply(params, state, x)[0].astype(float).sum())(params)

    with jax.numpy_dtype_promotion("strict"):
        half = gradient(jnp.asarray(x, jnp.bfloat16))
    np.testing.assert_allclose(half.kernel, gradient(x).kernel, 0.05, 0.05)


def test_xla_multiplies_the_gradient_of_a_kernel_in_groups() -> None:
    """If this fails, XLA is mended, and `conv` needs no gradient of its own."""

    def loss(kernel: Any, x: Any) -> Any:
        y = lax.conv_general_dilated(
            x, kernel, (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"), feature_group_count=2
        )
        return jnp.sum(jnp.square(y))

    x, kernel = normal(8, 6, 2), normal(3, 1, 2)
    sharded = jax.device_put(x, NamedSharding(mesh_of(AxisType.Auto), P("data")))
    gradient = jax.jit(jax.grad(loss))
    np.testing.assert_allclose(gradient(kernel, sharded), 2 * gradient(kernel, x), 1e-4)


def test_batch_mean_under_vmap_on_explicit_axes(explicit: None) -> None:
    x = normal(8, 3)
    y = jax.jit(jax.vmap(lambda x: x - batch_mean(x, "b"), axis_name="b"))(put(x, "data"))
    np.testing.assert_allclose(y, x - x.mean(0), 1e-5, 1e-5)


def test_batch_mean_over_both_kinds_of_axes() -> None:
    def apply(x: Any, key: Key) -> Any:
        return jax.vmap(lambda x: x - batch_mean(x, ("b", "data")), axis_name="b")(x)

    x = normal(16, 3)
    np.testing.assert_allclose(on_shards(apply)(x, KEY), x - x.mean(0), 1e-5, 1e-5)
    assert batch_mean(jnp.float32(3), ()) == 3


def test_x_that_lies_in_two_ways_names_the_layer(explicit: None) -> None:
    layer = mlax.batched(mlax.add())
    x = (put(normal(8, 2), "data"), put(normal(8, 2), "model"))
    params, state = layer.init(KEY, x)
    with pytest.raises(ValueError, match=r"batched: expected the leading axis of x to be sharded"):
        layer.apply(params, state, x)
