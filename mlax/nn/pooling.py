"""`MaxPool`, `AvgPool` and `SumPool`: `mlax.max_pool` and its kind as modules."""

import jax

from mlax.arguments import DataFormat, Padding, Sizes
from mlax.layers.pool import avg_pool, max_pool, sum_pool
from mlax.nn.base import PairModule


class _Pool(PairModule[jax.Array, jax.Array]):
    """A reduction of every window; `_pair` in a subclass says which."""

    _way_out = "it takes no key, as in MaxPool(2, strides=2)"

    _one_rank = True

    def __init__(
        self, window_shape: Sizes, strides: Sizes = 1, padding: Padding = "VALID",
        input_dilation: Sizes | None = None, window_dilation: Sizes | None = None,
        data_format: DataFormat = "channel_last",
    ) -> None:
        """Hold the hyperparameters of `mlax.max_pool` and its kind."""
        super().__init__()
        self.window_shape = window_shape
        self.strides = strides
        self.padding = padding
        self.input_dilation = input_dilation
        self.window_dilation = window_dilation
        self.data_format = data_format


class MaxPool(_Pool):
    """The largest element of every window: see `mlax.max_pool`. It has no parameters."""

    _pair = max_pool


class AvgPool(_Pool):
    """The mean of every window, padding included: see `mlax.avg_pool`. It has no parameters."""

    _pair = avg_pool


class SumPool(_Pool):
    """The sum of every window: see `mlax.sum_pool`. It has no parameters."""

    _pair = sum_pool
