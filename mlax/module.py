"""The object base: `Parameter` and `Module`, mutable objects that are pytrees.

Attributes of a module that are parameters or modules are its children, by name. All others
are static: `jax.jit` sees them as part of the tree structure, and two structures are equal if
their static attributes are, including arrays and PRNG keys.
"""

import copy
import functools
import inspect
from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any, ClassVar, Protocol, Self, TypeAlias, TypeVar, overload

import jax

from mlax.arguments import described
from mlax.errors import expected, message
from mlax.holdings import Holdings, entries_of, require_alive, require_static, undone_if_it_fails
from mlax.holdings import walk
from mlax.layer import AxisName, Key
from mlax.structure import KeyOfEndedTrace, Late, Node, Structure, contents_of, copied, is_array
from mlax.structure import register, set_contents

__all__ = ["Module", "Parameter", "is_leaf_param", "is_non_trainable_param", "is_trainable_param"]

Y = TypeVar("Y")
M = TypeVar("M")
Y_co = TypeVar("Y_co", covariant=True)
M_co = TypeVar("M_co", covariant=True)

KeyPath: TypeAlias = tuple[Hashable, ...]
"""The path of a leaf in a pytree: key entries, as in `jax.tree_util`."""


class Parameter(Late):
    """A pytree node with one child, `data`; every other attribute is static.

    Attributes:
        trainable: True for a leaf that is trained, False for one that is not (running
            statistics), None for a container whose data holds modules or parameters.
        data: a pytree; None if it was filtered out or is not set up yet.
    """

    trainable: bool | None
    data: Any
    """Any pytree: only the module that sets it knows its type."""

    def __init__(self, trainable: bool | None, data: Any = None) -> None:
        self._hold({"trainable": trainable, "data": data})

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Register the subclass as a pytree with keys."""
        super().__init_subclass__(**kwargs)
        register(cls)

    def __setattr__(self, name: str, value: Any) -> None:
        """Set the data, or an attribute that is static."""
        super().__setattr__(name, value)
        if name != "data":
            self._forget_structure()

    def _parts(self) -> Iterable[tuple[str, Any]]:
        return (("data", self.data),)

    def _require_sound(self, owner: str) -> None:
        trainable: object = self.trainable
        if trainable is not True and trainable is not False and trainable is not None:
            got = described(trainable)
            way_out = "it is first: Parameter(True, array), or Parameter(None, [...]) for modules"
            raise TypeError(message(owner, "trainable", "True, False or None", got, way_out))
        for leaf in entries_of(self.data):
            if trainable is None and is_array(leaf):
                what = "modules and parameters in Parameter(None, ...)"
                way_out = "wrap it in Parameter(True, ...) or Parameter(False, ...)"
                raise TypeError(expected(owner, what, described(leaf), way_out))
            if trainable is not None and isinstance(leaf, Node) and not _is_all(leaf, trainable):
                what = f"arrays in Parameter({trainable}, ...)"
                way_out = "hold modules and parameters in Parameter(None, [...])"
                raise TypeError(expected(owner, what, described(leaf), way_out))

    def _is_leaf(self) -> bool:
        return self.trainable is not None

    def _new_structure(self) -> Structure:
        trainable: Any = self.trainable  # which a user may have set to anything
        if trainable is not True and trainable is not False and trainable is not None:
            self._require_sound("Parameter")
        if type(self) is Parameter and len(vars(self)) == 2:
            return _PLAIN[trainable]
        return Structure(type(self), vars(self), ("data",), is_replaced=trainable is False)


def _is_all(node: Node, trainable: object) -> bool:
    """Return whether a module is set up and its parameters are trained alike, as in `as_module`."""
    parts = [part for _, part in walk(node)]
    are_set_up = all(part.initialized for part in parts if isinstance(part, Module))
    leaves = [part for part in parts if is_leaf_param(part) and part.data is not None]
    return are_set_up and all(part.trainable is trainable for part in leaves)


def is_trainable_param(x: object) -> bool:
    """Return whether x is a `Parameter` that is trained."""
    return isinstance(x, Parameter) and x.trainable is True


def is_non_trainable_param(x: object) -> bool:
    """Return whether x is a leaf `Parameter` that is not trained."""
    return isinstance(x, Parameter) and x.trainable is False


def is_leaf_param(x: object) -> bool:
    """Return whether x is a `Parameter` that is not a container."""
    return isinstance(x, Parameter) and x.trainable is not None


_MISSING = object()


class _HasForward(Protocol[Y_co]):
    """A module, by the type of its output."""

    def forward(self, *args: Any, **kwargs: Any) -> Y_co: ...


class _Call(Protocol[Y_co, M_co]):
    """The call of a module of class M with output Y."""

    def __call__(
        self, x: Any, rng: Key | None, inference_mode: bool = False, batch_axis_name: AxisName = ()
    ) -> tuple[Y_co, M_co]: ...


class _TypedCall:
    """Types `__call__` by what `forward` of the instance returns, and the class of the instance."""

    @overload
    def __get__(self, instance: None, owner: type[M]) -> Callable[..., tuple[Any, M]]: ...
    @overload
    def __get__(self, instance: _HasForward[Y], owner: type[M]) -> _Call[Y, M]: ...
    def __get__(self, instance: Any, owner: Any) -> Any:
        raise NotImplementedError


class _NotInitialized:
    """Stands for `initialized` in a module whose constructor has not run."""

    def __get__(self, module: object, owner: type) -> bool:
        if module is None:
            return False
        if "initialized" in vars(module):  # one that had still to be made
            return bool(vars(module)["initialized"])
        what, way_out = "super().__init__() at the start of __init__", "call it before the rest"
        raise AttributeError(expected(owner.__name__, what, "none", way_out))


class Module(Node):
    """Base of layers and models written as classes.

    A subclass defines `__init__`, `setup` and `forward`. Subclassing registers the class as
    a pytree with keys. Attributes that are parameters or modules are children. All others are
    static: lists, tuples and dicts of modules belong in `Parameter(None, [...])`. A parameter is
    held in one place; to share a module, call it twice.

    >>> import jax, jax.numpy as jnp, mlax
    >>> class Gain(mlax.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.gain = mlax.Parameter(trainable=True)
    ...     def setup(self, x):
    ...         self.gain.data = jnp.full(x.shape, 2.0)
    ...     def forward(self, x, rng=None, inference_mode=False, batch_axis_name=()):
    ...         return self.gain.data * x
    >>> y, gain = Gain()(jnp.ones(2), None)
    >>> y
    Array([2., 2.], dtype=float32)
    >>> jax.tree_util.keystr(jax.tree_util.tree_leaves_with_path(gain)[0][0])
    '.gain.data'
    """

    _spent: ClassVar[tuple[str, ...]] = ()
    """Static attributes that are forgotten once the module is initialized, such as its key."""

    if TYPE_CHECKING:
        initialized: bool
        """Whether `setup` has run."""
    else:
        initialized = _NotInitialized()

    def __init__(self) -> None:
        """Start as a module that is not set up."""
        self._hold(vars(self))
        self.initialized = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Register the subclass as a pytree with keys."""
        super().__init_subclass__(**kwargs)
        if getattr(cls, "__hash__") is None:  # the class of a dict or list comes before Module
            for method in ("__eq__", "__ne__", "__hash__"):
                setattr(cls, method, vars(Module)[method])
        _require_order(cls)
        if set(vars(cls).get("__slots__", ())) - {"__dict__", "__weakref__"}:
            what, got = "attributes in __dict__", "__slots__, which pytrees of jax would lose"
            raise TypeError(expected(cls.__name__, what, got, "leave __slots__ out"))
        for name, value in vars(cls).items():
            nodes = [node for _, node in walk(value) if isinstance(node, Node)]
            if any(node._is_leaf() for node in nodes):
                what = "parameters and modules as attributes of instances"
                way_out = f"set self.{name} in __init__"
                raise TypeError(expected(cls.__name__, what, f"{name} of the class", way_out))
        register(cls)

    def setup(self, x: Any) -> None:
        """Create the parameters, from the shapes and dtypes of `x`.

        Submodules can be left for `forward` to set up by calling them.
        """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return the output: `forward(x, rng, inference_mode=False, batch_axis_name=())`.

        The arguments are those of `mlax.Apply`. `forward` may change parameters and submodules.
        A default of None for `rng` declares that the module needs no key. (The signature is
        open so that each subclass can declare its own.)
        """
        owner = type(self).__name__
        what = "a method forward(self, x, rng=None, inference_mode=False, batch_axis_name=())"
        way_out = "setup(self, x) makes parameters, forward computes; init and apply are for pairs"
        raise NotImplementedError(expected(owner, what, "none", way_out))

    if TYPE_CHECKING:
        __call__: _TypedCall = _TypedCall()
        apply: _TypedCall = _TypedCall()
        """`__call__` without the setup."""
    else:

        def __call__(self, x, rng=_MISSING, inference_mode=False, batch_axis_name=()):
            """Set up the module if necessary, and return `(forward(...), self)`.

            A call that raises leaves the module as it was.
            """
            if rng is _MISSING:
                if type(x) is type(self):
                    return self  # optax calls labels, which are modules, to find out what they are
                owner, way_out = type(self).__name__, "call module(x, rng), or module(x, None)"
                raise TypeError(message(owner, "rng", "a PRNG key or None", "nothing", way_out))
            if type(self).forward is Module.forward:
                self.forward()
            with undone_if_it_fails(self):
                if not self.initialized:
                    self.setup(x)
                    self.initialized = True
                    Holdings(self)  # what setup made must be sound, too
                if getattr(self.apply, "__func__", None) is Module.apply:
                    return _forward(self, x, rng, inference_mode, batch_axis_name), self
                return self.apply(x, rng, inference_mode, batch_axis_name)

        def apply(self, x, rng, inference_mode=False, batch_axis_name=()):
            """Return `(forward(...), self)`, for a module that is set up."""
            with undone_if_it_fails(self):
                return _forward(self, x, rng, inference_mode, batch_axis_name), self

    def filter(
        self, f: Callable[[Parameter], object] = is_trainable_param, inverse: bool = False
    ) -> Self:
        """Return a copy in which the leaf parameters that `f` rejects have no data.

        With `inverse`, those that `f` accepts have none.

        Raises:
            AttributeError: the module is not initialized.
        """
        return self.filter_with_path(lambda _, parameter: f(parameter), inverse)

    def partition(self, f: Callable[[Parameter], object] = is_trainable_param) -> tuple[Self, Self]:
        """Return `(filter(f), filter(f, inverse=True))`."""
        return self.filter(f), self.filter(f, inverse=True)

    def filter_with_path(
        self, f: Callable[[KeyPath, Parameter], object], inverse: bool = False
    ) -> Self:
        """Return a copy in which the leaf parameters that `f(path, parameter)` rejects are empty.

        With `inverse`, those that it accepts are empty instead. The path is a tuple of key
        entries, as `jax.tree_util.tree_map_with_path` gives them.

        Raises:
            AttributeError: the module is not initialized.
        """
        if not self.initialized:
            what, way_out = "an initialized module to filter", "call it once, module(x, rng)"
            raise AttributeError(expected(type(self).__name__, what, "one that is not", way_out))

        def kept(path: KeyPath, leaf: Any) -> Any:
            if not is_leaf_param(leaf):
                return leaf
            parameter: Parameter = jax.tree.map(lambda data: data, leaf)
            if bool(f(path, leaf)) == inverse:
                parameter.data = None
            return parameter

        filtered: Self = jax.tree_util.tree_map_with_path(kept, self, is_leaf=is_leaf_param)
        return filtered

    def partition_with_path(self, f: Callable[[KeyPath, Parameter], object]) -> tuple[Self, Self]:
        """Return `(filter_with_path(f), filter_with_path(f, inverse=True))`."""
        return self.filter_with_path(f), self.filter_with_path(f, inverse=True)

    def combine(self, *others: Self) -> Self:
        """Return a copy with each empty parameter taken from the first other module that has it.

        Static attributes are taken from this module.

        Raises:
            ValueError: the modules have different parameters, or a submodule of this one is not set
                up, and its parameters would be lost.
        """
        flatten = functools.partial(
            jax.tree_util.tree_flatten_with_path,
            is_leaf=lambda node: node is None or is_leaf_param(node),
        )
        entries, structure = flatten(self)
        columns = [flatten(other)[0] for other in others]
        for column in columns:
            for (path, _), (other, _) in zip(entries, column, strict=False):
                if path != other:
                    raise ValueError(_misfit(self, path, jax.tree_util.keystr(other)))
            if len(column) != len(entries):
                raise ValueError(_misfit(self, (), f"{len(column)} instead of {len(entries)}"))
        mine, *theirs = [
            {place: part.initialized for place, part in walk(module) if isinstance(part, Module)}
            for module in (self, *others)
        ]
        for place, is_set_up in mine.items() if self.initialized else ():
            if not is_set_up and any(other.get(place) for other in theirs):
                what, got = f"{place} to be set up, as in the other module", "one that is not"
                way_out = "call the module once, module(x, rng), before it is partitioned"
                raise ValueError(expected(f"{type(self).__name__}.combine", what, got, way_out))

        def combined(leaf: Any, *candidates: Any) -> Any:
            if not is_leaf_param(leaf):
                return leaf
            chosen = (p for p in (leaf, *candidates) if p.data is not None)
            return jax.tree.map(lambda data: data, next(chosen, leaf))

        rows = zip(entries, *columns, strict=True)
        leaves = [combined(*(leaf for _, leaf in row)) for row in rows]
        module: Self = jax.tree.unflatten(structure, leaves)
        return module

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute: a child if it is a parameter or a module, else static.

        Raises:
            TypeError: the value is an array and would replace a parameter or a module.
        """
        before = self.__dict__.get(name)
        if isinstance(before, Node) and is_array(value):
            owner, got = type(self).__name__, described(value)
            way_out = f"set self.{name}.data = ..., or Parameter(False, ...) for a constant"
            raise TypeError(message(owner, name, f"a {type(before).__name__}", got, way_out))
        object.__setattr__(self, name, value)
        self._forget_structure()

    def __delattr__(self, name: str) -> None:
        """Delete an attribute of a module that is not initialized.

        Raises:
            AttributeError: there is no such attribute, or the module is initialized.
        """
        if self.initialized:
            what, got = "an initialized module to keep its attributes", f"a deletion of {name!r}"
            raise AttributeError(expected(type(self).__name__, what, got, "set it to None"))
        object.__delattr__(self, name)
        self._forget_structure()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __ne__(self, other: object) -> bool:
        return self is not other

    def __hash__(self) -> int:
        return object.__hash__(self)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy the children, and static attributes only if they can be changed in place."""
        copy_of: Self = type(self).__new__(type(self))
        copy_of._hold({
            n: copy.deepcopy(v, memo) if isinstance(v, Node) else copied(v)
            for n, v in vars(self).items()
        })
        set_contents(copy_of, contents_of(self))
        return copy_of

    def _parts(self) -> Iterable[tuple[str, Any]]:
        return [(name, value) for name, value in vars(self).items() if isinstance(value, Node)]

    def _require_sound(self, owner: str) -> None:
        structure = getattr(vars(self), "structure", None)
        if not self.initialized or structure is None or structure.is_mutable:
            require_alive(type(self).__name__, vars(self))
            require_static(type(self).__name__, vars(self))

    def _is_leaf(self) -> bool:
        return False

    def _new_structure(self) -> Structure:
        if getattr(vars(self), "structure", None) is None:
            Holdings(self)  # requires that all is sound and nothing is shared
        else:
            self._require_sound(type(self).__name__)
        attributes, spent = vars(self), self._spent if self.initialized else ()
        forgotten = dict.fromkeys(name for name in spent if name in attributes)
        names = tuple(name for name, _ in self._parts())
        return Structure(type(self), attributes | forgotten, names, contents_of(self))


_call: Any = vars(Module)["__call__"]  # the method, not the type of the calls of subclasses
_parameters = inspect.signature(_call).parameters.values()
_call.__signature__ = inspect.Signature(
    [p.replace(default=p.empty) if p.name == "rng" else p for p in _parameters]
)


def _require_order(cls: type[Module]) -> None:
    """Require that `forward` takes what it shares with other modules in one order."""
    forward = vars(cls).get("forward")
    names = list(inspect.signature(forward).parameters) if inspect.isfunction(forward) else []
    for i, name in enumerate(("rng", "inference_mode", "batch_axis_name"), 2):
        if name in names[1:] and names.index(name) != i:
            what = "forward(self, x, rng, inference_mode, batch_axis_name)"
            raise TypeError(expected(cls.__name__, what, f"forward({', '.join(names)})"))


def _forward(module: Module, *call: Any) -> Any:
    """Return `forward(*call)`, or tell which signature it should have."""
    try:
        return module.forward(*call)
    except TypeError as error:
        if KeyOfEndedTrace.__name__ in str(error):
            error.add_note(_SET_KEY)
        signature = inspect.signature(module.forward)
        try:
            signature.bind(*call)
        except TypeError:
            what = "forward(self, x, rng=None, inference_mode=False, batch_axis_name=())"
            got = f"forward{signature}"
            raise TypeError(expected(type(module).__name__, what, got, _NEEDS_RNG)) from None
        raise


_SET_KEY = "the module was set up in a function that is no longer traced: set its key again"
_NEEDS_RNG = "rng has no default in a module that needs a key"


def _misfit(module: Module, path: KeyPath, got: str) -> str:
    where = jax.tree_util.keystr(path) or "the same parameters"
    return expected(f"{type(module).__name__}.combine", f"{where} in the other module", got)


_PLAIN = {
    trainable: Structure(
        Parameter, {"trainable": trainable, "data": None}, ("data",), is_replaced=trainable is False
    )
    for trainable in (True, False, None)
}
register(Parameter)
