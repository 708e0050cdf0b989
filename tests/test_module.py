"""Parameters and modules: pytrees, static attributes, filtering, copies, and the training loop."""

import copy
import functools
import importlib
import inspect
import pickle
import re
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.tree_util import DictKey, GetAttrKey, SequenceKey, keystr

import mlax
from mlax import Module, Parameter, nn
from mlax.layer import AxisName, Key

optax: Any = importlib.import_module("optax")
"""It has no types of its own, and our stubs of it know only what the examples use."""

KEY_MAKERS = pytest.mark.parametrize(
    "make_key", [jax.random.key, jax.random.PRNGKey], ids=["typed", "raw"]
)


class Scale(Module):
    """y = gain * x, with a static attribute and a counter of the calls in training."""

    def __init__(self, static: Any = None) -> None:
        super().__init__()
        self.static = static
        self.gain = Parameter(trainable=True)
        self.calls = Parameter(trainable=False)

    def setup(self, x: jax.Array) -> None:
        self.gain.data = jnp.arange(1.0, 1 + x.shape[-1])
        self.calls.data = jnp.zeros((), jnp.int32)

    def forward(
        self,
        x: jax.Array,
        rng: None = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> jax.Array:
        if not inference_mode:
            self.calls.data = self.calls.data + 1
        y: jax.Array = self.gain.data * x
        return y


class Tower(Module):
    """Two scales, one of them in a list, and its own parameter in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.first = Scale("a")
        self.depth = 2
        self.rest = Parameter(None, [Scale("b")])
        self.shift = Parameter(trainable=True)

    def setup(self, x: jax.Array) -> None:
        self.shift.data = {"b": jnp.zeros(x.shape)}

    def forward(
        self,
        x: jax.Array,
        rng: None = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> jax.Array:
        x, self.first = self.first(x, rng, inference_mode, batch_axis_name)
        for i, layer in enumerate(self.rest.data):
            x, self.rest.data[i] = layer(x, rng, inference_mode, batch_axis_name)
        y: jax.Array = x + self.shift.data["b"]
        return y


TOWER_PATHS = [
    ".first.gain.data",
    ".first.calls.data",
    ".rest.data[0].gain.data",
    ".rest.data[0].calls.data",
    ".shift.data['b']",
]

X = jnp.array([1.0, 2.0])


def scale(static: Any = None) -> Scale:
    """Return a scale that is set up."""
    return Scale(static)(X, None)[1]


def tower() -> Tower:
    """Return a tower that is set up."""
    return Tower()(X, None)[1]


def paths(tree: Any) -> list[str]:
    """Return the paths of the leaves."""
    return [keystr(path) for path, _ in jax.tree.leaves_with_path(tree)]


def structure(tree: Any) -> Any:
    """Return the tree structure."""
    return jax.tree.structure(tree)


def same_leaves(a: Any, b: Any) -> bool:
    """Return whether all leaves are equal."""
    return all(map(np.array_equal, jax.tree.leaves(a), jax.tree.leaves(b)))


class Traced:
    """A jitted call of a module that counts its traces."""

    def __init__(self) -> None:
        self.traces = 0
        self.jitted: Callable[..., Any] = jax.jit(self.call)

    def call(self, module: Module, x: jax.Array) -> Any:
        self.traces += 1
        return module(x, None)


# Parameter


@pytest.mark.parametrize("trainable", [True, False, None])
def test_parameter_is_a_node_with_one_child(trainable: bool | None) -> None:
    parameter = Parameter(trainable, {"a": jnp.ones(2), "b": [jnp.zeros(3)]})
    assert paths(parameter) == [".data['a']", ".data['b'][0]"]
    doubled = jax.tree.map(lambda leaf: 2 * leaf, parameter)
    assert isinstance(doubled, Parameter)
    assert doubled.trainable is trainable
    np.testing.assert_array_equal(doubled.data["a"], [2, 2])
    np.testing.assert_array_equal(parameter.data["a"], [1, 1])


def test_parameter_without_data_has_no_leaf() -> None:
    parameter = Parameter(True)
    assert parameter.data is None
    assert jax.tree.leaves(parameter) == []
    assert jax.tree.map(lambda leaf: leaf, parameter).data is None


def test_parameter_keeps_further_attributes() -> None:
    def make() -> Any:
        parameter: Any = Parameter(True, X)
        parameter.name = "gain"
        parameter.shape = [2]
        parameter.key = jax.random.key(0)
        return parameter

    parameter = make()
    again = jax.tree.map(lambda leaf: leaf, parameter)
    assert (again.name, again.shape) == ("gain", [2])
    assert again.key == parameter.key
    assert structure(again) == structure(parameter) == structure(make())
    again.shape.append(3)
    assert parameter.shape == [2]
    assert structure(again) != structure(parameter)
    assert structure(parameter) != structure(Parameter(True, X))


def test_trainable_belongs_to_the_structure() -> None:
    structures = {structure(Parameter(trainable, X)) for trainable in (True, False, None)}
    assert len(structures) == 3


def test_parameter_shows_its_attributes() -> None:
    parameter: Any = Parameter(trainable=False, data=7)
    parameter.name = "counter"
    text = repr(parameter)
    assert text.startswith("Parameter")
    for part in ("trainable=False", "data=7", "name='counter'"):
        assert part in text


@pytest.mark.parametrize(
    ("value", "trainable", "non_trainable", "leaf"),
    [
        (Parameter(True), True, False, True),
        (Parameter(False), False, True, True),
        (Parameter(None, []), False, False, False),
        (jnp.ones(2), False, False, False),
        (None, False, False, False),
        (True, False, False, False),
        (Scale(), False, False, False),
    ],
)
def test_predicates(value: Any, trainable: bool, non_trainable: bool, leaf: bool) -> None:
    assert mlax.is_trainable_param(value) is trainable
    assert mlax.is_non_trainable_param(value) is non_trainable
    assert mlax.is_leaf_param(value) is leaf


# Module as a pytree


def test_children_have_the_order_and_names_of_attributes() -> None:
    assert paths(tower()) == TOWER_PATHS


def test_unset_modules_have_no_leaves() -> None:
    assert jax.tree.leaves(Tower()) == []


def test_children_set_late_come_last() -> None:
    module = scale()
    module.early = Parameter(True, jnp.zeros(1))
    module.static = Scale()(X, None)[1]
    assert paths(module) == [
        ".static.gain.data",
        ".static.calls.data",
        ".gain.data",
        ".calls.data",
        ".early.data",
    ]


def test_flattening_gives_the_same_module_back() -> None:
    module = tower()
    leaves, treedef = jax.tree.flatten(module)
    again = jax.tree.unflatten(treedef, leaves)
    assert type(again) is Tower
    assert again is not module
    assert again.initialized
    assert again.depth == 2
    assert again.rest.data[0].static == "b"
    assert list(vars(again)) == list(vars(module))
    assert structure(again) == treedef
    assert all(a is b for a, b in zip(jax.tree.leaves(again), leaves, strict=True))


def test_initialized_is_static() -> None:
    module = Scale()
    assert module.initialized is False
    before = structure(module)
    assert jax.tree.unflatten(before, []).initialized is False
    module.initialized = True
    assert structure(module) != before


def test_a_subclass_of_a_subclass_is_a_pytree() -> None:
    class Shifted(Scale):
        def __init__(self) -> None:
            super().__init__()
            self.shift = Parameter(True, jnp.ones(()))

    module = Shifted()(X, None)[1]
    assert paths(module) == [".gain.data", ".calls.data", ".shift.data"]
    assert type(jax.tree.map(lambda leaf: leaf, module)) is Shifted


def triple(x: Any, factor: int = 3) -> Any:
    """Return factor * x."""
    return factor * x


class Sizes(NamedTuple):
    """A static value with a list in it."""

    widths: list[int]
    depth: int


STATICS: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "string": lambda: "same",
    "typed key": lambda: jax.random.key(7),
    "raw key": lambda: jax.random.PRNGKey(7),
    "jax array": lambda: jnp.sin(jnp.arange(3.0)),
    "numpy array": lambda: np.sin(np.arange(3.0)),
    "bfloat16 array": lambda: jnp.ones(3, jnp.bfloat16),
    "array with NaN": lambda: jnp.array([jnp.nan, 1.0]),
    "list": lambda: [1, 2],
    "nested list": lambda: [[1, (2,)], {"a": [3]}],
    "dict": lambda: {"a": 1, "b": (2, 3)},
    "set": lambda: {1, 2},
    "named tuple": lambda: Sizes([1, 2], 3),
    "list of typed keys": lambda: list(jax.random.split(jax.random.key(7), 2)),
    "list of raw keys": lambda: list(jax.random.split(jax.random.PRNGKey(7), 2)),
    "tuple of keys": lambda: tuple(jax.random.split(jax.random.key(7), 2)),
    "dict of numbers": lambda: {"sines": tuple(map(float, np.sin(np.arange(3.0))))},
    "function": lambda: triple,
    "partial": lambda: functools.partial(triple, factor=2),
    "jax function": lambda: jax.nn.relu,
    "dtype": lambda: jnp.bfloat16,
    "layer": lambda: mlax.linear(3),
    "layer with a partial": lambda: mlax.linear(
        3, kernel_initializer=functools.partial(jax.random.truncated_normal, lower=-1, upper=1)
    ),
}

for_each_static = pytest.mark.parametrize("make", STATICS.values(), ids=STATICS.keys())


def copies(module: Any) -> list[Any]:
    """Return the module copied in every way."""
    return [
        jax.tree.map(lambda leaf: leaf, module),
        copy.copy(module),
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        copy.deepcopy(pickle.loads(pickle.dumps(copy.copy(module)))),
    ]


@for_each_static
def test_equal_static_attributes_give_equal_structures(make: Callable[[], Any]) -> None:
    module = scale(make())
    others = [scale(make()), *copies(module)]
    for other in others:
        assert structure(other) == structure(module)
        assert hash(structure(other)) == hash(structure(module))
        assert structure(Scale(make())) != structure(other)


@for_each_static
def test_one_trace_for_equal_static_attributes(make: Callable[[], Any]) -> None:
    module = Scale(make())(X, None)[1]
    traced = Traced()
    y, after = traced.jitted(module, X)
    for other in (after, scale(make()), *copies(module)):
        y_other, again = traced.jitted(other, X)
        np.testing.assert_array_equal(y_other, y)
        assert type(again.static) is type(module.static)
        assert structure(again) == structure(module)
    assert traced.traces == 1


@for_each_static
def test_static_attributes_are_compared_inside_a_trace(make: Callable[[], Any]) -> None:
    """A module that a function closes over is compared with one that is traced."""
    module, other = scale(make()), scale(make())
    added = jax.jit(lambda traced: jax.tree.map(jnp.add, traced, other))(module)
    np.testing.assert_array_equal(added.gain.data, 2 * module.gain.data)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (1, 2),
        (1, 1.0),
        (1, True),
        ("a", b"a"),
        ([1, 2], [2, 1]),
        ([1, 2], (1, 2)),
        ([1, [2]], [1, [3]]),
        ({"a": 1}, {"a": 2}),
        ({"a": 1}, {"b": 1}),
        (jnp.arange(3), jnp.arange(4)),
        (jnp.arange(3), jnp.arange(1, 4)),
        (jnp.zeros(3), jnp.zeros((3, 1))),
        (jnp.zeros(3), jnp.zeros(3, jnp.int32)),
        (np.zeros(3), np.ones(3)),
        (jnp.zeros(()), 0.0),
        (jnp.zeros(3), None),
        (jax.random.key(0), jax.random.key(1)),
        (jax.random.key(0), jax.random.PRNGKey(0)),
        (jax.random.key(0), jax.random.key(0, impl="rbg")),
        (functools.partial(triple, factor=2), functools.partial(triple, factor=3)),
        (triple, np.negative),
    ],
)
def test_different_static_attributes_give_different_structures(a: Any, b: Any) -> None:
    assert structure(scale(a)) != structure(scale(b))
    assert structure(scale(b)) != structure(scale(a))


class Table:
    """A user's object: equal only to itself."""


@pytest.mark.parametrize(
    "static",
    [Table(), (1, Table()), [Table()], {"table": Table()}],
    ids=["alone", "in a tuple", "in a list", "in a dict"],
)
def test_objects_that_equal_nothing_else_are_kept(static: Any) -> None:
    module = scale(static)
    traced = Traced()
    for _ in range(3):
        _, module = traced.jitted(module, X)
    assert traced.traces == 1


def test_an_object_beside_a_list_is_kept() -> None:
    module: Any = scale([1, 2])
    module.table = Table()
    traced = Traced()
    for _ in range(3):
        _, module = traced.jitted(module, X)
    assert traced.traces == 1


def test_a_python_module_beside_a_list_is_kept() -> None:
    module: Any = scale([1, 2])
    module.numpy = np
    assert jax.tree.map(lambda leaf: leaf, module).numpy is np


# Static attributes that are changed


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda: [1, 2], lambda static: static.append(3)),
        (lambda: {"a": 1}, lambda static: static.update(a=2)),
        (lambda: {"a": [1]}, lambda static: static["a"].append(2)),
        (lambda: ([1], 2), lambda static: static[0].append(2)),
        (lambda: {1, 2}, lambda static: static.add(3)),
        (lambda: Sizes([1, 2], 3), lambda static: static.widths.append(4)),
        (lambda: np.zeros(3), lambda static: static.__setitem__(0, 1)),
        (lambda: [jax.random.key(0)], lambda static: static.pop()),
    ],
    ids=[
        "list",
        "dict",
        "list in a dict",
        "list in a tuple",
        "set",
        "named tuple",
        "numpy array",
        "keys",
    ],
)
def test_change_in_place(make: Callable[[], Any], change: Callable[[Any], object]) -> None:
    module = scale(make())
    before = structure(module)
    twin, *others = scale(make()), *copies(module)
    restored_later = jax.tree.leaves(module)
    change(module.static)
    after = structure(module)
    assert after != before
    assert before == structure(twin)
    shallow = others.pop(1)
    assert structure(shallow) == after  # copy.copy shares the values of attributes
    for other in others:
        assert structure(other) == before
    restored = jax.tree.unflatten(before, restored_later)
    assert structure(restored) == before
    change(restored.static)
    assert structure(restored) != before
    assert structure(jax.tree.unflatten(before, restored_later)) == before


