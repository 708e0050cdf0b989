"""Tests of what `jax.export` writes of our containers, in a user's own export."""

import copy
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.export import Exported, deserialize, export

import mlax
from mlax import models, types
from mlax.serialization import SerializedConfig

# Named tuples that hold no arrays, or never go in or out of a layer.
STATIC = {"Artifact", "Child", "Flops", "Layer", "Row", "Rule", "Summary"}
CONTAINERS = [
    cls
    for module in (types, models)
    for name, cls in vars(module).items()
    if isinstance(cls, type) and hasattr(cls, "_fields")
    if not name.endswith("Config") and name not in STATIC
]


def reread(exported: Exported) -> Exported:
    """Return what is read from the file of a program."""
    return deserialize(exported.serialize())


def test_all_containers_are_written() -> None:
    assert {"DenseParams", "CarriedVariables", "MoeInputs", "BertOutputs"} <= {
        cls.__name__ for cls in CONTAINERS
    }
    x = {cls.__name__: cls(*map(float, range(len(cls._fields)))) for cls in CONTAINERS}
    again = reread(export(jax.jit(lambda x: x))(x))
    assert again.in_tree == jax.tree.structure(((x,), {}))
    assert jax.tree.map(float, again.call(x)) == x


def model(epsilon: float = 1e-5) -> mlax.Layer[Any, Any, Any, Any]:
    """Return a model with named and numbered layers and a function that no pickle takes."""

    norm = mlax.batch_norm(epsilon=epsilon)

    @mlax.block(
        hidden=mlax.series(mlax.dense(4), mlax.f(lambda x: x * x), norm),
        body=mlax.repeat(mlax.dense(4), 2),
        head=mlax.dense(2),
    )
    def net(sub: Any, x: Any) -> Any:
        return sub.head(sub.body(sub.hidden(x)))

    return mlax.batched(net)


X = jax.random.normal(jax.random.key(0), (5, 3))


def trained() -> tuple[Exported, Any, Any]:
    """Return the program of a step in training that was read from its file, params and state."""
    params, state = model().init(jax.random.key(1), X)

    def step(params: Any, state: Any, x: Any) -> Any:
        def loss(params: Any) -> Any:
            y, after = model().apply(params, state, x)
            return jnp.sum(y**2), after

        gradients, after = jax.grad(loss, has_aux=True)(params)
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients), after

    return reread(export(jax.jit(step))(params, state, X)), params, state


def test_a_step_in_training_goes_on_with_what_it_returned() -> None:
    step, params, state = trained()
    new_params, after = step.call(params, state, X)
    assert jax.tree.structure(new_params) == jax.tree.structure(params)
    for other in (after, copy.deepcopy(after), pickle.loads(pickle.dumps(after))):
        step.call(new_params, other, X)
    _, expected = model().apply(params, state, X)
    jax.tree.map(np.testing.assert_array_equal, after.variables, expected.variables)
    again = reread(export(jax.jit(lambda state: state))(after))
    assert again.call(state).config == after.config == again.call(after).config


def test_a_returned_state_gives_its_variables_to_a_layer() -> None:
    step, params, state = trained()
    _, after = step.call(params, state, X)
    assert isinstance(after.config, SerializedConfig)
    with pytest.raises(TypeError, match="an exported program.*with_variables"):
        model().apply(params, after, X)
    y, _ = model().apply(params, state.with_variables(after.variables), X, inference_mode=True)
    assert y.shape == (5, 2)
    assert not isinstance(state.config, SerializedConfig)  # nothing of the file was put into it


def test_a_state_with_other_hyperparameters_is_refused() -> None:
    step, params, state = trained()
    _, other = model(epsilon=0.1).init(jax.random.key(1), X)
    with pytest.raises(ValueError, match=r"args\[1\].*epsilon=0.1"):
        step.call(params, other, X)
    step.call(params, state, X)
    with pytest.raises(ValueError, match=r"args\[1\].*epsilon=0.1"):
        step.call(params, other, X)
    structures = [jax.tree.structure(s) for s in (step.call(params, state, X)[1], state, other)]
    assert structures[0] == structures[1] != structures[2] != structures[0]
    assert structures[1] == structures[0] and not structures[2] == structures[0]
