"""Tests of `mlax.bidirectional` against two loops."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import mlax
from mlax import Layer
from mlax.combinators.bidirectional import bidirectional
from mlax.layers.cells import gru_cell, rnn_cell
from tests.oracle import KEY, assert_close, assert_layer_equals, normal


def noise(xh: tuple[jax.Array, jax.Array], rng: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return random numbers as output, and the carry."""
    return jax.random.normal(rng, xh[0].shape), xh[1]


def silence(xh: tuple[jax.Array, jax.Array], rng: jax.Array | None) -> tuple[jax.Array, jax.Array]:
    """Return zeros as output, and the carry."""
    return jnp.zeros_like(xh[0]), xh[1]


NOISE = mlax.f_rng(noise, silence)


def test_bidirectional() -> None:
    def step(params: Any, x: jax.Array, h: jax.Array) -> jax.Array:
        return jnp.tanh(x @ params.kernel + h @ params.recurrent_kernel + params.bias)

    def oracle(params: Any, x: Any) -> Any:
        xs, (forward, backward) = x
        ys: dict[int, list[jax.Array]] = {i: [] for i in range(len(xs))}
        for i in range(len(xs)):
            forward = step(params["forward"], xs[i], forward)
            ys[i].append(forward)
        for i in reversed(range(len(xs))):
            backward = step(params["backward"], xs[i], backward)
            ys[i].append(backward)
        rows = [jnp.concatenate(parts) for parts in ys.values()]
        return jnp.stack(rows), (forward, backward)

    x = normal(4, 2), (normal(3), normal(5))
    assert_layer_equals(bidirectional(rnn_cell(3), rnn_cell(5), unroll=2), oracle, x)


@pytest.mark.parametrize("both", [False, True])
def test_keys(both: bool) -> None:
    layer = bidirectional(NOISE if both else rnn_cell(1), NOISE)
    assert mlax.needs_rng(layer.apply)
    x = normal(4, 1), (normal(1), normal(1))
    params, state = layer.init(KEY, x)
    rng = jax.random.key(5)
    (ys, _), _ = layer.apply(params, state, x, rng)
    if both:
        forward = [fold(jax.random.fold_in(rng, 0), i) for i in range(4)]
        assert_close(ys[:, 0], jnp.stack(forward))
    backward_key = jax.random.fold_in(rng, 1) if both else rng
    backward = [fold(backward_key, i) for i in reversed(range(4))]
    assert_close(ys[:, 1], jnp.stack(backward))
    (ys, _), _ = layer.apply(params, state, x, inference_mode=True)
    assert (ys[:, 1] == 0).all()
    with pytest.raises(ValueError, match="f_rng: expected rng to be a PRNG key"):
        layer.apply(params, state, x)


def fold(key: jax.Array, i: int) -> jax.Array:
    return jax.random.normal(jax.random.fold_in(key, i), (1,))[0]


def test_without_random_cells_no_key_is_needed() -> None:
    assert not mlax.needs_rng(bidirectional(rnn_cell(1), gru_cell(1)).apply)


def test_init_gives_each_direction_its_own_parameters() -> None:
    x = normal(4, 2), (normal(3), normal(3))
    params, state = bidirectional(rnn_cell(3), rnn_cell(3)).init(KEY, x)
    assert list(params) == ["forward", "backward"]
    assert not jnp.allclose(params["forward"].kernel, params["backward"].kernel)
    assert jax.tree.leaves(state) == []


def test_errors() -> None:
    x = normal(4, 2), (normal(3), normal(3))
    with pytest.raises(TypeError, match="bidirectional: expected cell_backward to be a layer"):
        bidirectional(rnn_cell(3), rnn_cell)  # type: ignore[arg-type]  # wrong types on purpose
    with pytest.raises(ValueError, match="recurrent: expected unroll to be a bool or a"):
        bidirectional(rnn_cell(3), rnn_cell(3), unroll=-1)
    with pytest.raises(TypeError, match=r"^bidirectional: expected x\[1\] to be a pair \(h_fo"):
        bidirectional(rnn_cell(3), rnn_cell(3)).init(KEY, (x[0], x[1][0]))
    with pytest.raises(ValueError, match="rnn_cell: expected h to be of shape") as info:
        bidirectional(rnn_cell(3), rnn_cell(4)).init(KEY, x)
    assert any("backward" in note for note in info.value.__notes__)


def test_outputs_without_an_axis_of_features_raise() -> None:
    total: Layer[Any, Any, Any, Any] = mlax.f(lambda xh: (xh[0] + xh[1],) * 2)
    model = bidirectional(total, total)
    x = jnp.arange(1.0, 5.0), (jnp.zeros(()), jnp.zeros(()))
    with pytest.raises(ValueError, match="bidirectional: expected y to be an array with at"):
        model.init(KEY, x)
