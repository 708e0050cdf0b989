"""Normalisations with a trained scale and bias: y = normal(x) * scale + bias.

| pair | mean and variance of x are taken over | scale and bias have |
| --- | --- | --- |
| `batch_norm` | all axes but the channel axis, and the batch | the channel axis |
| `layer_norm` | `axis` | the axes in `axis` |
| `rms_norm` | `axis`; x / sqrt(E[x^2] + epsilon), no bias | the axes in `axis` |
| `group_norm` | all axes, but apart for each group of channels | the channel axis |
| `instance_norm` | all axes but the channel axis | the channel axis |

All of it, the scale and the bias included, is computed in float32 or better; y is rounded
once, to the dtype of x. `scale_to_unit` and `mlax.z_norm` do the work.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from mlax import arguments
from mlax.arguments import Axes
from mlax.functional import scale_to_unit
from mlax.initializers import Initializer, initialize
from mlax.layers.z_norm import ZNormVariables, normalize, z_norm
from mlax.pair import AxisName, Check, Key, State, layer
from mlax.statistics import statistics


class NormParams(NamedTuple):
    """Parameters of the normalisations; what is not used is None, and so has no leaf."""

    scale: jax.Array | None
    """One factor for each element of the axes that have their own, or None."""
    bias: jax.Array | None
    """One term for each element of the axes that have their own, or None."""


CHECKS: dict[str, Check] = {
    "axis": arguments.check_normalized_axis,
    "groups": arguments.check_size,
    "epsilon": arguments.check_epsilon,
    "use_scale": arguments.check_bool,
    "use_bias": arguments.check_bool,
    "momentum": arguments.check_momentum,
    "data_format": arguments.check_data_format,
    "scaler_initializer": arguments.check_callable,
    "bias_initializer": arguments.check_callable,
    "dtype": arguments.check_dtype,
}


def _init_params(
    owner: str,
    rng: Key,
    x: jax.Array | jax.ShapeDtypeStruct,
    axes: tuple[int, ...],
    scaler_initializer: Initializer | None,
    bias_initializer: Initializer | None,
    dtype: DTypeLike,
) -> NormParams:
    """Return parameters that have `axes` of x; None stands for a parameter that is not used."""
    arguments.require_castable(owner, x, dtype)
    arguments.require_real(owner, x)
    shape = tuple(x.shape[axis] for axis in axes)

    def made(name: str, initializer: Initializer | None, i: int) -> jax.Array | None:
        if initializer is None:
            return None
        return initialize(owner, name, initializer, jax.random.fold_in(rng, i), shape, dtype)

    scale = made("scaler_initializer", scaler_initializer, 0)
    return NormParams(scale, made("bias_initializer", bias_initializer, 1))


def _wide(owner: str, x: jax.Array) -> jax.Array:
    """Return x in float32 or better."""
    arguments.require_castable(owner, x, jnp.float32)
    arguments.require_real(owner, x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _normal(owner: str, x: jax.Array, axes: tuple[int, ...], epsilon: float) -> jax.Array:
    """Return x with mean 0 and variance 1 over `axes`, in float32 or better."""
    centred, _, variance = statistics(owner, x, axes, ())
    return scale_to_unit(centred, variance, axes, epsilon, centred.dtype)


def _affine(
    owner: str, params: NormParams, normal: jax.Array, axes: tuple[int, ...], x: jax.Array
) -> jax.Array:
    """Return normal * scale + bias in the dtype of x; the parameters have `axes` of x."""
    shape = tuple(x.shape[axis] for axis in axes)
    others = tuple(axis for axis in range(x.ndim) if axis not in axes)

    def along_axes(parameter: jax.Array) -> jax.Array:
        if parameter.shape != shape:
            raise ValueError(
                f"{owner}: expected x to fit parameters of shape {parameter.shape} along axes "
                f"{axes}, got shape {x.shape}"
            )
        return jnp.expand_dims(parameter.astype(normal.dtype), others)

    y = normal
    if params.scale is not None:
        y = y * along_axes(params.scale)
    if params.bias is not None:
        y = y + along_axes(params.bias)
    return y.astype(x.dtype)


def _channel_and_others(
    owner: str, data_format: str, x: jax.Array | jax.ShapeDtypeStruct
) -> tuple[int, tuple[int, ...]]:
    """Return the channel axis and the other axes of x."""
    channel = arguments.channel_axis(owner, data_format, x)
    return channel, tuple(axis for axis in range(len(x.shape)) if axis != channel)


class BatchNormConfig(NamedTuple):
    """Configuration of `batch_norm`."""

    epsilon: float
    """What is added to the variance."""
    momentum: float
    """The share of the old statistics in the new ones."""
    data_format: str
    """Where the channel axis is."""
    absent: tuple[str, ...]
    """The names of the parameters that are not used."""


def apply_batch_norm(
    params: NormParams,
    state: State[ZNormVariables, BatchNormConfig],
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, State[ZNormVariables, BatchNormConfig]]:
    """Return x normalised over the batch: see `mlax.Apply` and `mlax.batch_norm`."""
    epsilon, momentum, data_format, absent = arguments.config_of(
        "batch_norm", state, BatchNormConfig
    )
    arguments.require_params("batch_norm", params, NormParams, absent)
    x = arguments.array("batch_norm", x)
    channel, others = _channel_and_others("batch_norm", data_format, x)
    normal, variables = normalize(
        "batch_norm",
        state.variables,
        _wide("batch_norm", x),
        others,
        epsilon,
        momentum,
        inference_mode,
        batch_axis_name,
    )
    y = _affine("batch_norm", params, normal, (channel,), x)
    return y, state if inference_mode else State(variables, state.config)


@layer(apply_batch_norm, checks=CHECKS)
def batch_norm(
    rng: Key,
    x: jax.Array | jax.ShapeDtypeStruct,
    epsilon: float = 1e-05,
    momentum: float = 0.9,
    use_scale: bool = True,
    use_bias: bool = True,
    data_format: str = "channel_last",
    scaler_initializer: Initializer = jax.nn.initializers.ones,
    bias_initializer: Initializer = jax.nn.initializers.zeros,
    dtype: DTypeLike = jnp.float32,
) -> tuple[NormParams, State[ZNormVariables, BatchNormConfig]]:
    """Batch normalisation: y = (x - E[x]) / sqrt(Var[x] + epsilon) * scale + bias.

    x is one example of shape (..., channels). In training E and Var are those of each
    channel over all other axes and over the axes in `batch_axis_name`, and the running
    statistics become momentum * old + (1 - momentum) * new, as `mlax.z_norm` has it. In
    inference the running statistics are used and stay as they are.

    PyTorch calls 1 - momentum the momentum, and its running variance is that of a sample,
    n / (n - 1) times this one.

    Args:
        epsilon: small number that keeps the quotient finite.
        momentum: in [0, 1].
        use_scale: whether there is a scale.
        use_bias: whether there is a bias.
        data_format: "channel_last", "channel_first", or a spec such as "HWC".
        scaler_initializer: called with (channels,).
        bias_initializer: called with (channels,).
        dtype: dtype of scale and bias. The running statistics are in float32 or better.

    Raises:
        TypeError: an argument is of the wrong type, or x is not real and floating.
        ValueError: an argument is out of its range, or x does not fit the parameters.
        NameError: no axis of the name `batch_axis_name` is bound.

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
    params = _init_params(
        "batch_norm",
        rng,
        x,
        (channel,),
        scaler_initializer if use_scale else None,
        bias_initializer if use_bias else None,
        dtype,
    )
    _, statistics = z_norm.init(
        rng, x, others, epsilon, momentum, dtype=jnp.promote_types(dtype, jnp.float32)
    )
    config = BatchNormConfig(epsilon, momentum, data_format, arguments.absent_of(params))
    return params, State(statistics.variables, config)


