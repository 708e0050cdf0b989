"""Layers that depend on the shape of the input.

`composed` decorates a function that returns a layer; the result is a pair with the params and
variables of that layer.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, Protocol, overload

import jax
import numpy as np

from mlax.arguments import AnyLayer, read_layer
from mlax.belonging import config_of, require_equal
from mlax.combinators import Child, apply_child, init_child
from mlax.errors import message
from mlax.layer import AxisName, Key, Layer, State
from mlax.layer import C, P, S, V, X, Y
from mlax.pair import BoundApply, HParams, Pair

H = ParamSpec("H")


class ComposedConfig(NamedTuple):
    """Configuration of a layer that depends on the shape of the input."""

    name: str
    """The name of the pair."""
    layer: Child
    """The layer that the function returned."""
    ndims: tuple[int, ...]
    """Number of axes of each array in the input of `init`."""


def apply(
    params: Any, state: State[Any, ComposedConfig], x: Any, rng: Key | None = None,
    inference_mode: bool = False, batch_axis_name: AxisName = (),
) -> tuple[Any, State[Any, ComposedConfig]]:
    """Return the output of the layer: see `mlax.Apply`."""
    name, child, _ = state.config
    y, variables = apply_child(
        name, child, params, state.variables, x, rng, inference_mode, batch_axis_name
    )
    return y, State(variables, state.config)


class Composed(Pair[H, P, State[V, ComposedConfig], X, Y], Generic[H, P, V, X, Y]):
    """A pair made by `composed`."""

    def __init__(
        self, function: Callable[..., AnyLayer], needs_rng: bool | Callable[..., bool]
    ) -> None:
        """Make a pair from a function of x and hyperparameters that returns a layer."""
        name = function.__name__

        @functools.wraps(function)  # also to resolve annotations
        def init(rng: Key, x: Any, /, *args: Any, **kwargs: Any) -> Any:
            return init_child(name, None, self._layer(x, *args, **kwargs), rng, x)

        signature = inspect.signature(function)
        rng = inspect.Parameter("rng", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Key)
        parameters = [rng, *signature.parameters.values()]
        setattr(init, "__signature__", signature.replace(parameters=parameters))
        self._function = function
        super().__init__(init, apply, ComposedConfig, needs_rng)

    def make(self, rng: Key, x: Any, hparams: HParams) -> Any:
        """Return `(params, state)`."""
        return self.make_with_output(rng, x, hparams)[:2]

    def make_with_output(
        self, rng: Key, x: Any, hparams: HParams
    ) -> tuple[Any, Any, Callable[[], Any]]:
        """Return params, state, and a function that returns the shapes of the output."""
        made: Any = super().make(rng, x, hparams)
        config = ComposedConfig(self.__name__, made.child, _ndims(x))
        return made.params, State(made.variables, config), made.output

    def _layer(self, x: Any, *args: Any, **kwargs: Any) -> AnyLayer:
        name = self.__name__
        layer = read_layer(name, "the result", self._function(x, *args, **kwargs))
        needs = self._needs_rng
        if layer.needs_rng and not (needs(*args, **kwargs) if callable(needs) else needs):
            way_out = "declare the need with @mlax.composed(needs_rng=True)"
            wanted = "a layer that needs no key"
            raise ValueError(message(name, "the result", wanted, layer, way_out))
        return layer

    def layer_for(self, x: Any, hparams: HParams) -> AnyLayer:
        """Return the layer that the function makes from x and hyperparameters."""
        passed = self.bound(hparams)
        return self._layer(x, *passed.args, **passed.kwargs)

    def adopt(self, bound: BoundApply, state: Any, x: Any) -> Any:
        """Return the state with the layer for these hyperparameters as its child."""
        config: ComposedConfig = config_of(self.__name__, state, ComposedConfig)
        require_equal(self.__name__, "name", self.__name__, config.name)
        if config.ndims != _ndims(x):
            return state  # the layer in the state will say what is wrong with x
        child = config.layer.adopted(self.__name__, self.layer_for(x, bound.hparams))
        return State(state.variables, config._replace(layer=child))


def _ndims(x: Any) -> tuple[int, ...]:
    return tuple(np.ndim(leaf) for leaf in jax.tree.leaves(x))


class _Decorator(Protocol):
    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, H], Layer[P, State[V, C], X, Y]], /
    ) -> Composed[H, P, V, X, Y]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[Any, H], Layer[P, S, X, Y]], /
    ) -> Composed[H, P, Any, X, Y]: ...
    def __call__(self, function: Any, /) -> Any: ...


def composed(*, needs_rng: bool | Callable[..., bool] = False) -> _Decorator:
    """Return a decorator that turns `function(x, **hparams) -> layer` into a pair.

    `x` has the shapes and dtypes of the input. The layer gets the key of the pair itself, in
    `init` and in `apply`.

    Args:
        needs_rng: whether the layer needs a key in training; a function of the hyperparameters
            if it depends on them.

    Raises:
        TypeError: the function does not return a layer.
        ValueError: the layer needs a key, and `needs_rng` says that it does not.

    >>> import jax, jax.numpy as jnp, mlax
    >>> @mlax.composed()
    ... def widen(x, times=2):
    ...     return mlax.linear(times * x.shape[-1])
    >>> params, state = widen(times=3).init(jax.random.key(0), jnp.ones(2))
    >>> params.kernel.shape
    (2, 6)
    """
    return lambda function: Composed(function, needs_rng)
