"""The linear recurrent unit, with a diagonal and complex recurrence: see mlax/layers/recurrence.py.

    decay = exp(-exp(nu_log) + i exp(theta_log))
    h_t = decay * h_{t-1} + exp(gamma_log) * (x_t @ b)
    y_t = real(h_t @ c) + d * x_t

    x   (length, features), or (..., features) for the cell
    h   (real, imaginary), (state_features,) each
    y   like x
"""

import math
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from mlax import arguments
from mlax.arguments import DType, Number, Positive, Size, read_pair
from mlax.errors import expected
from mlax.layer import Key, Shaped
from mlax.layers.cells import pair_of_carries
from mlax.layers.recurrence import Terms, fitting, require_fitting, run
from mlax.linear_recurrence import Implementation
from mlax.pair import stateless
from mlax.serialization import serializable
from mlax.statistics import wide_dtype

ComplexInput: TypeAlias = tuple[jax.Array, tuple[jax.Array, jax.Array] | None]
"""(x, (real part of h, imaginary part of h))."""
ComplexOutput: TypeAlias = tuple[jax.Array, tuple[jax.Array, jax.Array]]
"""(y, (real part of h, imaginary part of h))."""


@serializable
class LruParams(NamedTuple):
    """Parameters of `lru` and `lru_cell`, with the names of the paper."""

    nu_log: jax.Array
    """(state_features,), log(-log |decay|)."""
    theta_log: jax.Array
    """(state_features,), log of the phase of decay."""
    gamma_log: jax.Array
    """(state_features,), log of the scale of what is added."""
    b_real: jax.Array
    """(features, state_features)."""
    b_imag: jax.Array
    """(features, state_features)."""
    c_real: jax.Array
    """(state_features, features)."""
    c_imag: jax.Array
    """(state_features, features)."""
    d: jax.Array
    """(features,)."""


class LruCellConfig(NamedTuple):
    """Configuration of `lru_cell`: no hyperparameters."""


class LruConfig(NamedTuple):
    """Configuration of `lru`."""

    implementation: Implementation
    """How to run the recurrence."""


def _apply_lru(
    owner: str, params: LruParams, x: ComplexInput, over_time: bool,
    implementation: Implementation = None,
) -> ComplexOutput:
    inputs, carry = read_pair(owner, "x", x, "(x, h)")
    pair = pair_of_carries(owner, carry, "(real part of h, imaginary part of h)")
    shape = params.nu_log.shape
    inputs, parts = fitting(owner, inputs, pair, params.b_real, shape, over_time)
    wide = wide_dtype(inputs.dtype)
    nu_log, theta_log, gamma_log = (p.astype(wide) for p in params[:3])
    b_real, b_imag, c_real, c_imag, d = (p.astype(inputs.dtype) for p in params[3:])
    decay = jnp.exp(lax.complex(-jnp.exp(nu_log), jnp.exp(theta_log)))
    from_x = [(inputs @ b).astype(wide) for b in (b_real, b_imag)]
    gamma = jnp.broadcast_to(jnp.exp(gamma_log), from_x[0].shape)
    added = lax.complex(gamma * from_x[0], gamma * from_x[1])

    def output(h: jax.Array) -> jax.Array:
        real, imag = h.real.astype(inputs.dtype), h.imag.astype(inputs.dtype)
        y: jax.Array = real @ c_real - imag @ c_imag + inputs * jnp.broadcast_to(d, inputs.shape)
        return y

    y, (real, imag) = run(Terms(decay, added, output), parts, over_time, implementation)
    return (y, (real, imag))


