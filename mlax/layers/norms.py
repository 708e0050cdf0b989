"""Normalisations with a trained scale and bias: y = normal(x) * scale + bias.

| pair | mean and variance of x are taken over | scale and bias have |
| --- | --- | --- |
| `batch_norm` | all axes but the channel axis, and the batch | the channel axis |
| `layer_norm` | `axis` | the axes in `axis` |
| `rms_norm` | `axis`; x / sqrt(E[x^2] + epsilon), no bias | the axes in `axis` |
| `group_norm` | all axes, separately for each group of channels | the channel axis |
| `instance_norm` | all axes but the channel axis | the channel axis |

Everything, including the scale and the bias, is computed in float32 or better; y is rounded
once, to the dtype of x. `mlax.statistics.standardized` and `mlax.z_norm` do the work. Except in
`batch_norm`, x may be as large or small as its dtype allows: no square of it overflows.
"""

from typing import Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mlax import arguments
from mlax.arguments import DataFormat, Epsilon, Momentum, NormalizedAxis, RealDType, Size
from mlax.belonging import layer_name
from mlax.errors import expected, message
from mlax.initializers import Initializer, initialize
from mlax.layer import AxisName, Key, Shaped, State
from mlax.layers.z_norm import ZNormVariables, normalize, z_norm
from mlax.pair import layer, stateless
from mlax.serialization import serializable
from mlax.statistics import (
    elements, require_statistics, standardized, warn_of_one_element, wide_dtype,
)
from mlax.tracing import traced_once


@serializable
class NormParams(NamedTuple):
    """Parameters of the normalisations; an unused one is None, which is not a leaf."""

    scale: jax.Array | None
    """The scale, with the lengths of the scaled axes, or None."""
    bias: jax.Array | None
    """The bias, with the lengths of the biased axes, or None."""


class LayerNormConfig(NamedTuple):
    """Configuration of `layer_norm`."""

    axis: NormalizedAxis
    """The axes normalised over."""
    epsilon: float
    """Term added to the variance."""
    use_scale: bool
    """Whether there is a scale."""
    use_bias: bool
    """Whether there is a bias."""
    ndim: int | None
    """Number of axes of x, None if `axis` only counts from the end."""


class RmsNormConfig(NamedTuple):
    """Configuration of `rms_norm`."""

    axis: NormalizedAxis
    """The axes normalised over."""
    epsilon: float
    """Term added to the mean square."""
    use_scale: bool
    """Whether there is a scale."""
    ndim: int | None
    """Number of axes of x, None if `axis` only counts from the end."""

    @property
    def use_bias(self) -> bool:
        """Whether there is a bias: never."""
        return False


class GroupNormConfig(NamedTuple):
    """Configuration of `group_norm`."""

    groups: int
    """Number of groups of channels."""
    epsilon: float
    """Term added to the variance."""
    use_scale: bool
    """Whether there is a scale."""
    use_bias: bool
    """Whether there is a bias."""
    data_format: str
    """Where the channel axis is."""
    ndim: int
    """Number of axes of x."""


class InstanceNormConfig(NamedTuple):
    """Configuration of `instance_norm`."""

    epsilon: float
    """Term added to the variance."""
    use_scale: bool
    """Whether there is a scale."""
    use_bias: bool
    """Whether there is a bias."""
    data_format: str
    """Where the channel axis is."""
    ndim: int
    """Number of axes of x."""


NormConfig: TypeAlias = LayerNormConfig | RmsNormConfig | GroupNormConfig | InstanceNormConfig
"""The config of a normalisation of one example."""


def apply(params: NormParams, config: NormConfig, x: jax.Array) -> jax.Array:
    """Return x normalised over the axes of one example."""
    owner = layer_name(config)
    x = arguments.array(owner, x)
    wide = _wide(owner, x)
    if isinstance(config, LayerNormConfig | RmsNormConfig):
        over = own = arguments.normalized_axes(owner, config.axis, x.ndim)
    else:
        channel, over = _channel_and_others(owner, config.data_format, x)
        own = (channel,)
        if isinstance(config, GroupNormConfig):
            size = _group_size(x.shape[channel], config.groups)
            wide = wide.reshape(*x.shape[:channel], config.groups, size, *x.shape[channel + 1 :])
            over = tuple(axis for axis in range(wide.ndim) if axis != channel)
    centred = not isinstance(config, RmsNormConfig)
    normal = standardized(owner, wide, over, config.epsilon, centred)
    return _affine(owner, params, normal.reshape(x.shape), own, x)


def _wide(owner: str, x: jax.Array) -> jax.Array:
    """Return x in float32 or better."""
    arguments.require_castable(owner, x, jnp.float32)
    arguments.require_real(owner, x)
    return x.astype(wide_dtype(x.dtype))


