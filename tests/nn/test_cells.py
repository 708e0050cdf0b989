"""`RNNCell`, `LSTMCell` and `GRUCell`: their equations, alone and over time."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlax import nn
from mlax.layer import AxisName

KEY = jax.random.key(0)
XS = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
H = np.array([0.5, -1.0], np.float32)
BIAS = jax.random.normal


def sigmoid(x: Any) -> Any:
    """Return 1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))


def arrays(cell: Any) -> list[Any]:
    """Return the parameters as NumPy arrays."""
    names = ("kernel", "recurrent_kernel", "bias", "recurrent_bias")
    return [np.asarray(getattr(cell, name).data) for name in names if hasattr(cell, name)]


def assert_close(got: Any, wanted: Any) -> None:
    """Require the arrays of two trees to agree."""
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), got, wanted)


def test_rnn_cell() -> None:
    result, cell = nn.RNNCell(KEY, 2, bias_initializer=BIAS)((XS[0], H), None)
    kernel, recurrent_kernel, bias = arrays(cell)
    y = np.tanh(XS[0] @ kernel + H @ recurrent_kernel + bias)
    assert_close(result, (y, y))


def test_lstm_cell() -> None:
    c = np.array([2.0, 1.0], np.float32)
    result, cell = nn.LSTMCell(KEY, 2, bias_initializer=BIAS)((XS[0], (H, c)), None)
    kernel, recurrent_kernel, bias = arrays(cell)
    i, f, g, o = np.split(XS[0] @ kernel + H @ recurrent_kernel + bias, 4)
    new_c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    y = sigmoid(o) * np.tanh(new_c)
    assert_close(result, (y, (y, new_c)))


def test_gru_cell() -> None:
    result, cell = nn.GRUCell(KEY, 2, bias_initializer=BIAS)((XS[0], H), None)
    kernel, recurrent_kernel, bias, recurrent_bias = arrays(cell)
    r_x, z_x, n_x = np.split(XS[0] @ kernel + bias, 3)
    r_h, z_h, n_h = np.split(H @ recurrent_kernel, 3)
    r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
    y = (1 - z) * np.tanh(n_x + r * (n_h + recurrent_bias)) + z * H
    assert_close(result, (y, y))


def test_a_cell_over_time() -> None:
    (ys, h), recurrent = nn.Recurrent(nn.RNNCell(KEY, 2))((XS, H), None)
    kernel, recurrent_kernel, bias = arrays(recurrent.cell)
    expected, carry = [], H
    for x in XS:
        carry = np.tanh(x @ kernel + carry @ recurrent_kernel + bias)
        expected.append(carry)
    assert_close((ys, h), (np.stack(expected), carry))


def test_forget_bias() -> None:
    _, cell = nn.LSTMCell(KEY, 2, forget_bias=3.0)((XS[0], (H, H)), None)
    np.testing.assert_array_equal(cell.bias.data, [0, 0, 3, 3, 0, 0, 0, 0])


def test_parameters_set_by_hand_need_no_setup() -> None:
    cell = nn.RNNCell(KEY, 2, activation=jnp.negative)
    cell.kernel.data, cell.recurrent_kernel.data = jnp.ones((3, 2)), jnp.eye(2)
    cell.bias.data = jnp.array([1.0, 2.0])
    cell.initialized = True
    (y, _), _ = cell((XS[0], H), None)
    np.testing.assert_allclose(y, -(XS[0].sum() + H + [1, 2]), rtol=1e-5)


@pytest.mark.parametrize("cls", [nn.RNNCell, nn.GRUCell, nn.LSTMCell])
def test_sizes_that_the_parameters_have_not_raise(cls: Any) -> None:
    x = (XS[0], (H, H)) if cls is nn.LSTMCell else (XS[0], H)
    _, cell = cls(KEY, 2)(x, None)
    cell.features = 3
    with pytest.raises(ValueError, match=f"^{cls.__name__}: expected kernel of shape .any, "):
        cell(x, None)
    cell.features = 2
    cell.bias.data = cell.bias.data[None]
    with pytest.raises(ValueError, match=f"^{cls.__name__}: expected bias of shape"):
        cell(x, None)


def test_a_subclass_may_override_setup_alone() -> None:
    class Identity(nn.RNNCell):
        def setup(self, x: tuple[jax.Array, jax.Array]) -> None:
            super().setup(x)
            self.recurrent_kernel.data = jnp.eye(self.features)

    (y, _), _ = Identity(KEY, 2)((jnp.zeros(3), H), None)
    np.testing.assert_allclose(y, np.tanh(H), rtol=1e-5)


def test_a_subclass_may_override_forward_alone() -> None:
    class Doubled(nn.GRUCell):
        def forward(
            self, x: tuple[jax.Array, jax.Array], rng: None = None, inference_mode: bool = False,
            batch_axis_name: AxisName = (),
        ) -> tuple[jax.Array, jax.Array]:
            y, h = super().forward(x)
            return 2 * y, h

    (y, h), _ = Doubled(KEY, 2)((XS[0], H), None)
    np.testing.assert_array_equal(y, 2 * h)
