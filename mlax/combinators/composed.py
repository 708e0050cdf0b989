"""Layers that are made of others once the shape of the input is known.

`composed` is the decorator of the ready-made blocks: the function below it returns a layer,
and what comes out is a pair whose params and variables are those of that layer.
"""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

from mlax import arguments
from mlax.combinators.child import (
    Child,
    apply_child,
    init_child,
    require_layer,
)
from mlax.pair import AxisName, Check, Key, Layer, Pair, State, layer, needs_rng

H = ParamSpec("H")
P = TypeVar("P")
X = TypeVar("X")
Y = TypeVar("Y")


class ComposedConfig(NamedTuple):
    """Configuration of a layer made of others."""

    name: str
    """The name of the pair."""
    layer: Child
    """What is kept of the layer that it made."""


def apply(
    params: Any,
    state: State[Any, ComposedConfig],
    x: Any,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[Any, State[Any, ComposedConfig]]:
    """Return the output of the layer that was made: see `mlax.Apply`."""
    name, child = arguments.config_of("composed", state, ComposedConfig)
    y, variables = apply_child(
        name, child, params, state.variables, x, rng, inference_mode, batch_axis_name
    )
    return y, State(variables, state.config)


def composed(
    *, checks: Mapping[str, Check] | None = None
) -> Callable[
    [Callable[Concatenate[Any, H], Layer[P, Any, X, Y]]],
    Pair[H, P, State[Any, ComposedConfig], X, Y],
]:
    """Return a decorator that makes `block(x, **hparams) -> layer` into a pair.

    `x` has the shapes and dtypes of the input. The layer is initialised with the key of the
    block itself. It must not need a key in training.

    Args:
        checks: as in `mlax.layer`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> @mlax.composed()
    ... def widen(x, times=2):
    ...     return mlax.linear(times * x.shape[-1])
    >>> params, state = widen(times=3).init(jax.random.key(0), jnp.ones(2))
    >>> params.kernel.shape
    (2, 6)
    """

    def decorate(
        block: Callable[Concatenate[Any, H], Layer[P, Any, X, Y]],
    ) -> Pair[H, P, State[Any, ComposedConfig], X, Y]:
        def init(
            rng: Key, x: Any, /, *args: H.args, **kwargs: H.kwargs
        ) -> tuple[P, State[Any, ComposedConfig]]:
            made = block(x, *args, **kwargs)
            require_layer(block.__name__, "what it returns", made)
            if needs_rng(made.apply):
                raise ValueError(
                    f"{block.__name__}: expected a layer that needs no key, got {made}"
                )
            params, variables, child = init_child(block.__name__, None, made, rng, x)
            return params, State(variables, ComposedConfig(block.__name__, child))

        signature = inspect.signature(block)
        rng = inspect.Parameter("rng", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Key)
        parameters = [rng, *signature.parameters.values()]
        setattr(init, "__signature__", signature.replace(parameters=parameters))
        for name in ("__module__", "__name__", "__qualname__", "__doc__"):
            setattr(init, name, getattr(block, name))
        return layer(apply, checks=checks)(init)

    return decorate
