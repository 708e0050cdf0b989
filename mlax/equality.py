"""Equality of static values, and so of the tree structures that hold them.

- Numbers are only equal if their types are too: 2 is not 2.0, and 0.0 is not -0.0.
- Arrays are equal if they have equal shapes, dtypes and bits; dicts, if in the same order.
- Functions are equal if they have the same code and globals and equal defaults and closures, so
  that a model with a lambda in it, built twice, is one model. Partials and bound methods are
  compared part by part, and so are dataclasses.

What a function refers to may change after jax has traced it: a loop makes lambdas that differ only
in what a variable held at the time. So it counts as it was when mlax first saw the function, which
is before jax traces it: see `remember`.
"""

import dataclasses
import functools
import hashlib
import struct
import types
import weakref
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def equal(a: Any, b: Any) -> bool:
    """Return whether two static values are equal; may be called while jax traces."""
    return _equal(a, b, set())


def _equal(a: Any, b: Any, comparing: set[tuple[int, int]]) -> bool:
    if a is b:
        return True
    if isinstance(a, Tracer) or isinstance(b, Tracer):
        return False
    if isinstance(a, jax.Array) and isinstance(b, jax.Array) or type(a) is type(b) is np.ndarray:
        return _equal_arrays(a, b)
    if type(a) is not type(b) or (id(a), id(b)) in comparing:
        return type(a) is type(b)  # a function may be in its own closure
    if isinstance(a, float | complex):
        return struct.pack("dd", a.real, a.imag) == struct.pack("dd", b.real, b.imag)
    if isinstance(a, list | tuple):
        if type(a).__eq__ not in (list.__eq__, tuple.__eq__):
            return bool(a == b)
        return len(a) == len(b) and all(_equal(x, y, comparing) for x, y in zip(a, b, strict=True))
    if isinstance(a, dict):
        return _equal(list(a.items()), list(b.items()), comparing)
    if isinstance(a, set | frozenset):
        return {(type(e), e) for e in a} == {(type(e), e) for e in b}
    parts = _parts(a)
    if parts is not None:
        return _equal(parts, _parts(b), comparing | {(id(a), id(b))})
    if not jax.tree_util.all_leaves([a]):
        (a_leaves, a_structure), (b_leaves, b_structure) = jax.tree.flatten(a), jax.tree.flatten(b)
        return bool(a_structure == b_structure) and _equal(a_leaves, b_leaves, comparing)
    try:
        return bool(a == b)
    except (TypeError, ValueError):
        return False


def _equal_arrays(a: Any, b: Any) -> bool:
    weak = [getattr(array, "weak_type", False) for array in (a, b)]
    if a.shape != b.shape or a.dtype != b.dtype or weak[0] != weak[1]:
        return False
    if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
        with jax.ensure_compile_time_eval():
            a, b = jax.random.key_data(a), jax.random.key_data(b)
    return np.asarray(a).tobytes() == np.asarray(b).tobytes()


def _parts(value: Any) -> Any:
    """Return the parts that decide whether functions, partials or bound methods are equal."""
    if isinstance(value, types.FunctionType | functools.partial):
        remember(value)
        return _SEEN.get(value)
    if isinstance(value, types.MethodType):
        return value.__func__, value.__self__
    if isinstance(value, slice):
        return value.start, value.stop, value.step
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if type(value).__eq__ is object.__eq__:
            return None
        return [getattr(value, f.name) for f in dataclasses.fields(value) if f.compare]
    return [value.object()] if isinstance(value, _Alive) else None


_SEEN: weakref.WeakKeyDictionary[Any, Any] = weakref.WeakKeyDictionary()
"""The contents of functions and partials when they were first seen."""


def remember(value: Any) -> None:
    """Note what functions in a static value refer to, unless it was noted before."""
    if isinstance(value, types.FunctionType | functools.partial):
        if value not in _SEEN:
            _SEEN[value] = None  # while it is searched, as it may refer to itself
            try:
                _SEEN[value] = _Notes(value).contents(value)
            except Exception:  # such as a cell that is still empty: it equals itself alone
                del _SEEN[value]
    elif isinstance(value, types.MethodType):
        remember(value.__func__)
    elif isinstance(value, tuple | list | dict):
        for entry in value.values() if isinstance(value, dict) else value:
            remember(entry)


