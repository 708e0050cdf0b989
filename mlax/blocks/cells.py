"""Cells for `mlax.recurrent`, with fused projections: (x, h) -> (y, h).

The projections of x for all gates are one product, and so are those of h:

    x                 (..., in_features)
    h                 (..., features); for `lstm_cell` a pair (h, c) of such arrays
    kernel            (in_features, gates * features)
    recurrent_kernel  (features, gates * features)
    bias              (gates * features,)
    y                 (..., features), the new h

The gates follow each other along the last axis of the kernels, in the order of PyTorch: the
weights of `torch.nn.LSTM` and its like are the transposed kernels, and its two biases are
added once, as their sum.

A carry to start with is jnp.zeros(features), for `lstm_cell` a pair of them. Products are
computed in the dtype of x, which is that of y; the carry keeps its own dtypes.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from mlax import arguments
from mlax.arguments import Shaped
from mlax.equality import by_parts
from mlax.initializers import Initializer, glorot_uniform, initialize
from mlax.pair import AxisName, Check, Key, State, layer

Activation: TypeAlias = Callable[[jax.Array], jax.Array]


def orthogonal(key: Key, shape: tuple[int, ...], dtype: DTypeLike = jnp.float32) -> jax.Array:
    """Draw a matrix with orthonormal rows or columns.

    Source: Saxe et al., "Exact solutions to the nonlinear dynamics of learning in deep linear
    neural networks", 2014.
    """
    return _orthogonal(key, shape, jnp.promote_types(dtype, jnp.float32)).astype(dtype)


_orthogonal = jax.nn.initializers.orthogonal()


CHECKS: dict[str, Check] = {
    "features": arguments.check_size,
    "kernel_initializer": arguments.check_callable,
    "recurrent_initializer": arguments.check_callable,
    "bias_initializer": arguments.check_callable,
    "dtype": arguments.check_dtype,
}


class CellParams(NamedTuple):
    """Parameters of `rnn_cell` and `lstm_cell`."""

    kernel: jax.Array
    """(in_features, gates * features)."""
    recurrent_kernel: jax.Array
    """(features, gates * features)."""
    bias: jax.Array
    """(gates * features,)."""


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


def _check_number(owner: str, name: str, value: object) -> None:
    """Require a number."""
    if not isinstance(value, int | float | np.number):
        raise TypeError(arguments.message(owner, name, "a number", repr(value)))


def _init_params(
    owner: str,
    rng: Key,
    x: Shaped,
    carry: tuple[Shaped, ...],
    features: int,
    gates: int,
    kernel_initializer: Initializer,
    recurrent_initializer: Initializer,
    bias_initializer: Initializer,
    dtype: DTypeLike,
) -> CellParams:
    """Return the parameters; each gate is drawn apart, with the fans that it has."""
    _require_carry(owner, x, carry, features)
    arguments.require_castable(owner, x, dtype)

    def fused(name: str, initializer: Initializer, i: int, shape: tuple[int, ...]) -> jax.Array:
        key = jax.random.fold_in(rng, i)
        keys = (jax.random.fold_in(key, gate) for gate in range(gates))
        parts = [initialize(owner, name, initializer, key, shape, dtype) for key in keys]
        return jnp.concatenate(parts, -1)

    return CellParams(
        fused("kernel_initializer", kernel_initializer, 0, (x.shape[-1], features)),
        fused("recurrent_initializer", recurrent_initializer, 1, (features, features)),
        fused("bias_initializer", bias_initializer, 2, (features,)),
    )


def _pair(owner: str, name: str, value: Any, entries: str) -> tuple[Any, Any]:
    """Return the two entries of a pair."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        got = f"{len(value)} entries" if isinstance(value, tuple | list) else type(value).__name__
        raise TypeError(arguments.message(owner, name, f"a pair {entries}", got))
    return value[0], value[1]