class LayerNormConfig(NamedTuple):
    """Configuration of `layer_norm` and `rms_norm`."""

    axis: str | tuple[int, ...]
    """The axes normalised over."""
    epsilon: float
    """What is added to the mean square."""
    absent: tuple[str, ...]
    """The names of the parameters that are not used."""


def apply_layer_norm(
    params: NormParams,
    state: State[tuple[()], LayerNormConfig],
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, State[tuple[()], LayerNormConfig]]:
    """Return x normalised: see `mlax.Apply` and `mlax.layer_norm`."""
    axis, epsilon, absent = arguments.config_of("layer_norm", state, LayerNormConfig)
    arguments.require_params("layer_norm", params, NormParams, absent)
    x = arguments.array("layer_norm", x)
    axes = arguments.normalized_axes("layer_norm", axis, x.ndim)
    normal = _normal("layer_norm", _wide("layer_norm", x), axes, epsilon)
    return _affine("layer_norm", params, normal, axes, x), state


@layer(apply_layer_norm, checks=CHECKS)
def layer_norm(
    rng: Key,
    x: jax.Array | jax.ShapeDtypeStruct,
    axis: str | Axes = -1,
    epsilon: float = 1e-05,
    use_scale: bool = True,
    use_bias: bool = True,
    scaler_initializer: Initializer = jax.nn.initializers.ones,
    bias_initializer: Initializer = jax.nn.initializers.zeros,
    dtype: DTypeLike = jnp.float32,
) -> tuple[NormParams, State[tuple[()], LayerNormConfig]]:
    """Layer normalisation: y = (x - E[x]) / sqrt(Var[x] + epsilon) * scale + bias.

    E and Var are those of x over `axis`, in training and in inference. Scale and bias have
    one entry for each element along these axes, in rising order of the axes.

    Args:
        axis: an axis, a sequence of axes, "all", or "channel_last" or "channel_first" for
            all but the last or first axis.
        epsilon: small number that keeps the quotient finite.
        use_scale: whether there is a scale.
        use_bias: whether there is a bias.
        scaler_initializer: called with the lengths of the axes normalised over.
        bias_initializer: called with the lengths of the axes normalised over.
        dtype: dtype of scale and bias.

    Raises:
        TypeError: an argument is of the wrong type, or x is not real and floating.
        ValueError: `axis` is an unknown string or outside x, or x does not fit the parameters.

    Source: Ba et al., "Layer normalization", 2016.

    >>> import jax, jax.numpy as jnp, mlax
    >>> params, state = mlax.layer_norm.init(jax.random.key(0), jnp.ones(2))
    >>> mlax.layer_norm.apply(params, state, jnp.array([1.0, 3.0]))[0].round(3)
    Array([-1.,  1.], dtype=float32)
    """
    arguments.require_array("layer_norm", x)
    axes = arguments.normalized_axes("layer_norm", axis, len(x.shape))
    params = _init_params(
        "layer_norm",
        rng,
        x,
        axes,
        scaler_initializer if use_scale else None,
        bias_initializer if use_bias else None,
        dtype,
    )
    hashable = arguments.hashable_axis("layer_norm", axis)
    return params, State((), LayerNormConfig(hashable, epsilon, arguments.absent_of(params)))


