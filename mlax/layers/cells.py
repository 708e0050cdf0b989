"""Cells for `mlax.recurrent`, with fused projections: (x, h) -> (y, h).

The projections of x for all gates are computed as one product, as are those of h:

    x                 (..., in_features)
    h                 (..., features); for `lstm_cell` a pair (h, c) of such arrays
    kernel            (in_features, gates * features)
    recurrent_kernel  (features, gates * features)
    bias              (gates * features,)
    y                 (..., features), the new h

The gates are laid out along the last axis of the kernels in the order of PyTorch: the weights
of `torch.nn.LSTM` and its siblings are the transposed kernels, and the bias is the sum of their
two biases.

The initial carry is jnp.zeros(features), or a pair of them for `lstm_cell`; None means that,
in float32 or better. Products are computed in the dtype of x, which is also that of y; the carry
keeps its own dtypes.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from mlax import arguments
from mlax.arguments import DType, Number, Size, read_pair
from mlax.errors import message
from mlax.initializers import Initializer, initialize, lecun_normal
from mlax.layer import Key, Shaped
from mlax.pair import stateless
from mlax.serialization import serializable
from mlax.statistics import wide_dtype

Activation: TypeAlias = Callable[[jax.Array], jax.Array]


def orthogonal(key: Key, shape: tuple[int, ...], dtype: DType = jnp.float32) -> jax.Array:
    """Draw a matrix with orthonormal rows or columns.

    Source: Saxe et al., "Exact solutions to the nonlinear dynamics of learning in deep linear
    neural networks", 2014.
    """
    draw = jax.nn.initializers.orthogonal()
    return draw(key, shape, jnp.promote_types(dtype, jnp.float32)).astype(dtype)


@serializable
class CellParams(NamedTuple):
    """Parameters of `rnn_cell` and `lstm_cell`."""

    kernel: jax.Array
    """(in_features, gates * features)."""
    recurrent_kernel: jax.Array
    """(features, gates * features)."""
    bias: jax.Array
    """(gates * features,)."""


@serializable
class GruCellParams(NamedTuple):
    """Parameters of `gru_cell`."""

    kernel: jax.Array
    """(in_features, 3 * features)."""
    recurrent_kernel: jax.Array
    """(features, 3 * features)."""
    bias: jax.Array
    """(3 * features,)."""
    recurrent_bias: jax.Array
    """(features,)."""


def _init_params(
    owner: str, rng: Key, x: Shaped, carry: tuple[Shaped | None, ...], features: int, gates: int,
    initializers: tuple[Initializer, Initializer, Initializer], dtype: DType,
) -> CellParams:
    """Return the parameters; each gate is drawn separately, with its own fans."""
    _require_fitting(owner, x, carry, features)
    arguments.require_castable(owner, x, dtype)

    def fused(i: int, name: str, *shape: int) -> jax.Array:
        key = jax.random.fold_in(rng, i)
        return initialize(owner, name, initializers[i], key, shape, dtype, gates=gates)

    return CellParams(
        fused(0, "kernel_initializer", x.shape[-1], features),
        fused(1, "recurrent_initializer", features, features),
        fused(2, "bias_initializer", features),
    )


def require_carry(
    owner: str, x: Shaped, carry: tuple[Shaped | None, ...], shape: tuple[int, ...],
    names: Sequence[str] = "hc",
) -> None:
    """Require arrays of a floating dtype and of this shape, or None for zeros."""
    way_out = f"start with jnp.zeros({shape}), or with None"
    if len(shape) > 1:
        way_out += "; map a batch axis with mlax.batched"
    for name, h in zip(names, carry, strict=False):
        if h is None:
            continue
        arguments.require_array(owner, h, name)
        if not jnp.issubdtype(h.dtype, jnp.floating):
            wanted, got = "of a floating dtype, which it keeps", jnp.dtype(h.dtype).name
            raise TypeError(message(owner, name, wanted, got, way_out))
        if h.shape != shape:
            wanted = f"of shape {shape}, for x of shape {x.shape}"
            raise ValueError(message(owner, name, wanted, f"shape {h.shape}", way_out))


def pair_of_carries(owner: str, carry: Any, spelled: str) -> tuple[Any, Any]:
    """Return the two entries of a carry; None is a pair of None."""
    return (None, None) if carry is None else read_pair(owner, "the carry", carry, spelled)


def _require_fitting(
    owner: str, x: Shaped, carry: tuple[Shaped | None, ...], features: int
) -> tuple[int, ...]:
    """Return the shape of a carry of `features` features, and require it of the carry."""
    arguments.require_rank(owner, x, 1)
    shape = (*x.shape[:-1], features)
    require_carry(owner, x, carry, shape)
    return shape


def _fitting(
    owner: str, x: jax.Array, carry: tuple[jax.Array | None, ...],
    params: CellParams | GruCellParams,
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Return x and the carry as jax arrays, and require that they fit the parameters."""
    arguments.require_features(owner, x, params.kernel)
    arguments.require_axes(owner, "params.recurrent_kernel", params.recurrent_kernel, 2)
    shape = _require_fitting(owner, x, carry, params.recurrent_kernel.shape[0])
    zeros = jnp.zeros(shape, wide_dtype(x.dtype))
    return arguments.array(owner, x), tuple(zeros if h is None else jnp.asarray(h) for h in carry)


