"""The laws, each tested on every case of the registry.

1. `eval_shape` agrees with the real thing.
2. `apply` keeps the structure, shapes and dtypes of the state.
3. `jit` is eager evaluation, `vmap` a loop, and equal keys give equal results.
4. In inference mode no key is needed and the state comes back unchanged.
5. Gradients are finite and agree with finite differences.
6. Every leaf of params has a path of names.
7. params and state survive copies, pickle and files with equal tree structure.
8. The class and the pair give the same bits from the same key.
9. Params and states of another layer raise an error that names the layer.
"""

import copy
import functools
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.tree_util import DictKey, GetAttrKey, SequenceKey, keystr

import mlax

from .registry import CASES, KEY, Case, classes, pairs

WITH_MODULES = [pytest.param(case, case.module, id=case.name) for case in CASES if case.module]
OVER_BATCH = [
    pytest.param(case, case.module, id=case.name)
    for case in CASES
    if case.module and case.over_batch
]

on_every_case = pytest.mark.parametrize("case", CASES, ids=repr, scope="module")
"""The scope makes pytest run all tests of a case together, which share what is cached."""

in_both_dtypes = pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])


@functools.cache
def initialised(case: Case) -> tuple[Any, Any]:
    """Return parameters and state of the layer."""
    return case.layer.init(KEY, case.input())


