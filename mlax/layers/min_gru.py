"""The minimal gated recurrent unit: see mlax/layers/recurrence.py.

    z_t, candidate_t = split(x_t @ kernel + bias, 2)
    y_t = h_t = (1 - sigmoid(z_t)) * h_{t-1} + sigmoid(z_t) * candidate_t

    x   (length, in_features), or (..., in_features) for the cell
    h   (features,)
    y   (length, features), or (..., features)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlax import arguments
from mlax.arguments import DType, Size, read_pair
from mlax.initializers import Initializer, initialize, lecun_normal
from mlax.layer import Key, Shaped
from mlax.layers.recurrence import RealInput, RealOutput, Terms, fitting, require_fitting, run
from mlax.linear_recurrence import Implementation
from mlax.pair import stateless
from mlax.serialization import serializable
from mlax.statistics import wide_dtype


@serializable
class MinGruParams(NamedTuple):
    """Parameters of `min_gru` and `min_gru_cell`."""

    kernel: jax.Array
    """(in_features, 2 * features), for z and for the candidate."""
    bias: jax.Array
    """(2 * features,)."""


class MinGruCellConfig(NamedTuple):
    """Configuration of `min_gru_cell`: no hyperparameters."""


class MinGruConfig(NamedTuple):
    """Configuration of `min_gru`."""

    implementation: Implementation
    """How to run the recurrence."""


def _apply_min_gru(
    owner: str, params: MinGruParams, x: RealInput, over_time: bool,
    implementation: Implementation = None,
) -> RealOutput:
    inputs, h = read_pair(owner, "x", x, "(x, h)")
    shape = (params.bias.shape[0] // 2,)
    inputs, carry = fitting(owner, inputs, (h,), params.kernel, shape, over_time)
    kernel, bias = (p.astype(inputs.dtype) for p in params)
    product = inputs @ kernel
    gates = (product + jnp.broadcast_to(bias, product.shape)).astype(wide_dtype(inputs.dtype))
    z, candidate = jnp.split(gates, 2, -1)
    terms = Terms(
        jax.nn.sigmoid(-z), jax.nn.sigmoid(z) * candidate, lambda h: h.astype(inputs.dtype)
    )
    y, (h,) = run(terms, carry, over_time, implementation)
    return (y, h)


def _init_min_gru(
    owner: str, rng: Key, x: Any, over_time: bool, features: int, kernel_initializer: Initializer,
    bias_initializer: Initializer, dtype: DType,
) -> MinGruParams:
    inputs, h = read_pair(owner, "x", x, "(x, h)")
    require_fitting(owner, inputs, (h,), (features,), over_time)
    arguments.require_castable(owner, inputs, dtype)

    def fused(i: int, name: str, initializer: Initializer, *shape: int) -> jax.Array:
        key = jax.random.fold_in(rng, i)
        return initialize(owner, name, initializer, key, shape, dtype, gates=2)

    return MinGruParams(
        fused(0, "kernel_initializer", kernel_initializer, inputs.shape[-1], features),
        fused(1, "bias_initializer", bias_initializer, features),
    )


def apply_min_gru_cell(params: MinGruParams, config: MinGruCellConfig, x: RealInput) -> RealOutput:
    """Return (y, h): see `mlax.min_gru_cell`."""
    return _apply_min_gru("min_gru_cell", params, x, False)


@stateless(apply_min_gru_cell, MinGruCellConfig, traced_once=True)
def min_gru_cell(
    rng: Key, x: tuple[Shaped, Shaped | None], features: Size, *,
    kernel_initializer: Initializer = lecun_normal,
    bias_initializer: Initializer = jax.nn.initializers.zeros, dtype: DType = jnp.float32,
) -> MinGruParams:
    """One step of `mlax.min_gru`, with the same params: (x, h) -> (y, h'), x (..., in_features).

    Arguments, errors and source are the same as in `mlax.min_gru`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.recurrent(mlax.min_gru_cell(4))
    >>> x = (jnp.ones((7, 3)), jnp.zeros(4))
    >>> params, state = init(jax.random.key(0), x)
    >>> (ys, h), state = apply(params, state, x)
    >>> params.kernel.shape, ys.shape, h.shape
    ((3, 8), (7, 4), (4,))
    """
    initializers = kernel_initializer, bias_initializer
    return _init_min_gru("min_gru_cell", rng, x, False, features, *initializers, dtype)


def apply_min_gru(params: MinGruParams, config: MinGruConfig, x: RealInput) -> RealOutput:
    """Return (ys, h): see `mlax.min_gru`."""
    return _apply_min_gru("min_gru", params, x, True, config.implementation)


@stateless(apply_min_gru, MinGruConfig, traced_once=True)
def min_gru(
    rng: Key, x: tuple[Shaped, Shaped | None], features: Size, *,
    kernel_initializer: Initializer = lecun_normal,
    bias_initializer: Initializer = jax.nn.initializers.zeros, dtype: DType = jnp.float32,
    implementation: Implementation = None,
) -> MinGruParams:
    """The minimal gated recurrent unit, whose gate does not depend on h: (xs, h) -> (ys, h).

        z_t, candidate_t = split(x_t @ kernel + bias, 2)
        y_t = h_t = (1 - sigmoid(z_t)) * h_{t-1} + sigmoid(z_t) * candidate_t

    xs is (length, in_features), ys (length, features), and h (features,); start with
    jnp.zeros(features), or None.

    Args:
        features: length of h and of the last axis of ys.
        kernel_initializer: called with (in_features, features), once for z and once for the
            candidate.
        bias_initializer: called with (features,), likewise.
        dtype: dtype of the parameters. They are cast to the dtype of x when used.
        implementation: how to run the recurrence, see `mlax.functional.linear_recurrence`.

    Raises:
        TypeError: an argument is of the wrong type, the input is not a pair, or not floating.
        ValueError: `features` is not positive, or x or the carry do not fit.

    Source: Feng et al., "Were RNNs all we needed?", 2024.

    >>> import jax, jax.numpy as jnp, mlax
    >>> xs = jnp.ones((7, 3))
    >>> init, apply = mlax.min_gru(4)
    >>> params, state = init(jax.random.key(0), (xs, None))
    >>> (ys, h), state = apply(params, state, (xs, None))
    >>> ys.shape, h.shape
    ((7, 4), (4,))
    """
    initializers = kernel_initializer, bias_initializer
    return _init_min_gru("min_gru", rng, x, True, features, *initializers, dtype)
