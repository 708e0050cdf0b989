"""Tests of `mlax.equality`: equality of static values."""

import dataclasses
import functools
import gc
import types
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax.equality import equal, hash_of, source


class Point(NamedTuple):
    """Two numbers."""

    x: float
    y: float


class Loose(NamedTuple):
    """A tuple that equals every other of its type, but only by `==`."""

    note: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Loose)

    def __hash__(self) -> int:
        return 0


class Bound:
    """An object with a method."""

    def __init__(self, by: float) -> None:
        self.by = by

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bound) and self.by == other.by

    def __hash__(self) -> int:
        return hash(self.by)

    def times(self, x: float) -> float:
        """Return x times a number."""
        return self.by * x


def times(by: object) -> Callable[[Any], Any]:
    """Return a function with a closure."""
    return lambda x: by * x


def plus(by: float = 1.0, *, also: float = 0.0) -> Callable[..., Any]:
    """Return a function with defaults."""

    def added(x: float, y: float = by, *, z: float = also) -> float:
        return x + y + z

    return added


def nested(by: float) -> Callable[[Any], Any]:
    """Return a function whose closure holds a function."""
    inner = times(by)
    return lambda x: inner(inner(x))


def recursive(step: int) -> Callable[[int], int]:
    """Return a function whose closure holds itself."""

    def down(n: int) -> int:
        return 0 if n <= 0 else down(n - step)

    return down


EQUAL: list[Callable[[], Any]] = [
    lambda: 2,
    lambda: 2.5,
    lambda: float("nan"),
    lambda: "name",
    lambda: None,
    lambda: (1, 2.0, ("a", None)),
    lambda: [1, [2]],
    lambda: {"a": 1, "b": [2.0]},
    lambda: Point(1.0, 2.0),
    lambda: jnp.dtype("bfloat16"),
    lambda: np.ones((2, 3)),
    lambda: jnp.arange(3.0),
    lambda: jax.random.key(3),
    lambda: times(2.0),
    lambda: times(np.ones(2)),
    lambda: nested(3.0),
    lambda: plus(),
    lambda: recursive(2),
    lambda: functools.partial(times(2.0), 3),
    lambda: functools.partial(jax.nn.leaky_relu, negative_slope=0.1),
    lambda: Bound(2.0).times,
    lambda: jax.nn.relu,
    lambda: jnp.add,
]


@pytest.mark.parametrize("make", EQUAL, ids=lambda make: source(make()))
def test_values_that_are_made_twice_are_equal(make: Callable[[], Any]) -> None:
    one, other = make(), make()
    assert equal(one, other)
    assert equal((one, 1), (other, 1))
    assert hash_of(one) == hash_of(other)
    assert hash_of((one, "a")) == hash_of((other, "a"))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (2, 2.0),
        (True, 1),
        (0.0, -0.0),
        (1.0, np.float32(1.0)),
        ((0.0, 1), (-0.0, 1)),
        ((1, 2), [1, 2]),
        ((1, 2), (1, 2, 3)),
        (Point(1.0, 2.0), (1.0, 2.0)),
        (Point(1.0, 0.0), Point(1.0, -0.0)),
        ({"a": 1}, {"a": 1.0}),
        ({"a": 1}, {"b": 1}),
        (np.ones(2), np.ones(3)),
        (np.ones(2, np.float32), np.ones(2)),
        (np.array([0.0]), np.array([-0.0])),
        (jax.random.key(0), jax.random.key(1)),
        (times(2), times(2.0)),
        (times(2.0), times(3.0)),
        (times(np.ones(2)), times(np.zeros(2))),
        (nested(2.0), nested(3.0)),
        (plus(), plus(2.0)),
        (plus(), plus(also=2.0)),
        (recursive(1), recursive(2)),
        (times(2.0), plus()),
        (functools.partial(times(2.0), 3), functools.partial(times(2.0), 3.0)),
        (functools.partial(plus(), z=1.0), functools.partial(plus(), y=1.0)),
        (Bound(2.0).times, Bound(3.0).times),
        (jax.nn.relu, jax.nn.gelu),
        (lambda x: x + 1, lambda x: x + 2),
        (lambda x: jnp.sin(x), lambda x: jnp.cos(x)),
    ],
)
def test_values_that_differ(one: Any, other: Any) -> None:
    assert not equal(one, other)
    assert not equal(other, one)
    assert not equal((1, one), (1, other))


