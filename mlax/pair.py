"""The contract of mlax: a layer is a pair of pure functions.

    init(rng, x, **hparams)                                        -> (params, state)
    apply(params, state, x, rng, inference_mode, batch_axis_name)  -> (y, state)

`Init` and `Apply` state the contract, `State` holds what is not trained, `Layer` is a
pair whose hyperparameters are bound, and `layer` turns two such functions into a `Pair`:
the pair itself and the constructor of its layers.
"""

import copy
import dataclasses
import functools
import inspect
import textwrap
from collections.abc import Callable, Hashable, Iterable, Mapping
from typing import (
    TYPE_CHECKING,
    Any,
    Concatenate,
    Generic,
    NamedTuple,
    ParamSpec,
    Protocol,
    Self,
    TypeAlias,
    TypeVar,
)

import jax
from jax.tree_util import GetAttrKey

from mlax.equality import equal

__all__ = ["Apply", "AxisName", "Init", "Key", "Layer", "Pair", "State", "layer", "needs_rng"]

Key: TypeAlias = jax.Array
"""A PRNG key: typed (`jax.random.key`) or raw (`jax.random.PRNGKey`)."""

AxisName: TypeAlias = Hashable | tuple[Hashable, ...]
"""The name of a mapped axis, or a tuple of such names; `()` for no axis."""

P = TypeVar("P")
S = TypeVar("S")
P_co = TypeVar("P_co", covariant=True)
P_contra = TypeVar("P_contra", contravariant=True)
S_co = TypeVar("S_co", covariant=True)
V = TypeVar("V")
V_co = TypeVar("V_co", covariant=True)
C = TypeVar("C", bound=Hashable)
C_co = TypeVar("C_co", bound=Hashable, covariant=True)
X_contra = TypeVar("X_contra", contravariant=True)
Y_co = TypeVar("Y_co", covariant=True)
H = ParamSpec("H")


