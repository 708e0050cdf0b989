"""Tests of `mlax.parallel`: values, keys, state and errors."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.typing import DTypeLike

import mlax
from mlax import AxisName, Key, Layer

KEY = jax.random.key(0)
A, B = jnp.array([1.0, -2.0, 0.5]), jnp.array([[3.0], [4.0]])
# Any: layers of all kinds side by side.
AnyLayer = Layer[Any, Any, Any, Any]


def key_spy(seen: list[Any]) -> AnyLayer:
    """Return a layer that needs a key and appends the one it gets to `seen`."""

    def spy(x: jax.Array, rng: jax.Array) -> jax.Array:
        seen.append(rng)
        return x

    return mlax.f_rng(spy)


def notes(error: pytest.ExceptionInfo[BaseException]) -> list[str]:
    """Return the paths noted on an error."""
    return [n for n in getattr(error.value, "__notes__", []) if n.startswith("in ")]


def test_values() -> None:
    init, apply = mlax.parallel(mlax.linear(2), mlax.f(jnp.negative), mlax.embed(5, 2))
    x = (A, B, jnp.array([4, 0]))
    params, state = init(KEY, x)
    y, after = apply(params, state, x)
    assert isinstance(y, tuple)
    assert len(y) == 3
    np.testing.assert_allclose(y[0], np.asarray(A) @ np.asarray(params[0].kernel), rtol=1e-5)
    np.testing.assert_array_equal(y[1], [[-3], [-4]])
    np.testing.assert_array_equal(y[2], np.asarray(params[2].embedding)[[4, 0]])
    assert after == state


def test_bare_pair() -> None:
    layers = (mlax.linear(2), mlax.bias((0, -1)))
    params, state = mlax.parallel.init(KEY, (A, B), *layers)
    bound = mlax.parallel(*layers).init(KEY, (A, B))
    assert jax.tree.structure((params, state)) == jax.tree.structure(bound)
    y, _ = mlax.parallel.apply(params, state, (A, B))
    np.testing.assert_allclose(y[0], np.asarray(A) @ np.asarray(params[0].kernel), rtol=1e-5)
    np.testing.assert_array_equal(y[1], B)


def test_no_layers() -> None:
    init, apply = mlax.parallel()
    params, state = init(KEY, ())
    assert params == ()
    assert apply(params, state, ())[0] == ()


def test_entries_may_be_pytrees_and_come_in_a_list() -> None:
    model: AnyLayer = mlax.parallel(mlax.f(lambda x: x["a"]), mlax.parallel(mlax.f(jnp.sin)))
    x = [{"a": A}, [B]]
    params, state = model.init(KEY, x)
    (first, (second,)), _ = model.apply(params, state, x)
    np.testing.assert_array_equal(first, A)
    np.testing.assert_allclose(second, np.sin(B), rtol=1e-6)


def test_child_i_is_initialised_with_fold_in_of_i() -> None:
    seen: list[Any] = []

    def initializer(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        seen.append(key)
        return jnp.zeros(shape, dtype)

    spy = mlax.bias(-1, initializer)
    mlax.parallel(spy, mlax.f(jnp.sin), spy).init(KEY, (A, B, A))
    assert seen == [jax.random.fold_in(KEY, 0), jax.random.fold_in(KEY, 2)]


def test_a_single_needing_child_gets_the_key_itself() -> None:
    seen: list[Any] = []
    model = mlax.parallel(mlax.bias(-1), key_spy(seen))
    params, state = model.init(KEY, (A, B))
    model.apply(params, state, (A, B), KEY)
    assert seen[-1:] == [KEY]


def test_of_several_needing_children_the_jth_gets_fold_in_of_j() -> None:
    seen: list[Any] = []
    model = mlax.parallel(key_spy(seen), mlax.bias(-1), key_spy(seen))
    params, state = model.init(KEY, (A, A, A))
    seen.clear()
    model.apply(params, state, (A, A, A), KEY)
    assert seen == [jax.random.fold_in(KEY, 0), jax.random.fold_in(KEY, 1)]


def test_needs_a_key_if_a_child_does() -> None:
    assert not mlax.needs_rng(mlax.parallel().apply)
    assert not mlax.needs_rng(mlax.parallel(mlax.bias(-1), mlax.bias(-1)).apply)
    assert mlax.needs_rng(mlax.parallel(mlax.bias(-1), mlax.dropout(0.5, 0)).apply)


def test_a_users_pair_composes_with_a_dict_as_its_state() -> None:
    def init(rng: Key, x: jax.Array) -> tuple[tuple[()], dict[str, jax.Array]]:
        return (), {"calls": jnp.zeros(())}

    def apply(
        params: tuple[()],
        state: dict[str, jax.Array],
        x: jax.Array,
        rng: Key | None = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        return x, {"calls": state["calls"] + 1}

    model = mlax.parallel(Layer(init, apply), mlax.linear(2), Layer(init, apply))
    params, state = model.init(KEY, (A, A, A))
    for _ in range(2):
        _, state = model.apply(params, state, (A, A, A))
    np.testing.assert_array_equal(jax.tree.leaves(state), [2, 2])


def test_state_is_one_node() -> None:
    def count_nodes(model: AnyLayer) -> int:
        return jax.tree.structure(model.init(KEY, (A, A))[1]).num_nodes

    assert count_nodes(mlax.parallel(mlax.linear(3), mlax.bias(-1))) == 2
    # State, (linear's, z_norm's), (), ZNormVariables, mean, var
    assert count_nodes(mlax.parallel(mlax.linear(3), mlax.z_norm(0))) == 6


def test_variables_and_modes_reach_the_children() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(5, 2, (8, 3)), jnp.float32)
    model = mlax.parallel(mlax.bias(-1), mlax.z_norm(()))
    params, state = model.init(KEY, (x[0], x[0]))
    (_, y), after = jax.vmap(
        lambda x: model.apply(params, state, (x, x), None, False, "batch"),
        out_axes=(0, None),
        axis_name="batch",
    )(x)
    exact = np.asarray(x, np.float64)
    expected = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after.variables[1].mean, 0.1 * exact.mean(0), rtol=1e-5)
    (_, z), unchanged = model.apply(params, state, (x[0], x[0]), inference_mode=True)
    np.testing.assert_allclose(z, exact[0], rtol=1e-4)
    np.testing.assert_array_equal(jax.tree.leaves(unchanged), jax.tree.leaves(state))


def test_init_takes_shapes_runs_under_jit_and_runs_no_forward_pass() -> None:
    traced: list[Any] = []
    model = mlax.parallel(mlax.linear(2), mlax.f(lambda x: traced.append(x)))
    shapes = (jax.ShapeDtypeStruct(A.shape, A.dtype), jax.ShapeDtypeStruct(B.shape, B.dtype))
    params, state = model.init(KEY, (A, B))
    for other, _ in (model.init(KEY, shapes), jax.jit(model.init)(KEY, (A, B))):
        np.testing.assert_allclose(other[0].kernel, params[0].kernel, rtol=1e-6)
    assert jax.tree.structure(jax.eval_shape(model.init, KEY, shapes)) == jax.tree.structure(
        (params, state)
    )
    assert all(isinstance(x, jax.core.Tracer) for x in traced)


@pytest.mark.parametrize(
    ("x", "error", "got"),
    [
        ((A,), ValueError, "1 entries"),
        ((A, A, A), ValueError, "3 entries"),
        ([], ValueError, "0 entries"),
        (A, TypeError, r"an array of shape \("),
        ({"a": A, "b": A}, TypeError, "a dict"),
    ],
)
def test_input_with_the_wrong_number_of_entries_raises(
    x: Any,  # wrong types on purpose
    error: type[Exception],
    got: str,
) -> None:
    model = mlax.parallel(mlax.bias(-1), mlax.bias(-1))
    wanted = f"^parallel: expected x to be a tuple with 2 entries.*, got {got}"
    with pytest.raises(error, match=wanted):
        model.init(KEY, x)
    params, state = model.init(KEY, (A, A))
    with pytest.raises(error, match=wanted):
        model.apply(params, state, x)


@pytest.mark.parametrize(
    ("wrong", "way_out"), [(mlax.linear, "call it"), ("linear", "mlax.Layer"), (3, "mlax.Layer")]
)
def test_what_is_no_layer_raises(wrong: Any, way_out: str) -> None:  # wrong types on purpose
    wanted = f"^parallel: expected layers to be a layer, got .*{wrong}.*; .*{way_out}"
    with pytest.raises(TypeError, match=wanted):
        mlax.parallel(mlax.bias(-1), wrong)
    with pytest.raises(TypeError, match=wanted):
        mlax.parallel.init(KEY, (A, A), mlax.bias(-1), wrong)


def test_errors_have_the_path_once() -> None:
    model = mlax.parallel(mlax.bias(-1), mlax.series(mlax.f(jnp.sin), mlax.linear(2)))
    with pytest.raises(ValueError, match="^linear: expected x with at least 1 axis") as error:
        model.init(KEY, (A, jnp.ones(())))
    assert notes(error) == ["in parallel[1] > series[1] > linear"]
    params, state = model.init(KEY, (A, B))
    with pytest.raises(ValueError, match=r"^linear: expected x with 1 .*\(4,\)") as error:
        model.apply(params, state, (A, jnp.ones(4)))
    assert notes(error) == ["in parallel[1] > series[1] > linear"]


def test_missing_key_in_training_names_rng_and_the_layer() -> None:
    model = mlax.parallel(mlax.bias(-1), mlax.dropout(0.5, 0))
    params, state = model.init(KEY, (A, A))
    with pytest.raises(ValueError, match="^dropout: expected rng to be a PRNG key") as error:
        model.apply(params, state, (A, A))
    assert notes(error) == ["in parallel[1] > dropout"]


def test_parameters_of_another_model_raise() -> None:
    model = mlax.parallel(mlax.linear(2), mlax.bias(-1))
    params, state = model.init(KEY, (A, A))
    wrong: Any = params[:1]  # wrong types on purpose
    with pytest.raises(ValueError, match="^parallel: expected params .* 2 entries.*, got 1 ent"):
        model.apply(wrong, state, (A, A))
