"""`BatchNorm`, `LayerNorm`, `RMSNorm`, `GroupNorm` and `InstanceNorm`: `mlax.batch_norm` and its
kind as modules.

The parameters are `scale` and `bias`; one that is not used stays empty.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mlax.arguments import DataFormat, NormalizedAxis
from mlax.initializers import Initializer
from mlax.layer import Key
from mlax.layers.norms import NormParams, batch_norm, group_norm, instance_norm, layer_norm
from mlax.layers.norms import rms_norm
from mlax.layers.z_norm import ZNormVariables
from mlax.module import Parameter
from mlax.nn.base import PairModule


class _Norm(PairModule[jax.Array, jax.Array]):
    """A normalisation with the parameters `scale` and `bias`."""

    _one_rank = True
    _params = NormParams, ("scale", "bias")

    def __init__(
        self, rng: Key, epsilon: float, use_scale: bool, use_bias: bool,
        scaler_initializer: Initializer, bias_initializer: Initializer, dtype: DTypeLike,
    ) -> None:
        """Hold what these normalisations have in common."""
        super().__init__()
        self.rng: Key | None = rng
        self.epsilon = epsilon
        self.use_scale = use_scale
        self.use_bias = use_bias
        self.scaler_initializer = scaler_initializer
        self.bias_initializer = bias_initializer
        self.dtype = dtype
        self.scale: Parameter = Parameter(trainable=True)
        self.bias: Parameter = Parameter(trainable=True)


class BatchNorm(_Norm):
    """Normalisation over the batch, with running statistics: see `mlax.batch_norm`.

    The parameters are `scale` and `bias`. The statistics are `moving_mean` and `moving_var`, which
    are not trained.
    """

    _pair = batch_norm
    _variables = ZNormVariables, ("moving_mean", "moving_var")

    def __init__(
        self, rng: Key, *,
        epsilon: float = 1e-05, momentum: float = 0.9, use_scale: bool = True,
        use_bias: bool = True, data_format: DataFormat = "channel_last",
        scaler_initializer: Initializer = jax.nn.initializers.ones,
        bias_initializer: Initializer = jax.nn.initializers.zeros, dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Hold the key and the hyperparameters of `mlax.batch_norm`."""
        initializers = scaler_initializer, bias_initializer
        super().__init__(rng, epsilon, use_scale, use_bias, *initializers, dtype)
        self.momentum = momentum
        self.data_format = data_format
        self.moving_mean: Parameter = Parameter(trainable=False)
        self.moving_var: Parameter = Parameter(trainable=False)


class LayerNorm(_Norm):
    """Normalisation over axes of the example: see `mlax.layer_norm`.

    The parameters are `scale` and `bias`.
    """

    _pair = layer_norm

    def __init__(
        self, rng: Key, *,
        axis: NormalizedAxis = -1, epsilon: float = 1e-05, use_scale: bool = True,
        use_bias: bool = True, scaler_initializer: Initializer = jax.nn.initializers.ones,
        bias_initializer: Initializer = jax.nn.initializers.zeros, dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Hold the key and the hyperparameters of `mlax.layer_norm`."""
        initializers = scaler_initializer, bias_initializer
        super().__init__(rng, epsilon, use_scale, use_bias, *initializers, dtype)
        self.axis = axis


class RMSNorm(PairModule[jax.Array, jax.Array]):
    """Division by the root mean square: see `mlax.rms_norm`. The parameter is `scale`."""

    _pair = rms_norm
    _one_rank = True
    _params = functools.partial(NormParams, bias=None), ("scale",)

    def __init__(
        self, rng: Key, *,
        axis: NormalizedAxis = -1, epsilon: float = 1e-06, use_scale: bool = True,
        scaler_initializer: Initializer = jax.nn.initializers.ones, dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Hold the key and the hyperparameters of `mlax.rms_norm`."""
        super().__init__()
        self.rng: Key | None = rng
        self.axis = axis
        self.epsilon = epsilon
        self.use_scale = use_scale
        self.scaler_initializer = scaler_initializer
        self.dtype = dtype
        self.scale: Parameter = Parameter(trainable=True)

    def _store(self, names: tuple[str, ...], values: Any) -> None:
        super()._store(names, values[: len(names)])  # the params of the pair have a bias, None


class GroupNorm(_Norm):
    """Normalisation of groups of channels: see `mlax.group_norm`.

    The parameters are `scale` and `bias`.
    """

    _pair = group_norm

    def __init__(
        self, rng: Key, groups: int, *,
        epsilon: float = 1e-05, use_scale: bool = True, use_bias: bool = True,
        data_format: DataFormat = "channel_last",
        scaler_initializer: Initializer = jax.nn.initializers.ones,
        bias_initializer: Initializer = jax.nn.initializers.zeros, dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Hold the key and the hyperparameters of `mlax.group_norm`."""
        initializers = scaler_initializer, bias_initializer
        super().__init__(rng, epsilon, use_scale, use_bias, *initializers, dtype)
        self.groups = groups
        self.data_format = data_format


class InstanceNorm(_Norm):
    """Normalisation of each channel of the example: see `mlax.instance_norm`.

    The parameters are `scale` and `bias`.
    """

    _pair = instance_norm

    def __init__(
        self, rng: Key, *,
        epsilon: float = 1e-05, use_scale: bool = True, use_bias: bool = True,
        data_format: DataFormat = "channel_last",
        scaler_initializer: Initializer = jax.nn.initializers.ones,
        bias_initializer: Initializer = jax.nn.initializers.zeros, dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Hold the key and the hyperparameters of `mlax.instance_norm`."""
        initializers = scaler_initializer, bias_initializer
        super().__init__(rng, epsilon, use_scale, use_bias, *initializers, dtype)
        self.data_format = data_format
