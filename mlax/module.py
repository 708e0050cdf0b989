"""The object base: `Parameter` and `Module`, mutable objects that are pytrees.

Attributes of a module that are parameters or modules are its children, by name. All others
are static: `jax.jit` sees them as part of the tree structure, and two structures are equal if
their static attributes are, including arrays and PRNG keys.
"""

import copy
import functools
from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias, TypeVar

import jax
import numpy as np
from jax.tree_util import GetAttrKey

from mlax.equality import equal
from mlax.errors import expected
from mlax.layer import AxisName, Key

__all__ = ["Module", "Parameter", "is_leaf_param", "is_non_trainable_param", "is_trainable_param"]

Y = TypeVar("Y")
M = TypeVar("M")
Y_co = TypeVar("Y_co", covariant=True)
M_co = TypeVar("M_co", covariant=True)

KeyPath: TypeAlias = tuple[Hashable, ...]
"""The path of a leaf in a pytree: key entries, as in `jax.tree_util`."""


class Parameter:
    """A pytree node with one child, `data`; every other attribute is static.

    Attributes:
        trainable: True for a leaf that is trained, False for one that is not (running
            statistics), None for a container whose data holds modules or parameters.
        data: a pytree; None if it was filtered out or is not set up yet.
    """

    __slots__ = ("__dict__", "__weakref__", "data", "trainable")

    trainable: bool | None
    data: Any
    """Any pytree: only the module that sets it knows its type."""

    def __init__(self, trainable: bool | None, data: Any = None) -> None:
        self.trainable = trainable
        self.data = data

    def __getstate__(self) -> dict[str, Any]:
        return {"trainable": self.trainable, "data": self.data, **self.__dict__}

    def __setstate__(self, state: dict[str, Any]) -> None:
        for name, value in state.items():
            setattr(self, name, value)

    def __repr__(self) -> str:
        return _repr(self)


def is_trainable_param(x: object) -> bool:
    """Return whether x is a `Parameter` that is trained."""
    return isinstance(x, Parameter) and x.trainable is True


def is_non_trainable_param(x: object) -> bool:
    """Return whether x is a leaf `Parameter` that is not trained."""
    return isinstance(x, Parameter) and x.trainable is False


def is_leaf_param(x: object) -> bool:
    """Return whether x is a `Parameter` that is not a container."""
    return isinstance(x, Parameter) and x.trainable is not None


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

    def __get__(self, instance: _HasForward[Y], owner: type[M]) -> _Call[Y, M]:
        raise NotImplementedError


