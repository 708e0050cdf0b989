"""Linear recurrences: h_t = decay_t * h_{t-1} + added_t, where decay and added depend on x alone.

Each layer is a function from x_t to the terms of its recurrence, with y_t as a function of h_t. It
has two forms, with the same params:

    NAME_cell   one step, (x, h) -> (y, h) for x (..., in_features), as `mlax.recurrent` takes it
    NAME        all steps, (xs, h) -> (ys, h) for xs (length, in_features), by
                `mlax.functional.linear_recurrence`: in parallel, except on CPUs

so `mlax.lru(n)` computes the same as `mlax.recurrent(mlax.lru_cell(n))`, faster.
`mlax.carried(mlax.lru(n))` is a layer from xs to ys, and `mlax.carried(mlax.lru(n), decodes=True)`
decodes chunks of any length.

h starts as zeros, for which None is shorthand. y_t depends on x_0, ..., x_t. Products with kernels
are computed in the dtype of x, which is also that of y, the recurrence in float32 or better; the
carry keeps its own dtypes.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from mlax import arguments
from mlax.errors import expected
from mlax.layer import Shaped
from mlax.layers.cells import require_carry
from mlax.linear_recurrence import Implementation, linear_recurrence
from mlax.statistics import wide_dtype

RealInput: TypeAlias = tuple[jax.Array, jax.Array | None]
"""(x, h)."""
RealOutput: TypeAlias = tuple[jax.Array, jax.Array]
"""(y, h)."""


class Terms(NamedTuple):
    """The terms of a linear recurrence, computed from x, for one step or for all."""

    decay: jax.Array
    """The factor of h; its last axes are those of `added`."""
    added: jax.Array
    """What is added to decay * h: (h axes...), with a leading time axis for all steps."""
    output: Callable[[jax.Array], jax.Array]
    """Returns y for new h."""


def run(
    terms: Terms, carry: tuple[jax.Array, ...], over_time: bool, implementation: Implementation
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Return y and the next carry; a carry of two arrays holds the parts of complex numbers."""
    parts = [part.astype(terms.added.real.dtype) for part in carry]
    h = lax.complex(*parts) if len(parts) == 2 else parts[0]
    if over_time:
        hs = linear_recurrence(terms.decay, terms.added, h, implementation=implementation)
        h = h if hs.shape[0] == 0 else hs[-1]
    else:
        hs = h = jnp.broadcast_to(terms.decay, terms.added.shape) * h + terms.added
    after = (h.real, h.imag) if len(parts) == 2 else (h,)
    return terms.output(hs), tuple(a.astype(b.dtype) for a, b in zip(after, carry, strict=True))


def require_fitting(
    owner: str, x: Shaped, carry: tuple[Shaped | None, ...], shape: tuple[int, ...], over_time: bool
) -> tuple[int, ...]:
    """Return the shape of a carry with these axes for each x, and require it of the carry."""
    arguments.require_rank(owner, x, 1)
    arguments.require_real(owner, x)
    if over_time and len(x.shape) != 2:
        way_out = "map a batch axis with mlax.batched or jax.vmap"
        raise ValueError(expected(owner, "xs (length, features)", f"shape {x.shape}", way_out))
    shape = shape if over_time else (*x.shape[:-1], *shape)
    require_carry(owner, x, carry, shape, ["h"] if len(carry) == 1 else ["h[0]", "h[1]"])
    return shape


def fitting(
    owner: str, x: jax.Array, carry: tuple[jax.Array | None, ...], kernel: jax.Array,
    shape: tuple[int, ...], over_time: bool,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Return x and the carry as jax arrays, and require that they fit the parameters."""
    arguments.require_features(owner, x, kernel)
    shape = require_fitting(owner, x, carry, shape, over_time)
    zeros = jnp.zeros(shape, wide_dtype(x.dtype))
    return arguments.array(owner, x), tuple(zeros if h is None else jnp.asarray(h) for h in carry)
