"""What a type checker knows about a composition of several layers.

The types of `series`, `parallel`, `branch` and `residual`. The first three have an overload for
each number of layers up to eight, in which layer i has params `P{i}` and state `S{i}`, and one for
more layers, in which layer i is `L{i}`: if a list of layers matches several overloads, mypy picks
the first only if all of them, once solved, give the list the same type.

The params of named layers are a dict[str, Any]; their x and y are known if all layers agree on the
types. Where they don't, x and y are what is declared, Any by default: if they were always Any, two
overloads would differ for a layer that holds an Any, and mypy would not return either.

The variables of a composition are a tuple with one entry for each layer: the variables of its
`State`, or its whole state if that is not a `State`. No type expresses this for arbitrary states,
so `Variables` is a class for type checkers with a rule for each index; at run time it is `tuple`.
"""

# L1 to L10 are used once each, for the reason above:
# pyright: reportInvalidTypeVarUse=false

from __future__ import annotations  # the types below exist only for type checkers

from typing import (
    TYPE_CHECKING, Any, Generic, Literal, Never, Protocol, SupportsIndex, TypeAlias, TypeVar,
    overload,
)

from jax import Array

from mlax.arguments import AnyLayer
from mlax.combinators.wiring import Wired, WiredConfig
from mlax.layer import Layer, State
from mlax.layer import P, S, S_co, V, V_co, X, Y

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
X1 = TypeVar("X1")
X2 = TypeVar("X2")
X3 = TypeVar("X3")
X4 = TypeVar("X4")
X5 = TypeVar("X5")
X6 = TypeVar("X6")
X7 = TypeVar("X7")
X8 = TypeVar("X8")
X9 = TypeVar("X9")
Y1 = TypeVar("Y1")
Y2 = TypeVar("Y2")
Y3 = TypeVar("Y3")
Y4 = TypeVar("Y4")
Y5 = TypeVar("Y5")
Y6 = TypeVar("Y6")
Y7 = TypeVar("Y7")
Y8 = TypeVar("Y8")
L = TypeVar("L", bound=AnyLayer)
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
    from typing_extensions import TypeVar as WithDefault

    AnyX = WithDefault("AnyX", default=Any)
    AnyY = WithDefault("AnyY", default=Any)

    class Variables(tuple[Any, ...], Generic[S_co]):
        """The variables of layers whose states are the entries of the tuple type `S_co`.

        There is a rule for each of eight indices; if no layer has variables, it is `()`.
        """

        # fmt: off
        @overload
        def __getitem__(
            self: Variables[tuple[State[V, Any], *tuple[Any, ...]]], index: Literal[0], /
        ) -> V: ...
        @overload
        def __getitem__(
            self: Variables[tuple[Any, State[V, Any], *tuple[Any, ...]]], index: Literal[1], /
        ) -> V: ...
        @overload
        def __getitem__(
            self: Variables[tuple[Any, Any, State[V, Any], *tuple[Any, ...]]], index: Literal[2], /
        ) -> V: ...
        @overload
        def __getitem__(
            self: Variables[tuple[Any, Any, Any, State[V, Any], *tuple[Any, ...]]],
            index: Literal[3], /
        ) -> V: ...
        @overload
        def __getitem__(
            self: Variables[tuple[Any, Any, Any, Any, State[V, Any], *tuple[Any, ...]]],
            index: Literal[4], /
        ) -> V: ...
        @overload
        def __getitem__(
            self: Variables[tuple[Any, Any, Any, Any, Any, State[V, Any], *tuple[Any, ...]]],
            index: Literal[5], /
        ) -> V: ...
        @overload
        def __getitem__(
            self: Variables[tuple[Any, Any, Any, Any, Any, Any, State[V, Any], *tuple[Any, ...]]],
            index: Literal[6], /
        ) -> V: ...
        @overload
        def __getitem__(
            self: Variables[
                tuple[Any, Any, Any, Any, Any, Any, Any, State[V, Any], *tuple[Any, ...]]
            ],
            index: Literal[7], /
        ) -> V: ...
        # fmt: on
        @overload
        def __getitem__(self, index: SupportsIndex, /) -> Any: ...
        @overload
        def __getitem__(self, index: slice[Any, Any, Any], /) -> tuple[Any, ...]: ...
        def __getitem__(  # pyright: ignore[reportIncompatibleMethodOverride]  # mypy agrees
            self, index: SupportsIndex | slice[Any, Any, Any], /
        ) -> Any:
            """Return the variables of the layer at this index, typed if its state is a `State`."""