@dataclasses.dataclass(frozen=True, slots=True)
class State(Generic[V_co, C_co]):
    """What `apply` needs besides parameters and input, as one pytree node.

    Attributes:
        variables: a pytree of arrays that `apply` may replace (running statistics, caches);
            they are the leaves. `()` where there are none.
        config: the hyperparameters, hashable and compared with `==`; they are part of the
            tree structure, so `jax.jit` sees them as static.
    """

    variables: V_co
    config: C_co

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy the variables and keep the config, which never changes."""
        return dataclasses.replace(self, variables=copy.deepcopy(self.variables, memo))


# A tuple around the config, as jax compares what stands here with `!=`, which a config that is a
# named tuple with an `__eq__` of its own inherits from `tuple`.
def _flatten_state(state: State[V, C]) -> tuple[tuple[V], tuple[C]]:
    return (state.variables,), (state.config,)


def _flatten_state_with_keys(
    state: State[V, C],
) -> tuple[tuple[tuple[Hashable, V]], tuple[C]]:
    return ((GetAttrKey("variables"), state.variables),), (state.config,)


def _unflatten_state(config: tuple[C], children: Iterable[V]) -> State[V, C]:
    state: State[V, C] = object.__new__(State)
    (variables,) = children
    _set_variables(state, variables)
    _set_config(state, config[0])
    return state


# A step of a small model takes a tenth of a millisecond and makes one State: it matters that
# `register_dataclass` would take 5 us more, and object.__setattr__ twice as long as these.
_set_variables = State.__dict__["variables"].__set__
_set_config = State.__dict__["config"].__set__
jax.tree_util.register_pytree_with_keys(
    State, _flatten_state_with_keys, _unflatten_state, _flatten_state
)


class Init(Protocol[P_co, S_co]):
    """The first function of a layer: makes parameters and state."""

    def __call__(self, rng: Key, x: Any, /) -> tuple[P_co, S_co]:
        """Return `(params, state)` for inputs like `x`.

        Args:
            rng: PRNG key. Equal keys give equal parameters.
            x: what `apply` will be given, or `jax.ShapeDtypeStruct`s in its place: only
                shapes and dtypes are read. (Any: no type can say "the shapes of X".)
        """
        ...


class Apply(Protocol[P_contra, S, X_contra, Y_co]):
    """The second function of a layer: computes the output and the next state."""

    def __call__(
        self,
        params: P_contra,
        state: S,
        x: X_contra,
        /,
        rng: Key | None = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> tuple[Y_co, S]:
        """Return `(y, state)`.

        Args:
            params: what `init` returned, or what an optimizer made of it.
            state: what `init` or the last `apply` returned.
            x: one example. A batch goes through `jax.vmap`.
            rng: PRNG key. Needed in training by the layers for which `needs_rng` holds.
            inference_mode: False in training. In inference mode no key is needed and
                `state` comes back as it was.
            batch_axis_name: name, or tuple of names, of the axes mapped by `jax.vmap`,
                `jax.shard_map` or `jax.pmap` that together make the batch. Layers that
                compute statistics take them over these axes too.
        """
        ...


class ApplyWithRng(Protocol[P_contra, S, X_contra, Y_co]):
    """An `Apply` that needs a key and says so: `rng` has no default."""

    def __call__(
        self,
        params: P_contra,
        state: S,
        x: X_contra,
        /,
        rng: Any,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> tuple[Y_co, S]:
        """Return `(y, state)`: see `Apply`. (Any: it may or may not take None.)"""
        ...


class _LayerFields(NamedTuple, Generic[P, S, X_contra, Y_co]):
    init: Init[P, S]
    apply: Apply[P, S, X_contra, Y_co]


class Layer(_LayerFields[P, S, X_contra, Y_co]):
    """A pair of functions that fulfils the contract: `init, apply = layer`.

    Any two functions will do, with any pytree as state. If the `rng` of `apply` has no
    default, combinators take it that the layer needs a key.

    >>> import jax, jax.numpy as jnp, mlax
    >>> def init(rng, x):
    ...     return jnp.ones(x.shape), ()
    >>> def apply(params, state, x, rng=None, inference_mode=False, batch_axis_name=()):
    ...     return params * x, state
    >>> gate = mlax.Layer(init, apply)
    >>> params, state = mlax.series(gate, mlax.bias(-1)).init(jax.random.key(0), jnp.ones(3))
    """

    __slots__ = ()

    if TYPE_CHECKING:

        def __new__(
            cls,
            init: Init[P, S],
            apply: Apply[P, S, X_contra, Y_co] | ApplyWithRng[P, S, X_contra, Y_co],
        ) -> Self:
            """Make a layer of two functions."""
            ...

    def __repr__(self) -> str:
        """Return the expression that makes the layer."""
        if isinstance(self.init, _BoundInit):
            return repr(self.init)
        return f"Layer(init={self.init!r}, apply={self.apply!r})"


@dataclasses.dataclass(frozen=True, eq=False)
class _BoundInit(Generic[P_co, S_co]):
    """`init` with its hyperparameters: picklable, and equal if they are equal."""

    init: Callable[..., tuple[P_co, S_co]]
    args: tuple[object, ...]
    kwargs: tuple[tuple[str, object], ...]

    @property
    def __name__(self) -> str:
        return self.init.__name__

    def __call__(self, rng: Key, x: Any) -> tuple[P_co, S_co]:
        return self.init(rng, x, *self.args, **dict(self.kwargs))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _BoundInit) and equal(
            (self.init, self.args, self.kwargs), (other.init, other.args, other.kwargs)
        )

    def __hash__(self) -> int:
        return hash((self.init, len(self.args), tuple(name for name, _ in self.kwargs)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __repr__(self) -> str:
        """Return the call that makes the layer, over several lines where one is too long."""
        _, _, *hparams = inspect.signature(self.init).parameters.values()
        bound = inspect.Signature(hparams).bind(*self.args, **dict(self.kwargs)).arguments
        arguments: list[str] = []
        for parameter in hparams:
            value = bound.get(parameter.name, parameter.default)
            if parameter.kind is parameter.VAR_POSITIONAL:
                arguments += map(_source, bound.get(parameter.name, ()))
            elif parameter.kind is parameter.VAR_KEYWORD:
                named = bound.get(parameter.name, {})
                arguments += [f"{name}={_source(child)}" for name, child in named.items()]
            elif parameter.default is parameter.empty:
                arguments.append(_source(value))
            elif value is not parameter.default:
                arguments.append(f"{parameter.name}={_source(value)}")
        line = f"{self.__name__}({', '.join(arguments)})"
        if len(line) <= _LINE_LENGTH and "\n" not in line:
            return line
        lines = textwrap.indent(",\n".join(arguments), "    ")
        return f"{self.__name__}(\n{lines},\n)"


_LINE_LENGTH = 88


def _source(value: object) -> str:
    """Return how `value` is written in a program: functions by their name."""
    if isinstance(value, Layer):
        return repr(value)
    return str(value.__name__) if callable(value) and hasattr(value, "__name__") else repr(value)


_NEEDING_RNG: set[object] = set()


def needs_rng(apply: Callable[..., object]) -> bool:
    """Return whether the layer with this `apply` needs a key in training.

    It does if `layer` was told so, or if `apply` has a parameter `rng` without a default.
    """
    if apply in _NEEDING_RNG:
        return True
    rng = inspect.signature(apply).parameters.get("rng")
    return rng is not None and rng.default is inspect.Parameter.empty


Check: TypeAlias = Callable[[str, str, Any], None]
"""`check(layer, argument, value)` raises if a hyperparameter is wrong whatever the input.
(The value is Any: it is what a caller wrote.)"""


class HyperInit(Protocol[H, P_co, S_co]):
    """The `init` of a pair, with the hyperparameters H."""

    def __call__(
        self, rng: Key, x: Any, /, *args: H.args, **kwargs: H.kwargs
    ) -> tuple[P_co, S_co]:
        """Return `(params, state)` for inputs like `x`: see `Init`."""
        ...


class PairBase(Generic[P, S, X_contra, Y_co]):
    """What every `Pair` is at run time, whatever the signature of its constructor."""

    init: HyperInit[..., P, S]
    """`init(rng, x, **hparams)`."""
    apply: Apply[P, S, X_contra, Y_co]
    """`apply(params, state, x, rng, inference_mode, batch_axis_name)`."""
    apply_rng: Apply[P, S, X_contra, Y_co]
    """The same function for layers that need a key, if that depends on the hyperparameters."""
    __name__: str
    __qualname__: str

    def __init__(
        self,
        init: Callable[..., tuple[P, S]],
        apply: Apply[P, S, X_contra, Y_co],
        needs_rng: bool | Callable[..., bool],
        checks: Mapping[str, Check],
    ) -> None:
        self.__name__ = init.__name__
        self.__qualname__ = init.__qualname__
        self.__module__ = init.__module__
        self.__doc__ = init.__doc__
        self.__wrapped__ = init
        _, _, *hparams = inspect.signature(init).parameters.values()
        self.__signature__: inspect.Signature = inspect.Signature(hparams, return_annotation=Layer)
        self._checks = checks
        self.init = self._checked(init)
        self.apply = apply
        self._needs_rng = needs_rng
        if needs_rng is True:
            _NEEDING_RNG.add(apply)
        elif needs_rng is not False:
            self.apply_rng = self._twin(apply)
            _NEEDING_RNG.add(self.apply_rng)

    @classmethod
    def of(
        cls,
        apply: Apply[P, S, X_contra, Y_co],
        *,
        needs_rng: bool | Callable[..., bool] = False,
        checks: Mapping[str, Check] | None = None,
    ) -> Callable[[Callable[..., tuple[P, S]]], Self]:
        """Return the decorator that makes a pair of this class from an `init`."""
        return lambda init: cls(init, apply, needs_rng, checks or {})

    def bind(self, /, *args: object, **kwargs: object) -> Layer[P, S, X_contra, Y_co]:
        """Check the hyperparameters and return the layer that has them."""
        self.check(*args, **kwargs)
        apply = self.apply
        if callable(self._needs_rng) and self._needs_rng(*args, **kwargs):
            apply = self.apply_rng
        return Layer(_BoundInit(self.init, args, tuple(kwargs.items())), apply)

    def check(self, /, *args: object, **kwargs: object) -> None:
        """Raise if these hyperparameters are wrong whatever the input."""
        try:
            bound = self.__signature__.bind(*args, **kwargs)
        except TypeError as error:
            arguments = ", ".join(self.__signature__.parameters)
            raise TypeError(
                f"{self.__name__}: {error}; expected {self.__name__}({arguments})"
            ) from None
        bound.apply_defaults()
        for name, check in self._checks.items():
            if name in bound.arguments:
                check(self.__name__, name, bound.arguments[name])

    def _checked(self, init: Callable[..., tuple[P, S]]) -> Callable[..., tuple[P, S]]:
        @functools.wraps(init)
        def checked(rng: Key, x: Any, *args: object, **kwargs: object) -> tuple[P, S]:
            self.check(*args, **kwargs)
            return init(rng, x, *args, **kwargs)

        checked.__qualname__ = f"{init.__qualname__}.init"
        return checked

    def _twin(self, apply: Apply[P, S, X_contra, Y_co]) -> Apply[P, S, X_contra, Y_co]:
        """Return a second `apply`, for the layers of this pair that need a key."""

        def apply_rng(
            params: P,
            state: S,
            x: X_contra,
            rng: Key | None = None,
            inference_mode: bool = False,
            batch_axis_name: AxisName = (),
        ) -> tuple[Y_co, S]:
            return apply(params, state, x, rng, inference_mode, batch_axis_name)

        apply_rng.__module__ = self.__module__
        apply_rng.__qualname__ = f"{self.__qualname__}.apply_rng"
        return apply_rng

    def __get__(self, instance: object, owner: type | None = None) -> Self:
        """Return the pair: a descriptor is what `help` takes for a function."""
        return self

    def __reduce__(self) -> str:
        return self.__qualname__

    def __repr__(self) -> str:
        """Return the name of the pair."""
        return f"<pair {self.__name__}>"


class Pair(PairBase[P, S, X_contra, Y_co], Generic[H, P, S, X_contra, Y_co]):
    """A pair of functions that makes layers when it is called with hyperparameters.

    `pair.init(rng, x, **hparams)` and `pair.apply(params, state, x, ...)` are the functions;
    `pair(**hparams)` is the `Layer` that has these hyperparameters.
    """

    init: HyperInit[H, P, S]
    """`init(rng, x, **hparams)`."""

    def __call__(self, *args: H.args, **kwargs: H.kwargs) -> Layer[P, S, X_contra, Y_co]:
        """Return the layer that has these hyperparameters."""
        return self.bind(*args, **kwargs)


def layer(
    apply: Apply[P, S, X_contra, Y_co],
    *,
    needs_rng: bool | Callable[..., bool] = False,
    checks: Mapping[str, Check] | None = None,
) -> Callable[
    [Callable[Concatenate[Key, Any, H], tuple[P, S]]], Pair[H, P, S, X_contra, Y_co]
]:
    """Return a decorator that makes `init(rng, x, **hparams)` and `apply` into a `Pair`.

    Args:
        apply: a function at the top level of its module, so that it can be pickled.
        needs_rng: whether the layer needs a key in training; a function of the
            hyperparameters if it depends on them.
        checks: for hyperparameters, by name, what raises if the value can never be right.
            They run when the layer is made and again in `init`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> def apply(params, state, x, rng=None, inference_mode=False, batch_axis_name=()):
    ...     return params**state.config * x, state
    >>> @mlax.layer(apply)
    ... def gain(rng, x, power=1):
    ...     return jnp.full(x.shape, 2.0), mlax.State((), power)
    >>> init, apply = gain(power=3)
    >>> params, state = init(jax.random.key(0), jnp.ones(2))
    >>> apply(params, state, jnp.ones(2))[0]
    Array([8., 8.], dtype=float32)
    """
    return Pair.of(apply, needs_rng=needs_rng, checks=checks)