def _affine(
    owner: str, params: NormParams, normal: jax.Array, axes: tuple[int, ...], x: jax.Array
) -> jax.Array:
    """Return normal * scale + bias in the dtype of x; the parameters span `axes` of x."""
    shape = tuple(x.shape[axis] for axis in axes)
    others = tuple(axis for axis in range(x.ndim) if axis not in axes)

    def along_axes(parameter: jax.Array) -> jax.Array:
        if parameter.shape != shape:
            what = f"x to fit parameters of shape {parameter.shape} along axes {axes}"
            raise ValueError(expected(owner, what, f"shape {x.shape}"))
        return jnp.expand_dims(parameter.astype(normal.dtype), others)

    y = normal
    if params.scale is not None:
        y = y * along_axes(params.scale)
    if params.bias is not None:
        y = y + along_axes(params.bias)
    return y.astype(x.dtype)


def _channel_and_others(owner: str, data_format: str, x: Shaped) -> tuple[int, tuple[int, ...]]:
    """Return the channel axis and the other axes of x."""
    channel = arguments.channel_axis(owner, data_format, x)
    return channel, tuple(axis for axis in range(len(x.shape)) if axis != channel)


def _group_size(channels: int, groups: int) -> int:
    if channels % groups:
        wanted = f"a divisor of the number of channels ({channels})"
        raise ValueError(message("group_norm", "groups", wanted, groups))
    return channels // groups


def _init_params(
    owner: str, rng: Key, x: Shaped, axes: tuple[int, ...],
    scaler_initializer: Initializer | Literal[False],
    bias_initializer: Initializer | Literal[False], dtype: DTypeLike,
) -> NormParams:
    """Return parameters that span `axes` of x; False stands for an unused parameter."""
    arguments.require_castable(owner, x, dtype)
    arguments.require_real(owner, x)
    shape = tuple(x.shape[axis] for axis in axes)

    def made(name: str, initializer: Initializer | Literal[False], i: int) -> jax.Array | None:
        if initializer is False:
            return None
        return initialize(owner, name, initializer, jax.random.fold_in(rng, i), shape, dtype)

    scale = made("scaler_initializer", scaler_initializer, 0)
    return NormParams(scale, made("bias_initializer", bias_initializer, 1))


@stateless(apply, LayerNormConfig, traced_once=True)
def layer_norm(
    rng: Key, x: Shaped, *,
    axis: NormalizedAxis = -1, epsilon: Epsilon = 1e-05, use_scale: bool = True,
    use_bias: bool = True, scaler_initializer: Initializer = jax.nn.initializers.ones,
    bias_initializer: Initializer = jax.nn.initializers.zeros, dtype: RealDType = jnp.float32,
) -> NormParams:
    """Layer normalisation: y = (x - E[x]) / sqrt(Var[x] + epsilon) * scale + bias.

    E and Var are taken over `axis`, in training and in inference alike. Scale and bias have one
    entry for each element along these axes, in increasing order of the axes.

    Args:
        axis: the axes normalised over, as in `mlax.functional.z_norm`.
        epsilon: small number that keeps y finite.
        use_scale: whether there is a scale.
        use_bias: whether there is a bias.
        scaler_initializer, bias_initializer: called with the lengths of the axes normalised over.
        dtype: dtype of scale and bias.

    Raises:
        TypeError: an argument is of the wrong type, or x is not real and floating.
        ValueError: `axis` is an unknown string or outside x, or x does not fit the parameters.

    Warns:
        UserWarning: E and Var are taken over a single element, so that y is 0 whatever x is.

    Source: Ba et al., "Layer normalization", 2016.

    >>> import jax, jax.numpy as jnp, mlax
    >>> params, state = mlax.layer_norm.init(jax.random.key(0), jnp.ones(2))
    >>> mlax.layer_norm.apply(params, state, jnp.array([1.0, 3.0]))[0].round(3)
    Array([-1.,  1.], dtype=float32)
    """
    arguments.require_array("layer_norm", x)
    axes = arguments.normalized_axes("layer_norm", axis, len(x.shape))
    warn_of_one_element("layer_norm", elements(x, axes), "choose longer axes")
    scale, bias = use_scale and scaler_initializer, use_bias and bias_initializer
    return _init_params("layer_norm", rng, x, axes, scale, bias, dtype)


