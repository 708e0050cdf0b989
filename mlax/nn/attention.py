"""`Attention` and `AttentionRng`: `mlax.attention` as modules."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from mlax.errors import message
from mlax.initializers import Initializer, lecun_normal
from mlax.layer import AxisName, Key
from mlax.layers.attention import (
    AttentionInputs, AttentionParams, PositionBias, Rotation, attention,
)
from mlax.layers.attention_product import Implementation
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

    def _run(
        self, x: jax.Array | AttentionInputs, rng: Key | None, inference_mode: bool,
        batch_axis_name: AxisName,
    ) -> jax.Array:
        if self.initialized:
            self._require_heads()
        return super()._run(x, rng, inference_mode, batch_axis_name)

    def _require_heads(self) -> None:
        """Require heads of which the kernels have room for a whole number."""
        owner, way_out = type(self).__name__, "set it back, or a new rng and initialized = False"
        width, heads = len(self.output.data.kernel), self.num_heads
        if width % heads:
            wanted = f"a divisor of {width}, as its parameters say"
            raise ValueError(message(owner, "num_heads", wanted, heads, way_out))
        joint = self.query_key_value.data
        kernel = self.key.data.kernel if joint is None else joint.kernel[:, width:]
        kv_heads = kernel.shape[1] * heads // width // (1 if joint is None else 2)
        if (self.num_kv_heads or heads) != kv_heads:
            wanted = f"{kv_heads}, as its parameters say"
            raise ValueError(message(owner, "num_kv_heads", wanted, self.num_kv_heads, way_out))


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
