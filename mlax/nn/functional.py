"""Pure functions without parameters, re-exported from `mlax.functional`."""

from mlax.functional import apply_attention_weights, dot_product_attention_logits, dropout
from mlax.functional import avg_pool, identity, max_pool, pool, sum_pool, z_norm

# fmt: off
__all__ = [
    "apply_attention_weights", "avg_pool", "dot_product_attention_logits", "dropout", "identity",
    "max_pool", "pool", "sum_pool", "z_norm",
]
