"""The types that strictly typed programs name: contracts, hyperparameters, params and states.

    DenseState = State[tuple[()], DenseConfig]
    NormState = State[ZNormVariables, BatchNormConfig]
    States = tuple[DenseState, NormState]
    Params = tuple[DenseParams, NormParams]

    dense(10)                        Layer[DenseParams, DenseState, Array, Array]
    series(dense(10), batch_norm())  Layer[Params, TupleState[States], Array, Array]
    batched(series(...))             Layer[Params, State[Variables[States], BatchedConfig], ...]
    block, series with names         Layer[dict[str, Any], DictState, Array, Array]

A list of layers of several types is a `list[AnyLayer]`, which mypy has to be told.
"""
# fmt: off

from mlax.arguments import (
    AnyLayer, Axes, Axis, DataFormat, DType, Epsilon, Momentum, NormalizedAxis, Number, Padding,
    Pattern, Positive, Precision, Rate, Rule, Sharding, Size, Sizes,
)
from mlax.beams import Beams
from mlax.checkpoint import LoadRule
from mlax.combinators import Child, Sublayer, WiredConfig
from mlax.combinators.batched import BatchedConfig
from mlax.combinators.block import Sublayers
from mlax.combinators.carried import CarriedConfig, CarriedVariables
from mlax.combinators.cast import CastConfig
from mlax.combinators.composed import ComposedConfig
from mlax.combinators.ensemble import EnsembleConfig
from mlax.combinators.frozen import FrozenConfig
from mlax.combinators.join import AddConfig, ConcatenateConfig, Entries, MultiplyConfig
from mlax.combinators.lora import Adapter, LoraConfig, LoraVariables
from mlax.combinators.moe import MoeConfig, MoeInputs, MoeParams, Routed
from mlax.combinators.pipeline import PipelineConfig
from mlax.combinators.quantized import KeptDType, Quantized, QuantizedConfig, QuantizedVariables
from mlax.combinators.recurrent import RecurrentConfig
from mlax.combinators.remat import RematConfig
from mlax.combinators.repeat import RepeatConfig
from mlax.combinators.stochastic_depth import StochasticDepthConfig
from mlax.combinators.switch import SwitchConfig
from mlax.combinators.types import DictState, TupleState, Variables
from mlax.costs import Flops
from mlax.decoding import Generated
from mlax.exporting import Artifact
from mlax.diagrams import Diagram
from mlax.initializers import Initializer
from mlax.interop import FromLinenConfig, FromStaxConfig
from mlax.layer import Apply, ApplyWithRng, AxisName, Init, Key, Layer, Shaped, State
from mlax.layers.attention import (
    AttentionConfig, AttentionInputs, AttentionParams, PositionBias, Rotation,
)
from mlax.layers.attention_cache import AttentionCache
from mlax.layers.attention_product import Product
from mlax.layers.bias import BiasConfig, BiasParams, InFeatures
from mlax.layers.cells import (
    CellParams, GruCellConfig, GruCellParams, LstmCellConfig, RnnCellConfig,
)
from mlax.layers.conv import ConvConfig, ConvFormat, ConvPadding, ConvParams
from mlax.layers.dense import DenseConfig, DenseParams
from mlax.layers.dropout import DropoutConfig
from mlax.layers.embed import EmbedConfig, EmbedParams
from mlax.layers.f import FConfig, FRngConfig
from mlax.layers.global_pool import AdaptiveAvgPoolConfig, FlattenConfig, GlobalAvgPoolConfig
from mlax.layers.linear import LinearConfig, LinearParams
from mlax.layers.lru import LruCellConfig, LruConfig, LruParams
from mlax.layers.min_gru import MinGruCellConfig, MinGruConfig, MinGruParams
from mlax.layers.norms import (
    BatchNormConfig, GroupNormConfig, InstanceNormConfig, LayerNormConfig, NormParams,
    RmsNormConfig,
)
from mlax.layers.parameter import ParameterConfig, ParameterParams, Shape
from mlax.layers.pool import AvgPoolConfig, MaxPoolConfig, PoolConfig, SumPoolConfig
from mlax.layers.position_embedding import (
    PositionEmbeddingConfig, PositionEmbeddingParams, PositionEmbeddingVariables,
)
from mlax.layers.relative_bias import RelativeBiasConfig
from mlax.layers.scaler import ScalerConfig, ScalerParams
from mlax.layers.selective_ssm import SelectiveSsmCellConfig, SelectiveSsmConfig, SelectiveSsmParams
from mlax.layers.z_norm import ZNormConfig, ZNormVariables
from mlax.linear_recurrence import Implementation
from mlax.pair import Pair
from mlax.sharding import Optimizer, Plan, Rules
from mlax.summaries import Row, Summary
from mlax.tree import Mask, Where
from mlax.typed import Jitted

__all__ = [
    "Adapter", "AdaptiveAvgPoolConfig", "AddConfig", "AnyLayer", "Apply", "ApplyWithRng",
    "Artifact", "AttentionCache", "AttentionConfig", "AttentionInputs", "AttentionParams",
    "AvgPoolConfig", "Axes", "Axis", "AxisName", "BatchNormConfig", "BatchedConfig", "Beams",
    "BiasConfig", "BiasParams", "CarriedConfig", "CarriedVariables", "CastConfig", "CellParams",
    "Child", "ComposedConfig", "ConcatenateConfig", "ConvConfig", "ConvFormat", "ConvPadding",
    "ConvParams", "DType", "DataFormat", "DenseConfig", "DenseParams", "Diagram", "DictState",
    "DropoutConfig", "EmbedConfig", "EmbedParams", "EnsembleConfig", "Entries", "Epsilon",
    "FConfig", "FRngConfig", "FlattenConfig", "Flops", "FromLinenConfig", "FromStaxConfig",
    "FrozenConfig", "Generated", "GlobalAvgPoolConfig", "GroupNormConfig", "GruCellConfig",
    "GruCellParams", "Implementation", "InFeatures", "Init", "Initializer", "InstanceNormConfig",
    "Jitted", "KeptDType", "Key", "Layer", "LayerNormConfig", "LinearConfig", "LinearParams",
    "LoadRule", "LoraConfig", "LoraVariables", "LruCellConfig", "LruConfig", "LruParams",
    "LstmCellConfig", "Mask", "MaxPoolConfig", "MinGruCellConfig", "MinGruConfig", "MinGruParams",
    "MoeConfig", "MoeInputs", "MoeParams", "Momentum", "MultiplyConfig", "NormParams",
    "NormalizedAxis", "Number", "Optimizer", "Padding", "Pair", "ParameterConfig",
    "ParameterParams", "Pattern", "PipelineConfig", "Plan", "PoolConfig", "PositionBias",
    "PositionEmbeddingConfig", "PositionEmbeddingParams", "PositionEmbeddingVariables", "Positive",
    "Precision", "Product", "Quantized", "QuantizedConfig", "QuantizedVariables", "Rate",
    "RecurrentConfig", "RelativeBiasConfig", "RematConfig", "RepeatConfig", "RmsNormConfig",
    "RnnCellConfig", "Rotation", "Routed", "Row", "Rule", "Rules", "ScalerConfig", "ScalerParams",
    "SelectiveSsmCellConfig", "SelectiveSsmConfig", "SelectiveSsmParams", "Shape", "Shaped",
    "Sharding", "Size", "Sizes", "State", "StochasticDepthConfig", "Sublayer", "Sublayers",
    "SumPoolConfig", "Summary", "SwitchConfig", "TupleState", "Variables", "Where", "WiredConfig",
    "ZNormConfig", "ZNormVariables",
]
