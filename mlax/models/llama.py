"""Llama 3, and by configuration Qwen 3 and Mistral: transformers with rotary positions.

    y = embedding[tokens]
    y = y + attention(norm(y)); y = y + down(silu(gate(norm(y))) * up(norm(y)))    in each block
    logits = head(norm(y))

Norms divide by the root mean square, queries share keys and values in groups, and nothing has a
bias.

Source: Grattafiori et al., "The Llama 3 herd of models", 2024; Jiang et al., "Mistral 7B", 2023,
for the window; Yang et al., "Qwen3 technical report", 2025, for normalised queries and keys.
"""

import functools
from typing import Annotated, Any, NamedTuple

import jax

from mlax import positions
from mlax.arguments import Size, instance_of
from mlax.blocks.transformer import mlp, transformer_block
from mlax.combinators.block import Sublayers, block
from mlax.combinators.composed import composed
from mlax.combinators.repeat import repeat
from mlax.combinators.types import DictState
from mlax.layer import Layer
from mlax.layers.attention import AttentionInputs, attention
from mlax.layers.attention_cache import CachePolicy
from mlax.layers.dense import dense
from mlax.layers.embed import embed
from mlax.layers.norms import rms_norm
from mlax.positions import LlamaScaling
from mlax.weights import Rule, optional, torch_linear, torch_norm


class LlamaConfig(NamedTuple):
    """Configuration of `llama`."""

    vocab_size: int
    """Size of the vocabulary."""
    features: int
    """Features of each token."""
    num_layers: int
    """Number of blocks."""
    num_heads: int
    """Number of query heads."""
    num_kv_heads: int
    """Number of key and value heads."""
    hidden_features: int
    """Features of the hidden layer of each perceptron."""
    head_dim: int | None = None
    """Features per head; None means features / num_heads."""
    rotary_base: float = 500_000.0
    """The angle of the slowest rotation is about position / rotary_base."""
    rotary_scaling: LlamaScaling | None = None
    """How slow rotations are stretched."""
    window: int | None = None
    """How many positions a query attends to, its own included."""
    qk_norm: bool = False
    """Whether queries and keys are normalised."""
    tied_embeddings: bool = False
    """Whether the head is the embedding."""
    epsilon: float = 1e-5
    """Term added to the mean squares."""


LLAMA_3_8B = LlamaConfig(128_256, 4096, 32, 32, 8, 14_336)
LLAMA_3_70B = LlamaConfig(128_256, 8192, 80, 64, 8, 28_672)
LLAMA_3_2_1B = LlamaConfig(
    128_256, 2048, 16, 32, 8, 8192, rotary_scaling=LlamaScaling(factor=32.0), tied_embeddings=True
)
QWEN_3_0_6B = LlamaConfig(
    151_936, 1024, 28, 16, 8, 3072, head_dim=128, rotary_base=1e6, qk_norm=True,
    tied_embeddings=True, epsilon=1e-6,
)
MISTRAL_7B = LlamaConfig(32_000, 4096, 32, 32, 8, 14_336, rotary_base=10_000.0, window=4096)


def wiring(sub: Sublayers, x: Any, *, tied_embeddings: bool) -> Any:
    """Return the logits: see `llama`."""
    tokens, places = x if isinstance(x, tuple) else (x, None)
    y = sub.body(AttentionInputs(sub.embed(tokens), positions=places)).x
    y = sub.norm(y)
    if tied_embeddings:
        return y @ sub.embed.params.embedding.T
    return sub.head(y)


@composed()
def llama(
    x: Any, config: Annotated[LlamaConfig, instance_of(LlamaConfig)], *,
    cache_length: Size | None = None, cache_policy: CachePolicy = "error", remat: bool = False,
) -> Layer[dict[str, Any], DictState, Any, jax.Array]:
    """Llama 3, Qwen 3 or Mistral: logits of the next tokens.

    (..., length) -> (..., length, vocab_size). The input is tokens, or a pair (tokens, positions)
    in which a negative position is padding, as `mlax.generate` passes it with `lengths`.

    Args:
        config: the sizes, such as `mlax.models.LLAMA_3_8B`.
        cache_length: number of tokens that the caches have room for, for a model that decodes.
        cache_policy: what full ones do, as in `mlax.attention`; "wrap" needs a window.
        remat: whether the backward pass recomputes activations instead of saving them.

    >>> import jax, jax.numpy as jnp, mlax
    >>> config = mlax.models.LlamaConfig(50, 8, 2, num_heads=2, num_kv_heads=1, hidden_features=16)
    >>> tokens = jnp.array([[7, 3, 1]])
    >>> params, state = mlax.models.llama(config).init(jax.random.key(0), tokens)
    >>> mlax.models.llama(config).apply(params, state, tokens)[0].shape
    (1, 3, 50)
    """
    norm = rms_norm(epsilon=config.epsilon)
    attend = attention(
        config.num_heads, config.num_kv_heads, config.head_dim,
        causal=True, window=config.window, use_bias=False, qk_norm=config.qk_norm,
        epsilon=config.epsilon, cache_length=cache_length, cache_policy=cache_policy,
        rotary=functools.partial(
            positions.rotary, base=config.rotary_base, scaling=config.rotary_scaling
        ),
    )
    perceptron = mlp(config.hidden_features, jax.nn.silu, gated=True, use_bias=False)
    one = transformer_block(attend, perceptron, norm=norm)
    normal = jax.nn.initializers.normal(0.02)
    head = {} if config.tied_embeddings else {"head": dense(config.vocab_size, use_bias=False)}
    return block(
        embed=embed(config.vocab_size, config.features, embed_initializer=normal),
        body=repeat(one, config.num_layers, remat=remat),
        norm=norm,
        **head,
    )(functools.partial(wiring, tied_embeddings=config.tied_embeddings))


_LAYER = "model.layers.{layer}"
LLAMA_HUGGINGFACE = (
    Rule("model.embed_tokens.weight", "embed.embedding"),
    *torch_linear(f"{_LAYER}.self_attn.q_proj", "body.attention.query"),
    *torch_linear(f"{_LAYER}.self_attn.k_proj", "body.attention.key"),
    *torch_linear(f"{_LAYER}.self_attn.v_proj", "body.attention.value"),
    *torch_linear(f"{_LAYER}.self_attn.o_proj", "body.attention.output"),
    *torch_norm(f"{_LAYER}.self_attn.q_norm", "body.attention.query_norm"),
    *torch_norm(f"{_LAYER}.self_attn.k_norm", "body.attention.key_norm"),
    *torch_linear(f"{_LAYER}.mlp.gate_proj", "body.mlp.gate"),
    *torch_linear(f"{_LAYER}.mlp.up_proj", "body.mlp.up"),
    *torch_linear(f"{_LAYER}.mlp.down_proj", "body.mlp.down"),
    *torch_norm(f"{_LAYER}.input_layernorm", "body.attention_norm"),
    *torch_norm(f"{_LAYER}.post_attention_layernorm", "body.mlp_norm"),
    *torch_norm("model.norm", "norm"),
    *optional(torch_linear("lm_head", "head")),
    Rule("lm_head.weight", "embed.embedding"),  # where they are tied
)
