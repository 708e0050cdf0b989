"""What a type checker knows of the state of several layers in a combinator.

Their variables are a tuple with an entry for each layer: the variables of its `State`, or all
of its state if that is no `State`. No type says that of a tuple of any states, so `Variables`
is a class for checkers, with the rule for each place; at run time it is `tuple`.
"""

from __future__ import annotations  # the types below exist for checkers only

from typing import TYPE_CHECKING, Any, Generic, Literal, SupportsIndex, TypeAlias, TypeVar, overload

from mlax.combinators.child import Child
from mlax.pair import State

__all__ = ["TupleState", "Variables"]

S = TypeVar("S")
S_co = TypeVar("S_co", covariant=True)
V = TypeVar("V")

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
