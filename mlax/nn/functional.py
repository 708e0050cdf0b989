"""Pure functions without parameters: those of `mlax.functional`."""

from mlax.functional import (
    apply_attention_weights,
    avg_pool,
    dot_product_attention_logits,
    dropout,
    identity,
    max_pool,
    pool,
    sum_pool,
    z_norm,
)

__all__ = [
    "apply_attention_weights",
    "avg_pool",
    "dot_product_attention_logits",
    "dropout",
    "identity",
    "max_pool",
    "pool",
    "sum_pool",
    "z_norm",
]