@stateless(apply, RmsNormConfig, traced_once=True)
def rms_norm(
    rng: Key, x: Shaped, *,
    axis: NormalizedAxis = -1, epsilon: Epsilon = 1e-06, use_scale: bool = True,
    scaler_initializer: Initializer = jax.nn.initializers.ones, dtype: RealDType = jnp.float32,
) -> NormParams:
    """Root mean square normalisation: y = x / sqrt(E[x^2] + epsilon) * scale.

    Args:
        axis: the axes that E is taken over.
        epsilon, use_scale, scaler_initializer, dtype: as in `mlax.layer_norm`.

    Raises what `mlax.layer_norm` raises.

    Source: Zhang and Sennrich, "Root mean square layer normalization", 2019.

    >>> import jax, jax.numpy as jnp, mlax
    >>> params, state = mlax.rms_norm.init(jax.random.key(0), jnp.ones(2))
    >>> mlax.rms_norm.apply(params, state, jnp.array([2.0, -2.0]))[0].round(3)
    Array([ 1., -1.], dtype=float32)
    """
    arguments.require_array("rms_norm", x)
    axes = arguments.normalized_axes("rms_norm", axis, len(x.shape))
    return _init_params("rms_norm", rng, x, axes, use_scale and scaler_initializer, False, dtype)


@stateless(apply, GroupNormConfig, traced_once=True)
def group_norm(
    rng: Key, x: Shaped, groups: Size, *,
    epsilon: Epsilon = 1e-05, use_scale: bool = True, use_bias: bool = True,
    data_format: DataFormat = "channel_last",
    scaler_initializer: Initializer = jax.nn.initializers.ones,
    bias_initializer: Initializer = jax.nn.initializers.zeros, dtype: RealDType = jnp.float32,
) -> NormParams:
    """Group normalisation: y = (x - E[x]) / sqrt(Var[x] + epsilon) * scale + bias.

    E and Var are taken over each group of neighbouring channels and all other axes of x.

    Args:
        groups: number of groups, a divisor of the number of channels.
        data_format: "channel_last", "channel_first", or a spec such as "HWC".
        scaler_initializer, bias_initializer: called with (channels,).
        epsilon, use_scale, use_bias, dtype: as in `mlax.layer_norm`.

    Raises:
        TypeError: an argument is of the wrong type, or x is not real and floating.
        ValueError: `groups` does not divide the channels, or x does not fit the parameters.

    Warns:
        UserWarning: E and Var are taken over a single element, as in `mlax.layer_norm`.

    Source: Wu and He, "Group normalization", 2018.

    >>> import jax, jax.numpy as jnp, mlax
    >>> params, state = mlax.group_norm.init(jax.random.key(0), jnp.ones(4), groups=2)
    >>> mlax.group_norm.apply(params, state, jnp.array([1.0, 3.0, 5.0, 9.0]))[0].round(3)
    Array([-1.,  1., -1.,  1.], dtype=float32)
    """
    channel, others = _channel_and_others("group_norm", data_format, x)
    size = _group_size(x.shape[channel], groups)
    warn_of_one_element("group_norm", elements(x, others) * size, "choose larger groups")
    scale, bias = use_scale and scaler_initializer, use_bias and bias_initializer
    return _init_params("group_norm", rng, x, (channel,), scale, bias, dtype)


@stateless(apply, InstanceNormConfig, traced_once=True)
def instance_norm(
    rng: Key, x: Shaped, *,
    epsilon: Epsilon = 1e-05, use_scale: bool = True, use_bias: bool = True,
    data_format: DataFormat = "channel_last",
    scaler_initializer: Initializer = jax.nn.initializers.ones,
    bias_initializer: Initializer = jax.nn.initializers.zeros, dtype: RealDType = jnp.float32,
) -> NormParams:
    """Instance normalisation: y = (x - E[x]) / sqrt(Var[x] + epsilon) * scale + bias.

    E and Var are taken for each channel of the example, over its spatial axes.

    Args:
        data_format: "channel_last", "channel_first", or a spec such as "HWC".
        scaler_initializer, bias_initializer: called with (channels,).
        epsilon, use_scale, use_bias, dtype: as in `mlax.layer_norm`.

    Raises:
        TypeError: an argument is of the wrong type, or x is not real and floating.
        ValueError: x has no spatial axis, or does not fit the parameters.

    Warns:
        UserWarning: E and Var are taken over a single element, as in `mlax.layer_norm`.

    Source: Ulyanov et al., "Instance normalization", 2016.

    >>> import jax, jax.numpy as jnp, mlax
    >>> x = jnp.array([[1.0, 8.0], [3.0, 4.0]])
    >>> params, state = mlax.instance_norm.init(jax.random.key(0), x)
    >>> mlax.instance_norm.apply(params, state, x)[0].round(3)
    Array([[-1.,  1.],
           [ 1., -1.]], dtype=float32)
    """
    arguments.require_rank("instance_norm", x, 2)
    channel, others = _channel_and_others("instance_norm", data_format, x)
    warn_of_one_element("instance_norm", elements(x, others), "pass x with larger spatial axes")
    scale, bias = use_scale and scaler_initializer, use_bias and bias_initializer
    return _init_params("instance_norm", rng, x, (channel,), scale, bias, dtype)