def _init_lru(
    owner: str, rng: Key, x: Any, over_time: bool, state_features: int, r_min: float, r_max: float,
    max_phase: float, dtype: DType,
) -> LruParams:
    inputs, carry = read_pair(owner, "x", x, "(x, h)")
    pair = pair_of_carries(owner, carry, "(real part of h, imaginary part of h)")
    require_fitting(owner, inputs, pair, (state_features,), over_time)
    arguments.require_castable(owner, inputs, dtype)
    if not 0 <= r_min < r_max <= 1:
        wanted, got = "r_min and r_max with 0 <= r_min < r_max <= 1", f"{r_min} and {r_max}"
        raise ValueError(expected(owner, wanted, got))
    features = inputs.shape[-1]
    keys = [jax.random.fold_in(rng, i) for i in range(7)]
    wide = wide_dtype(dtype)
    tiny, epsilon = float(jnp.finfo(wide).tiny), float(jnp.finfo(wide).eps)  # avoid log(0)
    squared_radius = jax.random.uniform(
        keys[0], (state_features,), wide, max(r_min**2, tiny), r_max**2
    )
    nu = jnp.maximum(-jnp.log(squared_radius), epsilon) / 2
    theta = jax.random.uniform(keys[1], (state_features,), wide, tiny, max_phase)

    def normal(key: Key, *shape: int, variance: float) -> jax.Array:
        return (jax.random.normal(key, shape, wide) * math.sqrt(variance)).astype(dtype)

    return LruParams(
        jnp.log(nu).astype(dtype),
        jnp.log(theta).astype(dtype),
        (jnp.log(-jnp.expm1(-2 * nu)) / 2).astype(dtype),  # so that h has the scale of x @ b
        normal(keys[2], features, state_features, variance=0.5 / features),
        normal(keys[3], features, state_features, variance=0.5 / features),
        normal(keys[4], state_features, features, variance=1 / state_features),
        normal(keys[5], state_features, features, variance=1 / state_features),
        normal(keys[6], features, variance=1),
    )


def apply_lru_cell(params: LruParams, config: LruCellConfig, x: ComplexInput) -> ComplexOutput:
    """Return (y, h): see `mlax.lru_cell`."""
    return _apply_lru("lru_cell", params, x, False)


@stateless(apply_lru_cell, LruCellConfig, traced_once=True)
def lru_cell(
    rng: Key, x: tuple[Shaped, tuple[Shaped, Shaped] | None], state_features: Size, *,
    r_min: Number = 0.0, r_max: Number = 1.0, max_phase: Positive = 2 * math.pi,
    dtype: DType = jnp.float32,
) -> LruParams:
    """One step of `mlax.lru`, with the same params: (x, h) -> (y, h'), x (..., features).

    Arguments, errors and source are the same as in `mlax.lru`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> x = (jnp.ones((7, 3)), None)
    >>> params, state = mlax.lru(4).init(jax.random.key(0), x)
    >>> init, apply = mlax.recurrent(mlax.lru_cell(4))
    >>> _, state = init(jax.random.key(0), x)
    >>> (ys, (real, imag)), state = apply(params, state, x)
    >>> ys.shape, real.shape
    ((7, 3), (4,))
    """
    return _init_lru("lru_cell", rng, x, False, state_features, r_min, r_max, max_phase, dtype)


def apply_lru(params: LruParams, config: LruConfig, x: ComplexInput) -> ComplexOutput:
    """Return (ys, h): see `mlax.lru`."""
    return _apply_lru("lru", params, x, True, config.implementation)


@stateless(apply_lru, LruConfig, traced_once=True)
def lru(
    rng: Key, x: tuple[Shaped, tuple[Shaped, Shaped] | None], state_features: Size, *,
    r_min: Number = 0.0, r_max: Number = 1.0, max_phase: Positive = 2 * math.pi,
    dtype: DType = jnp.float32,
    implementation: Implementation = None,
) -> LruParams:
    """The linear recurrent unit, a diagonal state space model: (xs, h) -> (ys, h).

        decay = exp(-exp(nu_log) + i exp(theta_log))
        h_t = decay * h_{t-1} + exp(gamma_log) * (x_t @ b)
        y_t = real(h_t @ c) + d * x_t

    xs and ys are (length, features). h is complex and passed as the pair of its real and imaginary
    parts, (state_features,) each; start with (jnp.zeros(state_features),) * 2, or None. All params
    are real: b is b_real + i b_imag.

    Args:
        state_features: length of h.
        r_min, r_max: decay is drawn uniformly from the ring between these radii in the complex
            plane. The nearer to 1, the longer h remembers.
        max_phase: the largest phase of decay.
        dtype: dtype of the parameters. Kernels are cast to the dtype of x when used.
        implementation: how to run the recurrence, see `mlax.functional.linear_recurrence`.

    Raises:
        TypeError: an argument is of the wrong type, the input is not a pair, or not floating.
        ValueError: a size or radius is out of range, or x or the carry do not fit.

    Source: Orvieto et al., "Resurrecting recurrent neural networks for long sequences", 2023.

    >>> import jax, jax.numpy as jnp, mlax
    >>> xs = jnp.ones((7, 3))
    >>> init, apply = mlax.lru(4)
    >>> params, state = init(jax.random.key(0), (xs, None))
    >>> (ys, h), state = apply(params, state, (xs, None))
    >>> ys.shape, h[0].shape
    ((7, 3), (4,))
    """
    return _init_lru("lru", rng, x, True, state_features, r_min, r_max, max_phase, dtype)
