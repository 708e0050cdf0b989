"""From functions to layers: `layer` and `stateless` bind, check, print and compare hyperparameters.

A `Pair` is made of two functions by a decorator. `pair.init` and `pair.apply` are the bare
functions of the contract; `pair(**hparams)` is the `Layer` with these hyperparameters. The
annotation of a hyperparameter says which values it accepts, see mlax/arguments.py.

A layer and the state that its `init` made belong together: at trace time, the `apply` of a layer
compares the hyperparameters in the config of the state with its own, see mlax/belonging.py.
"""

import dataclasses
import functools
import inspect
import textwrap
import typing
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeAlias, TypeVar
from typing import overload

import jax

from mlax import arguments, mesh
from mlax.arguments import hints_of
from mlax.belonging import config_of, pair_of, require_equal, require_like, require_params
from mlax.equality import equal, hash_of, source
from mlax.errors import expected, message
from mlax.layer import Apply, ApplyWithRng, AxisName, Key, Layer, State
from mlax.layer import P, P_co, S, S_co, X, X_contra, Y, Y_co
from mlax.layer import needs_rng as _reads_rng
from mlax.tracing import traced_once

__all__ = ["Pair", "PairBase", "layer", "stateless"]

C = TypeVar("C", bound=tuple[Any, ...])
H = ParamSpec("H")

HParams: TypeAlias = tuple[tuple[str, Any], ...]
"""The hyperparameters that were passed, by name; those passed to `**named` as pairs."""


class HyperInit(Protocol[H, P_co, S_co]):
    """The `init` of a pair, with the hyperparameters H."""

    def __call__(self, rng: Key, x: Any, /, *args: H.args, **kwargs: H.kwargs) -> tuple[P_co, S_co]:
        """Return `(params, state)` for inputs like `x`: see `mlax.Init`."""
        ...


