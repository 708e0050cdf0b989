"""What modules are made of: attributes, their static part, and what they held before a call.

`Structure` is the static part of a parameter or module, which jax compares on every call of a
jitted function. `Holdings` remembers what a module holds, so that a call that fails can be undone.
"""

import collections
import contextlib
import copy
import dataclasses
import functools
import operator
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import get_opaque_trace_state

from mlax.arguments import described
from mlax.equality import equal, remember
from mlax.errors import expected


class Node:
    """Base of `Parameter` and `Module`."""

    __slots__ = ()

    def _held(self) -> dict[str, Any]:
        """Return every attribute, in the order in which they were set."""
        raise NotImplementedError

    def _hold(self, attributes: dict[str, Any]) -> None:
        """Replace all attributes."""
        raise NotImplementedError

    def _parts(self) -> Iterable[tuple[str, Any]]:
        """Return submodules and parameters, or the data of a parameter, by name."""
        raise NotImplementedError

    def _require_sound(self, owner: str) -> None:
        """Require that nothing here would silently not train."""
        raise NotImplementedError

    def _is_leaf(self) -> bool:
        """Return whether this is a parameter that holds arrays."""
        raise NotImplementedError

    def _made_at_top_level(self) -> bool:
        """Return whether this was made while nothing was traced; False if that is not known."""
        raise NotImplementedError


with jax.ensure_compile_time_eval():
    _TOP_LEVEL = get_opaque_trace_state()


def at_top_level() -> bool:
    """Return whether no function is being traced."""
    return bool(get_opaque_trace_state() == _TOP_LEVEL)


class Attributes(dict[str, Any]):
    """The `__dict__` of a module."""

    __slots__ = ("made_at_top_level", "structure")

    structure: "Structure | None"
    """The static part, None if it is not known."""
    made_at_top_level: bool
    """Whether the constructor of the module ran while nothing was traced; unset if not known."""

    def __reduce__(self) -> Any:  # pickle has no better type for it
        return dict, (dict(self),)


class Structure:
    """The static part of a parameter or module: its attributes without the children."""

    __slots__ = ("attributes", "children_of", "contents", "is_mutable", "names", "only_child")

    names: tuple[str, ...]
    """The names of the children."""
    only_child: str | None
    """The name of the child, if there is one."""
    children_of: Callable[[dict[str, Any]], tuple[Any, ...]] | None
    """Returns the children, if there are several, from a dict of attributes."""
    attributes: dict[str, Any]
    """Every attribute in the order in which they were set, None for children."""
    contents: Any
    """The entries of a module that is a list or dict too, or the arguments of an exception."""
    is_mutable: bool
    """Whether a static attribute can be changed in place or is a tracer, or the module is not set
    up. If so, attributes are copied here and again for each new instance."""

    def __init__(
        self, attributes: dict[str, Any], names: tuple[str, ...], contents: Any = None
    ) -> None:
        static = {n: None if n in names else value for n, value in attributes.items()}
        has_tracers = any(isinstance(value, Tracer) for value in static.values())
        is_set_up = attributes.get("initialized", True)
        self.names = names
        self.only_child = names[0] if len(names) == 1 else None
        self.children_of = operator.itemgetter(*names) if len(names) > 1 else None
        is_mutable = contents is not None or any(map(_is_mutable, static.values()))
        self.is_mutable = is_mutable or has_tracers or not is_set_up
        self.attributes = without_dead_keys(copied(static)) if self.is_mutable else static
        self.contents = contents
        remember(static)

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, Structure):
            return self is other
        mine, others = (self.attributes, self.contents), (other.attributes, other.contents)
        return self.names == other.names and equal(mine, others)

    def __hash__(self) -> int:
        return hash(self.names)

    def __repr__(self) -> str:
        return repr({n: v for n, v in self.attributes.items() if n not in self.names})


def without_dead_keys(attributes: dict[str, Any]) -> dict[str, Any]:
    """Return attributes with traced keys replaced once their trace has ended.

    A module that is not set up keeps them, to raise an error.
    """
    if not at_top_level() or not attributes.get("initialized", True):
        return attributes
    return {
        name: KeyOfEndedTrace() if isinstance(value, Tracer) and is_key(value) else value
        for name, value in attributes.items()
    }


class KeyOfEndedTrace:
    """Stands for a traced key in an attribute of a module once its trace has ended."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KeyOfEndedTrace)

    def __hash__(self) -> int:
        return hash(KeyOfEndedTrace)

    def __repr__(self) -> str:
        return "<key of a function that is no longer traced>"


def copied(value: Any) -> Any:
    """Return the value with its containers copied."""
    if isinstance(value, dict):
        mapping = copy.copy(value)
        mapping.update({key: copied(entry) for key, entry in value.items()})
        return mapping
    if isinstance(value, tuple):
        entries = map(copied, value)
        return type(value)(*entries) if hasattr(value, "_fields") else tuple(entries)
    if isinstance(value, list):
        sequence = copy.copy(value)
        sequence[:] = map(copied, value)
        return sequence
    return copy.copy(value) if _is_mutable(value) else value


def _is_mutable(value: object) -> bool:
    if isinstance(value, tuple):
        return any(map(_is_mutable, value))
    return isinstance(value, list | dict | set | bytearray | np.ndarray)


def contents_of(module: Any) -> Any:
    """Return the entries of a module that is a dict or list, or the arguments of an exception."""
    if isinstance(module, dict | list):
        return dict(module) if isinstance(module, dict) else list(module)
    return module.args if isinstance(module, BaseException) else None


def set_contents(module: Any, contents: Any) -> None:
    """Give a new module the contents of another."""
    if isinstance(module, dict):
        module.update(contents)
    elif isinstance(module, list):
        module.extend(contents)
    elif isinstance(module, BaseException):
        module.args = contents


def is_key(value: jax.Array | np.ndarray[Any, Any]) -> bool:
    """Return whether an array holds PRNG keys."""
    if jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return True
    return value.dtype == np.uint32 and value.shape[-1:] in ((2,), (4,))


def is_array(value: object) -> bool:
    """Return whether a value is an array that is not a PRNG key."""
    return isinstance(value, jax.Array | np.ndarray) and not is_key(value)


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