else:
    Variables = tuple

TupleState: TypeAlias = State[Variables[S], WiredConfig]
"""The state of unnamed layers, whose own states are the entries of the tuple type S."""

DictState: TypeAlias = State[dict[str, Any], WiredConfig]
"""The state of named layers."""

if TYPE_CHECKING:

    class ManyLayers(Layer[Any, TupleState[Any], Any, Any]):
        """A composition of more than eight layers, or of a list of layers.

        It is a separate class because of mypy: if layers hold an Any, all overloads match a list
        of them. If their results differ only in type arguments, mypy joins them to a class without
        any, which is no longer a tuple; if they are different classes, it infers Any.
        """

    class Otherwise(Protocol[S_co, V_co]):
        """The type of no object, but of every object if type arguments are left out.

        If no overload matches, mypy leaves them out and explains why the first that matches then
        does not, rather than listing all of them. (For a Never it doesn't explain the protocol.)
        """

        def __str__(self) -> S_co | V_co: ...  # type: ignore[override]  # that it is no str

    NoLayer: TypeAlias = Otherwise[
        Literal["call pairs, put functions into f, unpack lists"], Never
    ]
    Entry: TypeAlias = Layer[P, S, X, Y] | NoLayer
    One: TypeAlias = L | NoLayer

    # If a layer holds an Any, mypy picks the first matching overload only if all of them have the
    # same result, as `Layer[Any, Any, X, Y]` does. It accepts any layers (for several types, X is
    # Never and Y is object) where pyright does not.
    MYPY = False

else:
    ManyLayers = Layer


class Series(Wired[Any, State[Any, WiredConfig], Any, Any]):
    """The type of `series`."""

    if TYPE_CHECKING:
        # fmt: off
        @overload
        def __call__(self, /) -> Layer[Any, State[Any, WiredConfig], Any, Any]: ...
        @overload
        def __call__(
            self, l1: Entry[P1, S1, X1, X2], /,
        ) -> Layer[tuple[P1], TupleState[tuple[S1]], X1, X2]: ...
        @overload
        def __call__(
            self, l1: Entry[P1, S1, X1, X2], l2: Entry[P2, S2, X2, X3], /,
        ) -> Layer[tuple[P1, P2], TupleState[tuple[S1, S2]], X1, X3]: ...
        @overload
        def __call__(
            self, l1: Entry[P1, S1, X1, X2], l2: Entry[P2, S2, X2, X3],
            l3: Entry[P3, S3, X3, X4], /,
        ) -> Layer[tuple[P1, P2, P3], TupleState[tuple[S1, S2, S3]], X1, X4]: ...
        @overload
        def __call__(
            self, l1: Entry[P1, S1, X1, X2], l2: Entry[P2, S2, X2, X3], l3: Entry[P3, S3, X3, X4],
            l4: Entry[P4, S4, X4, X5], /,
        ) -> Layer[tuple[P1, P2, P3, P4], TupleState[tuple[S1, S2, S3, S4]], X1, X5]: ...
        @overload
        def __call__(
            self, l1: Entry[P1, S1, X1, X2], l2: Entry[P2, S2, X2, X3], l3: Entry[P3, S3, X3, X4],
            l4: Entry[P4, S4, X4, X5], l5: Entry[P5, S5, X5, X6], /,
        ) -> Layer[tuple[P1, P2, P3, P4, P5], TupleState[tuple[S1, S2, S3, S4, S5]], X1, X6]: ...
        @overload
        def __call__(
            self, l1: Entry[P1, S1, X1, X2], l2: Entry[P2, S2, X2, X3], l3: Entry[P3, S3, X3, X4],
            l4: Entry[P4, S4, X4, X5], l5: Entry[P5, S5, X5, X6], l6: Entry[P6, S6, X6, X7], /,
        ) -> Layer[
            tuple[P1, P2, P3, P4, P5, P6], TupleState[tuple[S1, S2, S3, S4, S5, S6]], X1, X7,
        ]: ...
        @overload
        def __call__(
            self, l1: Entry[P1, S1, X1, X2], l2: Entry[P2, S2, X2, X3], l3: Entry[P3, S3, X3, X4],
            l4: Entry[P4, S4, X4, X5], l5: Entry[P5, S5, X5, X6], l6: Entry[P6, S6, X6, X7],
            l7: Entry[P7, S7, X7, X8], /,
        ) -> Layer[
            tuple[P1, P2, P3, P4, P5, P6, P7], TupleState[tuple[S1, S2, S3, S4, S5, S6, S7]],
            X1, X8,
        ]: ...
        @overload
        def __call__(
            self, l1: Entry[P1, S1, X1, X2], l2: Entry[P2, S2, X2, X3], l3: Entry[P3, S3, X3, X4],
            l4: Entry[P4, S4, X4, X5], l5: Entry[P5, S5, X5, X6], l6: Entry[P6, S6, X6, X7],
            l7: Entry[P7, S7, X7, X8], l8: Entry[P8, S8, X8, X9], /,
        ) -> Layer[
            tuple[P1, P2, P3, P4, P5, P6, P7, P8],
            TupleState[tuple[S1, S2, S3, S4, S5, S6, S7, S8]], X1, X9,
        ]: ...
        @overload
        def __call__(
            self, l1: One[L1], l2: One[L2], l3: One[L3], l4: One[L4], l5: One[L5], l6: One[L6],
            l7: One[L7], l8: One[L8], l9: One[L9], /, *layers: One[L10],
        ) -> ManyLayers: ...
        @overload
        def __call__(
            self, /, **named: Entry[Any, Any, X, X]
        ) -> Layer[dict[str, Any], DictState, X, X]: ...
        @overload
        def __call__(
            self, /, **named: Entry[Any, Any, X, Y]
        ) -> Layer[dict[str, Any], DictState, AnyX, AnyY]: ...
        if not MYPY:
            @overload
            def __call__(
                self, /, **named: AnyLayer
            ) -> Layer[dict[str, Any], DictState, Any, Any]: ...
        # fmt: on

    def __call__(self, /, *layers: Any, **named: Any) -> AnyLayer:
        """Return the layers in series."""
        return self.bind(*layers, **named)


