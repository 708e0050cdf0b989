"""Functions as layers: y = train_fn(x) in training, y = infer_fn(x) in inference."""

import copyreg
import functools
import inspect
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlax import mesh
from mlax.layer import AxisName, Key, State
from mlax.pair import layer
from mlax.tracing import traced_once


def _reduce_by_name(function: Any) -> str | tuple[Any, ...]:
    """Pickle a function of jax by its name; leave others to pickle."""
    if is_of_jax(function):
        return _qualname(function)
    reduced: str | tuple[Any, ...] = object.__reduce_ex__(function, 4)
    return reduced


def is_of_jax(function: Any) -> bool:
    """Return whether a function is found in a module of jax under its name."""
    module = getattr(function, "__module__", None)
    if not isinstance(module, str) or not module.startswith("jax."):
        return False
    found: Any = sys.modules.get(module)
    for name in _qualname(function).split("."):
        found = getattr(found, name, None)
    return found is function


def _qualname(function: Any) -> str:
    return str(getattr(function, "__qualname__", getattr(function, "__name__", "")))


# Without this, jax.nn.relu, jax.numpy.ravel and jax.numpy.add can't be pickled, nor can states of
# `f` that hold them.
for _type in (jax.custom_jvp, jax.custom_vjp, type(jax.jit(lambda x: x)), jnp.ufunc):
    copyreg.pickle(_type, _reduce_by_name)


class FConfig(NamedTuple):
    """Configuration of `f`."""

    train_fn: Callable[..., Any]
    """The function called in training."""
    infer_fn: Callable[..., Any] | None
    """The function called in inference; None means `train_fn`."""


def apply(
    params: tuple[()], state: State[tuple[()], FConfig], x: Any, rng: Key | None = None,
    inference_mode: bool = False, batch_axis_name: AxisName = (),
) -> tuple[Any, State[tuple[()], FConfig]]:
    """Return the value of the function at x: see `mlax.Apply` and `mlax.f`."""
    return _call(state.config, inference_mode, batch_axis_name, x), state


@layer(apply, config=FConfig)
def f(
    rng: Key, x: Any, train_fn: Callable[..., Any], infer_fn: Callable[..., Any] | None = None
) -> tuple[tuple[()], State[tuple[()], FConfig]]:
    """A function as a layer: y = train_fn(x).

    A function with a parameter `axis_name` is called with axis_name=batch_axis_name.

    Type checkers accept it before and after any layer. A declared type is checked:

        halves: mlax.Layer[tuple[()], Any, jax.Array, tuple[jax.Array, jax.Array]] = mlax.f(split)

    Args:
        train_fn: called in training, `train_fn(x)`.
        infer_fn: called in inference; None means `train_fn`.

    Raises:
        TypeError: an argument is not a function.

    >>> import jax, jax.numpy as jnp, mlax
    >>> params, state = mlax.f.init(jax.random.key(0), jnp.ones(2), jax.nn.relu)
    >>> mlax.f.apply(params, state, jnp.array([-1.0, 1.0]))[0]
    Array([0., 1.], dtype=float32)
    """
    return (), State((), FConfig(train_fn, infer_fn))


class FRngConfig(FConfig):
    """Configuration of `f_rng`."""


def apply_rng(
    params: tuple[()], state: State[tuple[()], FRngConfig], x: Any, rng: Key | None = None,
    inference_mode: bool = False, batch_axis_name: AxisName = (),
) -> tuple[Any, State[tuple[()], FRngConfig]]:
    """Return the value of the function at x and rng: see `mlax.Apply` and `mlax.f_rng`."""
    return _call(state.config, inference_mode, batch_axis_name, x, rng), state


@layer(apply_rng, config=FRngConfig, needs_rng=True)
def f_rng(
    rng: Key, x: Any, train_fn: Callable[..., Any], infer_fn: Callable[..., Any] | None = None
) -> tuple[tuple[()], State[tuple[()], FRngConfig]]:
    """A function of the input and a key as a layer: y = train_fn(x, rng).

    Needs a key in training. A function with a parameter `axis_name` is called with
    axis_name=batch_axis_name.

    Args:
        train_fn: called in training, `train_fn(x, rng)`.
        infer_fn: called in inference, where rng may be None; None means `train_fn`.

    Raises:
        TypeError: an argument is not a function.
        ValueError: there is no key in training.

    >>> import jax, jax.numpy as jnp, mlax
    >>> def noise(x, rng):
    ...     return x + jax.random.normal(rng, x.shape)
    >>> init, apply = mlax.f_rng(noise, lambda x, rng: x)
    >>> params, state = init(jax.random.key(0), jnp.ones(2))
    >>> apply(params, state, jnp.ones(2), inference_mode=True)[0]
    Array([1., 1.], dtype=float32)
    """
    return (), State((), FRngConfig(train_fn, infer_fn))


def _call(config: FConfig, inference_mode: bool, batch_axis_name: AxisName, *args: Any) -> Any:
    function = config.train_fn
    if inference_mode and config.infer_fn is not None:
        function = config.infer_fn
    if _takes_axis_name(function):
        with mesh.reducing("f"):
            return function(*args, axis_name=batch_axis_name)
    return _of_jax(*args, function=function) if is_of_jax(function) else function(*args)


def _function_of_jax(*args: Any, function: Callable[..., Any]) -> Any:
    return function(*args)


_of_jax = traced_once(_function_of_jax, "f")
"""Calls a function of jax, traced once. Others may read what changes, and are traced each time."""


def _takes_axis_name(function: Callable[..., Any]) -> bool:
    """Return whether a function has a parameter `axis_name` that no partial has bound."""
    if isinstance(function, functools.partial) and "axis_name" in function.keywords:
        return False
    try:
        return "axis_name" in inspect.signature(function).parameters
    except ValueError:  # a builtin without a signature
        return False
