"""`Dropout`: `mlax.dropout` as a module."""

from collections.abc import Sequence

import jax

from mlax.layers.dropout import dropout
from mlax.nn.base import PairModuleRng


class Dropout(PairModuleRng[jax.Array, jax.Array]):
    """Random elements set to zero in training: see `mlax.dropout`. It has no parameters."""

    _pair = dropout
    _way_out = "it takes no key when it is made, as in Dropout(0.1, axis=0)"

    def __init__(self, rate: float, axis: int | Sequence[int]) -> None:
        """Hold the hyperparameters of `mlax.dropout`."""
        super().__init__()
        self.rate = rate
        self.axis = axis
