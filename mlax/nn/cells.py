"""`RNNCell`, `LSTMCell` and `GRUCell`: `mlax.rnn_cell` and its kind as modules, for `Recurrent`."""

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mlax.initializers import Initializer, lecun_normal
from mlax.layer import Key
from mlax.layers.cells import Activation, CellParams, GruCellParams, gru_cell, lstm_cell
from mlax.layers.cells import orthogonal, rnn_cell
from mlax.module import Parameter
from mlax.nn.base import PairModule, X, Y


class _Cell(PairModule[X, Y]):
    """A cell with the parameters `kernel`, `recurrent_kernel` and `bias`."""

    def __init__(
        self, rng: Key, features: int, kernel_initializer: Initializer,
        recurrent_initializer: Initializer, bias_initializer: Initializer, dtype: DTypeLike,
    ) -> None:
        """Hold what the cells have in common."""
        super().__init__()
        self.rng: Key | None = rng
        self.features = features
        self.kernel_initializer = kernel_initializer
        self.recurrent_initializer = recurrent_initializer
        self.bias_initializer = bias_initializer
        self.dtype = dtype
        self.kernel: Parameter = Parameter(trainable=True)
        self.recurrent_kernel: Parameter = Parameter(trainable=True)
        self.bias: Parameter = Parameter(trainable=True)


class RNNCell(_Cell[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]):
    """The simple recurrent cell, (x, h) -> (y, h): see `mlax.rnn_cell`.

    The parameters are `kernel`, `recurrent_kernel` and `bias`.
    """

    _pair = rnn_cell
    _params = CellParams, ("kernel", "recurrent_kernel", "bias")

    def __init__(
        self, rng: Key, features: int, *,
        activation: Activation = jnp.tanh, kernel_initializer: Initializer = lecun_normal,
        recurrent_initializer: Initializer = orthogonal,
        bias_initializer: Initializer = jax.nn.initializers.zeros, dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Hold the key and the hyperparameters of `mlax.rnn_cell`."""
        initializers = kernel_initializer, recurrent_initializer, bias_initializer
        super().__init__(rng, features, *initializers, dtype)
        self.activation = activation

    def _sizes(self) -> dict[str, tuple[int | None, ...]]:
        return _sizes(self.features, gates=1)


class LSTMCell(
    _Cell[
        tuple[jax.Array, tuple[jax.Array, jax.Array]],
        tuple[jax.Array, tuple[jax.Array, jax.Array]],
    ]
):
    """The long short-term memory cell, (x, (h, c)) -> (y, (h, c)): see `mlax.lstm_cell`.

    The parameters are `kernel`, `recurrent_kernel` and `bias`.
    """

    _pair = lstm_cell
    _params = CellParams, ("kernel", "recurrent_kernel", "bias")

    def __init__(
        self, rng: Key, features: int, *,
        forget_bias: float = 1.0, kernel_initializer: Initializer = lecun_normal,
        recurrent_initializer: Initializer = orthogonal,
        bias_initializer: Initializer = jax.nn.initializers.zeros, dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Hold the key and the hyperparameters of `mlax.lstm_cell`."""
        initializers = kernel_initializer, recurrent_initializer, bias_initializer
        super().__init__(rng, features, *initializers, dtype)
        self.forget_bias = forget_bias

    def _sizes(self) -> dict[str, tuple[int | None, ...]]:
        return _sizes(self.features, gates=4)


class GRUCell(_Cell[tuple[jax.Array, jax.Array], tuple[jax.Array, jax.Array]]):
    """The gated recurrent unit, (x, h) -> (y, h): see `mlax.gru_cell`.

    The parameters are `kernel`, `recurrent_kernel`, `bias` and `recurrent_bias`.
    """

    _pair = gru_cell
    _params = GruCellParams, ("kernel", "recurrent_kernel", "bias", "recurrent_bias")

    def __init__(
        self, rng: Key, features: int, *,
        kernel_initializer: Initializer = lecun_normal,
        recurrent_initializer: Initializer = orthogonal,
        bias_initializer: Initializer = jax.nn.initializers.zeros, dtype: DTypeLike = jnp.float32,
    ) -> None:
        """Hold the key and the hyperparameters of `mlax.gru_cell`."""
        initializers = kernel_initializer, recurrent_initializer, bias_initializer
        super().__init__(rng, features, *initializers, dtype)
        self.recurrent_bias: Parameter = Parameter(trainable=True)

    def _sizes(self) -> dict[str, tuple[int | None, ...]]:
        return {**_sizes(self.features, gates=3), "recurrent_bias": (self.features,)}


def _sizes(features: int, gates: int) -> dict[str, tuple[int | None, ...]]:
    return {
        "kernel": (None, gates * features),
        "recurrent_kernel": (features, gates * features),
        "bias": (gates * features,),
    }
