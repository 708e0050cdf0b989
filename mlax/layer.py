"""The contract of mlax: a layer is a pair of pure functions.

    init(rng, x, **hparams)                                        -> (params, state)
    apply(params, state, x, rng, inference_mode, batch_axis_name)  -> (y, state)

`Init` and `Apply` state the contract, `State` holds everything that is not trained, and
`Layer` is a pair with its hyperparameters bound. `mlax.layer` and `mlax.stateless`, in
mlax/pair.py, make layers from plain functions.
"""

import copy
import dataclasses
import inspect
from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, Self, TypeAlias, TypeVar
from typing import overload, runtime_checkable

import jax
import numpy as np
from jax.tree_util import GetAttrKey

from mlax import equality
from mlax.errors import expected

__all__ = [
    "Apply", "ApplyWithRng", "AxisName", "Init", "Key", "Layer", "Shaped", "State", "needs_rng",
]

Key: TypeAlias = jax.Array
"""A PRNG key: typed (`jax.random.key`) or raw (`jax.random.PRNGKey`)."""

AxisName: TypeAlias = Hashable | tuple[Hashable, ...]
"""The name of a mapped axis, or a tuple of such names; `()` for no axis."""

# Of params, state, variables, config, x and y, here and in other modules.
P = TypeVar("P")
S = TypeVar("S")
P_co = TypeVar("P_co", covariant=True)
P_contra = TypeVar("P_contra", contravariant=True)
S_co = TypeVar("S_co", covariant=True)
V = TypeVar("V")
V_co = TypeVar("V_co", covariant=True)
C = TypeVar("C", bound=Hashable)
C_co = TypeVar("C_co", bound=Hashable, covariant=True)
X = TypeVar("X")
X_contra = TypeVar("X_contra", contravariant=True)
Y = TypeVar("Y")
Y_co = TypeVar("Y_co", covariant=True)


@runtime_checkable
class Shaped(Protocol):
    """What `init` may read of an array: a `jax.Array` or a `jax.ShapeDtypeStruct`."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the elements."""
        ...


@runtime_checkable
class Init(Protocol[P_co, S_co]):
    """The first function of a layer: makes parameters and state."""

    def __call__(self, rng: Key, x: Any, /) -> tuple[P_co, S_co]:
        """Return `(params, state)` for inputs like `x`.

        Args:
            rng: PRNG key. Equal keys give equal parameters.
            x: an input of `apply`, with any `jax.Array` replaced by a `Shaped`: inside a
                composition there are shapes and dtypes but no values. (Typed as Any, since
                no type can say "the shapes of X".)
        """
        ...


@runtime_checkable
class Apply(Protocol[P_contra, S, X_contra, Y_co]):
    """The second function of a layer: computes the output and the next state."""

    def __call__(
        self, params: P_contra, state: S, x: X_contra, /, rng: Key | None = None,
        inference_mode: bool = False, batch_axis_name: AxisName = (),
    ) -> tuple[Y_co, S]:
        """Return `(y, state)`.

        Args:
            params: the parameters that `init` returned, or an optimizer's update of them.
            state: the state that `init` or the previous `apply` returned.
            x: one example. A batch goes through `jax.vmap` or `mlax.batched`.
            rng: PRNG key. Required in training by layers whose `needs_rng` is True.
            inference_mode: False in training. In inference no key is needed and `state` is
                returned unchanged.
            batch_axis_name: name, or tuple of names, of the axes mapped by `jax.vmap`,
                `jax.shard_map` or `jax.pmap` that together form the batch. Layers that
                compute statistics reduce over these axes too.
        """
        ...


@runtime_checkable
class ApplyWithRng(Protocol[P_contra, S, X_contra, Y_co]):
    """An `Apply` whose `rng` has no default: the layer needs a key."""

    def __call__(
        self, params: P_contra, state: S, x: X_contra, /, rng: Any,
        inference_mode: bool = False, batch_axis_name: AxisName = (),
    ) -> tuple[Y_co, S]:
        """Return `(y, state)`: see `Apply`. (rng is Any: it may or may not accept None.)"""
        ...


