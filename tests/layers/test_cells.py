"""Tests of the recurrent cells against their formulas, one gate at a time."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import Layer
from mlax.layers.cells import gru_cell, lstm_cell, rnn_cell
from tests.oracle import KEY, assert_close, assert_layer_equals, cast, normal


def sigmoid(x: jax.Array) -> jax.Array:
    return 1 / (1 + jnp.exp(-x))


def gate(params: Any, x: jax.Array, h: jax.Array, i: int) -> jax.Array:
    part = slice(3 * i, 3 * (i + 1))
    gate: jax.Array = x @ params.kernel[:, part] + h @ params.recurrent_kernel[:, part]
    gate += params.bias[part]
    return gate


def rnn(params: Any, x: Any) -> Any:
    x, h = x
    y = jnp.tanh(gate(params, x, h, 0))
    return y, y


def lstm(params: Any, x: Any) -> Any:
    x, (h, c) = x
    i, f, g, o = (gate(params, x, h, index) for index in range(4))
    c = sigmoid(f) * c + sigmoid(i) * jnp.tanh(g)
    h = sigmoid(o) * jnp.tanh(c)
    return h, (h, c)


def gru(params: Any, x: Any) -> Any:
    x, h = x
    r, z = sigmoid(gate(params, x, h, 0)), sigmoid(gate(params, x, h, 1))
    from_h = h @ params.recurrent_kernel[:, 6:] + params.recurrent_bias
    n = jnp.tanh(x @ params.kernel[:, 6:] + params.bias[6:] + r * from_h)
    h = (1 - z) * n + z * h
    return h, h


CASES = [
    pytest.param(rnn_cell(3), rnn, 1, id="rnn"),
    pytest.param(lstm_cell(3), lstm, 2, id="lstm"),
    pytest.param(gru_cell(3), gru, 1, id="gru"),
]


def carry(arrays: int, *shape: int) -> Any:
    parts = tuple(normal(*shape, seed=i + 1) for i in range(arrays))
    return parts if arrays > 1 else parts[0]


@pytest.mark.parametrize(("cell", "oracle", "arrays"), CASES)
@pytest.mark.parametrize("leading", [(), (5,)])
def test_one_step(
    cell: Layer[Any, Any, Any, Any], oracle: Any, arrays: int, leading: tuple[int, ...]
) -> None:
    assert_layer_equals(cell, oracle, (normal(*leading, 2), carry(arrays, *leading, 3)))


@pytest.mark.parametrize(("cell", "oracle", "arrays"), CASES)
def test_over_time(cell: Layer[Any, Any, Any, Any], oracle: Any, arrays: int) -> None:
    def loop(params: Any, x: Any) -> Any:
        xs, h = x
        ys = []
        for x in xs:
            y, h = oracle(params, (x, h))
            ys.append(y)
        return jnp.stack(ys), h

    assert_layer_equals(mlax.recurrent(cell), loop, (normal(4, 2), carry(arrays, 3)))


def test_the_activation() -> None:
    x = normal(2), normal(3)
    params, state = rnn_cell.init(KEY, x, 3, activation=jax.nn.relu)
    y, _ = rnn_cell.apply(params, state, x)
    assert_close(y[0], jnp.maximum(gate(params, x[0], x[1], 0), 0))


@pytest.mark.parametrize(("cell", "oracle", "arrays"), CASES)
@pytest.mark.parametrize("carry_dtype", [jnp.bfloat16, jnp.float32])
def test_half_precision(
    cell: Layer[Any, Any, Any, Any], oracle: Any, arrays: int, carry_dtype: Any
) -> None:
    xs = normal(4, 2).astype(jnp.bfloat16), cast(carry(arrays, 3), carry_dtype)
    layer = mlax.recurrent(cell)
    params, state = layer.init(KEY, xs)
    (ys, h), _ = layer.apply(params, state, xs)
    assert ys.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(h)} == {np.dtype(carry_dtype)}
    exact, _ = layer.apply(params, state, cast(xs, jnp.float32))
    np.testing.assert_allclose(ys.astype(jnp.float32), exact[0], atol=0.05)


def test_the_forget_bias() -> None:
    x = normal(2), (normal(3), normal(3))
    params, _ = lstm_cell.init(KEY, x, 3)
    assert params.bias.tolist() == [0.0] * 3 + [1.0] * 3 + [0.0] * 6
    params, _ = lstm_cell.init(KEY, x, 3, forget_bias=0.0, dtype=jnp.bfloat16)
    assert params.bias.tolist() == [0.0] * 12
    assert {leaf.dtype for leaf in params} == {np.dtype(jnp.bfloat16)}


def test_each_gate_is_drawn_apart() -> None:
    x = normal(8), (normal(8), normal(8))
    params, _ = lstm_cell.init(KEY, x, 8)
    gates = np.split(np.asarray(params.recurrent_kernel, np.float64), 4, 1)
    for gate in gates:
        np.testing.assert_allclose(gate @ gate.T, np.eye(8), atol=1e-5)
    assert not np.allclose(gates[0], gates[1])
    keys = (jax.random.fold_in(jax.random.fold_in(KEY, 0), gate) for gate in range(4))
    draw = jax.nn.initializers.lecun_normal()
    kernels = [draw(key, (8, 8), jnp.float32) for key in keys]
    np.testing.assert_array_equal(params.kernel, np.concatenate(kernels, 1))
    params, _ = lstm_cell.init(KEY, x, 8, recurrent_initializer=jax.nn.initializers.ones)
    assert (params.recurrent_kernel == 1).all()


def test_errors() -> None:
    good = normal(2), normal(3)
    with pytest.raises(ValueError, match="lstm_cell: expected features to be a positive integer"):
        lstm_cell(0)
    with pytest.raises(TypeError, match="lstm_cell: expected forget_bias to be a number"):
        lstm_cell.bind(3, forget_bias="one")
    with pytest.raises(TypeError, match="rnn_cell: expected activation to be a function"):
        rnn_cell.bind(3, activation="tanh")
    with pytest.raises(TypeError, match=r"gru_cell: expected x to be a pair \(x, h\), got 3 ent"):
        gru_cell(3).init(KEY, (*good, good[1]))
    with pytest.raises(TypeError, match=r"lstm_cell: expected the carry to be a pair \(h, c\)"):
        lstm_cell(3).init(KEY, good)
    with pytest.raises(ValueError, match=r"gru_cell: expected h to be of shape \(4,\).*zeros\(\(4"):
        gru_cell(4).init(KEY, good)
    with pytest.raises(ValueError, match=r"lstm_cell: expected c to be of shape \(3,\)"):
        lstm_cell(3).init(KEY, (good[0], (good[1], normal(1))))
    with pytest.raises(TypeError, match="rnn_cell: expected x to be of a floating dtype"):
        rnn_cell(3).init(KEY, (jnp.ones(2, jnp.int32), good[1]))
    with pytest.raises(TypeError, match="gru_cell: expected h to be an array, got a tuple"):
        gru_cell(3).init(KEY, (good[0], (good[1], good[1])))
    params, state = rnn_cell.init(KEY, good, 3)
    stacked = jax.tree.map(lambda leaf: jnp.stack([leaf] * 2), params)
    with pytest.raises(ValueError, match="rnn_cell: expected params.kernel to be of 2 axes"):
        rnn_cell.apply(stacked, state, good)
    with pytest.raises(ValueError, match="rnn_cell: expected x with 2 features in its last axis"):
        rnn_cell.apply(params, state, (normal(5), good[1]))
    with pytest.raises(ValueError, match=r"rnn_cell: expected h to be of shape \(4, 3\)"):
        rnn_cell.apply(params, state, (normal(4, 2), good[1]))


@pytest.mark.parametrize("cell", [rnn_cell(3), lstm_cell(3), gru_cell(3)], ids=repr)
@pytest.mark.parametrize("dtype", [jnp.int32, jnp.complex64])
def test_a_carry_that_would_cut_the_numbers_raises(
    cell: Layer[Any, Any, Any, Any], dtype: Any
) -> None:
    zeros = jnp.zeros(3)
    is_lstm = "lstm" in repr(cell)
    params, state = cell.init(KEY, (normal(2), (zeros, zeros) if is_lstm else zeros))
    cut = zeros.astype(dtype)
    x = (normal(2), (zeros, cut) if is_lstm else cut)
    wanted = r"expected [hc] to be of a floating dtype.*zeros\(\(3"
    with pytest.raises(TypeError, match=wanted):
        cell.init(KEY, x)
    with pytest.raises(TypeError, match=wanted):
        cell.apply(params, state, x)
