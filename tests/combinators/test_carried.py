"""Tests of `carried`: a first carry of its own, and sequences in parts."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax

KEY = jax.random.key(0)
XS = jax.random.normal(jax.random.key(1), (6, 3))


def zeros(x: Any) -> tuple[jax.Array, jax.Array]:
    """Return the first carry of an lstm of four features."""
    return jnp.zeros(4), jnp.zeros(4)


def halves(x: Any) -> jax.Array:
    """Return the first carry of a gru of four features."""
    return jnp.full(4, 0.5)


def stack(decodes: bool = False) -> Any:
    """Return an lstm with a gru on it."""
    return mlax.series(
        lstm=mlax.carried(mlax.recurrent(mlax.lstm_cell(4)), zeros, decodes=decodes),
        gru=mlax.carried(mlax.recurrent(mlax.gru_cell(4)), halves, decodes=decodes),
    )


def test_the_first_carry_is_that_of_start() -> None:
    params, state = stack().init(KEY, XS)
    y, after = stack().apply(params, state, XS)
    lstm, gru = mlax.recurrent(mlax.lstm_cell(4)), mlax.recurrent(mlax.gru_cell(4))
    (hidden, _), _ = lstm.apply(params["lstm"], lstm.init(KEY, (XS, zeros(XS)))[1], (XS, zeros(XS)))
    x = hidden, halves(XS)
    (expected, _), _ = gru.apply(params["gru"], gru.init(KEY, x)[1], x)
    np.testing.assert_allclose(y, expected, rtol=1e-6, atol=1e-6)
    assert after == state


@pytest.mark.parametrize("parts", [[6], [1] * 6, [2, 3, 1]], ids=str)
def test_a_sequence_may_come_in_parts(parts: list[int]) -> None:
    params, state = stack().init(KEY, XS)
    expected, _ = stack().apply(params, state, XS)
    state = mlax.init_state(stack(decodes=True), params, XS)
    step = jax.jit(functools.partial(stack(decodes=True).apply, inference_mode=True))
    ys = []
    for xs in jnp.split(XS, np.cumsum(parts)[:-1].tolist()):
        y, state = step(params, state, xs)
        ys.append(y)
    np.testing.assert_allclose(jnp.concatenate(ys), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", [mlax.lstm_cell(4), mlax.gru_cell(4), mlax.rnn_cell(4)], ids=repr)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_without_start_it_starts_with_zeros(cell: Any, dtype: Any) -> None:
    def start(x: Any) -> Any:
        return zeros(x) if cell == mlax.lstm_cell(4) else jnp.zeros(4)

    xs, layer = XS.astype(dtype), mlax.recurrent(cell)
    params, state = mlax.carried(layer).init(KEY, xs)
    y, _ = mlax.carried(layer).apply(params, state, xs)
    given = mlax.carried(layer, start)
    expected, _ = given.apply(params, given.init(KEY, xs)[1], xs)
    np.testing.assert_array_equal(y, expected)
    decoder = mlax.carried(layer, decodes=True)
    state = mlax.init_state(decoder, params, xs)
    assert {leaf.dtype for leaf in jax.tree.leaves(state.variables)} == {np.dtype("float32")}
    parts = []
    for part in jnp.split(xs, [2]):
        y, state = decoder.apply(params, state, part, inference_mode=True)
        parts.append(y)
    np.testing.assert_allclose(jnp.concatenate(parts), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("decodes", [False, True])
def test_two_directions_start_with_zeros(decodes: bool) -> None:
    layer = mlax.bidirectional(mlax.lstm_cell(4), mlax.gru_cell(4))
    carried = mlax.carried(layer, decodes=decodes)
    params, state = carried.init(KEY, XS)
    start = ((jnp.zeros(4), jnp.zeros(4)), jnp.zeros(4))
    (wanted, _), _ = layer.apply(params, layer.init(KEY, (XS, start))[1], (XS, start))
    y, _ = carried.apply(params, state, XS, inference_mode=decodes)
    np.testing.assert_array_equal(y, wanted)


def test_a_layer_that_wants_a_carry_says_so() -> None:
    layer = mlax.carried(mlax.recurrent(mlax.f(lambda xh: (xh[0] + xh[1], xh[1]))))
    with pytest.raises(TypeError) as error:
        layer.init(KEY, XS)
    assert "carried" in "".join(error.value.__notes__)


def test_generate_takes_recurrent_models() -> None:
    def model(decodes: bool = False) -> Any:
        return mlax.batched(
            mlax.series(mlax.embed(5, 3), stack(decodes), mlax.dense(5)),
            state_axis=0 if decodes else None,
        )

    prompt = jnp.array([[1, 2], [3, 4]])
    params, state = model().init(KEY, prompt)
    caches = mlax.init_state(model(True), params, prompt)
    tokens = mlax.generate(model(True).apply, params, caches, prompt, 3, temperature=0).tokens
    sequence = jnp.concatenate([prompt, tokens], -1)
    logits, _ = model().apply(params, state, sequence)
    np.testing.assert_array_equal(tokens, logits[:, 1:-1].argmax(-1))


def test_decoding_is_for_inference() -> None:
    params, state = stack(decodes=True).init(KEY, XS)
    with pytest.raises(ValueError, match="carried: expected inference_mode=True with decodes"):
        stack(decodes=True).apply(params, state, XS)


def test_a_carry_of_another_shape_raises() -> None:
    layer = mlax.carried(mlax.f(lambda xh: (xh[0], xh[0])), halves)
    with pytest.raises(TypeError, match="carried: expected the next carry"):
        layer.init(KEY, XS)


def test_a_batch_is_not_taken_as_time() -> None:
    layer = mlax.carried(mlax.recurrent(mlax.gru_cell(3)))
    params, state = layer.init(KEY, XS)
    with pytest.raises(ValueError, match="^carried: expected x with 2 axes, as in init, .*batched"):
        layer.apply(params, state, XS[None])