def needs_rng(apply: Callable[..., object]) -> bool:
    """Return whether a layer with this `apply` needs a key in training.

    It does if `apply` belongs to such a layer of mlax, even when wrapped by `jax.jit`,
    `functools.wraps` or `functools.partial`. For other functions the signature decides: `rng`
    has no default, or is only covered by `*args`.
    """
    marked = getattr(apply, "needs_rng", None)
    if isinstance(marked, bool):
        return marked
    inner = getattr(apply, "__wrapped__", None) or getattr(apply, "func", None)
    bound = getattr(apply, "keywords", {})
    if callable(inner) and "rng" not in bound and not getattr(apply, "args", ()):
        return needs_rng(inner)
    parameters = inspect.signature(apply).parameters
    by_place = [p for p in parameters.values() if p.kind is not p.KEYWORD_ONLY][3:4]
    if "rng" in parameters or by_place and by_place[0].kind is by_place[0].POSITIONAL_OR_KEYWORD:
        rng = parameters["rng"] if "rng" in parameters else by_place[0]
        return rng.default is inspect.Parameter.empty
    return any(p.kind is p.VAR_POSITIONAL for p in parameters.values())


class _LayerFields(NamedTuple, Generic[P, S, X_contra, Y_co]):
    init: Init[P, S]
    apply: Apply[P, S, X_contra, Y_co]


class Layer(_LayerFields[P, S, X_contra, Y_co]):
    """A pair of functions that fulfils the contract: `init, apply = layer`.

    Any two functions will do, with any pytree as state. `init` is given shapes and dtypes
    (`mlax.Shaped`), not values.

    Args:
        init: `init(rng, x) -> (params, state)`, see `mlax.Init`.
        apply: `apply(params, state, x, rng, inference_mode, batch_axis_name) -> (y, state)`,
            see `mlax.Apply`.
        needs_rng: whether the layer needs a key in training. None infers it from `apply`: it
            does if `rng` has no default, see `mlax.needs_rng`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> def init(rng, x):
    ...     return {"gain": jnp.ones(x.shape)}, ()
    >>> def apply(params, state, x, rng=None, inference_mode=False, batch_axis_name=()):
    ...     return params["gain"] * x, state
    >>> gate = mlax.Layer(init, apply)
    >>> params, state = mlax.series(gate, mlax.bias(-1)).init(jax.random.key(0), jnp.ones(3))
    """

    needs_rng: bool
    """Whether the layer needs a key in training."""

    if TYPE_CHECKING:

        @overload
        def __new__(
            cls, init: Init[P, S], apply: Apply[P, S, X_contra, Y_co], needs_rng: bool | None = None
        ) -> Self: ...
        @overload
        def __new__(
            cls, init: Init[P, S], apply: ApplyWithRng[P, S, X_contra, Y_co],
            needs_rng: bool | None = None,
        ) -> Self: ...
        def __new__(cls, init: Any, apply: Any, needs_rng: bool | None = None) -> Self:
            """Make a layer from two functions."""
            ...

        def _takes(self, y: Y_co, /) -> None:  # type: ignore[misc]  # used by type checkers only
            """Let `mlax.switch` demand layers with outputs of one type."""

    else:

        def __new__(cls, init, apply, needs_rng=None):
            """Make a layer from two functions."""
            ...
            for name, function in (("init", init), ("apply", apply)):
                if not callable(function):
                    is_array = isinstance(function, jax.Array)
                    got = "an array" if is_array else type(function).__name__
                    raise TypeError(expected("Layer", f"{name} to be a function", got))
            layer = tuple.__new__(cls, (init, apply))
            equality.remember((init, apply))
            layer.needs_rng = _needs_rng(apply) if needs_rng is None else bool(needs_rng)
            return layer

        def __call__(self, *args, **kwargs):
            """Raise an error: a layer is a pair of functions, not a function."""
            owner = str(getattr(self.init, "__name__", "Layer"))
            what = "a call of layer.init(rng, x) or layer.apply(params, state, x)"
            raise TypeError(expected(owner, what, "a call of the layer itself"))

    def __getnewargs__(self) -> Any:  # a named tuple declares a tuple of its fields
        return self.init, self.apply, self.needs_rng

    def __eq__(self, other: object) -> bool:
        """Return whether the functions are equal: see `mlax.equality`."""
        if isinstance(other, Layer) and self.needs_rng != other.needs_rng:
            return False
        return isinstance(other, tuple) and equality.equal(tuple(self), tuple(other))

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        return equality.hash_of(tuple(self))

    def __repr__(self) -> str:
        """Return the expression that makes the layer."""
        if getattr(self.init, "is_bound", False):
            return repr(self.init)
        return f"Layer({equality.source(self.init)}, {equality.source(self.apply)})"


