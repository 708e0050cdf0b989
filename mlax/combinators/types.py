"""What a type checker knows of a composition of several layers.

`series`, `parallel` and `branch` have an overload for each number of layers up to eight, in
which layer i has params `P{i}` and state `S{i}`, and one for more, in which it is `L{i}`: if
a list of layers fits several overloads, mypy takes the first only if each of them says of the
list, solved for its variables, the same.

The variables of the layers are a tuple with an entry for each: the variables of its `State`,
or all of its state if that is no `State`. No type says so for a tuple of any states. Therefore
`Variables` is a class for checkers, with a rule for each place; at run time it is `tuple`.
"""

from __future__ import annotations  # the types below exist for checkers only

from typing import TYPE_CHECKING, Any, Generic, Literal, SupportsIndex, TypeAlias, TypeVar, overload

from mlax.combinators.child import AnyLayer, Child
from mlax.pair import Layer, State

S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)
V = TypeVar("V")
P1 = TypeVar("P1")
P2 = TypeVar("P2")
P3 = TypeVar("P3")
P4 = TypeVar("P4")
P5 = TypeVar("P5")
P6 = TypeVar("P6")
P7 = TypeVar("P7")
P8 = TypeVar("P8")
S1 = TypeVar("S1")
S2 = TypeVar("S2")
S3 = TypeVar("S3")
S4 = TypeVar("S4")
S5 = TypeVar("S5")
S6 = TypeVar("S6")
S7 = TypeVar("S7")
S8 = TypeVar("S8")
L1 = TypeVar("L1", bound=AnyLayer)
L2 = TypeVar("L2", bound=AnyLayer)
L3 = TypeVar("L3", bound=AnyLayer)
L4 = TypeVar("L4", bound=AnyLayer)
L5 = TypeVar("L5", bound=AnyLayer)
L6 = TypeVar("L6", bound=AnyLayer)
L7 = TypeVar("L7", bound=AnyLayer)
L8 = TypeVar("L8", bound=AnyLayer)
L9 = TypeVar("L9", bound=AnyLayer)
L10 = TypeVar("L10", bound=AnyLayer)

if TYPE_CHECKING:

    class Variables(tuple[Any, ...], Generic[S_co]):
        """The variables of layers whose states are the entries of the tuple type `S_co`.

        One rule for each of eight places; where no layer has variables, they are `()`.
        """

        @overload
        def __getitem__(
            self: Variables[tuple[State[V, Any], *tuple[Any, ...]]], index: Literal[0], /
        ) -> V: ...
        @overload
        def __getitem__(
            self: Variables[tuple[Any, State[V, Any], *tuple[Any, ...]]],
            index: Literal[1],
            /,
        ) -> V: ...
        @overload
        def __getitem__(
            self: Variables[tuple[Any, Any, State[V, Any], *tuple[Any, ...]]],
            index: Literal[2],
            /,
        ) -> V: ...
        @overload
        def __getitem__(
            self: Variables[tuple[Any, Any, Any, State[V, Any], *tuple[Any, ...]]],
            index: Literal[3],
            /,
        ) -> V: ...
        @overload
        def __getitem__(
            self: Variables[tuple[Any, Any, Any, Any, State[V, Any], *tuple[Any, ...]]],
            index: Literal[4],
            /,
        ) -> V: ...
        @overload
        def __getitem__(
            self: Variables[tuple[Any, Any, Any, Any, Any, State[V, Any], *tuple[Any, ...]]],
            index: Literal[5],
            /,
        ) -> V: ...
        @overload
        def __getitem__(
            self: Variables[tuple[Any, Any, Any, Any, Any, Any, State[V, Any], *tuple[Any, ...]]],
            index: Literal[6],
            /,
        ) -> V: ...
        @overload
        def __getitem__(
            self: Variables[
                tuple[Any, Any, Any, Any, Any, Any, Any, State[V, Any], *tuple[Any, ...]]
            ],
            index: Literal[7],
            /,
        ) -> V: ...
        @overload
        def __getitem__(self, index: SupportsIndex, /) -> Any: ...
        @overload
        def __getitem__(self, index: slice[Any, Any, Any], /) -> tuple[Any, ...]: ...
        def __getitem__(  # pyright: ignore[reportIncompatibleMethodOverride]  # mypy agrees
            self, index: SupportsIndex | slice[Any, Any, Any], /
        ) -> Any:
            """Return the variables of the layer at that place, typed if its state is a `State`."""

else:
    Variables = tuple

TupleState: TypeAlias = State[Variables[S], tuple[Child, ...]]
"""The state of layers without names, whose own states are the entries of the tuple type S."""

if TYPE_CHECKING:

    class ManyLayers(Layer[Any, TupleState[Any], Any, Any]):
        """A composition of more than eight layers, or of a list of them.

        It is a class of its own because of mypy: where layers hold an Any, all overloads fit a
        list of them, and mypy makes a class without type arguments of results that differ in
        these alone, which is no tuple any more. Of different classes it makes Any.
        """

        __slots__ = ()

else:
    ManyLayers = Layer