def apply_rms_norm(
    params: NormParams,
    state: State[tuple[()], LayerNormConfig],
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, State[tuple[()], LayerNormConfig]]:
    """Return x divided by its root mean square: see `mlax.Apply` and `mlax.rms_norm`."""
    axis, epsilon, absent = arguments.config_of("rms_norm", state, LayerNormConfig)
    arguments.require_params("rms_norm", params, NormParams, absent)
    x = arguments.array("rms_norm", x)
    axes = arguments.normalized_axes("rms_norm", axis, x.ndim)
    wide = _wide("rms_norm", x)
    mean_square = jnp.mean(jnp.square(wide), axes, keepdims=True)
    return _affine("rms_norm", params, wide * lax.rsqrt(mean_square + epsilon), axes, x), state


@layer(apply_rms_norm, checks=CHECKS)
def rms_norm(
    rng: Key,
    x: jax.Array | jax.ShapeDtypeStruct,
    axis: str | Axes = -1,
    epsilon: float = 1e-06,
    use_scale: bool = True,
    scaler_initializer: Initializer = jax.nn.initializers.ones,
    dtype: DTypeLike = jnp.float32,
) -> tuple[NormParams, State[tuple[()], LayerNormConfig]]:
    """Root mean square normalisation: y = x / sqrt(E[x^2] + epsilon) * scale.

    Args:
        axis: the axes that E is taken over, as in `mlax.layer_norm`.
        epsilon: small number that keeps the quotient finite.
        use_scale: whether there is a scale.
        scaler_initializer: called with the lengths of the axes normalised over.
        dtype: dtype of the scale.

    Raises:
        TypeError: an argument is of the wrong type, or x is not real and floating.
        ValueError: `axis` is an unknown string or outside x, or x does not fit the scale.

    Source: Zhang and Sennrich, "Root mean square layer normalization", 2019.

    >>> import jax, jax.numpy as jnp, mlax
    >>> params, state = mlax.rms_norm.init(jax.random.key(0), jnp.ones(2))
    >>> mlax.rms_norm.apply(params, state, jnp.array([2.0, -2.0]))[0].round(3)
    Array([ 1., -1.], dtype=float32)
    """
    arguments.require_array("rms_norm", x)
    axes = arguments.normalized_axes("rms_norm", axis, len(x.shape))
    scale = scaler_initializer if use_scale else None
    params = _init_params("rms_norm", rng, x, axes, scale, None, dtype)
    hashable = arguments.hashable_axis("rms_norm", axis)
    return params, State((), LayerNormConfig(hashable, epsilon, arguments.absent_of(params)))