class PairBase(Generic[P, S, X_contra, Y_co]):
    """What every `Pair` is at run time, whatever the signature of its constructor."""

    init: HyperInit[..., P, S]
    """`init(rng, x, **hparams)`."""
    apply: Apply[P, S, X_contra, Y_co]
    """`apply(params, state, x, rng, inference_mode, batch_axis_name)`."""
    config: type[tuple[Any, ...]] | None
    """The type of the config. A field named after a hyperparameter holds that hyperparameter."""
    named_by: str | None = None
    """The hyperparameter, a function, that a layer is named after; it does not show in the repr."""
    __name__: str
    __qualname__: str

    def __init__(
        self, init: Callable[..., Any], apply: Callable[..., tuple[Y_co, S]],
        config: type[tuple[Any, ...]] | None, needs_rng: bool | Callable[..., bool] | None,
    ) -> None:
        self.__name__, self.__qualname__ = init.__name__, init.__qualname__
        self.__module__, self.__doc__ = init.__module__, init.__doc__
        self.__wrapped__ = init
        _, _, *hparams = inspect.signature(init).parameters.values()
        self.__signature__: inspect.Signature = inspect.Signature(hparams, return_annotation=Layer)
        self.config = config
        self._needs_rng = _reads_rng(apply) if needs_rng is None else needs_rng
        self._init_function = init
        self.init = self._public_init()
        self.unchecked_apply = apply
        self.apply = self._public_apply(apply)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make `__call__` of a subclass, which only declares types, an alias of `bind`."""
        super().__init_subclass__(**kwargs)
        if "__call__" in vars(cls):
            # An assignment would be a declaration to type checkers.
            setattr(cls, "__call__", lambda self, /, *args, **kwargs: self.bind(*args, **kwargs))

    def bind(self, /, *args: Any, **kwargs: Any) -> Layer[P, S, X_contra, Y_co]:
        """Check the hyperparameters and return the layer that has them."""
        hparams = self.read(args, kwargs)
        needs = self.layer_needs_rng(hparams)
        return Layer(BoundInit(self, hparams), BoundApply(self, hparams, needs), needs)

    def layer_needs_rng(self, hparams: HParams) -> bool:
        """Return whether the layer with these hyperparameters needs a key in training."""
        if callable(self._needs_rng):
            bound = self.bound(hparams)
            return bool(self._needs_rng(*bound.args, **bound.kwargs))
        return self._needs_rng

    def name_of(self, hparams: HParams) -> str:
        """Return the name of the layer with these hyperparameters."""
        named: Any = dict(hparams)[self.named_by] if self.named_by else self
        return str(named.__name__)

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HParams:
        """Return the hyperparameters in their plain form, or raise."""
        way_out = "pass the others by name; input sizes are inferred from x"
        passed = bind(self.__name__, self.__signature__, args, kwargs, too_many=way_out)
        return tuple((name, self.read_one(name, value)) for name, value in passed.items())

    def read_one(self, name: str, value: Any) -> Any:
        """Return a hyperparameter in its plain form, or raise."""
        owner = self.__name__
        rule: arguments.Reader = self._rules.get(name, lambda owner, name, value: _fixed(value))
        kind = self.__signature__.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            return tuple(rule(owner, name, entry) for entry in value)
        if kind is inspect.Parameter.VAR_KEYWORD:
            return tuple((key, rule(owner, key, entry)) for key, entry in value.items())
        return rule(owner, name, value)

    @functools.cached_property
    def _rules(self) -> dict[str, arguments.Reader]:
        """The rule of each hyperparameter that has one."""
        rules = {n: arguments.rule_of(hint) for n, hint in hints_of(self._init_function).items()}
        return {n: rule for n, rule in rules.items() if rule and n in self.__signature__.parameters}

    def bound(self, hparams: HParams) -> inspect.BoundArguments:
        """Return the hyperparameters as arguments, with defaults for those not passed."""
        passed = dict(hparams)
        values: OrderedDict[str, Any] = OrderedDict()
        for name, parameter in self.__signature__.parameters.items():
            if parameter.kind is parameter.VAR_KEYWORD:
                values[name] = dict(passed.get(name, ()))
            elif parameter.kind is parameter.VAR_POSITIONAL or name in passed:
                values[name] = passed.get(name, ())
            else:
                values[name] = self.read_one(name, parameter.default)
        return inspect.BoundArguments(self.__signature__, values)

    def make(self, rng: Key, x: Any, hparams: HParams) -> tuple[P, S]:
        """Return `(params, state)`."""
        arguments.require_key(self.__name__, rng)
        require_input(self.__name__, x)
        bound = self.bound(hparams)
        made: tuple[P, S] = self._init_function(rng, x, *bound.args, **bound.kwargs)
        return made

    def config_for(self, hparams: Mapping[str, Any], x: Any) -> Any:
        """Return the config for these hyperparameters, all of them, and an input of apply."""
        config: Any = self.config
        available = dict(hparams)
        if "ndim" in config._fields and "ndim" not in available:
            axis = available.get("axis", 0)
            axes = axis if isinstance(axis, tuple) else (axis,)
            from_last = axes and all(type(entry) is int and entry < 0 for entry in axes)
            available["ndim"] = None if from_last else len(jax.tree.leaves(x)[0].shape)
        return config(*(available[name] for name in config._fields))

    def adopt(self, bound: "BoundApply", state: Any, x: Any) -> Any:
        """Return the state to run with, which must have these hyperparameters."""
        if self.config is None:
            self._require_config_of_init(bound.hparams, state, x)
            return state
        config = config_of(self.__name__, state, self.config)
        for name in config._fields:
            if name in bound.arguments:
                require_equal(self.__name__, name, bound.arguments[name], getattr(config, name))
        return state

    def _require_config_of_init(self, hparams: HParams, state: Any, x: Any) -> None:
        """Require the hyperparameters that `init` puts into the config, for a config of any type.

        What has another name may come from x, and x may be of another shape now.
        """
        key = jax.eval_shape(lambda: jax.random.key(0))
        try:
            _, made = jax.eval_shape(lambda key, x: self.make(key, x, hparams), key, x)
        except Exception:  # x doesn't fit: let `apply` say what is wrong with it
            return
        if not isinstance(made, State):
            return
        config = config_of(self.__name__, state, type(made.config))
        names = self.__signature__.parameters
        for name in getattr(config, "_fields", ()):
            if name in names:
                own = getattr(made.config, name)
                require_equal(self.__name__, name, own, getattr(config, name))
        if names and not hasattr(config, "_fields"):
            require_equal(self.__name__, "", made.config, config)

    @functools.cached_property
    def _params_type(self) -> Any:
        """The type of the params, from the annotation of `init`, if it has one."""
        params_and_state = typing.get_args(hints_of(self._init_function).get("return"))
        return params_and_state[0] if len(params_and_state) == 2 else None

    def _public_init(self) -> Callable[..., tuple[P, S]]:
        @functools.wraps(self._init_function)
        def init(rng: Any = None, x: Any = _MISSING, *args: Any, **kwargs: Any) -> tuple[P, S]:
            require_both(self.__name__, x)
            made = self.make(rng, x, self.read(args, kwargs))
            return pair_of(self.__name__, "init", "(params, state)", made)

        init.__qualname__ = f"{self.__qualname__}.init"
        return init

    def _public_apply(self, apply: Callable[..., tuple[Y_co, S]]) -> Apply[P, S, X_contra, Y_co]:
        """Return a function of this pair alone that checks its arguments and calls `apply`."""

        def checked(
            params: P, state: S, x: X_contra, rng: Key | None = None,
            inference_mode: bool = False, batch_axis_name: AxisName = (),
        ) -> tuple[Y_co, S]:
            self.require_call(params, state, x, rng, inference_mode, batch_axis_name)
            return self.run(params, state, x, rng, bool(inference_mode), batch_axis_name)

        checked.__name__, checked.__qualname__ = "apply", f"{self.__qualname__}.apply"
        checked.__module__, checked.__doc__ = self.__module__, apply.__doc__
        if isinstance(self._needs_rng, bool):
            setattr(checked, "needs_rng", self._needs_rng)
        return checked

    def run(self, params: P, state: S, x: X_contra, *call: Any) -> tuple[Y_co, S]:
        """Return `(y, state)`, with a state that differs only in its values."""
        try:
            result = self.unchecked_apply(params, state, x, *call)
            pair: tuple[Y_co, S] = pair_of(self.__name__, "apply", "(y, state)", result)
        except Exception as error:
            mesh.explain(self.__name__, error)
            raise
        after: Any = pair[1]
        if isinstance(state, State) and isinstance(after, State):
            require_like(self.__name__, state.variables, after.variables)
        elif isinstance(state, State):
            name, got = "the state that apply returns", arguments.described(after)
            raise TypeError(message(self.__name__, name, "a State", got))
        else:
            require_like(self.__name__, state, after)
        return pair

    def require_call(
        self, params: Any, state: Any, x: Any, rng: Any, inference_mode: Any, batch_axis_name: Any
    ) -> None:
        """Require arguments that `apply` can take."""
        arguments.require_call(self.__name__, rng, inference_mode, batch_axis_name)
        if self.config is not None:
            ndim = getattr(config_of(self.__name__, state, self.config), "ndim", None)
            if ndim is not None:
                count = len(x) if isinstance(x, tuple | list | dict) else 1
                arguments.require_ndims(self.__name__, x, (ndim,) * count)
        config = state.config if isinstance(state, State) else None
        require_params(self.__name__, params, self._params_type, config)

    def __get__(self, instance: object, owner: type | None = None) -> Self:
        """Return the pair: `help` shows a descriptor as it shows a function."""
        return self

    def __reduce__(self) -> str:
        return self.__qualname__

    def __repr__(self) -> str:
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
    apply: ApplyWithRng[P, S, X, Y], *, config: type[tuple[Any, ...]] | None = None,
    needs_rng: bool | Callable[..., bool] | None = None,
) -> Callable[[Callable[Concatenate[Key, Any, H], tuple[P, S]]], Pair[H, P, S, X, Y]]:
    """Return a decorator that turns `init(rng, x, **hparams)` and `apply` into a `Pair`.

    For layers without state, `mlax.stateless` is shorter.

    Args:
        apply: `apply(params, state, x, rng, inference_mode, batch_axis_name)`, see `mlax.Apply`.
        config: the named tuple type that `init` uses as the config of the state. A field named
            after a hyperparameter holds that hyperparameter, so that a state can be compared
            with a layer. A field `ndim` holds the number of axes that x must have. With None,
            the config of a layer is found by tracing `init`.
        needs_rng: whether the layer needs a key in training; a function of the hyperparameters
            if it depends on them. None infers it from `apply`, see `mlax.needs_rng`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> def apply(params, state, x, rng=None, inference_mode=False, batch_axis_name=()):
    ...     steps = state.variables if inference_mode else state.variables + 1
    ...     return params["gain"] * x, mlax.State(steps, state.config)
    >>> @mlax.layer(apply)
    ... def counted_gain(rng, x, gain=1.0):
    ...     return {"gain": jnp.full(x.shape, gain)}, mlax.State(jnp.zeros((), int), ())
    >>> init, apply = counted_gain(gain=3.0)
    >>> params, state = init(jax.random.key(0), jnp.ones(2))
    >>> y, state = apply(params, state, jnp.ones(2))
    >>> y, state.variables
    (Array([3., 3.], dtype=float32), Array(1, dtype=int32))
    """
    needs_rng = _reads_rng(apply) if needs_rng is None else needs_rng

    def decorate(init: Callable[Concatenate[Key, Any, H], tuple[P, S]]) -> Pair[H, P, S, X, Y]:
        if needs_rng is False:
            return Pair(init, apply, config, needs_rng)
        own_key = _with_key_of_shard(init.__name__, apply, needs_rng is True)
        return Pair(init, own_key, config, needs_rng)

    return decorate


def _with_key_of_shard(
    owner: str, apply: ApplyWithRng[P, S, X, Y], is_needed: bool
) -> ApplyWithRng[P, S, X, Y]:
    """Return `apply` with a key of its own on each shard; in training it must get one."""

    @functools.wraps(apply)
    def with_key_of_shard(
        params: P, state: S, x: X, rng: Key | None = None, inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> tuple[Y, S]:
        if rng is not None:
            rng = mesh.key_of_shard(rng, batch_axis_name)
        elif is_needed and not inference_mode:
            arguments.required_key(owner, rng)
        return apply(params, state, x, rng, inference_mode, batch_axis_name)

    return with_key_of_shard


class _NoConfig(typing.NamedTuple):
    """The config of a layer whose `apply` uses no hyperparameters."""


class StatelessPair(Pair[H, P, State[tuple[()], Any], X_contra, Y_co]):
    """A pair whose `apply` is a function of (params, config, x)."""

    def __init__(
        self, init: Callable[..., Any], compute: Callable[[Any, Any, Any], Y_co],
        config: type[tuple[Any, ...]], is_traced_once: bool,
    ) -> None:
        def run(params: Any, x: Any, *, config: Any) -> Y_co:
            return compute(params, config, x)

        if is_traced_once:
            run = traced_once(run, init.__name__)

        def apply(
            params: P, state: State[tuple[()], Any], x: X_contra, rng: Key | None = None,
            inference_mode: bool = False, batch_axis_name: AxisName = (),
        ) -> tuple[Y_co, State[tuple[()], Any]]:
            return run(params, x, config=state.config), state

        apply.__doc__ = compute.__doc__
        super().__init__(init, apply, config, False)
        names = self.__signature__.parameters
        unknown = set(getattr(config, "_fields", ())) - {*names, "ndim"}
        if unknown:
            wanted = f"made of hyperparameters ({', '.join(names)}) and ndim"
            raise TypeError(message(self.__name__, "the config", wanted, sorted(unknown)))

    def make(self, rng: Key, x: Any, hparams: HParams) -> tuple[P, State[tuple[()], Any]]:
        """Return `(params, state)`; the config is filled from the hyperparameters by name."""
        params: Any = super().make(rng, x, hparams)
        return params, State((), self.config_for(self.bound(hparams).arguments, x))

    @functools.cached_property
    def _params_type(self) -> Any:
        return hints_of(self._init_function).get("return")


@overload
def stateless(
    apply: Callable[[P, C, X], Y], config: type[C], *, traced_once: bool = False
) -> Callable[[Callable[Concatenate[Key, Any, H], P]], Pair[H, P, State[tuple[()], C], X, Y]]: ...
@overload
def stateless(
    apply: Callable[[P, Any, X], Y], config: None = None, *, traced_once: bool = False
) -> Callable[[Callable[Concatenate[Key, Any, H], P]], Pair[H, P, State[tuple[()], Any], X, Y]]: ...
def stateless(apply: Any, config: Any = None, *, traced_once: bool = False) -> Any:
    """Return a decorator that turns `init(rng, x, **hparams) -> params` and `apply` into a `Pair`.

    For a layer with state, or one that draws numbers, use `mlax.layer`.

    Args:
        apply: `apply(params, config, x) -> y`.
        config: a named tuple type with a field for each hyperparameter that `apply` uses. A
            field `ndim` that is not a hyperparameter holds the number of axes that every x must
            have. None if `apply` uses no hyperparameters.
        traced_once: whether equal layers whose x is of equal shapes share one trace, which makes
            models of many layers quicker to compile. `apply` must read nothing but its arguments.

    If `init` is annotated to return a named tuple, `apply` only accepts params of that type. If
    the config has a field `use_NAME` that is False, the parameter NAME must be None.

    >>> import jax, jax.numpy as jnp, mlax
    >>> from typing import NamedTuple
    >>> class GainConfig(NamedTuple):
    ...     power: int
    >>> def apply(params, config, x):
    ...     return params["gain"] ** config.power * x
    >>> @mlax.stateless(apply, GainConfig)
    ... def gain(rng, x, power: mlax.types.Size = 1):
    ...     return {"gain": jnp.full(x.shape, 2.0)}
    >>> init, apply = gain(power=3)
    >>> params, state = init(jax.random.key(0), jnp.ones(2))
    >>> apply(params, state, jnp.ones(2))[0]
    Array([8., 8.], dtype=float32)
    """
    return lambda init: StatelessPair(init, apply, config or _NoConfig, traced_once)


_MISSING = object()
_LINE_LENGTH = 88


def bind(
    owner: str, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any],
    *, wrong: str = "", too_many: str = "",
) -> dict[str, Any]:
    """Return the arguments by name, or raise with the names that exist and the way out."""
    try:
        return signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        empty = inspect.Parameter.empty
        names = [p.replace(annotation=empty, default=empty) for p in signature.parameters.values()]
        text = f"{owner}: {error}; expected {owner}{inspect.Signature(names)}"
        way_out = too_many if "too many positional" in str(error) and too_many else wrong
        raise TypeError(f"{text}; {way_out}" if way_out else text) from None


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class _Bound:
    """A function of a pair with its hyperparameters: picklable, and compared by both."""

    pair: PairBase[Any, Any, Any, Any]
    hparams: HParams
    is_bound = True

    def __post_init__(self) -> None:
        """Hash now, while the layers inside have their hashes: models may be nested deeply."""
        hash(self)

    @property
    def __name__(self) -> str:
        return self.pair.name_of(self.hparams)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return False
        return self.pair is other.pair and equal(self.hparams, other.hparams)

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def arguments(self) -> dict[str, Any]:
        """All hyperparameters by name, with defaults for those not passed."""
        return dict(self.pair.bound(self.hparams).arguments)

    @functools.cached_property
    def _hash(self) -> int:
        return hash((self.pair.__name__, hash_of(self.hparams)))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __getstate__(self) -> Any:
        return {n: v for n, v in self.__dict__.items() if n not in ("_hash", "arguments")}


class BoundInit(_Bound):
    """`init(rng, x)` of a layer."""

    def __call__(self, rng: Any = None, x: Any = _MISSING) -> Any:
        """Return `(params, state)`: see `mlax.Init`."""
        require_both(self.__name__, x)
        made = self.pair.make(rng, x, self.hparams)
        return pair_of(self.__name__, "init", "(params, state)", made)

    def __repr__(self) -> str:
        """Return the call that makes the layer, on several lines if it does not fit on one."""
        passed = dict(self.hparams)
        arguments: list[str] = []
        before_all_are_passed = True
        for name, parameter in self.pair.__signature__.parameters.items():
            value = passed.get(name, parameter.default)
            if name == self.pair.named_by:
                continue
            elif parameter.kind is parameter.VAR_POSITIONAL:
                arguments += map(source, passed.get(name, ()))
            elif parameter.kind is parameter.VAR_KEYWORD:
                arguments += [f"{key}={source(child)}" for key, child in passed.get(name, ())]
            elif name not in passed or equal(value, parameter.default):
                before_all_are_passed = False
            elif before_all_are_passed and parameter.default is parameter.empty:
                arguments.append(source(value))
            else:
                arguments.append(f"{name}={source(value)}")
        line = f"{self.__name__}({', '.join(arguments)})"
        if len(line) <= _LINE_LENGTH and "\n" not in line:
            return line
        lines = textwrap.indent(",\n".join(arguments), "    ")
        return f"{self.__name__}(\n{lines},\n)"


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class BoundApply(_Bound):
    """`apply` of a layer: it only runs with a state of this layer."""

    needs_rng: bool
    """Whether the layer needs a key in training."""

    def __call__(
        self, params: Any, state: Any, x: Any, rng: Key | None = None,
        inference_mode: bool = False, batch_axis_name: AxisName = (),
    ) -> Any:
        """Return `(y, state)`: see `mlax.Apply`."""
        call = rng, inference_mode, batch_axis_name
        own = self.admitted(params, state, x, *call)
        y, after = self.pair.run(params, own, x, *call)
        if not isinstance(state, State):
            return y, after
        if after.config is not own.config:
            require_equal(self.__name__, "", own.config, after.config)
        return y, state.with_variables(after.variables)

    def admitted(self, params: Any, state: Any, x: Any, *call: Any) -> Any:
        """Return the state to run `unchecked_apply` with, and require that all arguments fit."""
        own = self.pair.adopt(self, state, x)
        self.pair.require_call(params, own, x, *call)
        return own

    @property
    def bare(self) -> Any:
        """The `apply` of the pair."""
        return self.pair.apply

    def __repr__(self) -> str:
        return f"{BoundInit(self.pair, self.hparams)!r}.apply"


def _fixed(value: Any) -> Any:
    """Return lists as tuples, so that no later change of a list reaches a config."""
    return tuple(map(_fixed, value)) if type(value) is list else value


def bare(apply: Any) -> Any:
    """Return `apply` without its hyperparameters, as a state refers to it."""
    return getattr(apply, "bare", apply)


def require_both(owner: str, x: object) -> None:
    """Require both arguments of `init`."""
    if x is _MISSING:
        what, way_out = "init(rng, x), a key and an input", "make a key with jax.random.key(0)"
        raise TypeError(expected(owner, what, "one argument", way_out))


def require_input(owner: str, x: Any) -> None:
    """Require an example rather than a bare shape, which stax would take."""
    leaves = jax.tree.leaves(x) if isinstance(x, tuple | list) else []
    if leaves and all(type(leaf) is int for leaf in leaves):
        way_out = f"pass jax.ShapeDtypeStruct({tuple(max(n, 1) for n in leaves)}, jnp.float32)"
        raise TypeError(message(owner, "x", "an example, or its shape and dtype", x, way_out))