def test_a_change_in_place_is_traced_anew() -> None:
    module = Scale([1.0])

    @jax.jit
    def first(module: Scale) -> jax.Array:
        return jnp.asarray(module.static[0])

    assert first(module) == 1
    module.static[0] = 5.0
    assert first(module) == 5


def test_a_static_attribute_may_be_set_anew() -> None:
    module = scale("a")
    before = structure(module)
    module.static = "b"
    assert structure(module) != before
    assert jax.tree.map(lambda leaf: leaf, module).static == "b"
    module.static = "a"
    assert structure(module) == before


def test_a_child_may_become_static_and_back() -> None:
    module: Any = scale()
    gain = module.gain
    module.gain = None
    assert paths(module) == [".calls.data"]
    module.gain = gain
    assert paths(module) == [".gain.data", ".calls.data"]


def test_static_attributes_change_under_jit() -> None:
    @jax.jit
    def renamed(module: Scale) -> Scale:
        module.static = "new"
        return module

    module = scale("old")
    assert renamed(module).static == "new"
    assert module.static == "old"


# Calls


class Recorder(Module):
    """Records its arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.setups: list[Any] = []
        self.calls: list[Any] = []

    def setup(self, x: Any) -> None:
        assert not self.initialized
        self.setups.append(x)

    def forward(
        self, x: Any, rng: Any, inference_mode: bool = False, batch_axis_name: AxisName = ()
    ) -> Any:
        assert self.initialized
        self.calls.append((x, rng, inference_mode, batch_axis_name))
        return -x


def test_call_sets_up_once() -> None:
    module = Recorder()
    key = jax.random.key(0)
    y, same = module(1, None)
    assert y == -1
    assert same is module
    assert module.initialized
    y, _ = module(2, key, True, "batch")
    y, _ = module(x=3, rng=key, inference_mode=True, batch_axis_name=("a", "b"))
    assert module.setups == [1]
    assert module.calls == [
        (1, None, False, ()),
        (2, key, True, "batch"),
        (3, key, True, ("a", "b")),
    ]


def test_apply_does_not_set_up() -> None:
    module = Recorder()
    module.initialized = True
    y, same = module.apply(1, None)
    assert (y, same) == (-1, module)
    key = jax.random.key(0)
    module.apply(2, key, True, "batch")
    assert module.setups == []
    assert module.calls == [(1, None, False, ()), (2, key, True, "batch")]


@pytest.mark.parametrize("method", ["__call__", "apply"])
def test_the_key_must_be_given(method: str) -> None:
    with pytest.raises(TypeError, match="rng"):
        getattr(scale(), method)(X)


def test_a_failed_setup_may_be_repeated() -> None:
    module = nn.Linear(jax.random.key(0), 3)
    with pytest.raises(ValueError, match="at least 1 axis"):
        module(jnp.ones(()), None)
    assert not module.initialized
    y, module = module(X, None)
    assert y.shape == (3,)


def test_forward_must_be_defined() -> None:
    class Empty(Module):
        pass

    wanted = r"^Empty: expected a method forward\(self, x, .*; setup.*init and apply"
    with pytest.raises(NotImplementedError, match=wanted):
        Empty()(X, None)


def test_a_class_may_compile_apply() -> None:
    class Compiled(nn.Linear):
        apply = jax.jit(nn.Linear.apply, static_argnames=("inference_mode", "batch_axis_name"))

    y, module = Compiled(jax.random.key(0), 3)(X, None)
    again, _ = module.apply(X, None, True)
    expected, _ = nn.Linear(jax.random.key(0), 3)(X, None)
    np.testing.assert_allclose((y, again), (expected, expected), rtol=1e-6)


def test_forward_may_change_parameters() -> None:
    module = scale()
    assert module.calls.data == 1
    _, module = module(X, None)
    assert module.calls.data == 2
    _, module = module(X, None, True)
    assert module.calls.data == 2


# filter, partition, combine


TRAINED = [TOWER_PATHS[0], TOWER_PATHS[2], TOWER_PATHS[4]]
NOT_TRAINED = [TOWER_PATHS[1], TOWER_PATHS[3]]


def test_filter() -> None:
    module = tower()
    assert paths(module.filter()) == TRAINED
    assert paths(module.filter(inverse=True)) == NOT_TRAINED
    assert paths(module.filter(mlax.is_non_trainable_param)) == NOT_TRAINED
    assert paths(module.filter(mlax.is_leaf_param)) == TOWER_PATHS
    assert paths(module.filter(mlax.is_leaf_param, inverse=True)) == []
    assert paths(module.filter(lambda parameter: isinstance(parameter.data, dict))) == TRAINED[2:]


def test_filter_shows_leaf_parameters_only() -> None:
    seen: list[Any] = []

    def look(parameter: Parameter) -> bool:
        seen.append(parameter)
        return True

    tower().filter(look)
    assert len(seen) == 5
    assert all(map(mlax.is_leaf_param, seen))


def test_what_a_predicate_returns_counts_as_true_or_false() -> None:
    module = tower()

    def matching(path: Any, parameter: Parameter) -> Any:
        return re.match(r".*gain", keystr(path))

    assert paths(module.filter_with_path(matching)) == [TOWER_PATHS[0], TOWER_PATHS[2]]
    others = [TOWER_PATHS[1], TOWER_PATHS[3], TOWER_PATHS[4]]
    assert paths(module.filter_with_path(matching, inverse=True)) == others
    accepted, rejected = module.partition_with_path(matching)
    assert (paths(accepted), paths(rejected)) == ([TOWER_PATHS[0], TOWER_PATHS[2]], others)
    assert paths(module.filter(lambda parameter: 0, inverse=True)) == TOWER_PATHS


def test_partition() -> None:
    module = tower()
    trained, rest = module.partition()
    assert (paths(trained), paths(rest)) == (TRAINED, NOT_TRAINED)
    accepted, rejected = module.partition(mlax.is_non_trainable_param)
    assert (paths(accepted), paths(rejected)) == (NOT_TRAINED, TRAINED)


def in_first(path: Any, parameter: Parameter) -> bool:
    """Accept whatever is in the attribute `first`."""
    assert mlax.is_leaf_param(parameter)
    return bool(path[0] == GetAttrKey("first"))


def test_filter_with_path() -> None:
    module = tower()
    assert paths(module.filter_with_path(in_first)) == TOWER_PATHS[:2]
    accepted, rejected = module.partition_with_path(in_first)
    assert (paths(accepted), paths(rejected)) == (TOWER_PATHS[:2], TOWER_PATHS[2:])


def test_paths_are_those_of_the_parameters() -> None:
    seen: list[Any] = []

    def look(path: Any, parameter: Parameter) -> bool:
        seen.append((path, parameter.trainable))
        return True

    tower().filter_with_path(look)
    assert seen == [
        ((GetAttrKey("first"), GetAttrKey("gain")), True),
        ((GetAttrKey("first"), GetAttrKey("calls")), False),
        ((GetAttrKey("rest"), GetAttrKey("data"), SequenceKey(0), GetAttrKey("gain")), True),
        ((GetAttrKey("rest"), GetAttrKey("data"), SequenceKey(0), GetAttrKey("calls")), False),
        ((GetAttrKey("shift"),), True),
    ]


def test_filtered_copies_keep_what_is_static() -> None:
    module = tower()
    trained, rest = module.partition()
    for part in (trained, rest):
        assert type(part) is Tower
        assert part.initialized
        assert part.depth == 2
        assert part.first.static == "a"
        assert type(part.rest.data[0]) is Scale
    assert rest.first.gain.data is None
    assert rest.first.gain.trainable is True
    assert structure(trained.combine(rest)) == structure(module)


def test_a_frozen_parameter_is_filtered_as_such() -> None:
    module = tower()
    module.first.gain.trainable = False
    assert paths(module.filter()) == TRAINED[1:]


@pytest.mark.parametrize(
    "change",
    [
        lambda module: module.filter(),
        lambda module: module.filter(inverse=True),
        lambda module: module.partition(),
        lambda module: module.filter_with_path(in_first),
        lambda module: module.partition_with_path(in_first),
        lambda module: module.combine(module),
        lambda module: module.filter().combine(module),
        lambda module: jax.tree.map(lambda leaf: leaf + 1, module),
    ],
    ids=[
        "filter",
        "inverse",
        "partition",
        "filter_with_path",
        "partition_with_path",
        "combine",
        "combine-with-it",
        "map",
    ],
)
def test_originals_are_unchanged(change: Callable[[Tower], Any]) -> None:
    module = tower()
    nodes = [module, module.first, module.first.gain, module.rest, module.rest.data, module.shift]
    leaves, treedef = jax.tree.flatten(module)
    result = change(module)
    assert structure(module) == treedef
    assert all(a is b for a, b in zip(jax.tree.leaves(module), leaves, strict=True))
    after = [module, module.first, module.first.gain, module.rest, module.rest.data, module.shift]
    assert all(a is b for a, b in zip(after, nodes, strict=True))
    for part in result if isinstance(result, tuple) else (result,):
        part.first.gain.data = None
        part.rest.data.clear()
        part.shift.data = {"b": 0}
        part.depth = 7
    assert structure(module) == treedef
    assert all(a is b for a, b in zip(jax.tree.leaves(module), leaves, strict=True))


@pytest.mark.parametrize("part", ["filter", "combine"])
def test_copies_do_not_share_containers(part: str) -> None:
    """A forward that changes a dict in its parameter only changes the copy's."""
    module = tower()
    before = module.shift.data["b"]
    if part == "filter":
        copied = module.filter()
    else:
        trained, rest = module.partition()
        copied = rest.combine(trained)
    copied.shift.data["b"] = before + 1
    assert module.shift.data["b"] is before


