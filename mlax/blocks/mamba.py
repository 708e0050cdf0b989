"""The block of Mamba: a gated selective state space model after a short causal convolution.

    x   (length, features)
    y   like x; y_t depends on x_0, ..., x_t
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mlax import mesh
from mlax.arguments import AnyLayer, Size, require_array
from mlax.blocks.conv import depthwise_conv
from mlax.combinators.block import Sublayers, block
from mlax.combinators.carried import carried
from mlax.combinators.composed import composed
from mlax.combinators.types import DictState
from mlax.errors import expected
from mlax.layer import Layer, Shaped
from mlax.layers.bias import bias
from mlax.layers.linear import linear
from mlax.layers.norms import rms_norm
from mlax.layers.selective_ssm import selective_ssm


def _last_inputs(x: Shaped, window: int) -> jax.Array:
    """Return the inputs of the convolution before the first x: zeros."""
    return jnp.zeros((window - 1, x.shape[-1]), x.dtype)


def _causal_conv(sub: Sublayers, inputs: tuple[jax.Array, jax.Array], window: int) -> Any:
    """Return the convolution of xs with the inputs before them, and the last inputs."""
    xs, before = inputs
    if not xs.shape[0]:
        return xs, before
    both = jnp.concatenate(mesh.placed_together(before.astype(xs.dtype), xs))
    length = both.shape[0]
    last = lax.slice_in_dim(both, length - (window - 1), length)
    return sub.bias(sub.conv(both)), last.astype(before.dtype)


def _mamba_block(sub: Sublayers, x: jax.Array) -> Any:
    normal = sub.norm(x)
    y = sub.ssm(jax.nn.silu(sub.conv(sub.up(normal))))
    return x + sub.down(y * jax.nn.silu(sub.gate(normal)))


@composed()
def mamba_block(
    x: Shaped, hidden_features: Size | None = None, *, state_features: Size = 16, window: Size = 4,
    norm: AnyLayer = rms_norm(), decodes: bool = False,
) -> Layer[dict[str, Any], DictState, jax.Array, jax.Array]:
    """The block of Mamba: x + down(selective_ssm(silu(conv(up(n)))) * silu(gate(n))), n = norm(x).

    (length, features) -> (length, features). conv is depthwise and causal. With `decodes`, the last
    window - 1 inputs of conv and the h of `mlax.selective_ssm` are variables, and each call, in
    inference mode, continues where the previous one ended. The params are the same.

    Args:
        hidden_features: features of up(n) and gate(n). None means 2 * features.
        state_features: length of h for each hidden feature.
        window: number of inputs that each output of conv depends on.
        norm: the normalisation.
        decodes: whether the block decodes.

    Raises:
        ValueError: x has axes other than these two.

    Source: Gu and Dao, "Mamba: linear-time sequence modeling with selective state spaces", 2023.

    >>> import jax, jax.numpy as jnp, mlax
    >>> x = jnp.ones((5, 8))
    >>> params, state = mlax.repeat(mlax.mamba_block(), 3).init(jax.random.key(0), x)
    >>> params["ssm"].a_log.shape
    (3, 16, 16)
    """
    require_array("mamba_block", x)
    if len(x.shape) != 2:
        wanted, way_out = "x (length, features)", "map a batch axis with mlax.batched or jax.vmap"
        raise ValueError(expected("mamba_block", wanted, f"shape {x.shape}", way_out))
    hidden = linear(2 * x.shape[-1] if hidden_features is None else hidden_features)
    wiring = functools.partial(_causal_conv, window=window)
    conv = block(conv=depthwise_conv(window), bias=bias((0, -1)))(wiring)
    start = functools.partial(_last_inputs, window=window)
    return block(
        norm=norm, up=hidden, gate=hidden, conv=carried(conv, start, decodes=decodes),
        ssm=carried(selective_ssm(state_features), decodes=decodes), down=linear(x.shape[-1]),
    )(_mamba_block)