class GroupNormConfig(NamedTuple):
    """Configuration of `group_norm`."""

    groups: int
    """Number of groups of channels."""
    epsilon: float
    """What is added to the variance."""
    data_format: str
    """Where the channel axis is."""
    absent: tuple[str, ...]
    """The names of the parameters that are not used."""


def apply_group_norm(
    params: NormParams,
    state: State[tuple[()], GroupNormConfig],
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, State[tuple[()], GroupNormConfig]]:
    """Return x normalised in groups of channels: see `mlax.Apply` and `mlax.group_norm`."""
    groups, epsilon, data_format, absent = arguments.config_of("group_norm", state, GroupNormConfig)
    arguments.require_params("group_norm", params, NormParams, absent)
    x = arguments.array("group_norm", x)
    channel = arguments.channel_axis("group_norm", data_format, x)
    size = _group_size(x.shape[channel], groups)
    grouped = _wide("group_norm", x).reshape(
        *x.shape[:channel], groups, size, *x.shape[channel + 1 :]
    )
    axes = tuple(axis for axis in range(grouped.ndim) if axis != channel)
    normal = _normal("group_norm", grouped, axes, epsilon).reshape(x.shape)
    return _affine("group_norm", params, normal, (channel,), x), state


@layer(apply_group_norm, checks=CHECKS)
def group_norm(
    rng: Key,
    x: jax.Array | jax.ShapeDtypeStruct,
    groups: int,
    epsilon: float = 1e-05,
    use_scale: bool = True,
    use_bias: bool = True,
    data_format: str = "channel_last",
    scaler_initializer: Initializer = jax.nn.initializers.ones,
    bias_initializer: Initializer = jax.nn.initializers.zeros,
    dtype: DTypeLike = jnp.float32,
) -> tuple[NormParams, State[tuple[()], GroupNormConfig]]:
    """Group normalisation: y = (x - E[x]) / sqrt(Var[x] + epsilon) * scale + bias.

    E and Var are those of each group of neighbouring channels, over all other axes of x.

    Args:
        groups: number of groups, a divisor of the number of channels.
        epsilon: small number that keeps the quotient finite.
        use_scale: whether there is a scale.
        use_bias: whether there is a bias.
        data_format: "channel_last", "channel_first", or a spec such as "HWC".
        scaler_initializer: called with (channels,).
        bias_initializer: called with (channels,).
        dtype: dtype of scale and bias.

    Raises:
        TypeError: an argument is of the wrong type, or x is not real and floating.
        ValueError: `groups` does not divide the channels, or x does not fit the parameters.

    Source: Wu and He, "Group normalization", 2018.

    >>> import jax, jax.numpy as jnp, mlax
    >>> params, state = mlax.group_norm.init(jax.random.key(0), jnp.ones(4), groups=2)
    >>> mlax.group_norm.apply(params, state, jnp.array([1.0, 3.0, 5.0, 9.0]))[0].round(3)
    Array([-1.,  1., -1.,  1.], dtype=float32)
    """
    channel = arguments.channel_axis("group_norm", data_format, x)
    _group_size(x.shape[channel], groups)
    params = _init_params(
        "group_norm",
        rng,
        x,
        (channel,),
        scaler_initializer if use_scale else None,
        bias_initializer if use_bias else None,
        dtype,
    )
    config = GroupNormConfig(groups, epsilon, data_format, arguments.absent_of(params))
    return params, State((), config)