def test_combine_takes_the_first_that_is_not_empty() -> None:
    module = tower()
    one, two = (jax.tree.map(lambda leaf, n=n: 0 * leaf + n, module) for n in (1, 2))
    empty = module.filter(mlax.is_leaf_param, inverse=True)

    combined = empty.combine(one.filter(), two)
    values = [int(np.max(leaf)) for leaf in jax.tree.leaves(combined)]
    assert values == [1, 2, 1, 2, 1]

    combined = module.filter_with_path(in_first).combine(two, one)
    assert combined.first.gain.data is module.first.gain.data
    assert [int(np.max(leaf)) for leaf in jax.tree.leaves(combined)[2:]] == [2, 2, 2]


def test_combine_of_all_parts() -> None:
    module = tower()
    trained, rest = module.partition()
    for combined in (trained.combine(rest), rest.combine(trained), module.combine()):
        assert structure(combined) == structure(module)
        assert all(
            a is b for a, b in zip(jax.tree.leaves(combined), jax.tree.leaves(module), strict=True)
        )


def test_combine_leaves_empty_what_none_has() -> None:
    first, rest = tower().partition_with_path(in_first)
    assert paths(rest.combine(rest)) == TOWER_PATHS[2:]
    assert paths(first.combine(rest.filter())) == [*TOWER_PATHS[:2], TOWER_PATHS[2], TOWER_PATHS[4]]


