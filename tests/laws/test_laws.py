"""The laws, tested on every case of the registry.

`mlax.testing` checks all of them but one, for layers from anywhere: see `mlax.testing.LAWS`.
This file adds what only our own layers promise, and

8. The class and the pair give the same bits from the same key.
"""

import functools
import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import SequenceKey, keystr

import mlax
from mlax import nn
from mlax.testing import LAWS, check_laws

from .registry import CASES, KEY, Case, classes, functions, pairs

# What is made for a batch has nothing to normalise in the one example that it is run on here.
pytestmark = pytest.mark.filterwarnings("ignore:z_norm. expected more than one element:UserWarning")

WITH_MODULES = [pytest.param(case, case.module, id=case.name) for case in CASES if case.module]
OVER_BATCH = [
    pytest.param(case, case.module, id=case.name)
    for case in CASES
    if case.module and case.over_batch
]

on_every_case = pytest.mark.parametrize("case", CASES, ids=repr)

in_both_dtypes = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])


def bits(tree: Any) -> list[tuple[Any, Any, bytes]]:
    """Return shape, dtype and bytes of each leaf."""
    arrays = map(np.asarray, jax.tree.leaves(tree))
    return [(array.shape, array.dtype, array.tobytes()) for array in arrays]


def assert_close(case: Case, actual: Any, expected: Any) -> None:
    """Require equal structures, and numbers that differ only by rounding."""
    tolerance = case.tolerance
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), tolerance, tolerance
        )


def test_every_pair_stands_in_the_registry() -> None:
    tested = {case.pair for case in CASES}
    assert not {name for name, pair in pairs().items() if pair not in tested}


def test_every_function_that_makes_layers_stands_in_the_registry() -> None:
    assert functions() == {case.made_by for case in CASES if case.made_by}


def test_every_class_stands_in_the_registry() -> None:
    assert not classes() - {type(case.module(KEY)) for case in CASES if case.module}


def test_names_are_distinct() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@on_every_case
def test_laws(case: Case) -> None:
    check_laws(case.layer, case.input(), rng=KEY, skip=case.skip, tolerance=case.tolerance)


BREAKS = [(case, law) for case in CASES for law in case.skip]


@pytest.mark.parametrize(("case", "law"), BREAKS, ids=str)
def test_a_law_that_is_left_out_does_not_hold(case: Case, law: str) -> None:
    with pytest.raises(AssertionError):
        LAWS[law](case.example)


@on_every_case
def test_init_of_the_pair_takes_the_hyperparameters(case: Case) -> None:
    init: Any = case.layer.init
    if case.pair is None or case.made_by in ("bidirectional", "block"):
        pytest.skip("it is made by a function")
    bound = case.pair.bound(init.hparams)  # including defaults: they are the same layer
    made = case.pair.init(KEY, case.input(), *bound.args, **bound.kwargs)
    assert jax.tree.structure(made) == jax.tree.structure(case.example.made)
    assert bits(made) == bits(case.example.made)


@on_every_case
def test_the_state_keeps_its_form_in_half_precision(case: Case) -> None:
    params, state = case.example.made
    x = case.input(jnp.bfloat16)
    for _, after in jax.eval_shape(case.example.in_both_modes, params, state, x, case.rng):
        assert jax.tree.structure(after) == jax.tree.structure(state)
        for a, b in zip(jax.tree.leaves(after), jax.tree.leaves(state), strict=True):
            assert (a.shape, a.dtype, a.weak_type) == (b.shape, b.dtype, b.weak_type)


ONE_OF_EACH = {case.pair: case for case in CASES if case.params}.values()
"""A case of each pair that has parameters and a class: compiling `init` takes long."""


@pytest.mark.parametrize("case", ONE_OF_EACH, ids=repr)
def test_vmap_of_init_is_a_loop(case: Case) -> None:
    x = case.input()
    keys = jax.random.split(KEY, 2)
    ensemble = jax.jit(jax.vmap(case.layer.init, (0, None)))(keys, x)
    members = [case.layer.init(key, x) for key in keys]
    assert_close(case, ensemble, jax.tree.map(lambda *leaves: np.stack(leaves), *members))


@on_every_case
def test_only_layers_of_layers_have_indices_in_paths(case: Case) -> None:
    paths = [path for path, _ in jax.tree.leaves_with_path(case.example.made[0])]
    indexed = any(isinstance(entry, SequenceKey) for path in paths for entry in path)
    assert indexed == case.of_layers


@on_every_case
def test_a_missing_key_raises_an_error(case: Case) -> None:
    if not case.layer.needs_rng:
        pytest.skip("it needs none")
    with pytest.raises(ValueError, match=r"^\w+: expected rng to be a PRNG key in training, got N"):
        case.layer.apply(*case.example.made, case.input())


