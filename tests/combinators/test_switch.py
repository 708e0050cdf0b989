"""Tests of `mlax.switch`: the chosen layer, eagerly and under jit and vmap."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import AxisName, Key, Layer

KEY = jax.random.key(0)
# Any: layers of all kinds side by side.
AnyLayer = Layer[Any, Any, Any, Any]


def number(rng: Key) -> jax.Array:
    """Return a number in [0, 1) that differs from key to key, and is cheap to compile."""
    return jax.random.key_data(rng)[-1] % 997 / 997


def noisy(x: jax.Array, rng: Key) -> jax.Array:
    """Return x with noise."""
    return x + number(rng)


def place(x: jax.Array) -> jax.Array:
    """Return the first entry as an integer."""
    return x[0].astype(int)


def expert_init(rng: Key, x: Any) -> tuple[jax.Array, jax.Array]:
    """Make a factor, and a running sum of the inputs."""
    return number(rng), jnp.zeros(())


def expert_apply(
    params: jax.Array,
    state: jax.Array,
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, jax.Array]:
    """Return params * x."""
    return params * x, state if inference_mode else state + x.sum()


EXPERT = Layer(expert_init, expert_apply)
MODEL: AnyLayer = mlax.switch(place, EXPERT, mlax.f(jnp.negative), EXPERT)
INPUTS = jnp.array([[0.0, 5.0], [1.0, 6.0], [2.0, 7.0], [9.0, 8.0], [-4.0, 3.0]])
CHOSEN = [0, 1, 2, 2, 0]
"""The place of the layer for each input; one outside is clamped."""


def test_one_layer_runs_and_only_its_variables_change() -> None:
    params, state = MODEL.init(KEY, INPUTS[0])
    apply = jax.jit(MODEL.apply)
    for x, i in zip(INPUTS, CHOSEN, strict=True):
        for run in (apply, MODEL.apply):
            y, after = run(params, state, x)
            factor = [float(params[0]), -1.0, float(params[2])][i]
            np.testing.assert_allclose(y, factor * np.asarray(x), rtol=1e-6)
            expected: list[Any] = [0.0, (), 0.0]
            if i != 1:
                expected[i] = float(x.sum())
            assert jax.tree.map(float, after.variables) == tuple(expected)
    assert params[1] == ()
    assert float(params[0]) != float(params[2])


def test_under_vmap_each_example_has_its_layer() -> None:
    params, state = MODEL.init(KEY, INPUTS[0])
    y, after = jax.vmap(MODEL.apply, (None, None, 0))(params, state, INPUTS)
    factors = np.array([float(params[0]), -1.0, float(params[2])])[CHOSEN]
    x = np.asarray(INPUTS)
    np.testing.assert_allclose(y, factors[:, None] * x, rtol=1e-6)
    sums, chosen = x.sum(1), np.array(CHOSEN)
    np.testing.assert_array_equal(after.variables[0], np.where(chosen == 0, sums, 0))
    np.testing.assert_array_equal(after.variables[2], np.where(chosen == 2, sums, 0))


def test_gradients_go_to_the_chosen_layer() -> None:
    params, state = MODEL.init(KEY, INPUTS[0])
    grad = jax.jit(jax.grad(lambda p, x: MODEL.apply(p, state, x)[0].sum(), (0, 1)))
    (first, _, last), dx = grad(params, INPUTS[2])
    assert (float(first), float(last)) == (0.0, 9.0)
    np.testing.assert_allclose(dx, np.full(2, float(params[2])))
    (first, _, last), dx = grad(params, INPUTS[1])
    assert (float(first), float(last)) == (0.0, 0.0)
    np.testing.assert_array_equal(dx, [-1.0, -1.0])


def test_only_the_chosen_layer_is_run() -> None:
    ran: list[str] = []

    def reports(name: str) -> AnyLayer:
        def report(x: jax.Array) -> jax.Array:
            jax.debug.callback(lambda: ran.append(name))
            return x

        return mlax.f(report)

    model: AnyLayer = mlax.switch(place, reports("first"), reports("second"))
    params, state = model.init(KEY, INPUTS[0])
    assert ran == []
    jax.jit(model.apply)(params, state, INPUTS[1])
    jax.effects_barrier()
    assert ran == ["second"]


def test_keys() -> None:
    noise: AnyLayer = mlax.f_rng(noisy)
    for layers, keys in (
        ((mlax.f(jnp.negative), noise), [None, KEY]),
        ((noise, mlax.f(jnp.negative), noise), [0, None, 1]),
    ):
        model: AnyLayer = mlax.switch(place, *layers)
        assert mlax.needs_rng(model.apply)
        params, state = model.init(KEY, INPUTS[0])
        apply = jax.jit(model.apply)
        for i, key in enumerate(keys):
            x = jnp.array([float(i), 2.0])
            expected = -x if key is None else x + number(
                jax.random.fold_in(KEY, key) if isinstance(key, int) else key
            )
            np.testing.assert_allclose(apply(params, state, x, KEY)[0], expected, rtol=1e-6)
    assert not mlax.needs_rng(MODEL.apply)
    params, _ = MODEL.init(KEY, INPUTS[0])
    for i in (0, 2):
        np.testing.assert_array_equal(params[i], number(jax.random.fold_in(KEY, i)))


def test_inference_keeps_the_state() -> None:
    params, state = MODEL.init(KEY, INPUTS[0])
    _, state = MODEL.apply(params, state, INPUTS[0])
    y, after = MODEL.apply(params, state, INPUTS[2], inference_mode=True)
    np.testing.assert_allclose(y, float(params[2]) * np.asarray(INPUTS[2]), rtol=1e-6)
    assert jax.tree.map(float, after.variables) == (5.0, (), 0.0)


def test_a_single_layer_and_inputs_that_are_pytrees() -> None:
    model: AnyLayer = mlax.switch(lambda x: x["i"], mlax.f(lambda x: {"y": 2 * x["x"]}))
    x = {"i": jnp.array(5), "x": jnp.ones(2)}
    y, _ = model.apply(*model.init(KEY, x), x)
    np.testing.assert_array_equal(y["y"], [2.0, 2.0])


def test_outputs_that_differ_raise() -> None:
    x = INPUTS[0]
    wanted = r"^switch: expected the output of layer 2 to be float32\[2\], got float32\[3\]"
    with pytest.raises(ValueError, match=wanted):
        mlax.switch(place, EXPERT, EXPERT, mlax.linear(3)).init(KEY, x)
    with pytest.raises(ValueError, match=r"layer 1 to be float32\[2\], got bfloat16\[2\]"):
        mlax.switch(place, EXPERT, mlax.f(lambda x: x.astype(jnp.bfloat16))).init(KEY, x)


def test_what_is_missing_or_wrong_raises_at_once() -> None:
    with pytest.raises(ValueError, match="^switch: expected layers to be at least one layer"):
        mlax.switch(place)
    wrong: Any = EXPERT  # wrong types on purpose
    with pytest.raises(TypeError, match="^switch: expected index_fn to be a function"):
        mlax.switch(3, wrong)  # type: ignore[arg-type]  # wrong types on purpose


@pytest.mark.parametrize("index_fn", [lambda x: x[0], lambda x: x.astype(int)])
def test_an_index_that_is_no_integer_scalar_raises_in_init(index_fn: Any) -> None:
    wanted = "^switch: expected .*index_fn.* integer scalar, got .*index of a layer"
    with pytest.raises(TypeError, match=wanted):
        mlax.switch(index_fn, EXPERT, mlax.f(jnp.negative)).init(KEY, INPUTS[0])