class Module:
    """Base of layers and models written as classes.

    A subclass defines `__init__`, `setup` and `forward`. Subclassing registers the class as
    a pytree with keys.

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

    __slots__ = ("__dict__", "__weakref__", "_structure")

    initialized: bool
    """Whether `setup` has run."""
    _structure: "_Structure | None"

    def __init__(self) -> None:
        """Start as a module that is not set up."""
        self.initialized = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Register the subclass as a pytree with keys."""
        super().__init_subclass__(**kwargs)
        unflatten = functools.partial(_unflatten_module, cls)
        jax.tree_util.register_pytree_with_keys(
            cls, _flatten_module_with_keys, unflatten, _flatten_module
        )

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
        raise NotImplementedError(f"{type(self).__name__}.forward")

    if TYPE_CHECKING:
        __call__: _TypedCall = _TypedCall()
        apply: _TypedCall = _TypedCall()
        """`__call__` without the setup."""
    else:

        def __call__(self, x, rng, inference_mode=False, batch_axis_name=()):
            """Set up the module if necessary, and return `(forward(...), self)`."""
            if not self.initialized:
                self.setup(x)
                self.initialized = True
            return self.apply(x, rng, inference_mode, batch_axis_name)

        def apply(self, x, rng, inference_mode=False, batch_axis_name=()):
            """Return `(forward(...), self)`, for a module that is set up."""
            return self.forward(x, rng, inference_mode, batch_axis_name), self

    def filter(
        self, f: Callable[[Parameter], bool] = is_trainable_param, inverse: bool = False
    ) -> Self:
        """Return a copy in which the leaf parameters that `f` rejects have no data.

        With `inverse`, those that `f` accepts have none.

        Raises:
            AttributeError: the module is not initialized.
        """
        return self.filter_with_path(lambda _, parameter: f(parameter) != inverse)

    def partition(self, f: Callable[[Parameter], bool] = is_trainable_param) -> tuple[Self, Self]:
        """Return `(filter(f), filter(f, inverse=True))`."""
        return self.filter(f), self.filter(f, inverse=True)

    def filter_with_path(self, f: Callable[[KeyPath, Parameter], bool]) -> Self:
        """Return a copy in which the leaf parameters that `f(path, parameter)` rejects are empty.

        The path is a tuple of key entries, as `jax.tree_util.tree_map_with_path` gives them.

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
            if not f(path, leaf):
                parameter.data = None
            return parameter

        filtered: Self = jax.tree_util.tree_map_with_path(kept, self, is_leaf=is_leaf_param)
        return filtered

    def partition_with_path(self, f: Callable[[KeyPath, Parameter], bool]) -> tuple[Self, Self]:
        """Return the copy that `f` accepts and the copy that it rejects."""
        return self.filter_with_path(f), self.filter_with_path(lambda *args: not f(*args))

    def combine(self, *others: Self) -> Self:
        """Return a copy with each empty parameter taken from the first other module that has it.

        Static attributes are taken from this module.

        Raises:
            ValueError: the modules have different parameters.
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
        """Set an attribute: a child if it is a parameter or a module, else static."""
        object.__setattr__(self, name, value)
        _set_structure(self, None)

    def __delattr__(self, name: str) -> None:
        """Delete an attribute of a module that is not initialized.

        Raises:
            AttributeError: there is no such attribute, or the module is initialized.
        """
        if self.initialized:
            what, got = "an initialized module to keep its attributes", f"a deletion of {name!r}"
            raise AttributeError(expected(type(self).__name__, what, got, "set it to None"))
        object.__delattr__(self, name)
        _set_structure(self, None)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy the children, and static attributes only if they can be changed in place."""
        copied: Self = object.__new__(type(self))
        copied.__setstate__({
            n: copy.deepcopy(v, memo) if isinstance(v, Parameter | Module) else _copied(v)
            for n, v in vars(self).items()
        })
        return copied

    def __getstate__(self) -> dict[str, Any]:
        return dict(self.__dict__)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        _set_structure(self, None)

    def __repr__(self) -> str:
        return _repr(self)


def _misfit(module: Module, path: KeyPath, got: str) -> str:
    where = jax.tree_util.keystr(path) or "the same parameters"
    return expected(f"{type(module).__name__}.combine", f"{where} in the other module", got)


def _repr(node: Parameter | Module) -> str:
    attributes = ", ".join(f"{name}={value!r}" for name, value in node.__getstate__().items())
    return f"{type(node).__name__}({attributes})"


class _Structure:
    """The static part of a parameter or module: its attributes without the children.

    Attributes:
        names: the names of the children.
        attributes: every attribute in the order in which they were set, None for children.
        mutable: whether a static attribute can be changed in place. If so, attributes are copied
            here and again for each new instance, so that a structure never changes.
    """

    __slots__ = ("attributes", "mutable", "names")

    def __init__(self, attributes: dict[str, Any], names: tuple[str, ...]) -> None:
        static = {n: None if n in names else value for n, value in attributes.items()}
        self.names = names
        self.mutable = any(map(_is_mutable, static.values()))
        self.attributes = _copied(static) if self.mutable else static

    def __eq__(self, other: object) -> bool:
        if self is other or not isinstance(other, _Structure):
            return self is other
        return self.names == other.names and equal(self.attributes, other.attributes)

    def __hash__(self) -> int:
        return hash(self.names)

    def __repr__(self) -> str:
        return repr({n: v for n, v in self.attributes.items() if n not in self.names})


def _copied(value: Any) -> Any:
    """Return the value with its containers copied."""
    if isinstance(value, dict):
        mapping = copy.copy(value)
        mapping.update({key: _copied(entry) for key, entry in value.items()})
        return mapping
    if isinstance(value, tuple):
        entries = map(_copied, value)
        return type(value)(*entries) if hasattr(value, "_fields") else tuple(entries)
    if isinstance(value, list):
        sequence = copy.copy(value)
        sequence[:] = map(_copied, value)
        return sequence
    return copy.copy(value) if _is_mutable(value) else value


def _is_mutable(value: object) -> bool:
    if isinstance(value, tuple):
        return any(map(_is_mutable, value))
    return isinstance(value, list | dict | set | bytearray | np.ndarray)


_PLAIN = {t: _Structure({"trainable": t, "data": None}, ("data",)) for t in (True, False, None)}


def _flatten_parameter(parameter: Parameter) -> tuple[tuple[Any], _Structure]:
    if parameter.__dict__:
        return (parameter.data,), _Structure(parameter.__getstate__(), ("data",))
    return (parameter.data,), _PLAIN[parameter.trainable]


def _flatten_parameter_with_keys(parameter: Parameter) -> tuple[Any, _Structure]:
    children, structure = _flatten_parameter(parameter)
    return ((GetAttrKey("data"), *children),), structure


def _flatten_module(module: Module) -> tuple[list[Any], _Structure]:
    structure = module._structure
    attributes = module.__dict__
    if structure is None:
        names = tuple(n for n, value in attributes.items() if isinstance(value, Parameter | Module))
        structure = _Structure(attributes, names)
        if not structure.mutable:
            _set_structure(module, structure)
    children = []
    for name in structure.names:  # a comprehension would cost another call per module
        children.append(attributes[name])
    return children, structure


def _flatten_module_with_keys(module: Module) -> tuple[Any, _Structure]:
    children, structure = _flatten_module(module)
    return zip(map(GetAttrKey, structure.names), children, strict=True), structure


def _unflatten_parameter(structure: _Structure, children: Iterable[Any]) -> Parameter:
    parameter = object.__new__(Parameter)
    if len(structure.attributes) > 2:
        parameter.__setstate__(_copied(structure.attributes))
    else:
        parameter.trainable = structure.attributes["trainable"]
    (parameter.data,) = children
    return parameter


def _unflatten_module(cls: type[M], structure: _Structure, children: Iterable[Any]) -> M:
    module = object.__new__(cls)
    static = structure.attributes
    attributes = _copied(static) if structure.mutable else static.copy()
    if structure.names:
        attributes.update(zip(structure.names, children))  # strict= would take as long as the rest
    _set_attributes(module, attributes)
    _set_structure(module, None if structure.mutable else structure)
    return module


# What object.__setattr__ calls: every step makes each module anew, so speed matters here.
_set_attributes = Module.__dict__["__dict__"].__set__
_set_structure = Module.__dict__["_structure"].__set__

jax.tree_util.register_pytree_with_keys(
    Parameter, _flatten_parameter_with_keys, _unflatten_parameter, _flatten_parameter
)
