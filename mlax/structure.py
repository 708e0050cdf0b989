"""What modules are made of: their attributes, and the static part of these.

`Structure` is the static part of a parameter or module, which jax compares on every call of a
jitted function.
"""

import copy
import operator
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import get_opaque_trace_state

from mlax.equality import equal, remember


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
