"""When two static values are equal, so that the tree structures that hold them are."""

import functools
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

T = TypeVar("T", bound=tuple[Any, ...])


def equal(a: Any, b: Any) -> bool:
    """Return whether two values are equal: arrays element by element, partials part by part.

    It holds for copies and for what was saved and loaded, and may be asked while jax traces.
    """
    if a is b:
        return True
    if isinstance(a, Tracer) or isinstance(b, Tracer):
        return False
    if isinstance(a, jax.Array | np.ndarray) and isinstance(b, jax.Array | np.ndarray):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if jnp.issubdtype(a.dtype, jax.dtypes.prng_key):
            with jax.ensure_compile_time_eval():
                a, b = jax.random.key_data(a), jax.random.key_data(b)
        return np.asarray(a).tobytes() == np.asarray(b).tobytes()
    if type(a) is not type(b):
        return False
    if isinstance(a, list | tuple):
        if type(a).__eq__ not in (list.__eq__, tuple.__eq__):
            return bool(a == b)
        return len(a) == len(b) and all(map(equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, functools.partial):
        return equal((a.func, a.args, a.keywords), (b.func, b.args, b.keywords))
    if not jax.tree_util.all_leaves([a]):
        (a_leaves, a_structure), (b_leaves, b_structure) = jax.tree.flatten(a), jax.tree.flatten(b)
        return bool(a_structure == b_structure) and all(map(equal, a_leaves, b_leaves))
    try:
        return bool(a == b)
    except (TypeError, ValueError):
        return False


def by_parts(cls: type[T]) -> type[T]:
    """Decorate a named tuple that holds functions: it is compared with `equal`.

    Without this two equal partials, or one and its copy, make configs that are not equal. What
    tuples find equal is so at once: `jax.jit` compares a state that was loaded at every call.
    """

    def __eq__(self: T, other: object) -> bool:
        if not isinstance(other, cls):
            return False
        return tuple.__eq__(self, other) or all(map(equal, self, other))

    def __ne__(self: T, other: object) -> bool:
        return not self == other

    def __hash__(self: T) -> int:
        return hash(tuple(v.func if isinstance(v, functools.partial) else v for v in self))

    for method in (__eq__, __ne__, __hash__):
        setattr(cls, method.__name__, method)
    return cls
