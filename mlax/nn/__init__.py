"""The documented classes, and others in their style: mutable modules built on the pairs of mlax.

- with parameters, made from a key: `Linear`, `Bias`, `Scaler`, `Dense`, `Conv`, `Embed`,
  `Attention`
- normalisation: `ZNorm`, `BatchNorm`, `LayerNorm`, `RMSNorm`, `GroupNorm`, `InstanceNorm`
- without parameters: `F`, `FRng`, `Dropout`, `MaxPool`, `AvgPool`, `SumPool`
- cells for `Recurrent`: `RNNCell`, `LSTMCell`, `GRUCell`
- made of modules: `Series`, `Parallel`, `Residual`, `Recurrent`, and `SeriesRng` etc., which pass
  keys to the modules that need one; the plain ones pass none

`split_keys` makes the keys. `mlax.as_module` makes a module of any other layer. A class of your own
derives from `mlax.Module`.
"""

from mlax.nn import functional
from mlax.nn.attention import Attention, AttentionRng
from mlax.nn.bias import Bias
from mlax.nn.cells import GRUCell, LSTMCell, RNNCell
from mlax.nn.conv import Conv
from mlax.nn.dense import Dense
from mlax.nn.dropout import Dropout
from mlax.nn.embed import Embed
from mlax.nn.f import F, FRng
from mlax.nn.keys import Keys, split_keys
from mlax.nn.linear import Linear
from mlax.nn.norms import BatchNorm, GroupNorm, InstanceNorm, LayerNorm, RMSNorm
from mlax.nn.parallel import Parallel, ParallelRng
from mlax.nn.pooling import AvgPool, MaxPool, SumPool
from mlax.nn.recurrent import Recurrent, RecurrentRng
from mlax.nn.residual import Residual, ResidualRng
from mlax.nn.scaler import Scaler
from mlax.nn.series import Series, SeriesRng
from mlax.nn.z_norm import ZNorm

# fmt: off
__all__ = [
    "Attention", "AttentionRng", "AvgPool", "BatchNorm", "Bias", "Conv", "Dense", "Dropout",
    "Embed", "F", "FRng", "GRUCell", "GroupNorm", "InstanceNorm", "Keys", "LSTMCell", "LayerNorm",
    "Linear", "MaxPool", "Parallel", "ParallelRng", "RMSNorm", "RNNCell", "Recurrent",
    "RecurrentRng", "Residual", "ResidualRng", "Scaler", "Series", "SeriesRng", "SumPool", "ZNorm",
    "functional", "split_keys",
]