def test_configs_are_compared_with_their_own_equality() -> None:
    assert equal(Loose("one"), Loose("other"))
    assert hash_of(Loose("one")) == hash_of(Loose("other"))


def test_equality_while_jax_traces() -> None:
    found: list[bool] = []
    ones, again, zeros = jnp.ones(2), jnp.ones(2), jnp.zeros(2)
    key, same = jax.random.key(0), jax.random.key(0)

    def trace(x: jax.Array) -> jax.Array:
        found.extend([equal(times(ones), times(again)), equal(key, same)])
        found.append(equal(times(x), times(x)))
        found.extend([equal(times(ones), times(zeros)), equal(x, x + 1), equal(x, 1.0)])
        return x

    jax.jit(trace)(1.0)
    assert found == [True] * 3 + [False] * 3


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (jax.nn.relu, "relu"),
        (times, "times"),
        (times(2), "<lambda>"),
        (functools.partial(jnp.add, 1.0), "partial(add, 1.0)"),
        (functools.partial(times, by=np.ones(2)), "partial(times, by=float64[2])"),
        ((1, "a", jnp.float32), "(1, 'a', float32)"),
        ((1,), "(1,)"),
        ([jnp.dtype("int8")], "[int8]"),
        (np.ones((2, 3), np.float32), "float32[2, 3]"),
        (Point(1.0, 2.0), "Point(x=1.0, y=2.0)"),
        (Bound(1.0), "Bound"),
    ],
)
def test_source(value: Any, text: str) -> None:
    assert source(value) == text


@dataclasses.dataclass(frozen=True)
class Option:
    """A dataclass with a number or a function."""

    value: Any


def attributed(value: int) -> Callable[[], None]:
    """Return a function with an attribute."""

    def function() -> None: ...

    function.value = value  # type: ignore[attr-defined]  # any function takes attributes
    return function


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({1}, {1.0}),
        (frozenset({1}), frozenset({True})),
        (Option(1), Option(1.0)),
        (slice(1, 2), slice(1.0, 2)),
        (complex(0, 0.0), complex(0, -0.0)),
        (attributed(1), attributed(2)),
        (jnp.asarray(2.0), jnp.asarray(2.0, jnp.float32)),
        (np.ones(2, np.float32), jnp.ones(2)),
        (np.ma.array([1, 2], mask=[False, True]), np.ma.array([1, 2], mask=[False, False])),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_python_or_a_careless_look_finds_equal(one: Any, other: Any) -> None:
    assert not equal(one, other)
    assert equal(one, one) and equal(other, other)
    assert not equal((one,), (other,))


def test_equal_values_of_these_kinds() -> None:
    makes: list[Callable[[], Any]] = [
        lambda: Option(1.5), lambda: Option(times(2.0)), lambda: slice(1, 2), lambda: {2, "a"},
        lambda: attributed(3), lambda: mlax.tap(mlax.f(jnp.tanh), lambda path, _: path == "a"),
    ]
    for make in makes:
        assert equal(make(), make())
        assert hash_of(make()) == hash_of(make())


BY = 1.0


def by_global() -> Callable[[Any], Any]:
    """Return a function that reads a global variable."""
    return lambda x: BY * x


def by_another() -> Callable[[Any], Any]:
    """Return a function that calls one that reads a global variable."""
    return lambda x: twice(x)


def twice(x: float) -> float:
    """Return x times two, and a global variable."""
    return 2 * x * BY


class Config:
    """An object that can change."""

    rate: object = 1.0
    __slots__ = ("__dict__", "__weakref__", "kept")

    def __init__(self) -> None:
        self.kept = self._own = 1.0
        self.entries = [1.0]
        self.array = jnp.ones(())
        self.function: Callable[[Any], Any] = abs


