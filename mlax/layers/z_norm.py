"""Normalisation with running statistics: y = (x - E[x]) / sqrt(Var[x] + epsilon).

    x          any shape
    mean, var  the shape of x without `axis`
    y          the shape of x
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mlax import arguments
from mlax.arguments import Epsilon, Momentum, NormalizedAxis, RealDType
from mlax.errors import expected
from mlax.functional import scale_to_unit
from mlax.initializers import Initializer, initialize
from mlax.layer import AxisName, Key, Shaped, State
from mlax.pair import layer
from mlax.serialization import serializable
from mlax.statistics import require_statistics, statistics, wide_dtype
from mlax.tracing import traced_once


@serializable
class ZNormVariables(NamedTuple):
    """Variables of `z_norm`: the running statistics."""

    mean: jax.Array
    """The shape of x without the axes normalised over."""
    var: jax.Array
    """The shape of x without the axes normalised over."""


class ZNormConfig(NamedTuple):
    """Configuration of `z_norm`."""

    axis: NormalizedAxis
    """The axes normalised over."""
    epsilon: float
    """Term added to the variance."""
    momentum: float
    """Decay of the running statistics: momentum * old + (1 - momentum) * new."""
    ndim: int
    """Number of axes of x."""


def normalize(
    running: ZNormVariables, x: jax.Array, *, owner: str, axes: tuple[int, ...], epsilon: float,
    momentum: float, inference_mode: bool, batch_axis_name: AxisName,
) -> tuple[jax.Array, ZNormVariables]:
    """Return x normalised over `axes` and the batch, and the next running statistics.

    In training, `require_statistics` must allow it.
    """
    arguments.require_real(owner, x)
    shape = tuple(length for i, length in enumerate(x.shape) if i not in axes)
    if running.mean.shape != shape:
        statistics_of = f"running statistics of shape {running.mean.shape}"
        what = f"x to fit {statistics_of} when it is normalised over axes {axes}"
        raise ValueError(expected(owner, what, f"shape {x.shape}"))
    if inference_mode:
        dtype = wide_dtype(x.dtype)
        mean, variance = (value.astype(dtype) for value in running)
        centred = x.astype(dtype) - jnp.expand_dims(mean, axes)
        return scale_to_unit(centred, variance, axes, epsilon, x.dtype), running

    centred, mean, variance = statistics(owner, x, axes, batch_axis_name)

    def updated(old: jax.Array, new: jax.Array) -> jax.Array:
        return (momentum * old.astype(new.dtype) + (1 - momentum) * new).astype(old.dtype)

    y = scale_to_unit(centred, variance, axes, epsilon, x.dtype)
    return y, ZNormVariables(updated(running.mean, mean), updated(running.var, variance))


_normalize_traced_once = traced_once(normalize, "z_norm")


def apply(
    params: tuple[()], state: State[ZNormVariables, ZNormConfig], x: jax.Array,
    rng: Key | None = None, inference_mode: bool = False, batch_axis_name: AxisName = (),
) -> tuple[jax.Array, State[ZNormVariables, ZNormConfig]]:
    """Return x normalised: see `mlax.Apply` and `mlax.z_norm`."""
    axis, epsilon, momentum, _ = state.config
    x = arguments.array("z_norm", x)
    axes = arguments.normalized_axes("z_norm", axis, x.ndim)
    if not inference_mode:
        require_statistics("z_norm", x, axes, batch_axis_name)
    y, variables = _normalize_traced_once(
        state.variables, x, owner="z_norm", axes=axes, epsilon=epsilon, momentum=momentum,
        inference_mode=inference_mode, batch_axis_name=batch_axis_name,
    )
    return y, state if inference_mode else State(variables, state.config)


@layer(apply, config=ZNormConfig)
def z_norm(
    rng: Key, x: Shaped, axis: NormalizedAxis, epsilon: Epsilon = 1e-05, momentum: Momentum = 0.9,
    mean_initializer: Initializer = jax.nn.initializers.zeros,
    variance_initializer: Initializer = jax.nn.initializers.ones, dtype: RealDType = jnp.float32,
) -> tuple[tuple[()], State[ZNormVariables, ZNormConfig]]:
    """Normalisation to mean 0 and variance 1: y = (x - E[x]) / sqrt(Var[x] + epsilon).

    In training, E and Var are taken over `axis` and the axes in `batch_axis_name`, and the
    running statistics become momentum * old + (1 - momentum) * new. In inference, the running
    statistics are used and left unchanged. Statistics are computed in float32 or better,
    whatever the dtype of x; Var is the population variance, which must fit into the dtype: where
    it overflows, the running variance becomes infinite and y is 0.

    Args:
        axis: the axes normalised over, as in `mlax.functional.z_norm`.
        epsilon: small number that keeps y finite.
        momentum: decay of the running statistics, in [0, 1].
        mean_initializer: called with the shape of the running mean.
        variance_initializer: called with the shape of the running variance.
        dtype: floating dtype of the running statistics.

    Raises:
        TypeError: an argument is of the wrong type, or x is complex.
        ValueError: `axis` is an unknown string or outside x, or x does not fit the statistics.

    Warns:
        UserWarning: in training, E and Var are taken over a single element, so that y is 0 whatever
            x is: the batch was not mapped, or `batch_axis_name` not passed.

    Source: Ioffe and Szegedy, "Batch normalization", 2015.

    >>> import jax, jax.numpy as jnp, mlax
    >>> batch = jnp.array([[1.0], [3.0]])
    >>> params, state = mlax.z_norm.init(jax.random.key(0), batch[0], axis=())
    >>> def example(x, state):
    ...     return mlax.z_norm.apply(params, state, x, None, False, "batch")
    >>> y, state = jax.vmap(example, (0, None), (0, None), axis_name="batch")(batch, state)
    >>> state.variables.mean
    Array([0.2], dtype=float32)
    """
    arguments.require_real("z_norm", x)
    axes = arguments.normalized_axes("z_norm", axis, len(x.shape))
    shape = tuple(length for i, length in enumerate(x.shape) if i not in axes)
    keys = [jax.random.fold_in(rng, i) for i in range(2)]
    mean = initialize("z_norm", "mean_initializer", mean_initializer, keys[0], shape, dtype)
    var = initialize("z_norm", "variance_initializer", variance_initializer, keys[1], shape, dtype)
    config = ZNormConfig(axis, epsilon, momentum, len(x.shape))
    return (), State(ZNormVariables(mean, var), config)