def test_combine_with_another_model_is_refused() -> None:
    with pytest.raises(ValueError, match="combine"):
        tower().combine(scale())  # type: ignore[arg-type]  # what is tested


@pytest.mark.parametrize(
    "use",
    [
        lambda module: module.filter(),
        lambda module: module.filter(mlax.is_leaf_param, True),
        lambda module: module.partition(),
        lambda module: module.filter_with_path(in_first),
        lambda module: module.partition_with_path(in_first),
    ],
)
def test_only_initialized_modules_are_filtered(use: Callable[[Module], Any]) -> None:
    with pytest.raises(AttributeError, match="initialized"):
        use(Tower())


# Attributes, repr, identity


def test_attributes_of_an_initialized_module_stay() -> None:
    module = scale("a")
    for name in ("static", "gain", "initialized"):
        with pytest.raises(AttributeError, match=name):
            delattr(module, name)
    assert structure(module) == structure(scale("a"))


def test_attributes_may_be_deleted_before() -> None:
    module = Scale("a")
    before = structure(module)
    del module.static
    assert not hasattr(module, "static")
    assert structure(module) != before
    with pytest.raises(AttributeError, match="nothing"):
        del module.nothing  # type: ignore[attr-defined]  # what is tested


def test_repr_shows_the_class_and_every_attribute() -> None:
    module = scale("a static value")
    text = repr(module)
    assert text.startswith("Scale")
    for part in ("initialized=True", "static='a static value'", "gain=", "calls=", "trainable="):
        assert part in text
    assert "Scale" in repr(tower())