def _group_size(channels: int, groups: int) -> int:
    if channels % groups:
        wanted = f"a divisor of the number of channels ({channels})"
        raise ValueError(arguments.message("group_norm", "groups", wanted, groups))
    return channels // groups


class InstanceNormConfig(NamedTuple):
    """Configuration of `instance_norm`."""

    epsilon: float
    """What is added to the variance."""
    data_format: str
    """Where the channel axis is."""
    absent: tuple[str, ...]
    """The names of the parameters that are not used."""


def apply_instance_norm(
    params: NormParams,
    state: State[tuple[()], InstanceNormConfig],
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, State[tuple[()], InstanceNormConfig]]:
    """Return each channel of x normalised: see `mlax.Apply` and `mlax.instance_norm`."""
    epsilon, data_format, absent = arguments.config_of("instance_norm", state, InstanceNormConfig)
    arguments.require_params("instance_norm", params, NormParams, absent)
    x = arguments.array("instance_norm", x)
    channel, others = _channel_and_others("instance_norm", data_format, x)
    normal = _normal("instance_norm", _wide("instance_norm", x), others, epsilon)
    return _affine("instance_norm", params, normal, (channel,), x), state


@layer(apply_instance_norm, checks=CHECKS)
def instance_norm(
    rng: Key,
    x: jax.Array | jax.ShapeDtypeStruct,
    epsilon: float = 1e-05,
    use_scale: bool = True,
    use_bias: bool = True,
    data_format: str = "channel_last",
    scaler_initializer: Initializer = jax.nn.initializers.ones,
    bias_initializer: Initializer = jax.nn.initializers.zeros,
    dtype: DTypeLike = jnp.float32,
) -> tuple[NormParams, State[tuple[()], InstanceNormConfig]]:
    """Instance normalisation: y = (x - E[x]) / sqrt(Var[x] + epsilon) * scale + bias.

    E and Var are those of each channel of the example, over its spatial axes.

    Args:
        epsilon: small number that keeps the quotient finite.
        use_scale: whether there is a scale.
        use_bias: whether there is a bias.
        data_format: "channel_last", "channel_first", or a spec such as "HWC".
        scaler_initializer: called with (channels,).
        bias_initializer: called with (channels,).
        dtype: dtype of scale and bias.

    Raises:
        TypeError: an argument is of the wrong type, or x is not real and floating.
        ValueError: x has no spatial axis, or does not fit the parameters.

    Source: Ulyanov et al., "Instance normalization", 2016.

    >>> import jax, jax.numpy as jnp, mlax
    >>> x = jnp.array([[1.0, 8.0], [3.0, 4.0]])
    >>> params, state = mlax.instance_norm.init(jax.random.key(0), x)
    >>> mlax.instance_norm.apply(params, state, x)[0].round(3)
    Array([[-1.,  1.],
           [ 1., -1.]], dtype=float32)
    """
    arguments.require_rank("instance_norm", x, 2)
    channel = arguments.channel_axis("instance_norm", data_format, x)
    params = _init_params(
        "instance_norm",
        rng,
        x,
        (channel,),
        scaler_initializer if use_scale else None,
        bias_initializer if use_bias else None,
        dtype,
    )
    return params, State((), InstanceNormConfig(epsilon, data_format, arguments.absent_of(params)))
