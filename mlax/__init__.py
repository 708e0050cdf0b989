"""mlax: neural-network layers as pairs of pure functions, on JAX."""

import importlib
from typing import TYPE_CHECKING

from mlax.layer import Apply, AxisName, Init, Key, Layer, Shaped, State, needs_rng
from mlax.pair import Pair, layer, stateless

importlib.import_module("mlax.serialization")  # registers State with jax.export

if TYPE_CHECKING:
    from mlax import functional, models, nn, positions, sharding, testing, typed, types, weights
    from mlax.arguments import Rule
    from mlax.beams import beam_search
    from mlax.blocks.conv import conv_transpose, depthwise_conv, separable_conv
    from mlax.blocks.mamba import mamba_block
    from mlax.blocks.transformer import mlp, transformer_block
    from mlax.bridge import as_layer, as_module
    from mlax.checkpoint import load, save
    from mlax.combinators import Sublayer, combinator
    from mlax.combinators.batched import batched
    from mlax.combinators.bidirectional import bidirectional
    from mlax.combinators.block import block
    from mlax.combinators.branch import branch
    from mlax.combinators.carried import carried
    from mlax.combinators.cast import cast
    from mlax.combinators.composed import composed
    from mlax.combinators.ensemble import ensemble
    from mlax.combinators.frozen import frozen
    from mlax.combinators.join import add, concatenate, multiply
    from mlax.combinators.lora import init_lora, lora, merge_lora
    from mlax.combinators.moe import MoeInputs, moe
    from mlax.combinators.parallel import parallel
    from mlax.combinators.pipeline import pipeline
    from mlax.combinators.quantized import init_quantized, merge_quantized, quantized
    from mlax.combinators.recurrent import recurrent
    from mlax.combinators.remat import remat
    from mlax.combinators.repeat import repeat
    from mlax.combinators.replaced import replaced
    from mlax.combinators.residual import residual
    from mlax.combinators.series import series
    from mlax.combinators.stochastic_depth import stochastic_depth
    from mlax.combinators.switch import switch
    from mlax.combinators.tap import tap
    from mlax.costs import flops
    from mlax.decoding import generate, init_state
    from mlax.exporting import export
    from mlax.diagrams import diagram
    from mlax.interop import from_linen, from_stax, to_stax
    from mlax.layers.attention import AttentionInputs, attention
    from mlax.layers.bias import bias
    from mlax.layers.cells import gru_cell, lstm_cell, rnn_cell
    from mlax.layers.conv import conv
    from mlax.layers.dense import dense
    from mlax.layers.dropout import dropout
    from mlax.layers.embed import embed
    from mlax.layers.f import f, f_rng
    from mlax.layers.global_pool import adaptive_avg_pool, flatten, global_avg_pool
    from mlax.layers.linear import linear
    from mlax.layers.lru import lru, lru_cell
    from mlax.layers.min_gru import min_gru, min_gru_cell
    from mlax.layers.norms import batch_norm, group_norm, instance_norm, layer_norm, rms_norm
    from mlax.layers.parameter import parameter
    from mlax.layers.pool import avg_pool, max_pool, pool, sum_pool
    from mlax.layers.position_embedding import position_embedding
    from mlax.layers.relative_bias import relative_bias
    from mlax.layers.scaler import scaler
    from mlax.layers.selective_ssm import selective_ssm, selective_ssm_cell
    from mlax.layers.z_norm import z_norm
    from mlax.module import Module, Parameter
    from mlax.module import is_leaf_param, is_non_trainable_param, is_trainable_param
    from mlax.summaries import summary
    from mlax.tree import combine, count, freeze, map_with_path, mask, nbytes, partition, paths
