"""What an earlier version made is read, and made again: see the docstring of the package."""

import functools
import pickle
from typing import Any

import jax
import numpy as np
import pytest
from jax import export

import mlax
from mlax.types import LoadRule
from tests.golden.models import MODELS
from tests.golden.results import FILES, QUICKLY, Numbers, below, checkpoint, drawn_by_jax, initial
from tests.golden.results import named, results

for_each_model = pytest.mark.parametrize("name", MODELS)


@functools.cache
def stored(name: str) -> Numbers:
    """Return the numbers in a file, in their order."""
    with np.load(FILES / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)


def leaves(name: str, *paths: str) -> list[Any]:
    """Return the stored arrays below each of the paths."""
    return [array for path in paths for array in below(path, stored(name)).values()]


def made(name: str) -> Any:
    """Return params and state as `init` makes them now, but with shapes in place of arrays."""
    return jax.eval_shape(lambda: initial(MODELS[name]))


def require_close(found: Numbers, wanted: Numbers) -> None:
    """Require the same paths, and the same numbers up to rounding."""
    assert list(found) == list(wanted)
    for path, array in wanted.items():
        assert found[path].dtype == array.dtype, path
        np.testing.assert_allclose(found[path], array, 1e-5, 1e-5, err_msg=path)


@functools.cache
def jax_rounds_as_it_did() -> bool:
    """Return whether this JAX on this CPU draws the very bits that are stored."""
    now, then = drawn_by_jax(), stored("jax")
    return all(np.array_equal(now[name], then[name]) for name in then)


@for_each_model
def test_a_key_gives_the_parameters_that_it_gave(name: str) -> None:
    """Bit for bit, where JAX's own numbers are those of then."""
    params, state = initial(MODELS[name])
    found, then = named({"params": params, "state": state}), stored(name)
    wanted = {**below("params", then), **below("state", then)}
    require_close(found, wanted)
    if jax_rounds_as_it_did():
        assert [a.tobytes() for a in found.values()] == [a.tobytes() for a in wanted.values()]


@for_each_model
def test_stored_parameters_give_the_outputs_that_they_gave(name: str) -> None:
    params, state = jax.tree.unflatten(
        jax.tree.structure(made(name)), leaves(name, "params", "state")
    )
    found = named(results(MODELS[name], params, state))
    then = stored(name)
    require_close(found, {**below("inference", then), **below("training", then)})


@for_each_model
def test_a_pickle_loads_as_what_init_makes_now(name: str) -> None:
    params, state = pickle.loads((FILES / f"{name}.pickle").read_bytes())
    assert jax.tree.structure((params, state)) == jax.tree.structure(made(name))
    found, wanted = jax.tree.leaves((params, state)), leaves(name, "params", "state")
    assert all(map(np.array_equal, found, wanted))
    infer = functools.partial(MODELS[name].layer.apply, inference_mode=True)
    y, after = jax.eval_shape(infer, params, state, MODELS[name].x)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    shapes = [leaf.shape for leaf in leaves(name, "inference")]
    assert [leaf.shape for leaf in jax.tree.leaves(y)] == shapes


def test_a_checkpoint_loads() -> None:
    """Without a warning: the hyperparameters have the same names and text as before."""
    like = jax.eval_shape(checkpoint) | {"steps": 0}
    loaded = mlax.load(FILES / "checkpoint.safetensors", like, checksum=True)
    assert loaded["steps"] == 5 and loaded["half"].tolist() == [0, 1, 2]
    key = jax.random.key_data(loaded["key"])
    np.testing.assert_array_equal(key, jax.random.key_data(jax.random.key(2)))
    found = [*jax.tree.leaves(loaded["params"]), *jax.tree.leaves(loaded["state"])]
    assert all(map(np.array_equal, found, leaves("perceptron", "params", "state")))
    assert len(found) == len(leaves("perceptron", "params", "state"))
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(loaded["opt_state"]))


def test_a_checkpoint_loads_into_a_program_that_changed() -> None:
    (kernel,) = leaves("perceptron", "params.0")
    like = {"stem": {"kernel": jax.ShapeDtypeStruct(kernel.T.shape, kernel.dtype)}}
    rules: list[LoadRule] = [
        ("opt_state.*", None), ("params.0.*", "stem.*"), ("*.kernel", "*.kernel", np.transpose),
    ]
    loaded = mlax.load(FILES / "checkpoint.safetensors", like, where="stem.*", rules=rules)
    np.testing.assert_array_equal(loaded["stem"]["kernel"], kernel.T)


@for_each_model
def test_an_exported_model_gives_the_outputs_that_it_gave(name: str) -> None:
    """For a batch twice as large: its size is symbolic."""
    artifact = export.deserialize(bytearray((FILES / f"{name}.jaxexport").read_bytes()))
    infer = jax.jit(artifact.call, compiler_options=QUICKLY)
    twice = [np.concatenate([leaf, leaf]) for leaf in leaves(name, "x")]
    y = infer(*leaves(name, "params", "training.state"), *twice)
    for found, wanted in zip(jax.tree.leaves(y), leaves(name, "inference"), strict=True):
        np.testing.assert_allclose(found, np.concatenate([wanted, wanted]), 1e-5, 1e-5)
