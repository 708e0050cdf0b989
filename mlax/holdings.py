"""What a module holds before a call: `Holdings`, so that a call that fails can be undone.

What would silently not train is found here, too.
"""

import collections
import contextlib
import copy
import dataclasses
import functools
import types
from collections.abc import Iterator
from typing import Any

import jax
from jax.core import Tracer

from mlax.arguments import described
from mlax.errors import expected
from mlax.structure import Node, at_top_level, is_array, is_key


def require_alive(owner: str, attributes: dict[str, Any]) -> None:
    """Require that no static attribute outlives the trace that made it."""
    for name, value in attributes.items():
        if isinstance(value, Tracer) and at_top_level():
            if is_key(value) and attributes["initialized"]:
                continue  # `without_dead_keys` forgets it
            what, got = f"{name} to be an array", "one of a function that is no longer traced"
            way_out = "make it outside the function, or hold it in Parameter(False, ...)"
            if is_key(value):
                way_out = "call the module in the function, as in lambda key: make(key)(x, rng)[1]"
            raise TypeError(expected(owner, what, got, way_out))


def require_static(owner: str, attributes: dict[str, Any]) -> None:
    """Require that no static attribute is a container of what should be trained."""
    for name, value in attributes.items():
        if isinstance(value, Node):
            continue
        is_plain = isinstance(value, _CONTAINERS)
        for leaf in entries_of(value if is_plain else _fields_of(value)):
            if isinstance(leaf, Node) or is_plain and is_array(leaf):
                what = f"{name}, which is static, to hold no modules, parameters or arrays"
                got = f"{described(value)} with {described(leaf)} in it, which would not train"
                way_out = "hold them in Parameter(None, [...])"
                if is_array(leaf):
                    way_out += " as Parameter(True, ...), or Parameter(False, ...) for constants"
                raise TypeError(expected(owner, what, got, way_out))


_CONTAINERS = list, tuple, dict, set, frozenset, collections.deque


def _fields_of(value: Any) -> Any:
    """Return what an object holds that is made to hold others; its arrays may be constants."""
    if isinstance(value, functools.partial):
        return value.func, value.args, value.keywords
    is_record = dataclasses.is_dataclass(value) or isinstance(value, types.SimpleNamespace)
    return getattr(value, "__dict__", ()) if is_record and not isinstance(value, type) else ()


def entries_of(value: Any) -> Iterator[Any]:
    """Yield what is in a container and in nested containers."""
    if isinstance(value, dict) and not isinstance(value, Node):
        for entry in (*value, *value.values()):
            yield from entries_of(entry)
    elif isinstance(value, _CONTAINERS) and not isinstance(value, Node):
        for entry in value:
            yield from entries_of(entry)
    else:
        yield value


class Holdings:
    """What a module, its submodules and their parameters hold before a call.

    Raises:
        TypeError: a parameter or a static attribute is not what it should be.
        ValueError: a parameter is held in two places, where an update would split it in two, or a
            module holds itself.
    """

    def __init__(self, module: Node) -> None:
        self._module = module
        self._held: dict[int, tuple[str, Any, Any]] = {}
        for path, value in walk(module):
            if isinstance(value, Node):
                value._require_sound(f"{type(module).__name__}.{path}".strip("."))
                if value._is_leaf() and id(value) in self._held:
                    places = f"one at {self._held[id(value)][0]} and {path}"
                    way_out = "to share a module, hold it once and call it twice in forward"
                    what = "each parameter in one place"
                    raise ValueError(expected(type(module).__name__, what, places, way_out))
                self._held[id(value)] = path, value, value._held()
            elif isinstance(value, list | dict):
                self._held[id(value)] = path, value, copy.copy(value)
        self._tracers = {id(tracer) for tracer, _, _ in _traced(module)}

    def restore(self) -> None:
        """Restore everything to what it held."""
        for _, value, held in self._held.values():
            if isinstance(value, Node):
                value._hold(held)
            elif isinstance(value, list):
                value[:] = held
            else:
                value.clear()
                value.update(held)

    def require_no_new_tracer(self) -> None:
        """Require that a call in a traced function put no tracer into a module from outside."""
        for tracer, path, from_outside in _traced(self._module):
            if from_outside and id(tracer) not in self._tracers:
                owner = type(self._module).__name__
                what = "a module that the call changes to be an argument of the traced function"
                got = f"one from outside, whose {path} would become a traced array"
                way_out = (
                    "pass it in and out, as in jax.jit(lambda module, x: module(x, rng)); under "
                    "jax.vmap, pass the name of the axis as batch_axis_name"
                )
                raise ValueError(expected(owner, what, got, way_out))


@contextlib.contextmanager
def undone_if_it_fails(module: Node) -> Iterator[None]:
    """Leave a module as it was if what follows raises, or would leave a tracer in it."""
    holdings = Holdings(module)
    try:
        yield
        holdings.require_no_new_tracer()
    except BaseException:
        holdings.restore()
        raise


def walk(value: Any) -> list[tuple[str, Any]]:
    """Return everything that a call of a module may change, by path."""
    found: list[tuple[str, Any]] = []
    _walk(value, "", found, ())
    return found


def _walk(value: Any, path: str, found: list[tuple[str, Any]], holders: tuple[Any, ...]) -> None:
    found.append((path.removeprefix("."), value))
    if any(value is holder for holder in holders):
        what, got = "a module that does not hold itself", f"{path.removeprefix('.')}, which does"
        way_out = "pass it as an argument where it is needed"
        raise ValueError(expected(type(holders[0]).__name__, what, got, way_out))
    if isinstance(value, Node):
        for name, part in value._parts():
            _walk(part, f"{path}.{name}", found, (*holders, value))
    elif isinstance(value, list | tuple | dict):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            _walk(part, f"{path}[{key!r}]", found, holders)


def _traced(module: Node) -> Iterator[tuple[jax.Array, str, bool]]:
    """Yield the traced arrays in a module, and whether they are in something made at top level."""
    if at_top_level():
        return
    for path, value in walk(module):
        if isinstance(value, Node):
            outside = module._made_at_top_level() or value._made_at_top_level()
            held = value._parts() if value._is_leaf() else value._held().items()
            for name, data in held:
                leaves = jax.tree.leaves(data) if value._is_leaf() else [data]
                for leaf in leaves:
                    if isinstance(leaf, Tracer):
                        where = path if value._is_leaf() else f"{path}.{name}".strip(".")
                        yield leaf, where, outside