def in_both_modes(
    case: Case, params: Any, state: Any, x: Any, rng: jax.Array | None
) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Return what `apply` returns in training and in inference."""
    apply = case.layer.apply
    return apply(params, state, x, rng), apply(params, state, x, rng, True)


@functools.cache
def applied(case: Case) -> tuple[tuple[Any, Any], tuple[Any, Any]]:
    """Return the results in both modes, evaluated eagerly."""
    return in_both_modes(case, *initialised(case), case.input(), case.rng)


@functools.cache
def jitted(case: Case) -> Callable[..., tuple[tuple[Any, Any], tuple[Any, Any]]]:
    """Return `apply` in both modes, compiled: a function of params, state, x and rng."""
    return jax.jit(functools.partial(in_both_modes, case))


def described(tree: Any) -> list[tuple[Any, Any, bool]]:
    """Return shape, dtype and weak type of each leaf."""
    return [(leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)]


def bits(tree: Any) -> list[tuple[Any, Any, bytes]]:
    """Return shape, dtype and bytes of each leaf."""
    arrays = map(np.asarray, jax.tree.leaves(tree))
    return [(array.shape, array.dtype, array.tobytes()) for array in arrays]


def assert_close(case: Case, actual: Any, expected: Any) -> None:
    """Require one structure, and numbers that differ by rounding errors only."""
    tolerance = case.tolerance
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(
            np.asarray(a, np.float64), np.asarray(b, np.float64), tolerance, tolerance
        )


def test_every_pair_stands_in_the_registry() -> None:
    tested = {pair for case in CASES for pair in (case.pair, case.with_pair)}
    assert not {name for name, pair in pairs().items() if pair not in tested}


def test_every_class_stands_in_the_registry() -> None:
    assert not classes() - {type(case.module(KEY)) for case in CASES if case.module}


def test_names_are_distinct() -> None:
    assert len({case.name for case in CASES}) == len(CASES)


@on_every_case
def test_init_of_the_pair_takes_the_hyperparameters(case: Case) -> None:
    made = case.pair.init(KEY, case.input(), *case.hparams, **case.named_hparams)
    assert jax.tree.structure(made) == jax.tree.structure(initialised(case))
    assert bits(made) == bits(initialised(case))


# Law 1


@on_every_case
def test_eval_shape_of_init(case: Case) -> None:
    shapes = jax.eval_shape(case.layer.init, KEY, case.input())
    assert jax.tree.structure(shapes) == jax.tree.structure(initialised(case))
    assert described(shapes) == described(initialised(case))


@on_every_case
def test_init_reads_shapes_only(case: Case) -> None:
    x = jax.eval_shape(lambda x: x, case.input())
    made = case.layer.init(KEY, x)
    assert jax.tree.structure(made) == jax.tree.structure(initialised(case))
    assert bits(made) == bits(initialised(case))


@on_every_case
def test_eval_shape_of_apply(case: Case) -> None:
    apply = functools.partial(in_both_modes, case)
    shapes = jax.eval_shape(apply, *initialised(case), case.input(), case.rng)
    assert jax.tree.structure(shapes) == jax.tree.structure(applied(case))
    assert described(shapes) == described(applied(case))


# Law 2


@on_every_case
@in_both_dtypes
def test_apply_keeps_the_form_of_the_state(case: Case, dtype: Any) -> None:
    params, state = initialised(case)
    apply = functools.partial(in_both_modes, case)
    for _, after in jax.eval_shape(apply, params, state, case.input(dtype), case.rng):
        assert jax.tree.structure(after) == jax.tree.structure(state)
        assert described(after) == described(state)


# Law 3


@on_every_case
def test_jit_is_eager_evaluation(case: Case) -> None:
    compiled = jitted(case)(*initialised(case), case.input(), case.rng)
    assert_close(case, compiled, applied(case))


@on_every_case
def test_vmap_is_a_loop(case: Case) -> None:
    params, state = initialised(case)
    batch = case.batch()
    keys = None if case.rng is None else jax.random.split(case.rng, 3)
    mapped = jax.jit(jax.vmap(jitted(case), (None, None, 0, 0)))(params, state, batch, keys)
    loop = [
        jitted(case)(
            params,
            state,
            jax.tree.map(lambda leaf: jnp.asarray(leaf[i]), batch),
            None if keys is None else keys[i],
        )
        for i in range(3)
    ]
    assert_close(case, mapped, jax.tree.map(lambda *leaves: np.stack(leaves), *loop))


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
def test_equal_keys_give_equal_results(case: Case) -> None:
    """A raw key is equal to the typed one that has its data."""
    x = case.input()
    params, state = initialised(case)
    raw = jax.random.key_data(KEY)
    assert bits(case.layer.init(raw, x)) == bits((params, state))
    if case.rng is None:
        return
    result, _ = applied(case)
    again = case.layer.apply(params, state, x, jax.random.key_data(case.rng))
    assert bits(again) == bits(result)


@on_every_case
def test_only_layers_that_need_a_key_use_it(case: Case) -> None:
    assert mlax.needs_rng(case.layer.apply) == case.needs_key
    apply = jitted(case) if case.needs_key else functools.partial(in_both_modes, case)
    results = [
        apply(*initialised(case), case.input(), jax.random.key(seed))[0] for seed in range(2)
    ]
    assert (bits(results[0]) != bits(results[1])) == case.needs_key


# Law 4


@on_every_case
def test_inference_needs_no_key_and_keeps_the_state(case: Case) -> None:
    params, state = initialised(case)
    y, after = case.layer.apply(params, state, case.input(), None, True)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert bits(after) == bits(state)
    _, (with_key, _) = applied(case)
    assert bits(y) == bits(with_key)


# Law 5


@on_every_case
def test_gradients_agree_with_finite_differences(case: Case) -> None:
    """All floating numbers in params and x are moved, one at a time, in float64."""
    if case.no_gradient:
        pytest.skip(case.no_gradient)
    params, state = initialised(case)
    leaves, structure = jax.tree.flatten((params, case.input(), state))
    leaves = [
        np.asarray(leaf, np.float64 if jnp.issubdtype(leaf.dtype, jnp.inexact) else None)
        for leaf in leaves
    ]
    moved = [
        i
        for i, leaf in enumerate(leaves[: len(leaves) - len(jax.tree.leaves(state))])
        if leaf.dtype == np.float64
    ]
    point = np.concatenate([leaves[i].ravel() for i in moved])
    ends = np.cumsum([leaves[i].size for i in moved])

    def weighted_sum(numbers: jax.Array) -> jax.Array:
        replaced = list(leaves)
        for i, part in zip(moved, jnp.split(numbers, ends[:-1]), strict=True):
            replaced[i] = part.reshape(leaves[i].shape)
        params, x, state = jax.tree.unflatten(structure, map(jnp.asarray, replaced))
        y, _ = case.layer.apply(params, state, x, case.rng)
        flat = jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(y)])
        assert flat.dtype == jnp.float64
        return flat @ jnp.cos(jnp.arange(flat.size))

    with jax.enable_x64(True):
        value_and_gradient = jax.jit(jax.value_and_grad(weighted_sum))
        _, gradient = value_and_gradient(point)
        differences = [
            float(value_and_gradient(point + step)[0] - value_and_gradient(point - step)[0])
            for step in 1e-6 * np.eye(point.size)
        ]
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient, np.array(differences) / 2e-6, rtol=1e-5, atol=1e-7)


# Law 6


@on_every_case
def test_leaves_have_readable_paths(case: Case) -> None:
    params, _ = initialised(case)
    for path, _ in jax.tree.leaves_with_path(params):
        for entry in path:
            if isinstance(entry, SequenceKey):
                assert not case.pair.__module__.startswith("mlax.layers")
            else:
                assert str(name_of(entry)).isidentifier()
        assert name_of(path[-1])


def name_of(entry: Any) -> Any:
    """Return the name in an entry of a path."""
    assert isinstance(entry, GetAttrKey | DictKey)
    return entry.name if isinstance(entry, GetAttrKey) else entry.key


# Law 7


def load_leaves(path: Path, like: Any) -> Any:
    """Return what `np.savez` wrote, in the tree and the dtypes of `like`."""
    leaves, structure = jax.tree.flatten(like)
    with np.load(path) as saved:
        arrays = [
            jnp.asarray(saved[name].view(leaf.dtype))
            for name, leaf in zip(saved, leaves, strict=True)
        ]
    return jax.tree.unflatten(structure, arrays)


@on_every_case
def test_copies_are_as_good_as_the_original(case: Case, tmp_path: Path) -> None:
    original = initialised(case)
    (tmp_path / "pickle").write_bytes(pickle.dumps(original))
    np.savez(tmp_path / "leaves.npz", *map(np.asarray, jax.tree.leaves(original)))
    leaves, structure = jax.tree.flatten(original)
    copies = {
        "unflatten": jax.tree.unflatten(structure, leaves),
        "copy": tuple(map(copy.copy, original)),
        "deepcopy": copy.deepcopy(original),
        "pickle": pickle.loads((tmp_path / "pickle").read_bytes()),
        "savez": load_leaves(tmp_path / "leaves.npz", case.layer.init(KEY, case.input())),
    }
    compiled = jitted(case)
    result = compiled(*original, case.input(), case.rng)
    size = compiled._cache_size()  # type: ignore[attr-defined]  # jax.jit adds it
    for copied in copies.values():
        assert jax.tree.structure(copied) == structure
        assert described(copied) == described(original)
        assert bits(copied) == bits(original)
        assert bits(compiled(*copied, case.input(), case.rng)) == bits(result)
    assert compiled._cache_size() == size  # type: ignore[attr-defined]  # jax.jit adds it


# Law 8


def leaves_by_path(tree: Any) -> dict[str, bytes]:
    """Return the bytes of each leaf under its path."""
    return {
        keystr(path): np.asarray(leaf).tobytes() for path, leaf in jax.tree.leaves_with_path(tree)
    }


def assert_same_leaves(case: Case, module: mlax.Module, params: Any, state: Any) -> None:
    """Require that each leaf of the module is that of the pair."""
    for part, names, tree in (
        (module.filter(), case.params, params),
        (module.filter(inverse=True), case.state, state),
    ):
        of_module, of_pair = leaves_by_path(part), leaves_by_path(tree)
        assert of_module.keys() == names.keys()
        assert sorted(of_pair) == sorted(names.values())
        assert of_module == {path: of_pair[names[path]] for path in names}


@pytest.mark.parametrize(("case", "module"), WITH_MODULES)
@in_both_dtypes
def test_class_and_pair_give_the_same_bits(
    case: Case, module: Callable[[jax.Array], mlax.Module], dtype: Any
) -> None:
    x = case.input(dtype)
    params, state = case.layer.init(KEY, x)
    y, state = case.layer.apply(params, state, x, case.rng)
    y_module, trained = module(KEY)(x, case.rng)
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
    params, state = initialised(case)
    batch = case.batch()
    y, state = jax.vmap(
        case.layer.apply, (None, None, 0, None, None, None), (0, None), axis_name="batch"
    )(params, state, batch, case.rng, False, "batch")
    y_module, trained = jax.vmap(
        module(KEY).__call__, (0, None, None, None), (0, None), axis_name="batch"
    )(batch, case.rng, False, "batch")
    assert bits(y_module) == bits(y)
    assert_same_leaves(case, trained, params, state)


@on_every_case
def test_the_pair_as_a_module_gives_the_same_bits(case: Case) -> None:
    (y, state), _ = applied(case)
    y_module, module = mlax.as_module(case.layer, KEY)(case.input(), case.rng)
    assert bits(y_module) == bits(y)
    assert bits(module.filter()) == bits(initialised(case)[0])
    assert bits(module.filter(inverse=True)) == bits(state)


@pytest.mark.parametrize(("case", "module"), WITH_MODULES)
def test_the_module_as_a_pair_gives_the_same_bits(
    case: Case, module: Callable[[jax.Array], mlax.Module]
) -> None:
    (y, state), _ = applied(case)
    init, apply = mlax.as_layer(module(KEY))
    params, before = init(jax.random.key(0), case.input())
    y_module, after = apply(params, before, case.input(), case.rng)
    assert bits(y_module) == bits(y)
    assert bits(params) == bits(initialised(case)[0])
    assert bits(after) == bits(state)


# Law 9


class Stranger(NamedTuple):
    """Parameters, variables or config of a layer that is not here."""

    weight: float = 1.0


@on_every_case
def test_what_another_layer_made_raises(case: Case) -> None:
    params, state = initialised(case)
    wrong: list[tuple[Any, Any]] = []
    if not isinstance(state, mlax.State):
        pytest.skip("a state of the user's own")
    wrong += [(params, params), (params, mlax.State(state.variables, Stranger()))]
    if jax.tree.leaves(params):
        wrong += [(state, state), (Stranger(), state)]
        if "combinators" not in case.pair.__module__:
            wrong.append((jax.tree.map(lambda _: None, params), state))
    for pair in wrong:
        with pytest.raises((TypeError, ValueError), match=r"^\w+: expected "):
            case.layer.apply(*pair, case.input(), case.rng)
