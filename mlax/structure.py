"""Nodes: objects that are pytrees, the base of `Parameter` and `Module`.

Some attributes of a node are its children, by name; all others are its static part, a `Structure`,
which jax compares on every call of a jitted function. It also flattens and makes every node on each
such call, which is most of what the call costs. So a node of a class derived from `Late` makes its
attributes only when something asks for them; until then it holds what a flatten returns.
"""

import copy
import functools
import operator
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.extend.core import get_opaque_trace_state
from jax.tree_util import GetAttrKey

from mlax.equality import equal, remember, source


class Node:
    """Base of `Parameter` and `Module`."""

    _is_late: ClassVar[bool] = False
    """Whether new instances make their attributes when something asks for them."""

    def _parts(self) -> Iterable[tuple[str, Any]]:
        """Return submodules and parameters, or the data of a parameter, by name."""
        raise NotImplementedError

    def _new_structure(self) -> "Structure":
        """Return the static part, and require that nothing here would silently not train."""
        raise NotImplementedError

    def _require_sound(self, owner: str) -> None:
        """Require that nothing here would silently not train."""
        raise NotImplementedError

    def _is_leaf(self) -> bool:
        """Return whether this is a parameter that holds arrays."""
        raise NotImplementedError

    def _held(self) -> dict[str, Any]:
        """Return every attribute, in the order in which they were set."""
        return dict(vars(self))

    def _hold(self, attributes: dict[str, Any]) -> None:
        """Replace all attributes."""
        held, outside = Attributes(attributes), getattr(vars(self), "made_at_top_level", None)
        held.structure = None
        held.made_at_top_level = at_top_level() if outside is None else outside
        _set_attributes(self, held)

    def _made_at_top_level(self) -> bool:
        """Return whether this was made while nothing was traced; False if that is not known."""
        return getattr(vars(self), "made_at_top_level", False)

    def _forget_structure(self) -> None:
        """Note that an attribute that may be static has changed."""
        attributes = vars(self)
        if isinstance(attributes, Attributes):  # not before super().__init__()
            attributes.structure = None

    def __getstate__(self) -> dict[str, Any]:
        return self._held()

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._hold(state)

    def __repr__(self) -> str:
        attributes = ", ".join(f"{name}={source(value)}" for name, value in self._held().items())
        return f"{type(self).__name__}({attributes})"


_attributes_of, _set_attributes = vars(Node)["__dict__"].__get__, vars(Node)["__dict__"].__set__


class Late(Node):
    """Nodes whose attributes are made when something asks for them.

    A new instance has no attributes but `_flat`, what a flatten of it returns. Python asks
    `__getattr__` and `vars` asks `__dict__`, which make the others. `_flat` is there until one of
    them may have changed, and again after the next flatten.
    """

    __slots__ = ("_flat",)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Find out whether nothing in the subclass stands between an attribute and its value."""
        bases = [base for base in cls.__mro__[:-1] if not base.__module__.startswith("mlax.")]
        dicts = [vars(base)["__dict__"] for base in cls.__mro__ if "__dict__" in vars(base)]
        hooks = {"__getattr__", "__getattribute__", "__setattr__", "__delattr__"}
        is_hooked = any(hooks & vars(base).keys() for base in bases)
        cls._is_late = not is_hooked and dicts[0] is vars(Late)["__dict__"]
        super().__init_subclass__(**kwargs)

    if not TYPE_CHECKING:  # a checker would take every name for an attribute

        def __getattr__(self, name):
            if name != "_flat":
                vars(self)
                return object.__getattribute__(self, name)
            flat = flatten(self)
            if flat[1].is_late:
                _set_flat(self, flat)
            return flat

        def __setattr__(self, name, value):
            vars(self)
            super().__setattr__(name, value)

        def __delattr__(self, name):
            vars(self)
            super().__delattr__(name)
            self._forget_structure()

        @property
        def __dict__(self):
            attributes = _attributes_of(self)
            if type(attributes) is Attributes:
                _forget_flat(self)  # the caller may write into the dict
                return attributes
            try:
                children, structure = _get_flat(self)
            except AttributeError:  # as in a constructor
                return attributes
            made = Attributes(structure.attributes)
            made.update(zip(structure.names, children))
            made.update(attributes)
            made.structure = structure
            _set_attributes(self, made)
            _forget_flat(self)
            return made

        @__dict__.setter
        def __dict__(self, attributes):
            _set_attributes(self, attributes)
            _forget_flat(self)


_get_flat, _set_flat = vars(Late)["_flat"].__get__, vars(Late)["_flat"].__set__


_delete_flat = vars(Late)["_flat"].__delete__


def _forget_flat(node: Late) -> None:
    try:
        _delete_flat(node)
    except AttributeError:  # there is none
        pass


def register(cls: type[Node]) -> None:
    """Register a class of nodes as a pytree with keys."""
    new = functools.partial(cls.__new__, cls)

    def unflatten(structure: "Structure", children: Any) -> Node:  # for each node in each step
        node = new()
        if structure.is_late:
            _set_flat(node, (children, structure))
        else:
            _make_attributes(node, structure, children)
        return node

    flatten_one = operator.attrgetter("_flat") if cls._is_late else flatten
    jax.tree_util.register_pytree_with_keys(cls, _flatten_with_keys, unflatten, flatten_one)


def flatten(node: Node) -> tuple[tuple[Any, ...], "Structure"]:
    """Return the children and the static part."""
    attributes: Any = vars(node)
    structure = attributes.structure if type(attributes) is Attributes else None
    if structure is None or structure.is_mutable:
        if type(attributes) is not Attributes:  # as after a __setstate__ of a user's own
            node._hold(attributes)
            attributes = vars(node)
        attributes.structure = structure = node._new_structure()
    name = structure.only_child
    if name is not None:
        return (attributes[name],), structure
    children_of = structure.children_of
    return () if children_of is None else children_of(attributes), structure


def _flatten_with_keys(node: Node) -> tuple[Any, "Structure"]:
    children, structure = flatten(node)
    return zip(map(GetAttrKey, structure.names), children, strict=True), structure


def _make_attributes(node: Node, structure: "Structure", children: Iterable[Any]) -> None:
    if structure.is_mutable:
        attributes = Attributes(without_dead_keys(copied(structure.attributes)))
        set_contents(node, structure.contents)
    else:
        attributes = Attributes(structure.attributes)
    if structure.is_mutable or structure.is_replaced:
        attributes.made_at_top_level = at_top_level()
    attributes.update(zip(structure.names, children))  # strict= would take as long as the rest
    attributes.structure = structure
    _set_attributes(node, attributes)


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

    __slots__ = (
        "attributes", "children_of", "contents", "is_late", "is_mutable", "is_replaced", "names",
        "only_child",
    )

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
    is_replaced: bool
    """Whether a call may replace the children, as it does running statistics."""
    is_late: bool
    """Whether new instances make their attributes when something asks for them."""

    def __init__(
        self, cls: type[Node], attributes: dict[str, Any], names: tuple[str, ...],
        contents: Any = None, is_replaced: bool = False,
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
        self.is_replaced = is_replaced
        # An attribute of the class, but for `initialized`, would be found before one to be made.
        is_hidden = any(hasattr(cls, name) for name in attributes if name != "initialized")
        self.is_late = cls._is_late and not (self.is_mutable or is_replaced or is_hidden)
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
