"""Tests of `mlax.z_norm` against NumPy in float64."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from jax.sharding import AxisType, PartitionSpec
from jax.typing import DTypeLike

import mlax
from mlax import AxisName
from mlax.arguments import NormalizedAxis

Floats = npt.NDArray[np.float64]

KEY = jax.random.key(0)
EXAMPLE = jax.ShapeDtypeStruct((4, 3, 2), jnp.float32)


def samples(*shape: int, mean: float = 0.0) -> jax.Array:
    return jnp.asarray(np.random.default_rng(0).normal(mean, size=shape), jnp.float32)


def exact(x: jax.Array) -> Floats:
    return np.asarray(x, np.float64)


def normalized(x: jax.Array, axes: tuple[int, ...], epsilon: float = 1e-5) -> Floats:
    mean, variance = exact(x).mean(axes, keepdims=True), exact(x).var(axes, keepdims=True)
    normal: Floats = (exact(x) - mean) / np.sqrt(variance + epsilon)
    return normal


train = jax.jit(lambda state, x: mlax.z_norm.apply((), state, x))
infer = jax.jit(lambda state, x: mlax.z_norm.apply((), state, x, None, True))


@pytest.mark.parametrize(
    ("axis", "axes"),
    [
        (1, (1,)),
        ([0, -1], (0, 2)),
        ((2, 0), (0, 2)),
        ("all", (0, 1, 2)),
        ("channel_last", (0, 1)),
        ("channel_first", (1, 2)),
    ],
)
def test_training(axis: NormalizedAxis, axes: tuple[int, ...]) -> None:
    x = samples(4, 3, 2, mean=2)
    params, state = mlax.z_norm.init(KEY, x, axis)
    y, after = train(state, x)
    assert params == ()
    np.testing.assert_allclose(y, normalized(x, axes), rtol=1e-4, atol=1e-5)
    mean, var = after.variables
    np.testing.assert_allclose(mean, 0.1 * exact(x).mean(axes), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(var, 0.9 + 0.1 * exact(x).var(axes), rtol=1e-5)
    assert state.variables.mean.shape == mean.shape


@pytest.mark.parametrize(
    ("axis", "axes"),
    [(1, (1,)), ((0, -1), (0, 2)), ("all", (0, 1, 2)), ("channel_first", (1, 2))],
)
def test_inference_uses_the_running_statistics_and_leaves_them(
    axis: NormalizedAxis, axes: tuple[int, ...]
) -> None:
    x = samples(4, 3, 2)
    _, state = mlax.z_norm.init(KEY, x, axis)
    shape = state.variables.mean.shape
    mean, var = samples(*shape, mean=3), jnp.abs(samples(*shape)) + 0.5
    state = mlax.State(state.variables._replace(mean=mean, var=var), state.config)
    expected = (exact(x) - np.expand_dims(exact(mean), axes)) / np.sqrt(
        np.expand_dims(exact(var), axes) + 1e-5
    )
    y, after = infer(state, x)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(after.variables.mean, mean)
    np.testing.assert_array_equal(after.variables.var, var)


def test_inference_returns_the_very_state() -> None:
    _, state = mlax.z_norm.init(KEY, EXAMPLE, 0)
    assert mlax.z_norm.apply((), state, samples(4, 3, 2), inference_mode=True)[1] is state


def test_momentum_is_the_share_of_the_old() -> None:
    first, second = samples(20, 2, mean=5), samples(20, 2, mean=-1)
    _, state = mlax.z_norm.init(KEY, first, 0, momentum=0.75)
    for x in (first, second):
        _, state = train(state, x)
    mean, var = np.zeros(2), np.ones(2)
    for x in (first, second):
        mean = 0.75 * mean + 0.25 * exact(x).mean(0)
        var = 0.75 * var + 0.25 * exact(x).var(0)
    np.testing.assert_allclose(state.variables.mean, mean, rtol=1e-5)
    np.testing.assert_allclose(state.variables.var, var, rtol=1e-5)


@pytest.mark.parametrize("momentum", [0, 1])
def test_momentum_at_its_ends(momentum: float) -> None:
    x = samples(20, mean=5)
    _, state = mlax.z_norm.init(KEY, x, 0, momentum=momentum)
    _, after = train(state, x)
    expected = (0, 1) if momentum == 1 else (exact(x).mean(), exact(x).var())
    np.testing.assert_allclose(jnp.stack(after.variables), expected, rtol=1e-5)


def test_epsilon_is_added_to_the_variance_in_training_and_inference() -> None:
    x = samples(20)
    _, state = mlax.z_norm.init(KEY, x, 0, epsilon=3.0)
    np.testing.assert_allclose(train(state, x)[0], normalized(x, (0,), 3.0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(infer(state, x)[0], exact(x) / 2, rtol=1e-6)


def test_initializers_get_shape_and_dtype() -> None:
    calls: list[tuple[object, ...]] = []

    def initializer(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        calls.append((shape, jnp.dtype(dtype)))
        return jnp.full(shape, len(calls), dtype)

    _, state = mlax.z_norm.init(
        KEY,
        EXAMPLE,
        (0, 2),
        mean_initializer=initializer,
        variance_initializer=initializer,
        dtype="float16",
    )
    assert calls == [((3,), jnp.dtype("float16"))] * 2
    np.testing.assert_array_equal(state.variables.mean, np.full(3, 1, np.float16), strict=True)
    np.testing.assert_array_equal(state.variables.var, np.full(3, 2, np.float16), strict=True)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_running_statistics_keep_their_dtype(dtype: DTypeLike) -> None:
    x = samples(20, 2, mean=5)
    _, state = mlax.z_norm.init(KEY, x, 0, dtype=dtype)
    y, after = train(state, x)
    assert y.dtype == jnp.float32
    assert after.variables.mean.dtype == after.variables.var.dtype == dtype
    tolerance = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        exact(after.variables.mean), 0.1 * exact(x).mean(0), rtol=tolerance
    )
    assert infer(after, x)[0].dtype == jnp.float32


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_comes_out_and_statistics_are_float32(dtype: DTypeLike) -> None:
    x = samples(3000, mean=100).astype(dtype)  # a sum that float16 cannot hold
    _, state = mlax.z_norm.init(KEY, x, 0)
    y, after = train(state, x)
    assert y.dtype == infer(state, x)[0].dtype == dtype
    tolerance = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(exact(y), normalized(x, (0,)), rtol=tolerance, atol=1e-5)
    assert after.variables.mean.dtype == jnp.float32
    np.testing.assert_allclose(after.variables.mean, 0.1 * exact(x).mean(), rtol=1e-5)


@pytest.mark.parametrize(("count", "names"), [(50, "batch"), (2**18, ("batch",))])
def test_vmapped_with_a_mean_far_larger_than_the_spread(count: int, names: AxisName) -> None:
    x = samples(count, mean=1e4)
    _, state = mlax.z_norm.init(KEY, x[0], ())
    batched = jax.vmap(
        lambda x: mlax.z_norm.apply((), state, x, None, False, names),
        out_axes=(0, None),
        axis_name="batch",
    )
    y, after = jax.jit(batched)(x)
    np.testing.assert_allclose(y, normalized(x, (0,)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after.variables.mean, 0.1 * exact(x).mean(), rtol=1e-6)
    np.testing.assert_allclose(after.variables.var, 0.9 + 0.1 * exact(x).var(), rtol=1e-5)


@pytest.mark.parametrize("within_shards", ["array", "vmap"])
@pytest.mark.parametrize(
    ("shape", "names"), [((4,), "d"), ((2, 2), ("a", "b"))], ids=["name", "two names"]
)
def test_sharded(
    shape: tuple[int, ...], names: str | tuple[str, ...], within_shards: str
) -> None:
    x = samples(8, 3, mean=1e4)
    mesh_names = names if isinstance(names, tuple) else (names,)
    mesh = jax.make_mesh(shape, mesh_names, axis_types=(AxisType.Auto,) * len(shape))
    vmapped = within_shards == "vmap"
    _, state = mlax.z_norm.init(KEY, x[0] if vmapped else x, () if vmapped else 0)

    def on_shard(x: jax.Array) -> tuple[jax.Array, Any]:
        if not vmapped:
            return mlax.z_norm.apply((), state, x, None, False, names)
        return jax.vmap(
            lambda x: mlax.z_norm.apply((), state, x, None, False, (*mesh_names, "batch")),
            out_axes=(0, None),
            axis_name="batch",
        )(x)

    split = PartitionSpec(names)
    step = jax.jit(
        jax.shard_map(
            on_shard,
            mesh=mesh,
            in_specs=split,
            out_specs=(split, PartitionSpec()),
            check_vma=not vmapped,  # jax does not follow varying values through such a vmap
        )
    )
    y, after = step(x)
    np.testing.assert_allclose(y, normalized(x, (0,)), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after.variables.mean, 0.1 * exact(x).mean(0), rtol=1e-6)
    np.testing.assert_allclose(after.variables.var, 0.9 + 0.1 * exact(x).var(0), rtol=1e-5)
    compiled = step.lower(x).compile().as_text()
    assert compiled is not None
    assert len(re.findall(r" all-reduce(?:-start)?\(", compiled)) == 1


@pytest.mark.parametrize("inference_mode", [False, True])
def test_gradient(inference_mode: bool) -> None:
    x = samples(6, 2, mean=100)
    weights = np.random.default_rng(1).normal(size=(6, 2))
    _, state = mlax.z_norm.init(KEY, x, 0, epsilon=0.1)

    def loss(x: jax.Array) -> jax.Array:
        return jnp.sum(mlax.z_norm.apply((), state, x, None, inference_mode)[0] * weights)

    if inference_mode:
        expected = weights / np.sqrt(1.1)
    else:
        centred = exact(x) - exact(x).mean(0)
        deviation = np.sqrt(exact(x).var(0) + 0.1)
        covariance = np.mean(weights * centred, 0)
        expected = (weights - weights.mean(0) - centred * covariance / deviation**2) / deviation
    np.testing.assert_allclose(jax.jit(jax.grad(loss))(x), expected, rtol=1e-4, atol=1e-5)


def test_equal_hyperparameters_give_equal_structures() -> None:
    axes: tuple[Any, ...] = [0, 1], (0, 1), np.array([0, 1]), (np.int64(0), np.array(1))
    structures = {
        jax.tree.structure(mlax.z_norm.init(KEY, EXAMPLE, axis)) for axis in axes
    }
    assert len(structures) == 1


@pytest.mark.parametrize(
    ("hparams", "error", "text"),
    [
        ({"axis": "rows"}, ValueError, 'axis to be "all".*, got \'rows\''),
        ({"axis": 0.5}, TypeError, "axis to be .*, got 0.5"),
        ({"axis": (0, None)}, TypeError, "axis to be .*, got None"),
        ({"epsilon": -1.0}, ValueError, "epsilon to be at least 0, got -1.0"),
        ({"epsilon": "small"}, TypeError, "epsilon to be a number at least 0, got 'small'"),
        ({"momentum": 1.5}, ValueError, r"momentum to be in \[0, 1\], got 1.5"),
        ({"momentum": -0.1}, ValueError, r"momentum to be in \[0, 1\], got -0.1"),
        ({"momentum": None}, TypeError, r"momentum to be a number in \[0, 1\], got None"),
        ({"mean_initializer": 0}, TypeError, "mean_initializer to be a function, got 0"),
        ({"variance_initializer": 1}, TypeError, "variance_initializer to be a function, got 1"),
        ({"dtype": "float99"}, TypeError, "dtype to be a dtype, got 'float99'"),
        ({"dtype": jnp.int32}, TypeError, "dtype to be a real floating dtype, got int32"),
        ({"dtype": "complex64"}, TypeError, "dtype to be a real floating dtype, got complex64"),
    ],
)
def test_wrong_argument_raises(
    hparams: dict[str, Any],  # wrong types on purpose
    error: type[Exception],
    text: str,
) -> None:
    hparams = {"axis": 0} | hparams
    with pytest.raises(error, match=f"^z_norm: expected {text}"):
        mlax.z_norm(**hparams)
    with pytest.raises(error, match=f"^z_norm: expected {text}"):
        mlax.z_norm.init(KEY, EXAMPLE, **hparams)


@pytest.mark.parametrize(
    ("axis", "text"),
    [
        (3, r"axis to be in \[-3, 3\) for x with 3 axes, got 3"),
        ((0, -4), r"axis to be in \[-3, 3\) for x with 3 axes, got \(0, -4\)"),
        ((1, 1), r"axis to be distinct axes, got \(1, 1\)"),
    ],
)
def test_axis_that_does_not_fit_raises(axis: NormalizedAxis, text: str) -> None:
    init, _ = mlax.z_norm(axis)
    with pytest.raises(ValueError, match=f"^z_norm: expected {text}"):
        init(KEY, EXAMPLE)


@pytest.mark.parametrize("name", ["mean_initializer", "variance_initializer"])
def test_initializer_that_returns_another_shape_raises(name: str) -> None:
    wrong: dict[str, Any] = {name: lambda key, shape, dtype: jnp.ones(5)}
    with pytest.raises(ValueError, match=rf"^z_norm: expected {name} .*\(3, 2\), got \(5,\)"):
        mlax.z_norm.init(KEY, EXAMPLE, 0, **wrong)


@pytest.mark.parametrize("inference_mode", [False, True])
def test_input_of_another_width_raises(inference_mode: bool) -> None:
    _, state = mlax.z_norm.init(KEY, EXAMPLE, 0)
    with pytest.raises(ValueError, match=r"^z_norm: expected x .*\(3, 2\).*, got .*\(4, 3, 5\)"):
        mlax.z_norm.apply((), state, jnp.ones((4, 3, 5)), None, inference_mode)


def test_no_element_raises() -> None:
    _, state = mlax.z_norm.init(KEY, jax.ShapeDtypeStruct((0, 3), jnp.float32), 0)
    with pytest.raises(ValueError, match=r"^z_norm: expected at least one element.*\(0, 3\)"):
        mlax.z_norm.apply((), state, jnp.ones((0, 3)))


def test_a_forgotten_batch_axis_warns_in_training_alone() -> None:
    model = mlax.series(mlax.linear(3), mlax.z_norm(()))
    params, state = model.init(KEY, jnp.ones(2))  # finds output shapes, and knows no batch
    model.apply(params, state, jnp.ones(2), None, True)
    jitted = jax.jit(lambda x: model.apply(params, state, x)[0])
    wanted = "^z_norm: expected more than one element to take statistics of, got one"
    with pytest.warns(UserWarning, match=wanted) as warned:
        np.testing.assert_array_equal(jitted(jnp.ones(2)), np.zeros(3))
    assert [warning.filename for warning in warned] == [__file__]


@pytest.mark.parametrize("repeated", [mlax.repeat(mlax.z_norm(()), 3), mlax.remat(mlax.z_norm(()))])
def test_a_loop_warns_once(repeated: Any) -> None:
    params, state = repeated.init(KEY, jnp.ones(2))
    with pytest.warns(UserWarning) as warned:
        jax.jit(jax.grad(lambda x: repeated.apply(params, state, x)[0].sum()))(jnp.ones(2))
    assert len(warned) == 1


def test_statistics_where_promotion_is_strict() -> None:
    x = samples(4, 3).astype(jnp.bfloat16)
    with jax.numpy_dtype_promotion("strict"):
        params, state = mlax.z_norm.init(KEY, x, 0, dtype=jnp.bfloat16)
        y, after = mlax.z_norm.apply(params, state, x)
        z, _ = mlax.z_norm.apply(params, after, x, None, True)
    np.testing.assert_allclose(exact(y), normalized(x, (0,)), rtol=1e-2, atol=1e-2)
    assert z.dtype == jnp.bfloat16