_needs_rng = needs_rng


class Static:
    """A config as part of a tree structure: equal if its parts and their types are equal.

    jax compares structures on every call of a jitted function, by identity first. Two configs
    that compared equal are merged into one object, so that they are compared in full only once.
    """

    __slots__ = ("config", "hash")

    config: Hashable
    """The config."""
    hash: int | None
    """Its hash, once it has been asked for."""

    def __init__(self, config: Hashable) -> None:
        self.config = config
        self.hash = None
        for entry in config if isinstance(config, tuple) else (config,):
            if callable(entry):  # others are those of layers, which know them
                equality.remember(entry)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Static):
            return False
        same = self.config is other.config or equality.equal(self.config, other.config)
        if same:
            self.config = other.config
        return same

    def __hash__(self) -> int:
        if self.hash is None:
            self.hash = equality.hash_of(self.config)
        return self.hash

    def __repr__(self) -> str:
        text = equality.source(self.config)
        return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."


@dataclasses.dataclass(frozen=True, slots=True, eq=False, repr=False)
class State(Generic[V_co, C_co]):
    """What `apply` needs besides parameters and input, as one pytree node.

    Attributes:
        variables: a pytree of arrays that `apply` may replace (running statistics, caches);
            they are the leaves. `()` if there are none.
        config: the hyperparameters, static and hashable. They belong to the tree structure
            and are compared part by part: 2 is not 2.0, and functions are equal if they have
            the same code, defaults and closures.
    """

    variables: V_co
    config: C_co
    _static: Static = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        _set_static(self, Static(self.config))

    def with_variables(self, variables: V) -> "State[V, C_co]":
        """Return a state with other variables and the same config."""
        return _unflatten_state(self._static, (variables,))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, State):
            return NotImplemented
        return self._static == other._static and bool(self.variables == other.variables)

    def __hash__(self) -> int:
        return hash((self.variables, self._static))

    def __repr__(self) -> str:
        """Return the shapes of the variables and the config, on at most one screen."""
        lines = [
            f"{jax.tree_util.keystr(path)}: {jax.typeof(leaf).str_short()}"
            for path, leaf in jax.tree_util.tree_leaves_with_path(self.variables)[:_MOST_LINES]
        ]
        hidden = len(jax.tree.leaves(self.variables)) - len(lines)
        lines += [f"... {hidden} more"] if hidden else []
        variables = "\n    ".join(["{", *lines]) + "\n  }" if lines else "()"
        return f"State(\n  variables={variables},\n  config={self._static!r},\n)"

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy the variables; the config never changes."""
        return dataclasses.replace(self, variables=copy.deepcopy(self.variables, memo))

    def __reduce__(self) -> Any:  # pickle has no better type for it
        return State, (self.variables, self.config)


_MOST_LINES = 12
_MOST_CHARACTERS = 600


def _flatten_state(state: State[V, C]) -> tuple[tuple[V], Static]:
    return (state.variables,), state._static


def _flatten_state_with_keys(state: State[V, C]) -> tuple[tuple[tuple[Hashable, V]], Static]:
    return ((GetAttrKey("variables"), state.variables),), state._static


def _unflatten_state(static: Static, children: Iterable[V]) -> State[V, Any]:
    state: State[V, Any] = object.__new__(State)
    (variables,) = children
    _set_variables(state, variables)
    _set_config(state, static.config)
    _set_static(state, static)
    return state


# A step of a small model takes a tenth of a millisecond and makes one State, so it matters that
# `register_dataclass` would add 5 us, and that object.__setattr__ takes twice as long as these.
_set_variables = State.__dict__["variables"].__set__
_set_config = State.__dict__["config"].__set__
_set_static = State.__dict__["_static"].__set__
jax.tree_util.register_pytree_with_keys(
    State, _flatten_state_with_keys, _unflatten_state, _flatten_state
)