else:
    # Imported at the first use, so that a program only waits for what it uses. A star is the name.
    _LATER = {
        "mlax.arguments": "Rule",
        "mlax.beams": "beam_search",
        "mlax.blocks.conv": "conv_transpose depthwise_conv separable_conv",
        "mlax.blocks.mamba": "mamba_block",
        "mlax.blocks.transformer": "mlp transformer_block",
        "mlax.bridge": "as_layer as_module",
        "mlax.checkpoint": "load save",
        "mlax.combinators": "Sublayer combinator",
        "mlax.combinators.*": (
            "batched bidirectional block branch carried cast composed ensemble frozen parallel "
            "pipeline recurrent remat repeat replaced residual series stochastic_depth switch tap"
        ),
        "mlax.combinators.join": "add concatenate multiply",
        "mlax.combinators.lora": "init_lora lora merge_lora",
        "mlax.combinators.moe": "MoeInputs moe",
        "mlax.combinators.quantized": "init_quantized merge_quantized quantized",
        "mlax.costs": "flops",
        "mlax.decoding": "generate init_state",
        "mlax.exporting": "export",
        "mlax.diagrams": "diagram",
        "mlax.interop": "from_linen from_stax to_stax",
        "mlax.layers.*": (
            "bias conv dense dropout embed linear parameter position_embedding relative_bias "
            "scaler z_norm"
        ),
        "mlax.layers.attention": "AttentionInputs attention",
        "mlax.layers.cells": "gru_cell lstm_cell rnn_cell",
        "mlax.layers.f": "f f_rng",
        "mlax.layers.global_pool": "adaptive_avg_pool flatten global_avg_pool",
        "mlax.layers.lru": "lru lru_cell",
        "mlax.layers.min_gru": "min_gru min_gru_cell",
        "mlax.layers.norms": "batch_norm group_norm instance_norm layer_norm rms_norm",
        "mlax.layers.pool": "avg_pool max_pool pool sum_pool",
        "mlax.layers.selective_ssm": "selective_ssm selective_ssm_cell",
        "mlax.module": (
            "Module Parameter is_leaf_param is_non_trainable_param is_trainable_param"
        ),
        "mlax.summaries": "summary",
        "mlax.tree": "combine count freeze map_with_path mask nbytes partition paths",
    }
    _HOMES = {n: path.replace("*", n) for path, names in _LATER.items() for n in names.split()}
    _MODULES = "functional models nn positions sharding testing typed types weights".split()

    def __getattr__(name):
        """Return what is imported on first use."""
        if name in _MODULES:
            return importlib.import_module(f"mlax.{name}")
        if name not in _HOMES:
            raise AttributeError(f"module 'mlax' has no attribute {name!r}")
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value

    def __dir__():
        """Return all names, including those not imported yet."""
        return sorted({*globals(), *__all__})


# fmt: off
__all__ = [
    "Apply", "AttentionInputs", "AxisName", "Init", "Key", "Layer", "Module", "MoeInputs", "Pair",
    "Parameter", "Rule", "Shaped", "State", "Sublayer", "adaptive_avg_pool", "add", "as_layer",
    "as_module", "attention", "avg_pool", "batch_norm", "batched", "beam_search", "bias",
    "bidirectional", "block", "branch", "carried", "cast", "combinator", "combine", "composed",
    "concatenate", "conv", "conv_transpose", "count", "dense", "depthwise_conv", "diagram",
    "dropout", "embed", "ensemble", "export", "f", "f_rng", "flatten", "flops", "freeze",
    "from_linen", "from_stax", "frozen", "functional", "generate", "global_avg_pool", "group_norm",
    "gru_cell", "init_lora", "init_quantized", "init_state", "instance_norm", "is_leaf_param",
    "is_non_trainable_param", "is_trainable_param", "layer", "layer_norm", "linear", "load", "lora",
    "lru", "lru_cell", "lstm_cell", "mamba_block", "map_with_path", "mask", "max_pool",
    "merge_lora", "merge_quantized", "min_gru", "min_gru_cell", "mlp", "models", "moe", "multiply",
    "nbytes", "needs_rng", "nn", "parallel", "parameter", "partition", "paths", "pipeline", "pool",
    "position_embedding", "positions", "quantized", "recurrent", "relative_bias", "remat", "repeat",
    "replaced", "residual", "rms_norm", "rnn_cell", "save", "scaler", "selective_ssm",
    "selective_ssm_cell", "separable_conv", "series", "stateless", "stochastic_depth", "sum_pool",
    "summary", "switch", "tap", "testing", "to_stax", "transformer_block", "typed", "types",
    "weights", "z_norm", "sharding",
]
