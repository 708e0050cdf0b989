"""Equal layers share one trace: a function of `traced_once` is a `jax.jit` of its own in a program.

Most layers of a model equal another one, with arrays of the same shapes. JAX traces, differentiates
and lowers the function for the first of them, and finds the results again for the others, in this
program and in the next. XLA compiles the same code as without.
"""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import jax
from jax.core import Tracer

from mlax.layer import State

H = ParamSpec("H")
Y = TypeVar("Y")


def traced_once(function: Callable[H, Y], name: str) -> Callable[H, Y]:
    """Return the function as one that JAX traces once for equal arguments.

    Concrete arrays, and arguments other than arrays, go to the function itself.

    Args:
        function: a pure function, which reads nothing that may change, and does not warn. Its
            positional arguments are pytrees of arrays, of which JAX compares the types; those by
            keyword are hashable, and compared as the config of a state is.
        name: what profiles and StableHLO call it.
    """

    def call(keywords: State[tuple[()], Any], /, *arrays: Any) -> Any:
        return function(*arrays, **dict(keywords.config))

    call.__name__ = call.__qualname__ = name
    traced = jax.jit(call)

    @functools.wraps(function)
    def run(*arrays: H.args, **keywords: H.kwargs) -> Y:
        leaves = jax.tree.leaves(arrays)
        is_traced = any(isinstance(leaf, Tracer) for leaf in leaves)
        if not is_traced or not all(isinstance(leaf, jax.Array) for leaf in leaves):
            return function(*arrays, **keywords)
        y: Y = traced(State((), tuple(keywords.items())), *arrays)
        return y

    return run