def _gates(
    x: jax.Array, h: jax.Array, kernel: jax.Array, recurrent_kernel: jax.Array, bias: jax.Array
) -> jax.Array:
    """Return x @ kernel + h @ recurrent_kernel + bias in the dtype of x."""
    recurrent = h.astype(x.dtype) @ recurrent_kernel.astype(x.dtype)
    return x @ kernel.astype(x.dtype) + recurrent + bias.astype(x.dtype)


class RnnCellConfig(NamedTuple):
    """Configuration of `rnn_cell`."""

    activation: Activation
    """The function that is applied to the sum."""


def apply_rnn_cell(
    params: CellParams, config: RnnCellConfig, x: tuple[jax.Array, jax.Array | None]
) -> tuple[jax.Array, jax.Array]:
    """Return (y, h): see `mlax.rnn_cell`."""
    inputs, h = read_pair("rnn_cell", "x", x, "(x, h)")
    inputs, (h,) = _fitting("rnn_cell", inputs, (h,), params)
    y = config.activation(_gates(inputs, h, *params))
    return (y, y.astype(h.dtype))


@stateless(apply_rnn_cell, RnnCellConfig)
def rnn_cell(
    rng: Key, x: tuple[Shaped, Shaped | None], features: Size, *,
    activation: Activation = jnp.tanh, kernel_initializer: Initializer = lecun_normal,
    recurrent_initializer: Initializer = orthogonal,
    bias_initializer: Initializer = jax.nn.initializers.zeros, dtype: DType = jnp.float32,
) -> CellParams:
    """The simple recurrent cell: y = h' = activation(x @ kernel + h @ recurrent_kernel + bias).

    (x, h) -> (y, h'). Start with h = jnp.zeros(features), or None.

    Args:
        features: length of the last axis of h and y.
        activation: function applied to the sum.
        kernel_initializer: called with (in_features, features).
        recurrent_initializer: called with (features, features).
        bias_initializer: called with (features,).
        dtype: dtype of the parameters. They are cast to the dtype of x when used.

    Raises:
        TypeError: an argument is of the wrong type, the input is not a pair, or not floating.
        ValueError: `features` is not positive, or x or the carry do not fit.

    Source: Elman, "Finding structure in time", 1990; `torch.nn.RNN`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.recurrent(mlax.rnn_cell(4))
    >>> x = (jnp.ones((7, 3)), jnp.zeros(4))
    >>> params, state = init(jax.random.key(0), x)
    >>> (ys, h), state = apply(params, state, x)
    >>> params.kernel.shape, ys.shape, h.shape
    ((3, 4), (7, 4), (4,))
    """
    inputs, h = read_pair("rnn_cell", "x", x, "(x, h)")
    initializers = kernel_initializer, recurrent_initializer, bias_initializer
    return _init_params("rnn_cell", rng, inputs, (h,), features, 1, initializers, dtype)


class LstmCellConfig(NamedTuple):
    """Configuration of `lstm_cell`: no hyperparameters."""