def test_modules_are_equal_to_themselves_only() -> None:
    module, other = scale(), scale()
    assert module == module
    assert module != other
    assert len({module, module, other}) == 2
    before = hash(module)
    module.static = [1]
    assert hash(module) == before
    assert weakref.ref(module)() is module


def test_a_module_may_be_a_static_argument() -> None:
    traces = []

    @functools.partial(jax.jit, static_argnums=0)
    def call(module: Scale, x: jax.Array) -> jax.Array:
        traces.append(module)
        return module(x, None, True)[0]

    module = scale()
    for _ in range(2):
        np.testing.assert_array_equal(call(module, X), [1, 4])
    assert traces == [module]
    call(scale(), X)
    assert len(traces) == 2


def test_a_bound_method_may_be_jitted() -> None:
    module = scale()
    y, _ = jax.jit(module.__call__, static_argnums=2)(X, None, True)
    np.testing.assert_array_equal(y, [1, 4])


# Copies and files


def model(key: Key) -> nn.SeriesRng:
    """Return a picklable model with every kind of layer."""
    k = jax.random.split(key, 6)
    return nn.SeriesRng(
        [
            nn.Conv(k[0], 4, 3, padding="SAME"),
            nn.ZNorm(k[1], "channel_last"),
            nn.F(jax.nn.relu),
            nn.Scaler(k[2], (0, -1)),
            nn.FRng(drop, identity),
            nn.F(jnp.ravel),
            nn.Linear(k[3], 2),
            nn.Bias(k[4], -1),
        ]
    )


def drop(x: jax.Array, rng: Key) -> jax.Array:
    """Return x with dropout."""
    return mlax.functional.dropout(x, rng, 0.5, 1)


def identity(x: jax.Array, rng: Key | None) -> jax.Array:
    """Return x."""
    return x


SIGNAL = jnp.sin(jnp.arange(12.0)).reshape(4, 3)


@KEY_MAKERS
def test_models_are_as_good_after_a_copy(make_key: Callable[[int], Key], tmp_path: Path) -> None:
    _, original = model(make_key(0))(SIGNAL, make_key(1))
    (tmp_path / "model").write_bytes(pickle.dumps(original))
    leaves, treedef = jax.tree.flatten(original)
    np.savez(tmp_path / "leaves.npz", *leaves)
    _, fresh = model(make_key(0))(SIGNAL, make_key(2))
    with np.load(tmp_path / "leaves.npz") as saved:
        loaded = jax.tree.unflatten(structure(fresh), [jnp.asarray(saved[name]) for name in saved])

    traces = []

    @jax.jit
    def step(module: nn.SeriesRng, x: jax.Array, rng: Key) -> Any:
        traces.append(module)
        return module(x, rng)

    expected = step(original, SIGNAL, make_key(3))
    restored = pickle.loads((tmp_path / "model").read_bytes())
    for other in (restored, loaded, fresh, *copies(original)):
        assert structure(other) == treedef
        result = step(other, SIGNAL, make_key(3))
        if other is not fresh:
            assert same_leaves(result, expected)
    assert len(traces) == 1


