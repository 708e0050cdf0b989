"""Tests of `mlax.batched`: statistics over the batch, a key for each example, variables."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import Mesh, PartitionSpec

import mlax
from mlax import AxisName, Key, Layer

KEY = jax.random.key(0)
X = np.random.default_rng(0).normal(3, 2, (8, 3)).astype(np.float32)
# Any: layers of all kinds side by side.
AnyLayer = Layer[Any, Any, Any, Any]


def notes(error: pytest.ExceptionInfo[BaseException]) -> list[str]:
    """Return the paths noted on an error."""
    return [n for n in getattr(error.value, "__notes__", []) if n.startswith("in ")]


def normalised(x: Any) -> Any:
    """Return x with mean 0 and variance 1 over its leading axis."""
    x = np.asarray(x, np.float64)
    return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)


def sum_init(rng: Key, x: Any) -> tuple[tuple[()], jax.Array]:
    """Make a running sum of the inputs."""
    return (), jnp.zeros(x.shape)


def sum_apply(
    params: tuple[()],
    state: jax.Array,
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, jax.Array]:
    """Return the sum of the inputs so far, those of this example alone."""
    total = state + x
    return total, state if inference_mode else total


SUM = Layer(sum_init, sum_apply)


def test_values_and_statistics_over_the_batch() -> None:
    model = mlax.batched(mlax.series(mlax.linear(2), mlax.z_norm(()), mlax.bias(-1)))
    params, state = model.init(KEY, jnp.asarray(X))
    one, _ = mlax.series(mlax.linear(2), mlax.z_norm(()), mlax.bias(-1)).init(
        jax.random.fold_in(KEY, 0), jnp.asarray(X[0])
    )
    np.testing.assert_array_equal(params[0].kernel, one[0].kernel)
    hidden = X @ np.asarray(params[0].kernel)
    apply = jax.jit(model.apply)
    y, after = apply(params, state, jnp.asarray(X))
    np.testing.assert_allclose(y, normalised(hidden), rtol=1e-4, atol=1e-4)
    statistics: Any = after.variables[1]
    np.testing.assert_allclose(statistics.mean, 0.1 * hidden.mean(0), rtol=1e-4)
    np.testing.assert_allclose(statistics.var, 0.9 + 0.1 * hidden.var(0), rtol=1e-4)
    _, second = apply(params, after, jnp.asarray(X))
    np.testing.assert_allclose(second.variables[1].mean, 0.19 * hidden.mean(0), rtol=1e-4)
    inferred, unchanged = model.apply(params, after, jnp.asarray(X), inference_mode=True)
    spread = np.sqrt(np.asarray(statistics.var) + 1e-5)
    np.testing.assert_allclose(inferred, (hidden - statistics.mean) / spread, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(unchanged.variables[1].mean, statistics.mean)


def test_gradients_are_those_of_plain_jax_on_the_whole_batch() -> None:
    model = mlax.batched(mlax.series(mlax.linear(2), mlax.z_norm(())))
    params, state = model.init(KEY, jnp.asarray(X))
    weights = jnp.arange(16.0).reshape(8, 2)

    def plain(kernel: jax.Array, x: jax.Array) -> jax.Array:
        z = x @ kernel
        return jnp.sum(weights * (z - z.mean(0)) / jnp.sqrt(z.var(0) + 1e-5))

    grads = jax.grad(lambda p, x: jnp.sum(weights * model.apply(p, state, x)[0]), (0, 1))
    (made, _), dx = jax.jit(grads)(params, jnp.asarray(X))
    expected, expected_dx = jax.jit(jax.grad(plain, (0, 1)))(params[0].kernel, jnp.asarray(X))
    np.testing.assert_allclose(made.kernel, expected, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(dx, expected_dx, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("key", [KEY, jax.random.PRNGKey(0)], ids=["typed", "raw"])
def test_example_i_gets_fold_in_of_i(key: Key) -> None:
    layer: AnyLayer = mlax.f_rng(lambda x, rng: jax.random.key_data(rng))
    model = mlax.batched(layer)
    assert mlax.needs_rng(model.apply)
    assert not mlax.needs_rng(mlax.batched(mlax.linear(2)).apply)
    x = jnp.asarray(X[:3])
    y, _ = model.apply(*model.init(key, x), x, key)
    for i in range(3):
        np.testing.assert_array_equal(y[i], jax.random.key_data(jax.random.fold_in(key, i)))


def test_inputs_and_outputs_may_be_pytrees() -> None:
    model: AnyLayer = mlax.batched(mlax.branch(a=mlax.f(lambda x: x["p"] + x["q"][0].sum())))
    x = {"p": jnp.arange(3.0), "q": (jnp.ones((3, 4)),)}
    y, _ = model.apply(*model.init(KEY, x), x)
    np.testing.assert_array_equal(y["a"], [4.0, 5.0, 6.0])


def test_an_output_that_is_the_same_for_all_examples_gets_the_batch_axis_too() -> None:
    model: AnyLayer = mlax.batched(mlax.f(lambda x: jnp.zeros(2)))
    y, _ = model.apply(*model.init(KEY, jnp.asarray(X)), jnp.asarray(X))
    assert y.shape == (8, 2)


def test_variables_of_each_example() -> None:
    x = jnp.asarray(X)
    model = mlax.batched(SUM, state_axis=0)
    params, state = model.init(KEY, x)
    assert state.variables.shape == (8, 3)
    _, state = model.apply(params, state, x)
    y, after = model.apply(params, state, x)
    np.testing.assert_array_equal(y, 2 * X)
    np.testing.assert_array_equal(after.variables, 2 * X)
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_variables_that_differ_by_example_need_a_state_axis() -> None:
    model = mlax.series(body=mlax.batched(SUM))
    params, state = model.init(KEY, jnp.asarray(X))
    with pytest.raises(ValueError, match="^batched: .*state_axis=0") as error:
        model.apply(params, state, jnp.asarray(X))
    assert notes(error) == ["in series > body > batched"]


def test_a_batch_of_another_size() -> None:
    shared, own = mlax.batched(mlax.z_norm(())), mlax.batched(SUM, state_axis=0)
    params, state = shared.init(KEY, jnp.asarray(X))
    y, _ = shared.apply(params, state, jnp.asarray(X[:5]))
    np.testing.assert_allclose(y, normalised(X[:5]), rtol=1e-4, atol=1e-5)
    _, own_state = own.init(KEY, jnp.asarray(X))
    with pytest.raises(ValueError, match="^batched: expected .*8.*, got .*5"):
        own.apply((), own_state, jnp.asarray(X[:5]))


def test_nested_batches_make_one_batch() -> None:
    x = jnp.asarray(X.reshape(2, 4, 3))
    model = mlax.batched(mlax.batched(mlax.z_norm(()), axis_name="inner"), axis_name="outer")
    y, after = model.apply(*model.init(KEY, x), x)
    np.testing.assert_allclose(np.reshape(y, (8, 3)), normalised(X), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after.variables.mean, 0.1 * X.mean(0), rtol=1e-5)


def test_an_outer_batch_axis_counts_as_well() -> None:
    model = mlax.batched(mlax.z_norm(()))
    params, state = model.init(KEY, jnp.asarray(X[:4]))
    for outer in ("data", ("data",)):
        y, after = jax.vmap(
            functools.partial(model.apply, params, state, batch_axis_name=outer),
            axis_name="data",
            out_axes=(0, None),
        )(jnp.asarray(X.reshape(2, 4, 3)))
        np.testing.assert_allclose(np.reshape(y, (8, 3)), normalised(X), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(after.variables.mean, 0.1 * X.mean(0), rtol=1e-5)
    alone, _ = jax.vmap(lambda x: model.apply(params, state, x))(jnp.asarray(X.reshape(2, 4, 3)))
    np.testing.assert_allclose(alone[1], normalised(X[4:]), rtol=1e-4, atol=1e-5)


def test_in_shard_map_the_batch_is_that_of_all_shards() -> None:
    model: AnyLayer = mlax.batched(mlax.series(mlax.linear(2), mlax.z_norm(()), mlax.bias(-1)))
    params, state = model.init(KEY, jnp.asarray(X))
    split, whole = PartitionSpec("data"), PartitionSpec()
    step = jax.jit(
        jax.shard_map(
            lambda params, state, x: model.apply(params, state, x, batch_axis_name="data"),
            mesh=Mesh(np.array(jax.devices("cpu")[:4]), ("data",)),
            in_specs=(whole, whole, split),
            out_specs=(split, whole),
            check_vma=False,  # jax does not follow varying values through such a vmap
        )
    )
    y, after = step(params, state, jnp.asarray(X))
    hidden = X @ np.asarray(params[0].kernel)
    np.testing.assert_allclose(y, normalised(hidden), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(after.variables[1].mean, 0.1 * hidden.mean(0), rtol=1e-4)
    np.testing.assert_allclose(after.variables[1].var, 0.9 + 0.1 * hidden.var(0), rtol=1e-4)


def test_an_axis_name_that_is_taken_raises() -> None:
    x = jnp.asarray(X.reshape(2, 4, 3))
    model = mlax.batched(mlax.batched(mlax.z_norm(())))
    params, state = model.init(KEY, x)
    with pytest.raises(ValueError, match="^batched: expected axis_name .*, got 'batch'"):
        model.apply(params, state, x)


@pytest.mark.parametrize(
    ("x", "shapes"),
    [
        ((jnp.ones((2, 3)), jnp.ones((3, 2))), r"\(2, 3\), \(3, 2\)"),
        ((jnp.ones((2, 3)), jnp.ones(())), r"\(2, 3\), \(\)"),
        (1.0, r"\(\)"),
        ((), ""),
    ],
)
def test_arrays_without_a_common_axis_raise(x: Any, shapes: str) -> None:
    model: AnyLayer = mlax.batched(mlax.f(lambda x: x))
    wanted = rf"^batched: expected x to be arrays with a leading batch axis .* shapes \[{shapes}\]"
    with pytest.raises(ValueError, match=wanted):
        model.init(KEY, x)
    params, state = model.init(KEY, jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=wanted):
        model.apply(params, state, x)


def test_wrong_hyperparameters_raise_at_once() -> None:
    for wrong in (1, -1, True, "batch"):
        with pytest.raises((TypeError, ValueError), match="^batched: expected state_axis to be "):
            mlax.batched(SUM, state_axis=wrong)  # type: ignore[call-overload]  # wrong types on purpose


def test_a_learned_embedding_of_half_precision() -> None:
    model = mlax.batched(mlax.series(mlax.embed(5, 2), mlax.f(lambda x: x.astype(jnp.bfloat16))))
    x = jnp.array([[0, 4], [3, 3], [1, 2]])
    params, state = model.init(KEY, x)
    y, _ = model.apply(params, state, x)
    expected = np.asarray(params[0].embedding)[np.asarray(x)]
    np.testing.assert_array_equal(y, expected.astype(jnp.bfloat16))


def test_a_symbolic_batch_can_be_exported() -> None:
    model = mlax.batched(mlax.dense(2))
    x = jnp.ones((2, 3))
    params, state = model.init(KEY, x)
    (size,) = export.symbolic_shape("size")
    exported = export.export(jax.jit(lambda params, x: model.apply(params, state, x)[0]))(
        params, jax.ShapeDtypeStruct((size, 3), jnp.float32)
    )
    for count in (1, 5):
        x = jnp.ones((count, 3))
        np.testing.assert_allclose(exported.call(params, x), model.apply(params, state, x)[0])
