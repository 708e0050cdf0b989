"""The documented classes: mutable modules built on the pairs of mlax."""

from mlax.nn import functional
from mlax.nn.bias import Bias
from mlax.nn.conv import Conv
from mlax.nn.embed import Embed
from mlax.nn.f import F, FRng
from mlax.nn.linear import Linear
from mlax.nn.parallel import Parallel, ParallelRng
from mlax.nn.recurrent import Recurrent, RecurrentRng
from mlax.nn.scaler import Scaler
from mlax.nn.series import Series, SeriesRng
from mlax.nn.z_norm import ZNorm

# fmt: off
__all__ = [
    "Bias", "Conv", "Embed", "F", "FRng", "Linear", "Parallel", "ParallelRng", "Recurrent",
    "RecurrentRng", "Scaler", "Series", "SeriesRng", "ZNorm", "functional",
]