def apply_lstm_cell(
    params: CellParams, config: LstmCellConfig,
    x: tuple[jax.Array, tuple[jax.Array, jax.Array] | None],
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    """Return (y, (h, c)): see `mlax.lstm_cell`."""
    inputs, carry = read_pair("lstm_cell", "x", x, "(x, (h, c))")
    h, c = pair_of_carries("lstm_cell", carry, "(h, c)")
    inputs, (h, c) = _fitting("lstm_cell", inputs, (h, c), params)
    i, f, g, o = jnp.split(_gates(inputs, h, *params), 4, -1)
    new_c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    y = jax.nn.sigmoid(o) * jnp.tanh(new_c)
    return (y.astype(inputs.dtype), (y.astype(h.dtype), new_c.astype(c.dtype)))


@stateless(apply_lstm_cell, LstmCellConfig, traced_once=True)
def lstm_cell(
    rng: Key, x: tuple[Shaped, tuple[Shaped, Shaped] | None], features: Size, *,
    forget_bias: Number = 1.0, kernel_initializer: Initializer = lecun_normal,
    recurrent_initializer: Initializer = orthogonal,
    bias_initializer: Initializer = jax.nn.initializers.zeros, dtype: DType = jnp.float32,
) -> CellParams:
    """The long short-term memory cell: (x, (h, c)) -> (y, (h', c')).

        i, f, g, o = split(x @ kernel + h @ recurrent_kernel + bias, 4)
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        y = h' = sigmoid(o) * tanh(c')

    Start with the pair (jnp.zeros(features), jnp.zeros(features)), or with None.

    Args:
        features: length of the last axis of h, c and y.
        forget_bias: added by `init` to the part of the bias that belongs to f, so that the
            cell remembers at first; `apply` doesn't use it.
        kernel_initializer, recurrent_initializer, bias_initializer, dtype: as in `mlax.rnn_cell`;
            the initializers are called once for each gate.

    Raises what `mlax.rnn_cell` raises.

    Source: Hochreiter and Schmidhuber, "Long short-term memory", 1997; Gers et al., "Learning
    to forget", 2000; Jozefowicz et al., "An empirical exploration of recurrent network
    architectures", 2015, for the forget bias; `torch.nn.LSTM`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.recurrent(mlax.lstm_cell(4))
    >>> x = (jnp.ones((7, 3)), (jnp.zeros(4), jnp.zeros(4)))
    >>> params, state = init(jax.random.key(0), x)
    >>> (ys, (h, c)), state = apply(params, state, x)
    >>> params.kernel.shape, ys.shape, c.shape
    ((3, 16), (7, 4), (4,))
    """
    inputs, carry = read_pair("lstm_cell", "x", x, "(x, (h, c))")
    h, c = pair_of_carries("lstm_cell", carry, "(h, c)")
    initializers = kernel_initializer, recurrent_initializer, bias_initializer
    params = _init_params("lstm_cell", rng, inputs, (h, c), features, 4, initializers, dtype)
    return params._replace(bias=params.bias.at[features : 2 * features].add(forget_bias))


class GruCellConfig(NamedTuple):
    """Configuration of `gru_cell`: no hyperparameters."""


def apply_gru_cell(
    params: GruCellParams, config: GruCellConfig, x: tuple[jax.Array, jax.Array | None]
) -> tuple[jax.Array, jax.Array]:
    """Return (y, h): see `mlax.gru_cell`."""
    inputs, h = read_pair("gru_cell", "x", x, "(x, h)")
    inputs, (h,) = _fitting("gru_cell", inputs, (h,), params)
    kernel, recurrent_kernel, bias, recurrent_bias = (p.astype(inputs.dtype) for p in params)
    features = h.shape[-1]
    from_x = inputs @ kernel + bias
    from_h = h.astype(inputs.dtype) @ recurrent_kernel
    reset_and_update = from_x[..., : 2 * features] + from_h[..., : 2 * features]
    r, z = jnp.split(jax.nn.sigmoid(reset_and_update), 2, -1)
    n = jnp.tanh(from_x[..., 2 * features :] + r * (from_h[..., 2 * features :] + recurrent_bias))
    y = (1 - z) * n + z * h
    return (y.astype(inputs.dtype), y.astype(h.dtype))


@stateless(apply_gru_cell, GruCellConfig, traced_once=True)
def gru_cell(
    rng: Key, x: tuple[Shaped, Shaped | None], features: Size, *,
    kernel_initializer: Initializer = lecun_normal,
    recurrent_initializer: Initializer = orthogonal,
    bias_initializer: Initializer = jax.nn.initializers.zeros, dtype: DType = jnp.float32,
) -> GruCellParams:
    """The gated recurrent unit: (x, h) -> (y, h').

        r_x, z_x, n_x = split(x @ kernel + bias, 3)
        r_h, z_h, n_h = split(h @ recurrent_kernel, 3)
        r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
        n = tanh(n_x + r * (n_h + recurrent_bias))
        y = h' = (1 - z) * n + z * h

    Start with h = jnp.zeros(features), or None. In terms of `torch.nn.GRU`, bias is
    bias_ih + bias_hh for r and z and bias_ih for n, and recurrent_bias is bias_hh for n.

    Args:
        features, kernel_initializer, recurrent_initializer, bias_initializer, dtype: as in
            `mlax.rnn_cell`; the initializers are called once for each gate, and that of the bias
            once more for recurrent_bias.

    Raises what `mlax.rnn_cell` raises.

    Source: Cho et al., "Learning phrase representations using RNN encoder-decoder", 2014;
    `torch.nn.GRU`, which applies the reset gate after the product.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.recurrent(mlax.gru_cell(4))
    >>> x = (jnp.ones((7, 3)), jnp.zeros(4))
    >>> params, state = init(jax.random.key(0), x)
    >>> (ys, h), state = apply(params, state, x)
    >>> params.kernel.shape, ys.shape, h.shape
    ((3, 12), (7, 4), (4,))
    """
    inputs, h = read_pair("gru_cell", "x", x, "(x, h)")
    initializers = kernel_initializer, recurrent_initializer, bias_initializer
    params = _init_params("gru_cell", rng, inputs, (h,), features, 3, initializers, dtype)
    key, shape = jax.random.fold_in(rng, 3), (features,)
    bias = initialize("gru_cell", "bias_initializer", bias_initializer, key, shape, dtype)
    return GruCellParams(*params, bias)
