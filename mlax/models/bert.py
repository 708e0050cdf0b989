"""BERT: a post-norm transformer in which tokens attend in both directions.

    y = norm(embedding[tokens] + type_embedding[types] + position_embedding)
    y = norm(y + attention(y)); y = norm(y + mlp(y))        in each block
    pooled = tanh(pooler(y[0]))

Source: Devlin et al., "BERT: pre-training of deep bidirectional transformers", 2019.
"""

import functools
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from mlax.arguments import instance_of
from mlax.blocks.transformer import mlp, transformer_block
from mlax.combinators.block import Sublayers, block
from mlax.combinators.composed import composed
from mlax.combinators.repeat import repeat
from mlax.combinators.series import series
from mlax.combinators.types import DictState
from mlax.errors import message
from mlax.layer import Layer
from mlax.layers.attention import AttentionInputs, attention
from mlax.layers.dense import dense
from mlax.layers.dropout import dropout
from mlax.layers.embed import embed
from mlax.layers.norms import layer_norm
from mlax.layers.position_embedding import position_embedding
from mlax.serialization import serializable
from mlax.weights import Rule, torch_linear, torch_norm


class BertConfig(NamedTuple):
    """Configuration of `bert`."""

    vocab_size: int = 30_522
    """Size of the vocabulary."""
    max_length: int = 512
    """Number of positions."""
    num_types: int = 2
    """Number of types of tokens, such as a first and a second sentence."""
    features: int = 768
    """Features of each token."""
    num_layers: int = 12
    """Number of blocks."""
    num_heads: int = 12
    """Number of heads in each attention."""
    hidden_features: int = 3072
    """Features of the hidden layer of each perceptron."""
    epsilon: float = 1e-12
    """Term added to the variances."""
    dropout_rate: float = 0.0
    """Dropout rate of embeddings, of attention weights, and of what blocks add."""


BERT_BASE = BertConfig()


@serializable
class BertInputs(NamedTuple):
    """Tokens, their types (None is 0), and a mask: a tokenizer's attention_mask.astype(bool)."""

    tokens: Any
    """(..., length), integers in [0, vocab_size)."""
    types: Any = None
    """(..., length), integers in [0, num_types), such as the sentence of each token."""
    mask: Any = None
    """(..., length), boolean, False for padding, which no token attends to."""


@serializable
class BertOutputs(NamedTuple):
    """The output of `bert`."""

    hidden: jax.Array
    """(..., length, features), the output of the last block."""
    pooled: jax.Array
    """(..., features), a function of the first token, for classification."""


def wiring(sub: Sublayers, x: Any) -> Any:
    """Return the features: see `bert`."""
    tokens, types, mask = x if isinstance(x, BertInputs) else BertInputs(x)
    if mask is not None and mask.dtype != bool:
        got, way_out = jnp.dtype(mask.dtype).name, "pass mask.astype(bool)"
        raise TypeError(message("bert", "mask", "of dtype bool", got, way_out))
    types = jnp.zeros_like(tokens) if types is None else types
    y = sub.dropout(sub.norm(sub.positions(sub.embed(tokens) + sub.types(types))))
    hidden = sub.body(AttentionInputs(y, mask=None if mask is None else mask[..., None, :])).x
    return BertOutputs(hidden, jnp.tanh(sub.pooler(hidden[..., 0, :])))


@composed(needs_rng=lambda config: config.dropout_rate > 0)
def bert(
    x: Any, config: Annotated[BertConfig, instance_of(BertConfig)]
) -> Layer[dict[str, Any], DictState, jax.Array | BertInputs, BertOutputs]:
    """BERT without a head: features of each token, and of the sequence.

    (..., length) -> `BertOutputs`. The input is tokens, or `BertInputs(tokens, types, mask)`.

    Args:
        config: the sizes, such as `mlax.models.BERT_BASE`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> config = mlax.models.BertConfig(50, features=8, num_layers=2, num_heads=2)
    >>> tokens = jnp.array([[7, 3, 1]])
    >>> params, state = mlax.models.bert(config).init(jax.random.key(0), tokens)
    >>> mlax.models.bert(config).apply(params, state, tokens)[0].pooled.shape
    (1, 8)
    """
    normal, norm = jax.nn.initializers.normal(0.02), layer_norm(epsilon=config.epsilon)
    gelu, rate = functools.partial(jax.nn.gelu, approximate=False), config.dropout_rate
    one = transformer_block(
        attention(config.num_heads, dropout_rate=rate), mlp(config.hidden_features, gelu),
        norm=norm, norm_first=False, dropout_rate=rate,
    )
    return block(
        embed=embed(config.vocab_size, config.features, embed_initializer=normal),
        types=embed(config.num_types, config.features, embed_initializer=normal),
        positions=position_embedding(config.max_length), norm=norm,
        dropout=dropout(rate, tuple(range(getattr(x, "tokens", x).ndim + 1))) if rate else series(),
        body=repeat(one, config.num_layers), pooler=dense(config.features),
    )(wiring)


def _rules(prefix: str) -> tuple[Rule, ...]:
    layer, embeddings = f"{prefix}encoder.layer.{{layer}}", f"{prefix}embeddings"
    return (
        Rule(f"{embeddings}.word_embeddings.weight", "embed.embedding"),
        Rule(f"{embeddings}.position_embeddings.weight", "positions.embedding"),
        Rule(f"{embeddings}.token_type_embeddings.weight", "types.embedding"),
        Rule(f"{embeddings}.position_ids", None),
        *torch_norm(f"{embeddings}.LayerNorm", "norm"),
        *torch_linear(f"{layer}.attention.self.query", "body.attention.query"),
        *torch_linear(f"{layer}.attention.self.key", "body.attention.key"),
        *torch_linear(f"{layer}.attention.self.value", "body.attention.value"),
        *torch_linear(f"{layer}.attention.output.dense", "body.attention.output"),
        *torch_norm(f"{layer}.attention.output.LayerNorm", "body.attention_norm"),
        *torch_linear(f"{layer}.intermediate.dense", "body.mlp.up"),
        *torch_linear(f"{layer}.output.dense", "body.mlp.down"),
        *torch_norm(f"{layer}.output.LayerNorm", "body.mlp_norm"),
        *torch_linear(f"{prefix}pooler.dense", "pooler"),
    )


BERT_HUGGINGFACE = (*_rules(""), *_rules("bert."))
