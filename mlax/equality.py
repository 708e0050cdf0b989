"""When two static values are equal, so that the tree structures that hold them are."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


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