def test_a_copy_shares_children_and_a_deep_copy_does_not() -> None:
    module = tower()
    shallow, deep = copy.copy(module), copy.deepcopy(module)
    shallow.depth, deep.depth = 3, 4
    assert module.depth == 2
    shallow.first.gain.data = jnp.zeros(2)
    assert module.first.gain.data is shallow.first.gain.data
    np.testing.assert_array_equal(deep.first.gain.data, [1, 2])
    deep.rest.data.clear()
    assert len(module.rest.data) == 1


def test_a_deep_copy_under_jit_has_no_tracer_among_its_static_attributes() -> None:
    for make_key in (jax.random.key, jax.random.PRNGKey):
        module = scale([make_key(0), make_key(1)])
        copied = jax.jit(lambda module: copy.deepcopy(module))(module)
        assert structure(copied) == structure(module)
        assert same_leaves(copied, module)


def test_one_module_at_two_places_is_one_in_a_deep_copy() -> None:
    module = Tower()
    module.rest.data = [module.first]
    deep = copy.deepcopy(module)
    assert deep.rest.data[0] is deep.first
    assert deep.first is not module.first


def test_a_file_is_read_by_another_process(tmp_path: Path) -> None:
    """The program that reads it imports nothing but jax and pickle."""
    key = jax.random.key(0)
    layers = [nn.Linear(key, 2), nn.F(jax.nn.relu), nn.ZNorm(key, "all")]
    y, module = nn.Series(layers)(X, None)
    y, module = module(X, None, True)
    path = tmp_path / "model"
    path.write_bytes(pickle.dumps((module, np.asarray(y))))
    program = f"""
import jax, pickle
module, expected = pickle.load(open({str(path)!r}, "rb"))
y, again = jax.jit(lambda module, x: module(x, None, True))(module, jax.numpy.array([1.0, 2.0]))
assert jax.tree.structure(again) == jax.tree.structure(module)
assert abs(y - expected).max() < 1e-6, (y, expected)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_modules_without_setup_are_copied_too() -> None:
    fresh = Scale([1])
    for other in copies(fresh):
        assert structure(other) == structure(fresh)
        assert not other.initialized
    y, _ = copy.deepcopy(fresh)(X, None)
    np.testing.assert_array_equal(y, [1, 4])
    assert fresh.gain.data is None


# Transformations


def test_setup_under_jit() -> None:
    traced = Traced()
    y, module = traced.jitted(Scale("a"), X)
    np.testing.assert_array_equal(y, [1, 4])
    assert structure(module) == structure(scale("a"))


def test_setup_under_eval_shape() -> None:
    _, shapes = jax.eval_shape(lambda x: nn.Linear(jax.random.key(0), 3)(x, None), X)
    assert shapes.linear_kernel.data.shape == (2, 3)


def test_setup_under_vmap_leaves_no_tracer() -> None:
    module = nn.Series([nn.Linear(jax.random.key(0), 3), nn.ZNorm(jax.random.key(1), ())])
    batch = jnp.stack([X, -X])
    _, after = jax.vmap(module.__call__, (0, None, None, None), (0, None), axis_name="N")(
        batch, None, False, "N"
    )
    _, alone = nn.Linear(jax.random.key(0), 3)(X, None)
    np.testing.assert_array_equal(
        after.layers.data[0].linear_kernel.data, alone.linear_kernel.data
    )
    assert not any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(module))


def test_grad_is_a_module() -> None:
    module = scale()
    trained, rest = module.partition()

    def loss(trained: Scale, rest: Scale) -> tuple[jax.Array, Scale]:
        y, after = trained.combine(rest)(X, None)
        return (y**2).sum(), after

    grads, after = jax.grad(loss, has_aux=True)(trained, rest)
    assert type(grads) is Scale
    np.testing.assert_allclose(grads.gain.data, 2 * module.gain.data * X**2)
    assert grads.calls.data is None
    assert structure(grads) == structure(trained)
    assert after.calls.data == 2
    assert rest.calls.data == 1


def test_vmap_over_stacked_modules() -> None:
    modules = [scale(), jax.tree.map(lambda leaf: 3 * leaf, scale())]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *modules)
    ys, after = jax.vmap(lambda module, x: module(x, None), (0, None))(stacked, X)
    np.testing.assert_array_equal(ys, [[1, 4], [3, 12]])
    np.testing.assert_array_equal(after.calls.data, [2, 4])


def test_scan_carries_a_module() -> None:
    traces = []

    def step(module: Scale, x: jax.Array) -> tuple[Scale, jax.Array]:
        traces.append(x)
        y, module = module(x, None)
        return module, y

    module, ys = lax.scan(step, scale([1, jax.random.PRNGKey(0)]), jnp.stack([X] * 4))
    np.testing.assert_array_equal(ys, [[1, 4]] * 4)
    assert module.calls.data == 5
    assert module.static[0] == 1
    assert len(traces) == 1


def test_scan_over_stacked_layers() -> None:
    layers = [jax.tree.map(lambda leaf, n=n: leaf + n, scale()) for n in range(3)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)

    def step(x: jax.Array, layer: Scale) -> tuple[jax.Array, Scale]:
        y, layer = layer(x, None)
        return y, layer

    y, after = lax.scan(step, X, stacked)
    np.testing.assert_array_equal(y, [1 * 2 * 3, 2 * 2 * 3 * 4])
    np.testing.assert_array_equal(after.calls.data, [2, 3, 4])


def test_checkpoint_and_cond() -> None:
    module = scale()
    y, after = jax.checkpoint(lambda module, x: module(x, None))(module, X)
    np.testing.assert_array_equal(y, [1, 4])
    chosen = lax.cond(True, lambda m: m(X, None)[1], lambda m: m, after)
    assert chosen.calls.data == 3


def test_leaves_may_be_donated() -> None:
    module = scale(jax.random.PRNGKey(0))
    step = jax.jit(lambda module, x: module(x, None)[1], donate_argnums=0)
    for _ in range(3):
        module = step(module, X)
    assert module.calls.data == 4


def test_a_module_may_be_mapped_as_a_function() -> None:
    module = scale()
    batch = jnp.stack([X, 2 * X])
    y, after = jax.vmap(module, (0, None, None), (0, None))(batch, None, True)
    np.testing.assert_array_equal(y, [[1, 4], [2, 8]])
    assert structure(after) == structure(module)


def test_parameters_are_mapped_as_leaves() -> None:
    """As scripts do to freeze parameters."""

    def frozen(path: Any, parameter: Any) -> Parameter:
        return Parameter(parameter.trainable and not in_first(path, parameter), parameter.data)

    module = tower()
    changed = jax.tree.map_with_path(frozen, module, is_leaf=mlax.is_leaf_param)
    assert paths(changed.filter()) == TRAINED[1:]
    assert paths(module.filter()) == TRAINED


# The training loop


class Net(Module):
    """A small classifier as scripts write it: keys split in the constructor, layers in a list."""

    def __init__(self, rng: Key) -> None:
        super().__init__()
        self.rng = rng
        key1, key2, key3, key4 = jax.random.split(rng, 4)
        self.norm = nn.ZNorm(key4, ())
        self.body = nn.SeriesRng(
            layer
            for layer in (
                nn.Linear(key1, 4),
                nn.Bias(key2, (-1,)),
                nn.F(jax.nn.relu),
                nn.FRng(functools.partial(mlax.functional.dropout, rate=0.5, axis=0), identity),
                nn.Linear(key3, 3),
            )
        )

    def forward(
        self, x: jax.Array, rng: Key, inference_mode: bool = False, batch_axis_name: AxisName = ()
    ) -> jax.Array:
        x, self.norm = self.norm(x, None, inference_mode, batch_axis_name)
        y: jax.Array
        y, self.body = self.body(x, rng, inference_mode, batch_axis_name)
        return y


BATCH = jnp.sin(jnp.arange(20.0)).reshape(5, 4)
LABELS = jnp.arange(5) % 3

OPTIMIZERS = {
    "sgd": optax.sgd(0.1),
    "momentum": optax.sgd(0.1, momentum=0.9, nesterov=True),
    "adam": optax.adam(0.01),
    "adamw": optax.adamw(0.01),
    "schedule": optax.chain(
        optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(0.01, 10))
    ),
    "of each leaf": optax.multi_transform(
        {"matrix": optax.adam(0.01), "vector": optax.sgd(0.1)},
        lambda tree: jax.tree.map(lambda leaf: "matrix" if leaf.ndim > 1 else "vector", tree),
    ),
}


def loss_fn(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Return the mean cross-entropy."""
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()