class Parallel(Wired[Any, State[Any, WiredConfig], Any, Any]):
    """The type of `parallel`."""

    if TYPE_CHECKING:
        # fmt: off
        @overload
        def __call__(self, /) -> Layer[Any, State[Any, WiredConfig], Any, Any]: ...
        @overload
        def __call__(
            self, l1: Entry[P1, S1, X1, Y1], /,
        ) -> Layer[tuple[P1], TupleState[tuple[S1]], tuple[X1], tuple[Y1]]: ...
        @overload
        def __call__(
            self, l1: Entry[P1, S1, X1, Y1], l2: Entry[P2, S2, X2, Y2], /,
        ) -> Layer[tuple[P1, P2], TupleState[tuple[S1, S2]], tuple[X1, X2], tuple[Y1, Y2]]: ...
        @overload
        def __call__(
            self, l1: Entry[P1, S1, X1, Y1], l2: Entry[P2, S2, X2, Y2],
            l3: Entry[P3, S3, X3, Y3], /,
        ) -> Layer[
            tuple[P1, P2, P3], TupleState[tuple[S1, S2, S3]], tuple[X1, X2, X3], tuple[Y1, Y2, Y3],
        ]: ...
        @overload
        def __call__(
            self, l1: Entry[P1, S1, X1, Y1], l2: Entry[P2, S2, X2, Y2], l3: Entry[P3, S3, X3, Y3],
            l4: Entry[P4, S4, X4, Y4], /,
        ) -> Layer[
            tuple[P1, P2, P3, P4], TupleState[tuple[S1, S2, S3, S4]],
            tuple[X1, X2, X3, X4], tuple[Y1, Y2, Y3, Y4],
        ]: ...
        @overload
        def __call__(
            self, l1: Entry[P1, S1, X1, Y1], l2: Entry[P2, S2, X2, Y2], l3: Entry[P3, S3, X3, Y3],
            l4: Entry[P4, S4, X4, Y4], l5: Entry[P5, S5, X5, Y5], /,
        ) -> Layer[
            tuple[P1, P2, P3, P4, P5], TupleState[tuple[S1, S2, S3, S4, S5]],
            tuple[X1, X2, X3, X4, X5], tuple[Y1, Y2, Y3, Y4, Y5],
        ]: ...
        @overload
        def __call__(
            self, l1: Entry[P1, S1, X1, Y1], l2: Entry[P2, S2, X2, Y2], l3: Entry[P3, S3, X3, Y3],
            l4: Entry[P4, S4, X4, Y4], l5: Entry[P5, S5, X5, Y5], l6: Entry[P6, S6, X6, Y6], /,
        ) -> Layer[
            tuple[P1, P2, P3, P4, P5, P6], TupleState[tuple[S1, S2, S3, S4, S5, S6]],
            tuple[X1, X2, X3, X4, X5, X6], tuple[Y1, Y2, Y3, Y4, Y5, Y6],
        ]: ...
        @overload
        def __call__(
            self, l1: Entry[P1, S1, X1, Y1], l2: Entry[P2, S2, X2, Y2], l3: Entry[P3, S3, X3, Y3],
            l4: Entry[P4, S4, X4, Y4], l5: Entry[P5, S5, X5, Y5], l6: Entry[P6, S6, X6, Y6],
            l7: Entry[P7, S7, X7, Y7], /,
        ) -> Layer[
            tuple[P1, P2, P3, P4, P5, P6, P7], TupleState[tuple[S1, S2, S3, S4, S5, S6, S7]],
            tuple[X1, X2, X3, X4, X5, X6, X7], tuple[Y1, Y2, Y3, Y4, Y5, Y6, Y7],
        ]: ...
        @overload
        def __call__(
            self, l1: Entry[P1, S1, X1, Y1], l2: Entry[P2, S2, X2, Y2], l3: Entry[P3, S3, X3, Y3],
            l4: Entry[P4, S4, X4, Y4], l5: Entry[P5, S5, X5, Y5], l6: Entry[P6, S6, X6, Y6],
            l7: Entry[P7, S7, X7, Y7], l8: Entry[P8, S8, X8, Y8], /,
        ) -> Layer[
            tuple[P1, P2, P3, P4, P5, P6, P7, P8],
            TupleState[tuple[S1, S2, S3, S4, S5, S6, S7, S8]],
            tuple[X1, X2, X3, X4, X5, X6, X7, X8], tuple[Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y8],
        ]: ...
        @overload
        def __call__(
            self, l1: One[L1], l2: One[L2], l3: One[L3], l4: One[L4], l5: One[L5], l6: One[L6],
            l7: One[L7], l8: One[L8], l9: One[L9], /, *layers: One[L10],
        ) -> ManyLayers: ...
        @overload
        def __call__(
            self, /, **named: Entry[Any, Any, X, X]
        ) -> Layer[dict[str, Any], DictState, dict[str, X], dict[str, X]]: ...
        @overload
        def __call__(
            self, /, **named: Entry[Any, Any, X, Y]
        ) -> Layer[dict[str, Any], DictState, dict[str, AnyX], dict[str, AnyY]]: ...
        if not MYPY:
            @overload
            def __call__(
                self, /, **named: AnyLayer
            ) -> Layer[dict[str, Any], DictState, dict[str, Any], dict[str, Any]]: ...
        # fmt: on

    def __call__(self, /, *layers: Any, **named: Any) -> AnyLayer:
        """Return the layers side by side."""
        return self.bind(*layers, **named)