class BatchNormConfig(NamedTuple):
    """Configuration of `batch_norm`."""

    epsilon: float
    """Term added to the variance."""
    momentum: float
    """Decay of the running statistics: momentum * old + (1 - momentum) * new."""
    use_scale: bool
    """Whether there is a scale."""
    use_bias: bool
    """Whether there is a bias."""
    data_format: str
    """Where the channel axis is."""
    ndim: int
    """Number of axes of x."""


def apply_batch_norm(
    params: NormParams, state: State[ZNormVariables, BatchNormConfig], x: jax.Array,
    rng: Key | None = None, inference_mode: bool = False, batch_axis_name: AxisName = (),
) -> tuple[jax.Array, State[ZNormVariables, BatchNormConfig]]:
    """Return x normalised over the batch: see `mlax.Apply` and `mlax.batch_norm`."""
    x = arguments.array("batch_norm", x)
    if not inference_mode:
        _, others = _channel_and_others("batch_norm", state.config.data_format, x)
        require_statistics("batch_norm", x, others, batch_axis_name)
    y, variables = _batch_norm(
        params, state.variables, x, config=state.config, inference_mode=inference_mode,
        batch_axis_name=batch_axis_name,
    )
    return y, state if inference_mode else State(variables, state.config)


def _normalize_batch(
    params: NormParams, running: ZNormVariables, x: jax.Array, *, config: BatchNormConfig,
    inference_mode: bool, batch_axis_name: AxisName,
) -> tuple[jax.Array, ZNormVariables]:
    """Return x normalised over the batch, and the next running statistics."""
    channel, others = _channel_and_others("batch_norm", config.data_format, x)
    normal, variables = normalize(
        running, _wide("batch_norm", x), owner="batch_norm", axes=others, epsilon=config.epsilon,
        momentum=config.momentum, inference_mode=inference_mode, batch_axis_name=batch_axis_name,
    )
    return _affine("batch_norm", params, normal, (channel,), x), variables


_batch_norm = traced_once(_normalize_batch, "batch_norm")


@layer(apply_batch_norm, config=BatchNormConfig)
def batch_norm(
    rng: Key, x: Shaped, *,
    epsilon: Epsilon = 1e-05, momentum: Momentum = 0.9, use_scale: bool = True,
    use_bias: bool = True, data_format: DataFormat = "channel_last",
    scaler_initializer: Initializer = jax.nn.initializers.ones,
    bias_initializer: Initializer = jax.nn.initializers.zeros, dtype: RealDType = jnp.float32,
) -> tuple[NormParams, State[ZNormVariables, BatchNormConfig]]:
    """Batch normalisation: y = (x - E[x]) / sqrt(Var[x] + epsilon) * scale + bias.

    x is one example of shape (..., channels). In training, E and Var are taken for each channel,
    over all other axes and the axes in `batch_axis_name`, and the running statistics become
    momentum * old + (1 - momentum) * new, as in `mlax.z_norm`. In inference, the running
    statistics are used and left unchanged.

    In PyTorch, momentum means 1 - momentum, and the running variance is the sample variance,
    n / (n - 1) times this one.

    Args:
        momentum: decay of the running statistics, in [0, 1].
        dtype: dtype of scale and bias. The running statistics are in float32 or better.
        epsilon, use_scale, use_bias, data_format, scaler_initializer, bias_initializer: as in
            `mlax.group_norm`.

    Raises:
        TypeError: an argument is of the wrong type, or x is not real and floating.
        ValueError: an argument is out of its range, or x does not fit the parameters.
        NameError: no axis named `batch_axis_name` is bound.

    Warns:
        UserWarning: E and Var are taken over a single element in training, as in `mlax.z_norm`.

    Source: Ioffe and Szegedy, "Batch normalization", 2015.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.batched(mlax.batch_norm())
    >>> batch = jnp.array([[1.0], [3.0]])
    >>> params, state = init(jax.random.key(0), batch)
    >>> y, state = apply(params, state, batch)
    >>> y.round(3).tolist(), state.variables.mean
    ([[-1.0], [1.0]], Array([0.2], dtype=float32))
    """
    channel, others = _channel_and_others("batch_norm", data_format, x)
    scale, bias = use_scale and scaler_initializer, use_bias and bias_initializer
    params = _init_params("batch_norm", rng, x, (channel,), scale, bias, dtype)
    wide = wide_dtype(dtype)
    _, statistics = z_norm.init(rng, x, others, epsilon, momentum, dtype=wide)
    config = BatchNormConfig(epsilon, momentum, use_scale, use_bias, data_format, len(x.shape))
    return params, State(statistics.variables, config)
