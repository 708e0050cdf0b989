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
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    if isinstance(value, types.MethodType):
        return value.__func__, value.__self__
    if isinstance(value, slice):
        return value.start, value.stop, value.step
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        if type(value).__eq__ is object.__eq__:
            return None
        return [getattr(value, f.name) for f in dataclasses.fields(value) if f.compare]
    if isinstance(value, types.FunctionType):
        remember(value)
        return _SEEN.get(value)
    if isinstance(value, _Noted):
        return value.parts()
    return None


_SEEN: weakref.WeakKeyDictionary[types.FunctionType, Any] = weakref.WeakKeyDictionary()
"""The contents of functions when they were first seen."""


def remember(value: Any) -> None:
    """Note what functions in a static value refer to, unless it was noted before."""
    if isinstance(value, types.FunctionType):
        if value not in _SEEN:
            _SEEN[value] = None  # while its closure is searched, which may hold the function
            try:
                _SEEN[value] = _contents(value, set())
            except ValueError:  # a cell that is still empty
                del _SEEN[value]
    elif isinstance(value, functools.partial):
        remember((value.func, value.args, value.keywords))
    elif isinstance(value, types.MethodType):
        remember(value.__func__)
    elif isinstance(value, tuple | list | dict):
        for entry in value.values() if isinstance(value, dict) else value:
            remember(entry)


def _contents(function: types.FunctionType, seen: set[types.FunctionType]) -> Any:
    """Return all that tells what a function computes: code, defaults, closure and globals."""
    seen.add(function)
    closure = [cell.cell_contents for cell in function.__closure__ or ()]
    variables, used = function.__globals__, {}
    if str(variables.get("__name__")).partition(".")[0] not in ("jax", "mlax"):
        used = {name: variables[name] for name in _names(function.__code__) if name in variables}
    parts = function.__defaults__, function.__kwdefaults__, closure, function.__dict__, used
    code = (function.__code__, id(variables), function.__qualname__)
    return code, *(_noted(part, variables, seen) for part in parts)


def _names(code: types.CodeType) -> Iterator[str]:
    """Yield the names in a code and in the functions that it makes."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _noted(value: Any, variables: dict[str, Any], seen: set[types.FunctionType]) -> Any:
    """Return a value as it is now; functions with the same globals are followed.

    Others are noted for themselves, unless they can be imported: these stay as they are.
    """
    if isinstance(value, types.FunctionType) and value.__globals__ is variables:
        return value.__code__ if value in seen else _contents(value, seen)
    if isinstance(value, tuple | list | dict) and type(value) in (tuple, list, dict):
        if len(value) > _MOST_ENTRIES:
            return _Noted(value)
        if isinstance(value, dict):
            return {key: _noted(entry, variables, seen) for key, entry in value.items()}
        return [type(value), *(_noted(entry, variables, seen) for entry in value)]
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype, hashlib.sha256(value.tobytes()).digest()
    if not isinstance(value, types.FunctionType) or value.__closure__ or "<" in value.__qualname__:
        remember(value)
    return set(value) if type(value) is set else _Noted(value)


class _Noted:
    """An object and its public attributes that are numbers or strings, as they are now.

    The object is not kept alive: it may hold the function that refers to it.
    """

    def __init__(self, value: Any) -> None:
        try:
            self._object: Any = weakref.ref(value)
        except TypeError:  # numbers, strings, named tuples
            self._object = lambda: value
        has_attributes = not isinstance(value, type | types.ModuleType | jax.Array)
        held = getattr(value, "__dict__", {}) if has_attributes else {}
        constants = [(n, v) for n, v in tuple(held.items()) if isinstance(v, _CONSTANTS)]
        self._attributes = {n: v for n, v in constants if not n.startswith("_")}

    def parts(self) -> Any:
        """Return what decides whether two are equal; nothing equals an object that is gone."""
        value = self._object()
        is_gone = value is None and isinstance(self._object, weakref.ref)
        return object() if is_gone else value, self._attributes


_CONSTANTS = int | float | complex | str | bytes
_MOST_ENTRIES = 1000


def hash_of(value: Any) -> int:
    """Return a hash, even for unhashable values, that is the same for equal values."""
    if isinstance(value, functools.partial):
        return hash_of(value.func)
    if isinstance(value, types.MethodType):
        return hash_of(value.__func__)
    if isinstance(value, types.FunctionType):
        remember(value)
        return hash(value.__code__)
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