class Branch(Wired[Any, State[Any, WiredConfig], Any, Any]):
    """The type of `branch`."""

    if TYPE_CHECKING:
        # fmt: off
        @overload
        def __call__(self, /) -> Layer[Any, State[Any, WiredConfig], Any, Any]: ...
        @overload
        def __call__(
            self, l1: Entry[P1, S1, X, Y1], /,
        ) -> Layer[tuple[P1], TupleState[tuple[S1]], X, tuple[Y1]]: ...
        @overload
        def __call__(
            self, l1: Entry[P1, S1, X, Y1], l2: Entry[P2, S2, X, Y2], /,
        ) -> Layer[tuple[P1, P2], TupleState[tuple[S1, S2]], X, tuple[Y1, Y2]]: ...
        @overload
        def __call__(
            self, l1: Entry[P1, S1, X, Y1], l2: Entry[P2, S2, X, Y2], l3: Entry[P3, S3, X, Y3], /,
        ) -> Layer[tuple[P1, P2, P3], TupleState[tuple[S1, S2, S3]], X, tuple[Y1, Y2, Y3]]: ...
        @overload
        def __call__(
            self, l1: Entry[P1, S1, X, Y1], l2: Entry[P2, S2, X, Y2], l3: Entry[P3, S3, X, Y3],
            l4: Entry[P4, S4, X, Y4], /,
        ) -> Layer[
            tuple[P1, P2, P3, P4], TupleState[tuple[S1, S2, S3, S4]], X, tuple[Y1, Y2, Y3, Y4],
        ]: ...
        @overload
        def __call__(
            self, l1: Entry[P1, S1, X, Y1], l2: Entry[P2, S2, X, Y2], l3: Entry[P3, S3, X, Y3],
            l4: Entry[P4, S4, X, Y4], l5: Entry[P5, S5, X, Y5], /,
        ) -> Layer[
            tuple[P1, P2, P3, P4, P5], TupleState[tuple[S1, S2, S3, S4, S5]],
            X, tuple[Y1, Y2, Y3, Y4, Y5],
        ]: ...
        @overload
        def __call__(
            self, l1: Entry[P1, S1, X, Y1], l2: Entry[P2, S2, X, Y2], l3: Entry[P3, S3, X, Y3],
            l4: Entry[P4, S4, X, Y4], l5: Entry[P5, S5, X, Y5], l6: Entry[P6, S6, X, Y6], /,
        ) -> Layer[
            tuple[P1, P2, P3, P4, P5, P6], TupleState[tuple[S1, S2, S3, S4, S5, S6]],
            X, tuple[Y1, Y2, Y3, Y4, Y5, Y6],
        ]: ...
        @overload
        def __call__(
            self, l1: Entry[P1, S1, X, Y1], l2: Entry[P2, S2, X, Y2], l3: Entry[P3, S3, X, Y3],
            l4: Entry[P4, S4, X, Y4], l5: Entry[P5, S5, X, Y5], l6: Entry[P6, S6, X, Y6],
            l7: Entry[P7, S7, X, Y7], /,
        ) -> Layer[
            tuple[P1, P2, P3, P4, P5, P6, P7], TupleState[tuple[S1, S2, S3, S4, S5, S6, S7]],
            X, tuple[Y1, Y2, Y3, Y4, Y5, Y6, Y7],
        ]: ...
        @overload
        def __call__(
            self, l1: Entry[P1, S1, X, Y1], l2: Entry[P2, S2, X, Y2], l3: Entry[P3, S3, X, Y3],
            l4: Entry[P4, S4, X, Y4], l5: Entry[P5, S5, X, Y5], l6: Entry[P6, S6, X, Y6],
            l7: Entry[P7, S7, X, Y7], l8: Entry[P8, S8, X, Y8], /,
        ) -> Layer[
            tuple[P1, P2, P3, P4, P5, P6, P7, P8],
            TupleState[tuple[S1, S2, S3, S4, S5, S6, S7, S8]],
            X, tuple[Y1, Y2, Y3, Y4, Y5, Y6, Y7, Y8],
        ]: ...
        @overload
        def __call__(
            self, l1: One[L1], l2: One[L2], l3: One[L3], l4: One[L4], l5: One[L5], l6: One[L6],
            l7: One[L7], l8: One[L8], l9: One[L9], /, *layers: One[L10],
        ) -> ManyLayers: ...
        @overload
        def __call__(
            self, /, **named: Entry[Any, Any, X, X]
        ) -> Layer[dict[str, Any], DictState, X, dict[str, X]]: ...
        @overload
        def __call__(
            self, /, **named: Entry[Any, Any, X, Y]
        ) -> Layer[dict[str, Any], DictState, AnyX, dict[str, AnyY]]: ...
        if not MYPY:
            @overload
            def __call__(
                self, /, **named: AnyLayer
            ) -> Layer[dict[str, Any], DictState, Any, dict[str, Any]]: ...
        # fmt: on

    def __call__(self, /, *layers: Any, **named: Any) -> AnyLayer:
        """Return the layers applied to one input."""
        return self.bind(*layers, **named)


