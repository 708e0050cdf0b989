"""`Attention` and `AttentionRng`: `mlax.attention` as modules."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from mlax.errors import expected, message
from mlax.initializers import Initializer, lecun_normal
from mlax.layer import AxisName, Key
from mlax.layers.attention import (
    AttentionInputs, AttentionParams, PositionBias, Rotation, attention,
)
from mlax.layers.attention_product import Implementation
from mlax.layers.dense import DenseParams
from mlax.module import Parameter
from mlax.nn.base import OverPair, PairModule, PairModuleRng


class _Attention(OverPair[jax.Array | AttentionInputs, jax.Array]):
    """Attention without a cache: decoding is for pairs, with `mlax.generate`."""

    _pair = attention
    _params = AttentionParams, (
        "query", "key", "value", "query_key_value", "query_norm", "key_norm", "output",
    )

    query: Parameter
    key: Parameter
    query_key_value: Parameter
    query_norm: Parameter
    output: Parameter
    cache_length: ClassVar[None] = None
    cache_policy: ClassVar[str] = "error"

    def __init__(
        self, rng: Key, num_heads: int, num_kv_heads: int | None = None,
        head_dim: int | None = None, *,
        out_features: int | None = None, causal: bool = False, window: int | None = None,
        rotary: Rotation | None = None, position_bias: PositionBias | None = None,
        fused: bool = False, use_bias: bool = True, use_output_bias: bool | None = None,
        qk_norm: bool = False, epsilon: float = 1e-6, scale: float | None = None,
        softcap: float | None = None, dropout_rate: float = 0.0,
        implementation: Implementation | None = None, require_fused: bool = False,
        kernel_initializer: Initializer = lecun_normal,
        bias_initializer: Initializer = jax.nn.initializers.zeros, dtype: DTypeLike = jnp.float32,
        out_sharding: PartitionSpec | None = None,
    ) -> None:
        """Hold the key and the hyperparameters of `mlax.attention`."""
        super().__init__()
        self.rng: Key | None = rng
        self.num_heads = num_heads
        self.num_kv_heads = num_kv_heads
        self.head_dim = head_dim
        self.out_features = out_features
        self.causal = causal
        self.window = window
        self.rotary = rotary
        self.position_bias = position_bias
        self.fused = fused
        self.use_bias = use_bias
        self.use_output_bias = use_output_bias
        self.qk_norm = qk_norm
        self.epsilon = epsilon
        self.scale = scale
        self.softcap = softcap
        self.dropout_rate = dropout_rate
        self.implementation = implementation
        self.require_fused = require_fused
        self.kernel_initializer = kernel_initializer
        self.bias_initializer = bias_initializer
        self.dtype = dtype
        self.out_sharding = out_sharding
        for name in self._params[1]:
            setattr(self, name, Parameter(trainable=True))

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a cache is for pairs."""
        if name in ("cache_length", "cache_policy"):
            owner, way_out = type(self).__name__, "decode with mlax.attention and mlax.generate"
            raise TypeError(expected(owner, f"no {name}", repr(value), way_out))
        super().__setattr__(name, value)

    def _run(
        self, x: jax.Array | AttentionInputs, rng: Key | None, inference_mode: bool,
        batch_axis_name: AxisName,
    ) -> jax.Array:
        projections = self.query_key_value.data or self.key.data
        if self.initialized and self.output.data and projections:
            self._require_fitting(projections, self.output.data)
        return super()._run(x, rng, inference_mode, batch_axis_name)

    def _require_fitting(self, projections: DenseParams, output: DenseParams) -> None:
        """Require hyperparameters like those that the parameters were made with."""
        is_fused, (width, out_features) = self.query_key_value.data is not None, output.kernel.shape
        columns = projections.kernel.shape[1] - width if is_fused else projections.kernel.shape[1]
        kv_heads = columns * self.num_heads // width // (2 if is_fused else 1)
        head_dim = width // self.num_heads
        output_bias = self.use_bias if self.use_output_bias is None else self.use_output_bias
        for name, fits, wanted in (
            ("num_heads", width % self.num_heads == 0, f"a divisor of {width}"),
            ("num_kv_heads", (self.num_kv_heads or self.num_heads) == kv_heads, kv_heads),
            ("head_dim", self.head_dim in (None, head_dim), head_dim),
            ("out_features", self.out_features in (None, out_features), out_features),
            ("fused", self.fused == is_fused, is_fused),
            ("use_bias", self.use_bias == (projections.bias is not None), not self.use_bias),
            ("use_output_bias", output_bias == (output.bias is not None), not output_bias),
            ("qk_norm", self.qk_norm == bool(self.query_norm.data), not self.qk_norm),
        ):
            if not fits:
                owner, told = type(self).__name__, f"{wanted}, as its parameters say"
                raise ValueError(message(owner, name, told, getattr(self, name), _SET_BACK))


_SET_BACK = "set it back, or a new rng and initialized = False"


class Attention(_Attention, PairModule[jax.Array | AttentionInputs, jax.Array]):
    """Multi-head attention: see `mlax.attention`. It takes no key, and so has no dropout.

    The parameters are `query`, `key`, `value` and `output`, whose data have a kernel and a bias:
    `attention.query.data.kernel`. With `fused`, the first three are one, `query_key_value`; with
    `qk_norm`, `query_norm` and `key_norm` have a scale. The others stay empty.

    >>> import jax, jax.numpy as jnp
    >>> from mlax import nn
    >>> y, attention = nn.Attention(jax.random.key(0), 4, 1, causal=True)(jnp.ones((6, 8)), None)
    >>> y.shape, attention.key.data.kernel.shape
    ((6, 8), (8, 2))
    """

    def _run(
        self, x: jax.Array | AttentionInputs, rng: Key | None, inference_mode: bool,
        batch_axis_name: AxisName,
    ) -> jax.Array:
        if self.dropout_rate and not inference_mode:
            owner, rate = type(self).__name__, self.dropout_rate
            raise ValueError(message(owner, "dropout_rate", "0 in training", rate, _WAY_OUT))
        return super()._run(x, rng, inference_mode, batch_axis_name)


_WAY_OUT = "use AttentionRng, which takes a key"


class AttentionRng(_Attention, PairModuleRng[jax.Array | AttentionInputs, jax.Array]):
    """`Attention` that takes a key, for dropout of the weights in training."""