class _Notes:
    """Notes on what a function refers to. Functions with the same globals are followed."""

    def __init__(self, value: Any) -> None:
        function = value.func if isinstance(value, functools.partial) else value
        self._variables: Any = getattr(function, "__globals__", None)
        self._names: set[str] = set()
        self._collect(function)
        self._seen: dict[int, Any] = {}

    def _collect(self, function: Any) -> None:
        """Add the names in a function and in those that it calls."""
        variables = getattr(function, "__globals__", None)
        if variables is not None and not _is_library(variables.get("__name__")):
            added = {*_names(function.__code__)} - self._names
            self._names |= added
            for name in added & variables.keys():
                if getattr(variables[name], "__globals__", None) is self._variables:
                    self._collect(variables[name])

    def contents(self, value: Any) -> Any:
        """Return all that tells what a function computes: code, defaults, closure and globals."""
        if isinstance(value, functools.partial):
            return [self.noted(part) for part in (value.func, value.args, value.keywords)]
        closure = [cell.cell_contents for cell in value.__closure__ or ()]
        variables, used = value.__globals__, {}
        if not _is_library(variables.get("__name__")):
            used = {n: variables[n] for n in _names(value.__code__) if n in variables}
        parts = value.__defaults__, value.__kwdefaults__, closure, value.__dict__, used
        code = (value.__code__, id(variables), value.__qualname__)
        return [code, *map(self.noted, parts)]

    def noted(self, value: Any) -> Any:
        """Return a value as it is now."""
        if value is None or isinstance(value, _CONSTANTS):
            return value
        if id(value) in self._seen:
            return _SEEN_BEFORE
        self._seen[id(value)] = value
        if isinstance(value, types.FunctionType) and value.__globals__ is self._variables:
            return self.contents(value)
        if type(value) in (tuple, list, dict):
            container: Any = value
            if len(container) > _MOST_ENTRIES:
                return _Alive(value)
            if isinstance(value, dict):
                return {key: self.noted(entry) for key, entry in value.items()}
            return [type(value), *map(self.noted, container)]
        if isinstance(value, np.ndarray) and value.nbytes <= _MOST_BYTES:
            return value.shape, value.dtype, hashlib.sha256(value.tobytes()).digest()
        if type(value) is set:
            return set(value)
        if isinstance(value, types.FunctionType):
            if value.__closure__ or "<" in value.__qualname__:
                remember(value)  # others can be imported, and stay as they are
            return _Alive(value)
        remember(value)
        return _Alive(value), {n: self.noted(a) for n, a in self._attributes(value).items()}

    def _attributes(self, value: Any) -> dict[str, Any]:
        """Return what an object, a class or a module holds under the names in the code."""
        kind: Any = value if isinstance(value, type) else type(value)
        spaces = [*map(vars, reversed(kind.__mro__[:-1])), getattr(value, "__dict__", {})]
        if isinstance(value, types.ModuleType):
            kind, spaces = value, [vars(value)]
        if _is_library(getattr(kind, "__module__", None) or kind.__name__):
            return {}
        held = {n: space[n] for space in spaces for n in sorted(self._names & space.keys())}
        slots = [n for n, entry in held.items() if isinstance(entry, types.MemberDescriptorType)]
        return held | {name: getattr(value, name, None) for name in slots}


class _Alive:
    """An object that is not kept alive: it may hold the function that refers to it."""

    def __init__(self, value: Any) -> None:
        try:
            self._object: Any = weakref.ref(value)
        except TypeError:  # as of named tuples
            self._object = lambda: value

    def object(self) -> Any:
        """Return the object; nothing equals one that is gone."""
        value = self._object()
        return self if value is None else value


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the names in a code and in the functions that it makes."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_library(module: str | None) -> bool:
    """Return whether what a module holds is taken not to change."""
    return str(module).partition(".")[0] in _LIBRARIES


_CONSTANTS = bool | int | float | complex | str | bytes
_LIBRARIES = "builtins", "functools", "jax", "jaxlib", "mlax", "numpy"
_SEEN_BEFORE = "seen before"
_MOST_ENTRIES = 1000
_MOST_BYTES = 2**26


def hash_of(value: Any) -> int:
    """Return a hash, even for unhashable values, that is the same for equal values."""
    if isinstance(value, types.FunctionType | functools.partial):
        remember(value)
        return hash_of(_SEEN.get(value))
    if isinstance(value, types.MethodType):
        return hash_of(value.__func__)
    if isinstance(value, _Alive):
        return 0
    if isinstance(value, tuple | list) and type(value).__hash__ in (tuple.__hash__, None):
        return hash(tuple(map(hash_of, value)))
    if isinstance(value, Mapping):
        return hash(frozenset(value))
    if isinstance(value, float):  # otherwise each NaN would have its own hash
        return hash(struct.pack("d", value))
    if getattr(getattr(type(value), "__dataclass_params__", None), "eq", False):
        return hash(tuple(map(hash_of, _parts(value) or ())))  # fields may be functions
    try:
        return hash(value)
    except TypeError:
        return hash(type(value))


def source(value: object) -> str:
    """Return a static value as source code: functions by name, arrays by dtype and shape."""
    if isinstance(value, functools.partial):
        arguments = [source(value.func), *map(source, value.args)]
        arguments += [f"{name}={source(entry)}" for name, entry in value.keywords.items()]
        return f"partial({', '.join(arguments)})"
    if isinstance(value, jax.Array | np.ndarray):
        return f"{value.dtype}{list(value.shape)}"
    if isinstance(value, np.dtype):
        return value.name
    if isinstance(value, list):
        return f"[{', '.join(map(source, value))}]"
    if isinstance(value, set | frozenset):  # in an order that is the same in every program
        return f"{{{', '.join(sorted(map(source, value)))}}}"
    if type(value) is tuple:
        entries = ", ".join(map(source, value))
        return f"({entries},)" if len(value) == 1 else f"({entries})"
    if callable(value) and hasattr(value, "__name__"):
        return str(value.__name__)
    if getattr(type(value).__repr__, "__code__", None) is _NAMED_TUPLE_REPR:
        fields: Any = value
        parts = (f"{n}={source(v)}" for n, v in zip(fields._fields, fields, strict=True))
        return f"{type(value).__name__}({', '.join(parts)})"
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text


_NAMED_TUPLE_REPR = NamedTuple("_Named", []).__repr__.__code__