class Residual(Wired[Any, State[Any, WiredConfig], Any, Any]):
    """The type of `residual`."""

    if TYPE_CHECKING:
        # fmt: off
        @overload
        def __call__(
            self, layer: Entry[P1, S1, Array, Array], shortcut: None = None, *, at: None = None
        ) -> Layer[tuple[P1], TupleState[tuple[S1]], Array, Array]: ...
        @overload
        def __call__(
            self, layer: Entry[P1, S1, X, X], shortcut: None = None, *, at: int | str
        ) -> Layer[tuple[P1], TupleState[tuple[S1]], X, X]: ...
        @overload
        def __call__(
            self, layer: Entry[P1, S1, Array, Array], shortcut: Layer[P2, S2, Array, Array], *,
            at: None = None,
        ) -> Layer[tuple[P1, P2], TupleState[tuple[S1, S2]], Array, Array]: ...
        @overload
        def __call__(
            self, layer: Entry[P1, S1, X, Y], shortcut: Layer[P2, S2, X, Y], *, at: int | str
        ) -> Layer[tuple[P1, P2], TupleState[tuple[S1, S2]], X, Y]: ...
        # fmt: on

    def __call__(
        self, layer: Any, shortcut: AnyLayer | None = None, *, at: int | str | None = None
    ) -> AnyLayer:
        """Return the layer with a shortcut around it."""
        return self.bind(layer, shortcut, at=at)
