"""The selective state space model, S6: see mlax/layers/recurrence.py.

    low_t, b_t, c_t = split(x_t @ kernel)
    delta_t = softplus(low_t @ delta_kernel + delta_bias)
    h_t[i] = exp(-delta_t[i] * exp(a_log[i])) * h_{t-1}[i] + delta_t[i] * x_t[i] * b_t
    y_t[i] = h_t[i] @ c_t + d[i] * x_t[i]                       for each feature i

    x   (length, features), or (..., features) for the cell
    h   (features, state_features)
    y   like x
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mlax import arguments
from mlax.arguments import DType, Number, Size, read_pair
from mlax.errors import expected
from mlax.initializers import Initializer, initialize, lecun_normal
from mlax.layer import Key, Shaped
from mlax.layers.recurrence import RealInput, RealOutput, Terms, fitting, require_fitting, run
from mlax.linear_recurrence import Implementation
from mlax.pair import stateless
from mlax.serialization import serializable
from mlax.statistics import wide_dtype


@serializable
class SelectiveSsmParams(NamedTuple):
    """Parameters of `selective_ssm` and `selective_ssm_cell`."""

    kernel: jax.Array
    """(features, delta_rank + 2 * state_features), the projection of x to low, b and c."""
    delta_kernel: jax.Array
    """(delta_rank, features)."""
    delta_bias: jax.Array
    """(features,)."""
    a_log: jax.Array
    """(features, state_features), log(-a)."""
    d: jax.Array
    """(features,)."""


class SelectiveSsmCellConfig(NamedTuple):
    """Configuration of `selective_ssm_cell`: no hyperparameters."""


class SelectiveSsmConfig(NamedTuple):
    """Configuration of `selective_ssm`."""

    implementation: Implementation
    """How to run the recurrence."""


def _apply_selective_ssm(
    owner: str, params: SelectiveSsmParams, x: RealInput, over_time: bool,
    implementation: Implementation = None,
) -> RealOutput:
    inputs, h = read_pair(owner, "x", x, "(x, h)")
    inputs, carry = fitting(owner, inputs, (h,), params.kernel, params.a_log.shape, over_time)
    wide = wide_dtype(inputs.dtype)
    kernel, delta_kernel, delta_bias = (p.astype(inputs.dtype) for p in params[:3])
    rank, state_features = delta_kernel.shape[0], params.a_log.shape[1]
    low, b, c = jnp.split(inputs @ kernel, [rank, rank + state_features], -1)
    from_low = low @ delta_kernel
    delta = jax.nn.softplus((from_low + jnp.broadcast_to(delta_bias, from_low.shape)).astype(wide))
    shape = (*delta.shape, state_features)
    a = jnp.broadcast_to(-jnp.exp(params.a_log.astype(wide)), shape)
    decay = jnp.exp(jnp.expand_dims(delta, -1) * a)
    added = jnp.expand_dims(delta * inputs.astype(wide), -1) * jnp.expand_dims(b.astype(wide), -2)

    def output(h: jax.Array) -> jax.Array:
        y = jnp.einsum("...fs,...s->...f", h, c.astype(wide), precision=lax.Precision.HIGHEST)
        y += inputs.astype(wide) * jnp.broadcast_to(params.d.astype(wide), inputs.shape)
        return y.astype(inputs.dtype)

    y, (h,) = run(Terms(decay, added, output), carry, over_time, implementation)
    return (y, h)


def _init_selective_ssm(
    owner: str, rng: Key, x: Any, over_time: bool, state_features: int, delta_rank: int | None,
    delta_min: float, delta_max: float, kernel_initializer: Initializer, dtype: DType,
) -> SelectiveSsmParams:
    inputs, h = read_pair(owner, "x", x, "(x, h)")
    arguments.require_rank(owner, inputs, 1)
    features = inputs.shape[-1]
    require_fitting(owner, inputs, (h,), (features, state_features), over_time)
    arguments.require_castable(owner, inputs, dtype)
    if not 0 < delta_min <= delta_max:
        wanted = "delta_min and delta_max with 0 < delta_min <= delta_max"
        raise ValueError(expected(owner, wanted, f"{delta_min} and {delta_max}"))
    rank = -(-features // 16) if delta_rank is None else delta_rank
    keys = [jax.random.fold_in(rng, i) for i in range(3)]
    wide = wide_dtype(dtype)
    limits = math.log(delta_min), math.log(delta_max)
    delta = jnp.exp(jax.random.uniform(keys[2], (features,), wide, *limits))
    delta_kernel = jax.random.uniform(keys[1], (rank, features), wide, -1, 1) / math.sqrt(rank)
    a_log = jnp.log(jnp.arange(1, state_features + 1, dtype=wide))
    shape = features, rank + 2 * state_features
    return SelectiveSsmParams(
        initialize(owner, "kernel_initializer", kernel_initializer, keys[0], shape, dtype),
        delta_kernel.astype(dtype),
        (delta + jnp.log(-jnp.expm1(-delta))).astype(dtype),  # softplus of it is delta
        jnp.broadcast_to(a_log, (features, state_features)).astype(dtype),
        jnp.ones(features, dtype),
    )


def apply_selective_ssm_cell(
    params: SelectiveSsmParams, config: SelectiveSsmCellConfig, x: RealInput
) -> RealOutput:
    """Return (y, h): see `mlax.selective_ssm_cell`."""
    return _apply_selective_ssm("selective_ssm_cell", params, x, False)


@stateless(apply_selective_ssm_cell, SelectiveSsmCellConfig, traced_once=True)
def selective_ssm_cell(
    rng: Key, x: tuple[Shaped, Shaped | None], state_features: Size = 16, *,
    delta_rank: Size | None = None, delta_min: Number = 0.001, delta_max: Number = 0.1,
    kernel_initializer: Initializer = lecun_normal, dtype: DType = jnp.float32,
) -> SelectiveSsmParams:
    """One step of `mlax.selective_ssm`, with the same params: (x, h) -> (y, h'), x (..., features).

    Arguments, errors and source are the same as in `mlax.selective_ssm`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.recurrent(mlax.selective_ssm_cell(4))
    >>> x = (jnp.ones((7, 3)), jnp.zeros((3, 4)))
    >>> params, state = init(jax.random.key(0), x)
    >>> (ys, h), state = apply(params, state, x)
    >>> ys.shape, h.shape
    ((7, 3), (3, 4))
    """
    return _init_selective_ssm(
        "selective_ssm_cell", rng, x, False, state_features, delta_rank, delta_min, delta_max,
        kernel_initializer, dtype,
    )


def apply_selective_ssm(
    params: SelectiveSsmParams, config: SelectiveSsmConfig, x: RealInput
) -> RealOutput:
    """Return (ys, h): see `mlax.selective_ssm`."""
    return _apply_selective_ssm("selective_ssm", params, x, True, config.implementation)


@stateless(apply_selective_ssm, SelectiveSsmConfig, traced_once=True)
def selective_ssm(
    rng: Key, x: tuple[Shaped, Shaped | None], state_features: Size = 16, *,
    delta_rank: Size | None = None, delta_min: Number = 0.001, delta_max: Number = 0.1,
    kernel_initializer: Initializer = lecun_normal, dtype: DType = jnp.float32,
    implementation: Implementation = None,
) -> SelectiveSsmParams:
    """The selective state space model of Mamba: (xs, h) -> (ys, h).

        low_t, b_t, c_t = split(x_t @ kernel)
        delta_t = softplus(low_t @ delta_kernel + delta_bias)
        h_t[i] = exp(-delta_t[i] * exp(a_log[i])) * h_{t-1}[i] + delta_t[i] * x_t[i] * b_t
        y_t[i] = h_t[i] @ c_t + d[i] * x_t[i]

    for each feature i. xs and ys are (length, features), h is (features, state_features); start
    with zeros, or None. (The discretisation is exact for a, and Euler's for b.)

    Args:
        state_features: length of h for each feature.
        delta_rank: length of low_t. None means features / 16, rounded up.
        delta_min, delta_max: softplus(delta_bias) is drawn log-uniformly between these. The
            smaller, the longer h remembers.
        kernel_initializer: called with (features, delta_rank + 2 * state_features).
        dtype: dtype of the parameters. Kernels are cast to the dtype of x when used.
        implementation: how to run the recurrence, see `mlax.functional.linear_recurrence`.

    Raises:
        TypeError: an argument is of the wrong type, the input is not a pair, or not floating.
        ValueError: a size or limit is out of range, or x or the carry do not fit.

    Source: Gu and Dao, "Mamba: linear-time sequence modeling with selective state spaces", 2023.

    >>> import jax, jax.numpy as jnp, mlax
    >>> xs = jnp.ones((7, 3))
    >>> init, apply = mlax.selective_ssm(4)
    >>> params, state = init(jax.random.key(0), (xs, None))
    >>> (ys, h), state = apply(params, state, (xs, None))
    >>> ys.shape, h.shape
    ((7, 3), (3, 4))
    """
    return _init_selective_ssm(
        "selective_ssm", rng, x, True, state_features, delta_rank, delta_min, delta_max,
        kernel_initializer, dtype,
    )
