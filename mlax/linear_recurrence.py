"""All steps of a linear recurrence at once: h_t = decay_t * h_{t-1} + x_t.

Two consecutive steps (a, x) and (b, y) are one step (a * b, b * x + y), whatever h is. That is
associative, so the steps may be grouped in any way: in parallel, as suits accelerators. On CPUs,
one step after the other is several times as fast.
"""

from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from mlax import arguments, mesh
from mlax.arguments import read_literal
from mlax.errors import message
from mlax.statistics import wide_dtype

Implementation: TypeAlias = Literal["associative", "sequential", None]
"""How to run a linear recurrence: see `mlax.functional.linear_recurrence`."""


def linear_recurrence(
    decay: jax.Array, x: jax.Array, h: jax.Array | None = None, *, reverse: bool = False,
    implementation: Implementation = None,
) -> jax.Array:
    """Return all h_t = decay_t * h_{t-1} + x_t, over the first axis, in float32 or better.

    Args:
        decay: an array that broadcasts to the shape of x, with or without the first axis; complex
            only if x is.
        x: (length, ...), floating or complex.
        h: (...), the h before the first step; None for zeros.
        reverse: run from the last step to the first: h_t = decay_t * h_{t+1} + x_t.
        implementation: "associative" for `jax.lax.associative_scan`, which takes O(log length)
            dependent steps, or "sequential" for `jax.lax.scan`. None means sequential on CPUs, and
            where the length is symbolic, in `jax.export`.

    Returns:
        (length, ...), of the dtype of x.

    Raises:
        TypeError: x is not floating, or decay or h is complex and x is not.
        ValueError: the shapes do not fit, or there is no such implementation.

    Source: Blelloch, "Prefix sums and their applications", 1990; Martin and Cundy, "Parallelizing
    linear recurrent neural nets over sequence length", 2018.

    >>> import jax.numpy as jnp
    >>> linear_recurrence(jnp.array(0.5), jnp.array([1.0, 0, 2]), jnp.array(4.0))
    Array([3.  , 1.5 , 2.75], dtype=float32)
    """
    read_literal(Implementation, "linear_recurrence", "implementation", implementation)
    x, decay = _fitting(decay, x, h)
    wide = wide_dtype(x.dtype)
    steps = jnp.broadcast_to(decay.astype(wide), x.shape), x.astype(wide)
    first = jnp.zeros(x.shape[1:], wide) if h is None else jnp.asarray(h).astype(wide)
    is_symbolic = type(x.shape[0]) is not int
    if implementation is None:
        on_cpu = jax.default_backend() == "cpu"
        implementation = "sequential" if on_cpu or is_symbolic else "associative"
    hs: jax.Array
    if implementation == "associative":
        if is_symbolic:
            wanted, got = f"None or sequential for {x.shape[0]} steps", repr(implementation)
            way_out = "a tree of steps needs a known length"
            owner = "linear_recurrence"
            raise ValueError(message(owner, "implementation", wanted, got, way_out))
        decays, hs = lax.associative_scan(_combined, steps, reverse=reverse)
        if h is not None:
            hs += decays * jnp.broadcast_to(first, hs.shape)
    else:
        first = mesh.settled(_step, first, steps, x.shape[0])
        _, hs = lax.scan(_step, first, steps, reverse=reverse)
    return hs.astype(x.dtype)


def _step(h: jax.Array, terms: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    decay, x = terms
    h = decay * h + x
    return h, h


def _combined(
    first: tuple[jax.Array, jax.Array], second: tuple[jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    (a, x), (b, y) = first, second
    return a * b, b * x + y


def _fitting(decay: Any, x: Any, h: Any) -> tuple[jax.Array, jax.Array]:
    """Return x and decay as jax arrays, and require that all fit."""
    owner = "linear_recurrence"
    arguments.require_rank(owner, x, 1)
    arguments.require_castable(owner, x, jnp.float32)
    for name, value in {"decay": decay, "h": decay if h is None else h}.items():
        arguments.require_array(owner, value, name)
        if jnp.iscomplexobj(value) and not jnp.iscomplexobj(x):
            got, way_out = jnp.dtype(value.dtype).name, "make x complex too"
            raise TypeError(message(owner, name, "real, as x is", got, way_out))
    axes = zip(decay.shape[::-1], x.shape[::-1], strict=False)
    if decay.ndim > x.ndim or not all(n == 1 or n == m for n, m in axes):
        wanted = f"of a shape that broadcasts to that of x, {x.shape}"
        raise ValueError(message(owner, "decay", wanted, f"shape {decay.shape}"))
    if h is not None and h.shape != x.shape[1:]:
        wanted = f"of shape {x.shape[1:]}, for x of shape {x.shape}"
        raise ValueError(message(owner, "h", wanted, f"shape {h.shape}"))
    return jnp.asarray(x), jnp.asarray(decay)
