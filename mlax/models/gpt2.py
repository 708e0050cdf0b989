"""GPT-2: a pre-norm transformer of tokens, with learned positions and tied embeddings.

    y = embedding[tokens] + position_embedding[positions]
    y = y + attention(norm(y)); y = y + mlp(norm(y))        in each block
    logits = norm(y) @ embedding^T

Source: Radford et al., "Language models are unsupervised multitask learners", 2019.
"""

from typing import Annotated, Any, NamedTuple

import jax

from mlax.arguments import Size, instance_of
from mlax.blocks.transformer import mlp, transformer_block
from mlax.combinators.block import Sublayers, block
from mlax.combinators.composed import composed
from mlax.combinators.repeat import repeat
from mlax.combinators.series import series
from mlax.combinators.types import DictState
from mlax.layer import Layer
from mlax.layers.attention import AttentionInputs, attention
from mlax.layers.dropout import dropout
from mlax.layers.embed import embed
from mlax.layers.norms import layer_norm
from mlax.layers.position_embedding import position_embedding
from mlax.weights import Rule, torch_norm


class Gpt2Config(NamedTuple):
    """Configuration of `gpt2`."""

    vocab_size: int = 50_257
    """Size of the vocabulary."""
    max_length: int = 1024
    """Number of positions."""
    features: int = 768
    """Features of each token."""
    num_layers: int = 12
    """Number of blocks."""
    num_heads: int = 12
    """Number of heads in each attention."""
    epsilon: float = 1e-5
    """Term added to the variances."""
    dropout_rate: float = 0.0
    """Dropout rate of embeddings, of attention weights, and of what blocks add."""


GPT_2 = Gpt2Config()
GPT_2_XL = Gpt2Config(features=1600, num_layers=48, num_heads=25)


def wiring(sub: Sublayers, x: Any) -> Any:
    """Return the logits: see `gpt2`."""
    tokens, positions = x if isinstance(x, tuple) else (x, None)
    y = sub.dropout(sub.positions((sub.embed(tokens), positions)))
    y = sub.norm(sub.body(AttentionInputs(y, positions=positions)).x)
    return y @ sub.embed.params.embedding.T


@composed(needs_rng=lambda config, cache_length=None, remat=False: config.dropout_rate > 0)
def gpt2(
    x: Any, config: Annotated[Gpt2Config, instance_of(Gpt2Config)], *,
    cache_length: Size | None = None, remat: bool = False,
) -> Layer[dict[str, Any], DictState, Any, jax.Array]:
    """GPT-2: logits of the next tokens.

    (..., length) -> (..., length, vocab_size). The input is tokens, or a pair (tokens, positions)
    in which a negative position is padding, as `mlax.generate` passes it with `lengths`.

    Args:
        config: the sizes, such as `mlax.models.GPT_2`.
        cache_length: number of tokens that the caches have room for, for a model that decodes.
        remat: whether the backward pass recomputes activations instead of saving them.

    >>> import jax, jax.numpy as jnp, mlax
    >>> config = mlax.models.GPT_2._replace(vocab_size=50, features=8, num_layers=2, num_heads=2)
    >>> tokens = jnp.array([[7, 3, 1]])
    >>> params, state = mlax.models.gpt2(config).init(jax.random.key(0), tokens)
    >>> mlax.models.gpt2(config).apply(params, state, tokens)[0].shape
    (1, 3, 50)
    """
    tokens = x[0] if isinstance(x, tuple) else x
    normal, rate = jax.nn.initializers.normal(0.02), config.dropout_rate
    return block(
        embed=embed(config.vocab_size, config.features, embed_initializer=normal),
        positions=position_embedding(config.max_length, decodes=cache_length is not None),
        dropout=dropout(rate, tuple(range(len(tokens.shape) + 1))) if rate else series(),
        body=repeat(
            transformer_block(
                attention(
                    config.num_heads, causal=True, fused=True, dropout_rate=rate,
                    cache_length=cache_length,
                ),
                mlp(4 * config.features),  # jax.nn.gelu is the approximation by tanh, as here
                norm=layer_norm(epsilon=config.epsilon), dropout_rate=rate,
            ),
            config.num_layers, remat=remat,
        ),
        norm=layer_norm(epsilon=config.epsilon),
    )(wiring)


def _rules(prefix: str) -> tuple[Rule, ...]:
    layer = f"{prefix}h.{{layer}}"
    rules = [
        Rule(f"{layer}.{theirs}.{kind}", f"body.{ours}.{parameter}")
        for theirs, ours in (
            ("attn.c_attn", "attention.fused"), ("attn.c_proj", "attention.output"),
            ("mlp.c_fc", "mlp.up"), ("mlp.c_proj", "mlp.down"),
        )
        for kind, parameter in (("weight", "kernel"), ("bias", "bias"))
    ]
    return (
        Rule(f"{prefix}wte.weight", "embed.embedding"),
        Rule("lm_head.weight", "embed.embedding"),
        Rule(f"{prefix}wpe.weight", "positions.embedding"),
        *torch_norm(f"{layer}.ln_1", "body.attention_norm"),
        *torch_norm(f"{layer}.ln_2", "body.mlp_norm"),
        *torch_norm(f"{prefix}ln_f", "norm"),
        *rules,
        Rule(f"{layer}.attn.bias", None),  # masks
        Rule(f"{layer}.attn.masked_bias", None),
    )


GPT_2_HUGGINGFACE = (*_rules("transformer."), *_rules(""))