def _require_carry(owner: str, x: Shaped, carry: tuple[Shaped, ...], features: int) -> None:
    """Require arrays of that many features that go with x."""
    arguments.require_rank(owner, x, 1)
    shape = (*x.shape[:-1], features)
    way_out = f"start with jnp.zeros({shape})"
    for name, h in zip("hc", carry, strict=False):
        arguments.require_array(owner, h, name)
        if not jnp.issubdtype(h.dtype, jnp.floating):
            wanted, got = "of a floating dtype, which it keeps", jnp.dtype(h.dtype).name
            raise TypeError(arguments.message(owner, name, wanted, got, way_out))
        if h.shape != shape:
            wanted = f"of shape {shape}, for {features} features and x of shape {x.shape}"
            raise ValueError(arguments.message(owner, name, wanted, f"shape {h.shape}", way_out))


def _fitting(
    owner: str, x: jax.Array, carry: tuple[jax.Array, ...], params: CellParams | GruCellParams
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    """Return x and the carry as arrays of jax, and require that they fit the parameters."""
    arguments.require_features(owner, x, params.kernel)
    arguments.require_axes(owner, "params.recurrent_kernel", params.recurrent_kernel, 2)
    _require_carry(owner, x, carry, params.recurrent_kernel.shape[0])
    names = zip("hc", carry, strict=False)
    return arguments.array(owner, x), tuple(arguments.array(owner, h, name) for name, h in names)


def _gates(
    x: jax.Array, h: jax.Array, kernel: jax.Array, recurrent_kernel: jax.Array, bias: jax.Array
) -> jax.Array:
    """Return x @ kernel + h @ recurrent_kernel + bias in the dtype of x."""
    recurrent = h.astype(x.dtype) @ recurrent_kernel.astype(x.dtype)
    return x @ kernel.astype(x.dtype) + recurrent + bias.astype(x.dtype)


@by_parts
class RnnCellConfig(NamedTuple):
    """Configuration of `rnn_cell`."""

    activation: Activation
    """What makes y of the sum."""


def apply_rnn_cell(
    params: CellParams,
    state: State[tuple[()], RnnCellConfig],
    x: tuple[jax.Array, jax.Array],
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[tuple[jax.Array, jax.Array], State[tuple[()], RnnCellConfig]]:
    """Return (y, h): see `mlax.Apply` and `mlax.rnn_cell`."""
    config = arguments.config_of("rnn_cell", state, RnnCellConfig)
    arguments.require_params("rnn_cell", params, CellParams)
    inputs, h = _pair("rnn_cell", "x", x, "(x, h)")
    inputs, (h,) = _fitting("rnn_cell", inputs, (h,), params)
    y = config.activation(_gates(inputs, h, *params))
    return (y, y.astype(h.dtype)), state


@layer(apply_rnn_cell, checks={**CHECKS, "activation": arguments.check_callable})
def rnn_cell(
    rng: Key,
    x: tuple[Shaped, Shaped],
    features: int,
    activation: Activation = jnp.tanh,
    kernel_initializer: Initializer = glorot_uniform,
    recurrent_initializer: Initializer = orthogonal,
    bias_initializer: Initializer = jax.nn.initializers.zeros,
    dtype: DTypeLike = jnp.float32,
) -> tuple[CellParams, State[tuple[()], RnnCellConfig]]:
    """The simple recurrent cell: y = h' = activation(x @ kernel + h @ recurrent_kernel + bias).

    (x, h) -> (y, h'). Start with h = jnp.zeros(features).

    Args:
        features: length of the last axis of h and y.
        activation: function of the sum.
        kernel_initializer: called with (in_features, features).
        recurrent_initializer: called with (features, features).
        bias_initializer: called with (features,).
        dtype: dtype of the parameters. They are cast to that of x when they are used.

    Raises:
        TypeError: an argument is of the wrong type, the input is no pair, or not floating.
        ValueError: `features` is not positive, or x or h do not fit.

    Source: Elman, "Finding structure in time", 1990; `torch.nn.RNN`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.recurrent(mlax.rnn_cell(4))
    >>> x = (jnp.ones((7, 3)), jnp.zeros(4))
    >>> params, state = init(jax.random.key(0), x)
    >>> (ys, h), state = apply(params, state, x)
    >>> params.kernel.shape, ys.shape, h.shape
    ((3, 4), (7, 4), (4,))
    """
    inputs, h = _pair("rnn_cell", "x", x, "(x, h)")
    params = _init_params(
        "rnn_cell", rng, inputs, (h,), features, 1,
        kernel_initializer, recurrent_initializer, bias_initializer, dtype,
    )  # fmt: skip
    return params, State((), RnnCellConfig(activation))


class LstmCellConfig(NamedTuple):
    """Configuration of `lstm_cell`: nothing but its name."""


def apply_lstm_cell(
    params: CellParams,
    state: State[tuple[()], LstmCellConfig],
    x: tuple[jax.Array, tuple[jax.Array, jax.Array]],
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[tuple[jax.Array, tuple[jax.Array, jax.Array]], State[tuple[()], LstmCellConfig]]:
    """Return (y, (h, c)): see `mlax.Apply` and `mlax.lstm_cell`."""
    arguments.config_of("lstm_cell", state, LstmCellConfig)
    arguments.require_params("lstm_cell", params, CellParams)
    inputs, carry = _pair("lstm_cell", "x", x, "(x, (h, c))")
    h, c = _pair("lstm_cell", "the carry", carry, "(h, c)")
    inputs, (h, c) = _fitting("lstm_cell", inputs, (h, c), params)
    i, f, g, o = jnp.split(_gates(inputs, h, *params), 4, -1)
    new_c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
    y = jax.nn.sigmoid(o) * jnp.tanh(new_c)
    return (y.astype(inputs.dtype), (y.astype(h.dtype), new_c.astype(c.dtype))), state


@layer(apply_lstm_cell, checks={**CHECKS, "forget_bias": _check_number})
def lstm_cell(
    rng: Key,
    x: tuple[Shaped, tuple[Shaped, Shaped]],
    features: int,
    forget_bias: float = 1.0,
    kernel_initializer: Initializer = glorot_uniform,
    recurrent_initializer: Initializer = orthogonal,
    bias_initializer: Initializer = jax.nn.initializers.zeros,
    dtype: DTypeLike = jnp.float32,
) -> tuple[CellParams, State[tuple[()], LstmCellConfig]]:
    """The long short-term memory cell: (x, (h, c)) -> (y, (h', c')).

        i, f, g, o = split(x @ kernel + h @ recurrent_kernel + bias, 4)
        c' = sigmoid(f) * c + sigmoid(i) * tanh(g)
        y = h' = sigmoid(o) * tanh(c')

    Start with the pair (jnp.zeros(features), jnp.zeros(features)).

    Args:
        features: length of the last axis of h, c and y.
        forget_bias: what is added to the part of the first bias that belongs to f, so that
            the cell remembers to begin with; after `init` it plays no part.
        kernel_initializer: called with (in_features, features), once for each gate.
        recurrent_initializer: called with (features, features), once for each gate.
        bias_initializer: called with (features,), once for each gate.
        dtype: dtype of the parameters. They are cast to that of x when they are used.

    Raises:
        TypeError: an argument is of the wrong type, the input is no pair, or not floating.
        ValueError: `features` is not positive, or x, h or c do not fit.

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
    inputs, carry = _pair("lstm_cell", "x", x, "(x, (h, c))")
    h, c = _pair("lstm_cell", "the carry", carry, "(h, c)")
    params = _init_params(
        "lstm_cell", rng, inputs, (h, c), features, 4,
        kernel_initializer, recurrent_initializer, bias_initializer, dtype,
    )  # fmt: skip
    bias = params.bias.at[features : 2 * features].add(forget_bias)
    return params._replace(bias=bias), State((), LstmCellConfig())


class GruCellConfig(NamedTuple):
    """Configuration of `gru_cell`: nothing but its name."""


def apply_gru_cell(
    params: GruCellParams,
    state: State[tuple[()], GruCellConfig],
    x: tuple[jax.Array, jax.Array],
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[tuple[jax.Array, jax.Array], State[tuple[()], GruCellConfig]]:
    """Return (y, h): see `mlax.Apply` and `mlax.gru_cell`."""
    arguments.config_of("gru_cell", state, GruCellConfig)
    arguments.require_params("gru_cell", params, GruCellParams)
    inputs, h = _pair("gru_cell", "x", x, "(x, h)")
    inputs, (h,) = _fitting("gru_cell", inputs, (h,), params)
    kernel, recurrent_kernel, bias, recurrent_bias = (p.astype(inputs.dtype) for p in params)
    features = h.shape[-1]
    from_x = inputs @ kernel + bias
    from_h = h.astype(inputs.dtype) @ recurrent_kernel
    reset_and_update = from_x[..., : 2 * features] + from_h[..., : 2 * features]
    r, z = jnp.split(jax.nn.sigmoid(reset_and_update), 2, -1)
    n = jnp.tanh(from_x[..., 2 * features :] + r * (from_h[..., 2 * features :] + recurrent_bias))
    y = (1 - z) * n + z * h
    return (y.astype(inputs.dtype), y.astype(h.dtype)), state


@layer(apply_gru_cell, checks=CHECKS)
def gru_cell(
    rng: Key,
    x: tuple[Shaped, Shaped],
    features: int,
    kernel_initializer: Initializer = glorot_uniform,
    recurrent_initializer: Initializer = orthogonal,
    bias_initializer: Initializer = jax.nn.initializers.zeros,
    dtype: DTypeLike = jnp.float32,
) -> tuple[GruCellParams, State[tuple[()], GruCellConfig]]:
    """The gated recurrent unit: (x, h) -> (y, h').

        r_x, z_x, n_x = split(x @ kernel + bias, 3)
        r_h, z_h, n_h = split(h @ recurrent_kernel, 3)
        r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
        n = tanh(n_x + r * (n_h + recurrent_bias))
        y = h' = (1 - z) * n + z * h

    Start with h = jnp.zeros(features). In terms of `torch.nn.GRU`, bias is
    bias_ih + bias_hh for r and z and bias_ih for n, and recurrent_bias is bias_hh for n.

    Args:
        features: length of the last axis of h and y.
        kernel_initializer: called with (in_features, features), once for each gate.
        recurrent_initializer: called with (features, features), once for each gate.
        bias_initializer: called with (features,), once for each gate and once for
            recurrent_bias.
        dtype: dtype of the parameters. They are cast to that of x when they are used.

    Raises:
        TypeError: an argument is of the wrong type, the input is no pair, or not floating.
        ValueError: `features` is not positive, or x or h do not fit.

    Source: Cho et al., "Learning phrase representations using RNN encoder-decoder", 2014;
    `torch.nn.GRU`, which resets h after the product.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.recurrent(mlax.gru_cell(4))
    >>> x = (jnp.ones((7, 3)), jnp.zeros(4))
    >>> params, state = init(jax.random.key(0), x)
    >>> (ys, h), state = apply(params, state, x)
    >>> params.kernel.shape, ys.shape, h.shape
    ((3, 12), (7, 4), (4,))
    """
    inputs, h = _pair("gru_cell", "x", x, "(x, h)")
    params = _init_params(
        "gru_cell", rng, inputs, (h,), features, 3,
        kernel_initializer, recurrent_initializer, bias_initializer, dtype,
    )  # fmt: skip
    key = jax.random.fold_in(rng, 3)
    recurrent_bias = initialize(
        "gru_cell", "bias_initializer", bias_initializer, key, (features,), dtype
    )
    return GruCellParams(*params, recurrent_bias), State((), GruCellConfig())