@on_every_case
def test_params_without_arrays_raise_an_error(case: Case) -> None:
    """As in one part of `mlax.partition`."""
    params, state = case.example.made
    if not jax.tree.leaves(params) or not isinstance(state, mlax.State):
        pytest.skip("it has no params, or a state of the user's own")
    with pytest.raises((AttributeError, TypeError, ValueError)) as raised:
        case.layer.apply(jax.tree.map(lambda _: None, params), state, case.input(), case.rng)
    told = [str(raised.value), *getattr(raised.value, "__notes__", [])]
    assert any(re.match(r"\w+: expected |in \w+", text) for text in told)


@on_every_case
def test_batch_axis_name_matters_to_those_that_use_it(case: Case) -> None:
    keys = None if case.rng is None else jax.random.split(case.rng, 3)
    params, state = case.example.made

    @functools.partial(jax.vmap, in_axes=(0, 0), axis_name="i")
    def both(x: Any, key: Any) -> Any:
        alone = case.layer.apply(params, state, x, key)
        return alone, case.layer.apply(params, state, x, key, False, "i")

    alone, together = jax.jit(both)(case.batch(), keys)
    assert (bits(alone) != bits(together)) == case.over_batch


# Law 8


def leaves_by_path(tree: Any) -> dict[str, bytes]:
    """Return the bytes of each leaf under its path."""
    return {
        keystr(path): np.asarray(leaf).tobytes() for path, leaf in jax.tree.leaves_with_path(tree)
    }


def assert_same_leaves(case: Case, module: mlax.Module, params: Any, state: Any) -> None:
    """Require that each leaf of the module equals that of the pair."""
    for part, names, tree in (
        (module.filter(), case.params, params),
        (module.filter(inverse=True), case.state, state),
    ):
        of_module, of_pair = leaves_by_path(part), leaves_by_path(tree)
        assert of_module.keys() == names.keys()
        assert sorted(of_pair) == sorted(names.values())
        assert of_module == {path: of_pair[names[path]] for path in names}


def set_up(module: mlax.Module, x: Any) -> mlax.Module:
    """Return a recurrent module set up: its first step, run outside the loop, rounds otherwise."""
    if not isinstance(module, nn.Recurrent | nn.RecurrentRng):
        return module
    trained, rest = mlax.as_layer(module).init(KEY, x)
    return trained.combine(rest)


@pytest.mark.parametrize(("case", "module"), WITH_MODULES)
@in_both_dtypes
def test_class_and_pair_give_the_same_bits(
    case: Case, module: Callable[[jax.Array], mlax.Module], dtype: Any
) -> None:
    x = case.input(dtype)
    params, state = case.layer.init(KEY, x)
    y, state = case.layer.apply(params, state, x, case.rng)
    y_module, trained = set_up(module(KEY), x)(x, case.rng)
    assert bits(y_module) == bits(y)
    assert_same_leaves(case, trained, params, state)

    y, state = case.layer.apply(params, state, x, None, True)
    y_module, trained = trained(x, None, True)
    assert bits(y_module) == bits(y)
    assert_same_leaves(case, trained, params, state)


@pytest.mark.parametrize(("case", "module"), OVER_BATCH)
def test_class_and_pair_give_the_same_bits_over_a_batch(
    case: Case, module: Callable[[jax.Array], mlax.Module]
) -> None:
    params, state = case.example.made
    batch = case.batch()
    y, state = jax.vmap(
        case.layer.apply, (None, None, 0, None, None, None), (0, None), axis_name="batch"
    )(params, state, batch, case.rng, False, "batch")
    y_module, trained = jax.vmap(
        set_up(module(KEY), case.input()).__call__, (0, None, None, None), (0, None),
        axis_name="batch",
    )(batch, case.rng, False, "batch")
    assert bits(y_module) == bits(y)
    assert_same_leaves(case, trained, params, state)


@on_every_case
def test_the_pair_as_a_module_gives_the_same_bits(case: Case) -> None:
    (y, state), _ = case.example.eager
    y_module, module = mlax.as_module(case.layer, KEY)(case.input(), case.rng)
    assert bits(y_module) == bits(y)
    assert bits(module.filter()) == bits(case.example.made[0])
    assert bits(module.filter(inverse=True)) == bits(state)


@pytest.mark.parametrize(("case", "module"), WITH_MODULES)
def test_the_module_as_a_pair_gives_the_same_bits(
    case: Case, module: Callable[[jax.Array], mlax.Module]
) -> None:
    (y, state), _ = case.example.eager
    init, apply = mlax.as_layer(module(KEY))
    params, before = init(jax.random.key(0), case.input())
    y_module, after = apply(params, before, case.input(), case.rng)
    assert bits(y_module) == bits(y)
    assert bits(params) == bits(case.example.made[0])
    assert bits(after) == bits(state)
