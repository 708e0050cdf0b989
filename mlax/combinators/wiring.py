"""Pairs made of pairs by a plain function that wires them: `combinator`.

A wiring is a plain function of x and hyperparameters, some of which are layers. Inside it a layer
is a `Sublayer`: it is called with its input and returns its output; keys, state, mode, batch axes
and paths are taken care of.

- `apply` calls the function on arrays.
- `init` finds the shape of each sublayer's input by tracing the function once, or by calling it
  on shapes if it only routes. The parameters are made afterwards, outside the trace.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, Protocol, TypeVar, overload

import jax
from jax.extend.core import get_opaque_trace_state

from mlax.arguments import AnyLayer, Rule, read_layer, require_key
from mlax.belonging import ANOTHER_STATE, config_of, require_equal
from mlax.combinators.child import (
    Child, ChildKey, Made, apply_child, apply_keys, collected, joined, kind_of, split, viewed,
)
from mlax.combinators.making import (
    abstract_child, init_child, init_keys, is_traced, one_tracing, output_shapes, placeholders,
    remembered, shapes,
)
from mlax.combinators.transforms import Call, Combinator, adopted_children, places_of
from mlax.equality import equal, source
from mlax.errors import expected, message
from mlax.layer import AxisName, Key, Layer, State
from mlax.layer import P, S, X_contra, Y_co
from mlax.pair import BoundApply, HParams, require_input
from mlax.taps import rejoined, separated

B = TypeVar("B", bound="Combinator[Any, Any, Any, Any]")


class _Sublayer(Protocol):
    """A layer inside a wiring."""

    def __call__(self, x: Any = None, /) -> Any:
        """Return the output of the layer.

        A layer that is called several times has one set of parameters. Its variables are passed
        from call to call. If `init` saw several calls, call n = 0, 1, ... gets the key
        fold_in(key, n); a single call gets the key itself.
        """
        ...

    @property
    def params(self) -> Any:
        """The parameters, available once the layer has been called."""
        ...


Sublayer = Annotated[_Sublayer, Rule(read_layer)]
"""Annotation for a hyperparameter that is a layer: the function can call it."""


class WiredConfig(NamedTuple):
    """Configuration of a wiring."""

    kind: str
    """The name of the wiring."""
    hparams: HParams
    """The hyperparameters that are not layers."""
    slots: tuple[str, ...]
    """The name of the hyperparameter of each child."""
    children: tuple[Child, ...]
    """The layers."""
    calls: tuple[int, ...]
    """How often each was called in `init`."""

    def __repr__(self) -> str:
        """Return the children."""
        return source(list(self.children))


class _Running:
    """A sublayer during `apply`."""

    def __init__(self, call: Call, child: Child, calls: int, params: Any, variables: Any):
        self._call, self._child, self._calls = call, child, calls
        self._params, self.variables = params, variables
        self._trace = get_opaque_trace_state()
        self.values: dict[str, Any] = {}
        self.count = 0

    def __call__(self, x: Any = None, /) -> Any:
        key = self._call.rng
        if key is not None and (self.count or self._calls > 1):
            key = jax.random.fold_in(key, self.count)
        outside = get_opaque_trace_state() == self._trace
        training = not self._call.inference_mode
        if not outside and training and (key is not None or jax.tree.leaves(self.variables)):
            place_of_call = f"{self._child.key} to be called outside of jax.lax.scan and the like"
            why = "where its key would be used again and its new state lost"
            way_out = "wrap it in mlax.repeat, recurrent, batched, remat or switch"
            got = f"a call inside a transformation, {why}"
            raise ValueError(expected(self._call.owner, place_of_call, got, way_out))
        child = self._child
        if self.count:
            child = child._replace(key=f"{child.key}:{self.count}")
        owner, _, mode, axes = self._call
        y, variables = apply_child(owner, child, self._params, self.variables, x, key, mode, axes)
        variables, values = separated(variables, self.variables)
        if outside:
            self.variables = variables
            self.values.update(values)
        self.count += 1
        return y

    @property
    def params(self) -> Any:
        return viewed(self._child, self._params, self.variables)


class _Unknown:
    """An output of unknown shape: any use of it raises the reason."""

    def __init__(self, error: NameError) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        raise self._error


class _Initialised:
    """A sublayer during `init`: it only knows shapes."""

    def __init__(self, owner: str, key: ChildKey, layer: AnyLayer, rng: Any, traced: bool):
        self.owner, self.key, self.layer, self.rng, self.traced = owner, key, layer, rng, traced
        self.made: Made | None = None
        self.x: Any = None
        self.count = 0

    def __call__(self, x: Any = None, /) -> Any:
        self.count += 1
        if self.made is None:
            self.x = shapes(x)
            is_shape = isinstance(self.rng, jax.ShapeDtypeStruct)
            make = abstract_child if is_shape else init_child
            self.made = make(self.owner, self.key, self.layer, self.rng, self.x)
            try:
                y = self.made.output()
            except NameError as error:  # a mapped axis that is bound in `apply` but not in `init`
                return _Unknown(error)
            if self.traced:
                self.made = remembered(self.layer, self.x, self.made, y)
        else:
            params, variables, child, _ = self.made
            y = output_shapes(self.owner, child, params, variables, x, self.rng)
        return placeholders(y) if self.traced else y

    @property
    def params(self) -> Any:
        if self.made is None:
            what = f"{self.key} to be called before its params are read"
            raise ValueError(expected(self.owner, what, "no call"))
        held = self.made.params, self.made.variables
        return viewed(self.made.child, *(placeholders(held) if self.traced else held))


class Wired(Combinator[P, S, X_contra, Y_co]):
    """A combinator defined by a function of x and its layers."""

    def __init__(self, wire: Callable[..., Any], numbered: bool, routes: bool) -> None:
        self._wire = wire
        self._routes = routes
        x, *hparams = inspect.signature(wire).parameters.values()
        variadic = any(p.kind is p.VAR_POSITIONAL for p in hparams)
        self._numbered = numbered or variadic

        @functools.wraps(wire)  # also to resolve annotations
        def init(rng: Key, x: Any, *args: Any, **kwargs: Any) -> Any:
            raise NotImplementedError  # `make` does its work

        kind = x.kind if x.kind is x.POSITIONAL_ONLY else x.POSITIONAL_OR_KEYWORD
        parameters = [inspect.Parameter("rng", kind), x, *hparams]
        setattr(init, "__signature__", inspect.Signature(parameters))
        init.__annotations__ = {n: a for n, a in wire.__annotations__.items() if n != "return"}
        super().__init__(init, self._run, WiredConfig, False)

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HParams:
        """Return the hyperparameters, with the layers that are defaults, in their plain form."""
        passed = dict(super().read(args, kwargs))
        for name, parameter in self.__signature__.parameters.items():
            if isinstance(parameter.default, Layer):
                passed.setdefault(name, parameter.default)
        hparams = tuple((n, passed[n]) for n in self.__signature__.parameters if n in passed)
        self.children_of(hparams)
        return hparams

    def children_of(self, hparams: HParams) -> tuple[list[str], dict[ChildKey, AnyLayer]]:
        """Return the name of the hyperparameter of each layer, and the layers by key."""
        slots: list[str] = []
        children: dict[ChildKey, AnyLayer] = {}
        for name, value in hparams:
            if self.__signature__.parameters[name].kind is inspect.Parameter.VAR_KEYWORD:
                named = {key: entry for key, entry in value if isinstance(entry, Layer)}
                if children and named and self._numbered:
                    got = f"{len(children)} without and {len(named)} with"
                    wanted = "all with names or all without"
                    raise TypeError(message(self.__name__, "layers", wanted, got))
                for key in named.keys() & {"rng", "x"}:
                    what = f"a name other than {key!r}, which is an argument of init"
                    raise ValueError(expected(self.__name__, what, "that name"))
                slots += [name] * len(named)
                children.update(named)
                continue
            for place in places_of(((name, value),)):
                if name in children:
                    got, way_out = f"a {type(value).__name__}", "take several as *layers"
                    raise TypeError(message(self.__name__, name, "a layer", got, way_out))
                slots.append(name)
                children[len(children) if self._numbered else name] = place.layer
        return slots, children

    def _arguments(self, hparams: Any, slots: Any, sublayers: Any) -> inspect.BoundArguments:
        """Return the arguments of the function, with sublayers in place of layers."""
        plain: dict[str, Any] = {name: () for name in slots} | dict(hparams)
        for name, (key, sublayer) in zip(slots, sublayers.items(), strict=True):
            kind = self.__signature__.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                plain[name] = (*plain[name], sublayer)
            elif kind is inspect.Parameter.VAR_KEYWORD:
                plain[name] = (*plain[name], (key, sublayer))
            else:
                plain[name] = sublayer
        return self.bound(tuple(plain.items()))

    def make_with_output(
        self, rng: Key, x: Any, hparams: HParams
    ) -> tuple[P, S, Callable[[], Any]]:
        """Return params, state, and a function that returns the shapes of the output."""
        owner = self.name_of(hparams)
        require_key(owner, rng)
        require_input(owner, x)
        slots, layers = self.children_of(hparams)
        keys = init_keys(rng, len(layers))
        traced = not self._routes
        joins = traced and is_traced(x)
        shape_only = traced and not joins
        rngs = [jax.eval_shape(lambda rng: rng, rng)] * len(keys) if shape_only else keys
        sublayers = {
            key: _Initialised(owner, key, layer, one, traced)
            for (key, layer), one in zip(layers.items(), rngs, strict=True)
        }
        defaults = {n: p.default for n, p in self.__signature__.parameters.items()}
        given = [(n, v) for n, v in hparams if n not in slots and not equal(v, defaults[n])]
        bound = self._arguments(given, slots, sublayers)

        wire, args, named = self._wire, bound.args, bound.kwargs
        with one_tracing():
            if joins:
                y = shapes(wire(placeholders(shapes(x)), *args, **named))
            elif traced:
                y = jax.eval_shape(lambda x: wire(x, *args, **named), x)
            else:
                y = wire(shapes(x), *args, **named)
            for sublayer, child_rng in zip(sublayers.values(), keys, strict=True):
                if sublayer.made is None:
                    what, got = "every sublayer to be called", f"no call of {sublayer.key}"
                    raise ValueError(expected(owner, what, got))
                if traced:
                    sublayer.made = init_child(
                        owner, sublayer.key, sublayer.layer, child_rng, sublayer.x
                    )
        made = [sublayer.made for sublayer in sublayers.values() if sublayer.made]
        params, variables, children, _ = collected(made)
        calls = tuple(sublayer.count for sublayer in sublayers.values())
        config = WiredConfig(owner, tuple(given), tuple(slots), children, calls)
        state: Any = State(variables, config)
        return params, state, lambda: y

    def adopt(self, bound: BoundApply, state: Any, x: Any) -> Any:
        """Return the state with the `apply` of each of these layers in its children."""
        hparams, owner = bound.hparams, bound.__name__
        config = config_of(owner, state, WiredConfig)
        slots, layers = self.children_of(hparams)
        if config.kind != owner:
            wanted, got = f"that of {owner}", f"that of {config.kind}"
            raise TypeError(message(owner, "state", wanted, got, ANOTHER_STATE))
        keys = [child.key for child in config.children]
        if keys != list(layers):
            wanted = f"that of the layers {_listed(layers)}"
            got = f"that of {_listed({c.key: c.kind for c in config.children})}"
            raise ValueError(message(owner, "state", wanted, got, ANOTHER_STATE))
        kept, own = dict(config.hparams), dict(hparams)
        for name in kept.keys() | {n for n in own if n not in slots}:
            default = self.__signature__.parameters[name].default
            require_equal(owner, name, own.get(name, default), kept.get(name, default))
        children = adopted_children(owner, config.children, tuple(layers.values()))
        return State(state.variables, config._replace(children=children))

    def _run(
        self, params: Any, state: Any, x: Any, rng: Key | None = None,
        inference_mode: bool = False, batch_axis_name: AxisName = (),
    ) -> tuple[Any, Any]:
        config: WiredConfig = state.config
        owner, children = config.kind, config.children
        each_params, each_variables = split(owner, children, params, state.variables)
        keys = apply_keys(rng, [child.needs_rng for child in children])
        sublayers = {
            child.key: _Running(
                Call(owner, key, inference_mode, batch_axis_name), child, calls, p, v
            )
            for child, key, calls, p, v in zip(
                children, keys, config.calls, each_params, each_variables, strict=True
            )
        }
        bound = self._arguments(config.hparams, config.slots, sublayers)
        if not self._routes:  # dict entries in the order that jax gives them, as in `init`
            x = jax.tree.map(lambda leaf: leaf, x)
        y = self._wire(x, *bound.args, **bound.kwargs)
        variables = [rejoined(one.variables, one.values) for one in sublayers.values()]
        return y, State(joined(children, variables), config)


def _listed(layers: dict[Any, Any]) -> str:
    kinds = {k: kind_of(v) if isinstance(v, Layer) else v for k, v in layers.items()}
    entries = [v if isinstance(k, int) else f"{k}={v}" for k, v in kinds.items()]
    if len(entries) > 8:
        entries = [*entries[:8], f"... ({len(entries)} layers)"]
    return f"({', '.join(entries)})"


class UserCombinator(Wired[Any, Any, Any, Any]):
    """What `mlax.combinator` makes."""

    def __call__(self, *args: Any, **kwargs: Any) -> Layer[Any, Any, Any, Any]:
        """Return the layer that has these hyperparameters."""
        return self.bind(*args, **kwargs)


@overload
def combinator(wire: Callable[..., Any], /) -> UserCombinator: ...
@overload
def combinator(
    *, kind: type[B], numbered: bool = False, routes: bool = False
) -> Callable[[Callable[..., Any]], B]: ...
@overload
def combinator(
    *, numbered: bool = False, routes: bool = False
) -> Callable[[Callable[..., Any]], UserCombinator]: ...
def combinator(
    wire: Any = None, /, *, kind: Any = UserCombinator, numbered: bool = False, routes: bool = False
) -> Any:
    """Make a combinator from a function that wires layers: `wire(x, **hparams) -> y`.

    A hyperparameter whose value is a layer is a `Sublayer` inside the function. Annotate it as
    `mlax.Sublayer`; `*layers` and `**named` likewise. To be picklable, the function must be defined
    at the top level of its module.

    params and variables are dicts keyed by the names of the hyperparameters, or tuples if the
    function takes `*layers`. Layers get their keys by the rule of `mlax.series`.

    Args:
        wire: function of x and hyperparameters.
        kind: the class of the pair, for its types.
        numbered: params and variables are tuples.
        routes: the function computes nothing itself, so `init` calls it on shapes without tracing.

    >>> import jax, jax.numpy as jnp, mlax
    >>> from mlax.types import Size
    >>> @mlax.combinator
    ... def alternate(x, a: mlax.Sublayer, b: mlax.Sublayer, n: Size):
    ...     for _ in range(n):
    ...         x = b(a(x))
    ...     return x
    >>> init, apply = alternate(mlax.dense(3), mlax.layer_norm(), 2)
    >>> params, state = init(jax.random.key(0), jnp.ones(3))
    >>> mlax.paths(params)
    ['a.kernel', 'a.bias', 'b.scale', 'b.bias']
    """
    if wire is not None:
        return kind(wire, numbered, routes)
    return lambda wire: kind(wire, numbered, routes)