def make_step(optimizer: Any, rng: Key, traces: list[Any]) -> Callable[..., Any]:
    """Return the documented training step, compiled."""

    @jax.jit
    def step(model: Any, opt_state: Any, x: jax.Array, y: jax.Array) -> Any:
        traces.append(model)
        trainables, rest = model.partition()

        def loss(trainables: Any, rest: Any, x: jax.Array, y: jax.Array) -> Any:
            model = trainables.combine(rest)
            pred, model = jax.vmap(
                model.__call__, in_axes=(0, None, None, None), out_axes=(0, None), axis_name="N"
            )(x, rng, False, "N")
            return loss_fn(pred, y), model

        (l, model), grads = jax.value_and_grad(loss, has_aux=True)(trainables, rest, x, y)
        updates, opt_state = optimizer.update(grads, opt_state, trainables)
        model = optax.apply_updates(trainables, updates).combine(model.partition()[1])
        return model, opt_state, l

    return step


@pytest.mark.parametrize(
    ("make_key", "name"),
    [(jax.random.key, name) for name in OPTIMIZERS] + [(jax.random.PRNGKey, "adam")],
    ids=[*OPTIMIZERS, "adam with raw keys"],
)
def test_training_loop(make_key: Callable[[int], Key], name: str) -> None:
    optimizer = OPTIMIZERS[name]
    traces: list[Any] = []
    step = make_step(optimizer, make_key(1), traces)
    _, net = Net(make_key(0))(BATCH[0], make_key(1), True)
    opt_state = optimizer.init(net.partition()[0])
    treedefs = structure((net, opt_state))
    losses = []
    for _ in range(3):
        net, opt_state, loss = step(net, opt_state, BATCH, LABELS)
        losses.append(float(loss))
    reloaded, opt_reloaded = copy.deepcopy(net), copy.deepcopy(opt_state)
    results = [
        step(*pair, BATCH, LABELS) for pair in ((net, opt_state), (reloaded, opt_reloaded))
    ]
    assert len(traces) == 1
    assert structure((net, opt_state)) == treedefs
    assert losses[2] < losses[0]
    assert same_leaves(*results)
    assert not np.array_equal(net.norm.moving_mean.data, np.zeros(4))


def test_labels_and_masks_are_modules() -> None:
    """optax takes for a function what can be called, and a module can."""
    _, linear = nn.Series([nn.Linear(jax.random.key(0), 3), nn.Bias(jax.random.key(1), -1)])(
        BATCH[0], None
    )
    trained, _ = linear.partition()
    labels = jax.tree.map(lambda leaf: "matrix" if leaf.ndim > 1 else "vector", trained)
    mask = jax.tree.map(lambda leaf: leaf.ndim > 1, trained)
    by_label = optax.multi_transform({"matrix": optax.sgd(1.0), "vector": optax.sgd(2.0)}, labels)
    by_mask = optax.masked(optax.sgd(2.0), mask)
    for optimizer, factors in ((by_label, (-1, -2)), (by_mask, (-2, 1))):
        grads = jax.tree.map(jnp.ones_like, trained)
        updates, _ = optimizer.update(grads, optimizer.init(trained), trained)
        assert structure(updates) == structure(trained)
        assert [float(leaf.mean()) for leaf in jax.tree.leaves(updates)] == list(factors)


