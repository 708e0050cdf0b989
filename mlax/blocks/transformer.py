"""Transformer blocks: attention and a perceptron, each with a norm and a residual connection.

    x   (..., length, features), or `mlax.AttentionInputs` with such an x
    y   like x
"""

import functools
from collections.abc import Callable
from typing import Any

import jax

from mlax.arguments import AnyLayer, Number, Rate, Size, require_array, require_rank
from mlax.combinators.block import Sublayers, block
from mlax.combinators.composed import composed
from mlax.combinators.types import DictState
from mlax.errors import message
from mlax.layer import Layer, Shaped
from mlax.layers.attention import AttentionInputs
from mlax.layers.dense import dense
from mlax.layers.dropout import dropout
from mlax.layers.norms import layer_norm
from mlax.layers.scaler import scaler


def _mlp(
    sub: Sublayers, x: jax.Array, *, activation: Callable[[jax.Array], jax.Array], gated: bool
) -> Any:
    if gated:
        return sub.down(activation(sub.gate(x)) * sub.up(x))
    return sub.down(activation(sub.up(x)))


@composed()
def mlp(
    x: Shaped, hidden_features: Size, activation: Callable[[jax.Array], jax.Array] = jax.nn.gelu,
    *, gated: bool = False, use_bias: bool = True,
) -> Layer[dict[str, Any], DictState, jax.Array, jax.Array]:
    """A perceptron with one hidden layer: y = down(activation(up(x))).

    (..., features) -> (..., features). If `gated`, y = down(activation(gate(x)) * up(x)): with
    jax.nn.silu that is SwiGLU, with jax.nn.gelu GeGLU.

    Args:
        hidden_features: features of the hidden layer.
        activation: function of the hidden layer, or of the gate.
        gated: whether there is a gate.
        use_bias: whether the layers have biases.

    Source: Shazeer, "GLU variants improve transformer", 2020, for the gates.

    >>> import jax, jax.numpy as jnp, mlax
    >>> params, state = mlax.mlp(8, jax.nn.silu, gated=True).init(jax.random.key(0), jnp.ones(4))
    >>> mlax.paths(params)[0], params["gate"].kernel.shape
    ('gate.kernel', (4, 8))
    """
    require_rank("mlp", x, 1)
    hidden = dense(hidden_features, use_bias=use_bias)
    down = dense(x.shape[-1], use_bias=use_bias)
    layers = {"gate": hidden} if gated else {}
    wiring = functools.partial(_mlp, activation=activation, gated=gated)
    return block(**layers, up=hidden, down=down)(wiring)


def _transformer_block(
    sub: Sublayers, x: Any, *, norm_first: bool, drops: bool, crosses: bool, scales: bool
) -> Any:
    inputs = x if isinstance(x, AttentionInputs) else AttentionInputs(x)
    if crosses is (inputs.memory is None):
        wanted = "with a memory" if crosses else "without a memory, as there is no cross_attention"
        got = "none" if crosses else "one"
        raise ValueError(message("transformer_block", "x", wanted, got))

    def add(name: str, norm: Any, y: Any, **more: Any) -> Any:
        """Return y plus what a layer adds to it."""
        normal = norm(y) if norm_first else y
        layer = getattr(sub, name)
        added = layer(AttentionInputs(normal, **more)) if more else layer(normal)
        if scales:
            added = getattr(sub, f"{name}_scale")(added)
        y = y + (sub.dropout(added) if drops else added)
        return y if norm_first else norm(y)

    own = {"mask": inputs.mask, "bias": inputs.bias, "positions": inputs.positions}
    others = {"memory_positions": inputs.memory_positions, "lengths": inputs.lengths}
    y = inputs.x
    if crosses:
        y = add("attention", sub.attention_norm, y, **own)
        others |= {"memory": inputs.memory, "positions": inputs.positions}
        y = add("cross_attention", sub.cross_norm, y, **others)
    else:
        y = add("attention", sub.attention_norm, y, **own, lengths=inputs.lengths)
    y = add("mlp", sub.mlp_norm, y)
    return inputs._replace(x=y) if isinstance(x, AttentionInputs) else y


def _needs_rng(
    *layers: AnyLayer, cross_attention: AnyLayer | None, norm: AnyLayer, dropout_rate: float,
    **_: Any,
) -> bool:
    others = (norm,) if cross_attention is None else (norm, cross_attention)
    return bool(dropout_rate) or any(layer.needs_rng for layer in (*layers, *others))


@composed(needs_rng=_needs_rng)
def transformer_block(
    x: Any, attention: AnyLayer, mlp: AnyLayer, *, cross_attention: AnyLayer | None = None,
    norm: AnyLayer = layer_norm(), norm_first: bool = True, dropout_rate: Rate = 0.0,
    layer_scale: Number | None = None,
) -> Layer[dict[str, Any], DictState, Any, Any]:
    """A transformer block: x + attention(norm(x)), and the same with mlp.

    (..., length, features) -> (..., length, features). Of `mlax.AttentionInputs`, mask, bias,
    positions and lengths go to the attention; the output is the same inputs with the new x, so that
    blocks can follow each other in `mlax.series` and `mlax.repeat`.

    With `cross_attention` it is a decoder block, which attends to inputs.memory between the two:
    memory_positions and lengths are then those of the memory. (If cross_attention compares
    positions or rotates by them, decoding needs inputs.positions: only `attention` counts on.)

    Args:
        attention: `mlax.attention(num_heads)`, causal for a language model.
        mlp: a layer for (..., features), such as `mlax.mlp(hidden_features)`.
        cross_attention: `mlax.attention(num_heads)` for a memory.
        norm: the normalisation, such as `mlax.rms_norm()`; each use has its own parameters.
        norm_first: whether norms come before the layers (pre-norm), or after the sums, as in the
            original transformer (post-norm).
        dropout_rate: dropout rate of what a layer adds.
        layer_scale: initial value of trained factors, one for each feature of what a layer adds,
            such as 1e-4; None means that there are none.

    Source: Vaswani et al., "Attention is all you need", 2017; Xiong et al., "On layer
    normalization in the transformer architecture", 2020, for pre-norm; Touvron et al., "Going
    deeper with image transformers", 2021, for the factors.

    >>> import jax, jax.numpy as jnp, mlax
    >>> block = mlax.transformer_block(mlax.attention(2, causal=True), mlax.mlp(16))
    >>> x = jnp.ones((5, 8))
    >>> params, state = mlax.repeat(block, 3).init(jax.random.key(0), x)
    >>> params["mlp"]["up"].kernel.shape
    (3, 8, 16)
    """
    layers = {"attention_norm": norm, "attention": attention}
    if cross_attention is not None:
        layers |= {"cross_norm": norm, "cross_attention": cross_attention}
    layers |= {"mlp_norm": norm, "mlp": mlp}
    array = x.x if isinstance(x, AttentionInputs) else x
    require_array("transformer_block", array)
    ndim = len(array.shape)
    if layer_scale is not None:
        start = jax.nn.initializers.constant(layer_scale)
        scale = scaler((0,) * (ndim - 1) + (-1,), start)
        names = [name for name in layers if not name.endswith("norm")]
        layers |= {f"{name}_scale": scale for name in names}
    if dropout_rate:
        layers["dropout"] = dropout(dropout_rate, tuple(range(ndim)))
    wiring = functools.partial(
        _transformer_block, norm_first=norm_first, drops=bool(dropout_rate),
        crosses=cross_attention is not None, scales=layer_scale is not None,
    )
    return block(**layers)(wiring)