def first_seen(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function that mlax has seen."""
    hash_of(function)
    return function


@pytest.mark.parametrize("make", [by_global, by_another])
def test_a_function_reads_globals_as_they_were(
    make: Callable[[], Callable[..., Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = first_seen(make())
    assert equal(before, make())
    monkeypatch.setattr(f"{__name__}.BY", 2.0)
    assert not equal(before, first_seen(make())) and equal(before, before)
    monkeypatch.setattr(f"{__name__}.BY", 1.0)
    assert equal(before, make())


def test_functions_of_a_loop_differ_by_the_variable_of_the_loop() -> None:
    functions = [first_seen(lambda x: by * x) for by in (1.0, 2.0, 1.0)]
    assert not equal(functions[0], functions[1]) and equal(functions[0], functions[2])


@pytest.mark.parametrize(
    "around",
    [
        jax.vmap, jax.grad, jax.checkpoint, lambda f: functools.partial(f), lambda f: lambda x: f(x),
        lambda f: functools.wraps(f)(lambda x: f(x)), lambda f: jax.vmap(jax.checkpoint(f)),
        lambda f: lambda x: functools.partial(f, x)(),
    ],
)
def test_a_function_within_counts_as_it_was(around: Callable[[Any], Any]) -> None:
    functions = [first_seen(around(lambda x: by * x)) for by in (1.0, 2.0, 1.0)]
    assert not equal(functions[0], functions[1]) and equal(functions[0], functions[2])
    for by in (1.0, 2.0):
        functions.append(first_seen(around(lambda x: by * x)))
    assert not equal(*functions[3:])


CONFIG = Config()
SETTINGS = types.ModuleType("settings")
vars(SETTINGS)["rate"] = 1.0


def scaled(x: Any, by: float) -> Any:
    """Return x times a global variable."""
    return x * by * BY


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (lambda: lambda x: CONFIG._own, lambda: setattr(CONFIG, "_own", 2.0)),
        (lambda: lambda x: CONFIG.kept, lambda: setattr(CONFIG, "kept", 2.0)),
        (lambda: lambda x: CONFIG.entries[0], lambda: CONFIG.entries.append(2.0)),
        (lambda: lambda x: CONFIG.array, lambda: setattr(CONFIG, "array", jnp.zeros(()))),
        (lambda: lambda x: CONFIG.function(x), lambda: setattr(CONFIG, "function", lambda x: -x)),
        (lambda: lambda x: Config.rate, lambda: setattr(Config, "rate", 2.0)),
        (lambda: lambda x: SETTINGS.rate, lambda: setattr(SETTINGS, "rate", 2.0)),
        (lambda: functools.partial(scaled, by=1.0), lambda: globals().update(BY=2.0)),
    ],
    ids=["private", "slot", "list", "array", "function", "class", "module", "partial"],
)
def test_what_a_function_reads_from_objects(
    make: Callable[[], Any], change: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(globals(), "CONFIG", Config())
    monkeypatch.setitem(globals(), "BY", 1.0)
    monkeypatch.setattr(Config, "rate", 1.0)
    monkeypatch.setitem(vars(SETTINGS), "rate", 1.0)
    before = first_seen(make())
    assert equal(before, first_seen(make())) and hash_of(before) == hash_of(make())
    change()
    assert not equal(before, first_seen(make()))


def test_a_list_that_holds_itself() -> None:
    entries: list[Any] = [1.0]
    entries.append(entries)
    assert equal(first_seen(lambda: entries), first_seen(lambda: entries)) is False


def test_functions_of_one_line_have_hashes_of_their_own() -> None:
    def make(by: int) -> Callable[[Any], Any]:
        return lambda x: x + by

    assert len({hash_of(make(by)) for by in range(20)}) == 20
    assert len({hash_of(functools.partial(abs, by)) for by in range(20)}) == 20


def test_a_function_in_its_own_closure() -> None:
    def make() -> Callable[..., Any]:
        def count(n: int) -> Any:
            return jax.checkpoint(count)(n - 1) if n else 0

        return first_seen(count)

    assert equal(make(), make())


def test_a_closure_counts_as_it_was() -> None:
    config, entries, table = Config(), [1.0], np.ones(3)

    def make() -> Callable[[Any], Any]:
        return first_seen(lambda x: (config.rate, entries, table, x))

    made = [make()]
    assert equal(made[0], make())
    config.rate = 2.0
    made.append(make())
    entries[0] = 2.0
    made.append(make())
    table[0] = 2.0
    made.append(make())
    assert not any(equal(a, b) for i, a in enumerate(made) for b in made[:i])
    assert equal(made[-1], make())


def test_what_a_function_refers_to_is_not_kept_alive() -> None:
    def made() -> weakref.ref[Config]:
        config = Config()
        config.rate = first_seen(lambda: config)  # a circle, as of a model with its own function
        return weakref.ref(config)

    gone = made()
    gc.collect()
    assert gone() is None