def test_training_starts_from_a_module_without_setup() -> None:
    """The first batch sets it up, under vmap."""
    net = Net(jax.random.key(0))
    call = functools.partial(
        jax.vmap, in_axes=(0, None, None, None), out_axes=(0, None), axis_name="N"
    )
    _, net = call(net.__call__)(BATCH, jax.random.key(1), False, "N")
    traces: list[Any] = []
    optimizer = optax.sgd(0.1)
    step = make_step(optimizer, jax.random.key(1), traces)
    opt_state = optimizer.init(net.partition()[0])
    for _ in range(2):
        net, opt_state, _ = step(net, opt_state, BATCH, LABELS)
    assert len(traces) == 1


def test_training_follows_the_gradient() -> None:
    """Gradient descent on a linear model, written out with NumPy."""
    _, linear = nn.Linear(jax.random.key(0), 3)(BATCH[0], None)
    kernel = np.asarray(linear.linear_kernel.data, np.float64)
    optimizer = optax.sgd(0.5)
    step = make_step(optimizer, jax.random.key(1), [])
    opt_state = optimizer.init(linear.partition()[0])
    for _ in range(3):
        linear, opt_state, loss = step(linear, opt_state, BATCH, LABELS)
        x = np.asarray(BATCH, np.float64)
        exps = np.exp(x @ kernel)
        probabilities = exps / exps.sum(1, keepdims=True)
        expected = -np.log(probabilities[np.arange(5), LABELS]).mean()
        kernel -= 0.5 * x.T @ (probabilities - np.eye(3)[np.asarray(LABELS)]) / 5
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(linear.linear_kernel.data, kernel, rtol=1e-5)


def test_optimizer_state_is_made_of_modules() -> None:
    _, net = Net(jax.random.key(0))(BATCH[0], jax.random.key(1), inference_mode=True)
    trained, _ = net.partition()
    adam: Any = optax.adam(0.1).init(trained)
    assert type(adam[0].mu) is Net
    assert paths(adam[0].mu) == paths(trained)


# A user's own modules


class Lazy(Module):
    """Makes a submodule in setup, as wide as the input, and sets both up in forward."""

    def __init__(self, rng: Key) -> None:
        super().__init__()
        inner, self.rng = jax.random.split(rng)
        self.inner = nn.Series([nn.Linear(inner, 3), nn.Bias(inner, -1)])
        self.outer: nn.Linear | None = None

    def setup(self, x: jax.Array) -> None:
        self.outer = nn.Linear(self.rng, x.shape[-1])

    def forward(
        self,
        x: jax.Array,
        rng: None = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> jax.Array:
        hidden, self.inner = self.inner(x, rng, inference_mode, batch_axis_name)
        assert self.outer is not None
        y, self.outer = self.outer(hidden, rng, inference_mode, batch_axis_name)
        return y


@KEY_MAKERS
def test_submodules_are_set_up_in_forward(make_key: Callable[[int], Key]) -> None:
    module = Lazy(make_key(0))
    assert not module.inner.initialized
    y, module = module(X, None)
    assert y.shape == (2,)
    assert paths(module) == [
        ".inner.layers.data[0].linear_kernel.data",
        ".inner.layers.data[1].bias_kernel.data",
        ".outer.linear_kernel.data",
    ]
    traced = Traced()
    y_jitted, jitted = traced.jitted(Lazy(make_key(0)), X)
    np.testing.assert_allclose(y_jitted, y, rtol=1e-6)
    assert structure(jitted) == structure(module)
    traced.jitted(module, X)
    traced.jitted(jitted, X)
    assert traced.traces == 2


def test_submodules_in_a_dict() -> None:
    class Heads(Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = Parameter(None, {"a": Scale("a"), "b": Scale("b")})

        def forward(
            self,
            x: jax.Array,
            rng: None = None,
            inference_mode: bool = False,
            batch_axis_name: AxisName = (),
        ) -> dict[str, jax.Array]:
            ys = {}
            for name, head in self.heads.data.items():
                ys[name], self.heads.data[name] = head(x, rng, inference_mode, batch_axis_name)
            return ys

    y, module = Heads()(X, None)
    assert sorted(y) == ["a", "b"]
    trained, rest = module.partition()
    assert paths(trained) == [".heads.data['a'].gain.data", ".heads.data['b'].gain.data"]
    assert DictKey("a") in jax.tree.leaves_with_path(module)[0][0]
    assert structure(trained.combine(rest)) == structure(module)


def test_the_default_of_rng_tells_whether_a_key_is_needed() -> None:
    def make(forward: Any) -> Module:
        cls = type("Own", (Module,), {"forward": forward})
        module: Module = cls()
        return module

    def without(
        self: Any, x: Any, rng: Any = None, inference_mode: Any = False, batch_axis_name: Any = ()
    ) -> Any:
        assert rng is None
        return x

    def needing(
        self: Any, x: Any, rng: Any, inference_mode: Any = False, batch_axis_name: Any = ()
    ) -> Any:
        return x + jax.random.uniform(rng)

    assert inspect.signature(needing).parameters["rng"].default is inspect.Parameter.empty
    rng = jax.random.key(5)
    uniform = [
        float(jax.random.uniform(key))
        for key in (rng, jax.random.fold_in(rng, 0), jax.random.fold_in(rng, 1))
    ]
    zero = jnp.zeros(())
    y, _ = nn.SeriesRng([make(without), make(needing), make(without)])(zero, rng)
    assert y == np.float32(uniform[0])
    (a, b, c), _ = nn.ParallelRng([make(needing), make(without), make(needing)])([zero] * 3, rng)
    assert [float(a), float(b), float(c)] == [uniform[1], 0, uniform[2]]
