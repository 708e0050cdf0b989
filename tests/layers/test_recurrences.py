"""Tests of linear recurrences: their formulas step by step, and the two ways to run them."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax.arguments import AnyLayer
from mlax.functional import linear_recurrence
from tests.oracle import KEY, assert_close, cast, normal, outputs_and_gradients, randomized
from tests.sweeps import oracle


def lru_step(params: Any, x: Any, h: Any) -> Any:
    return oracle.lru_cell(x, *h, *params)


def selective_ssm_step(params: Any, x: Any, h: Any) -> Any:
    return oracle.selective_ssm_cell(x, h, *params)


def min_gru_step(params: Any, x: Any, h: Any) -> Any:
    return oracle.min_gru_cell(x, h, *params)


class Kind(NamedTuple):
    """A layer in both forms, and one step of it in NumPy."""

    scan: AnyLayer
    parallel: AnyLayer
    """The same with an associative scan, on CPUs too."""
    cell: AnyLayer
    step: Callable[[Any, Any, Any], Any]
    carry: Callable[..., Any]
    """Returns a carry with these leading axes."""


KINDS = {
    "lru": Kind(
        mlax.lru(4), mlax.lru(4, implementation="associative"), mlax.lru_cell(4), lru_step,
        lambda *leading: (normal(*leading, 4, seed=1), normal(*leading, 4, seed=2)),
    ),
    "selective_ssm": Kind(
        mlax.selective_ssm(4, delta_rank=2),
        mlax.selective_ssm(4, delta_rank=2, implementation="associative"),
        mlax.selective_ssm_cell(4, delta_rank=2), selective_ssm_step,
        lambda *leading: normal(*leading, 3, 4, seed=1),
    ),
    "min_gru": Kind(
        mlax.min_gru(4), mlax.min_gru(4, implementation="associative"), mlax.min_gru_cell(4),
        min_gru_step, lambda *leading: normal(*leading, 4, seed=1),
    ),
}
ALL = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
XS = normal(6, 3)


def float64(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), tree)


@ALL
def test_one_step_is_the_formula(kind: Kind) -> None:
    x = normal(5, 3), kind.carry(5)
    params, state = kind.cell.init(KEY, x)
    params = randomized(params)
    got, _ = kind.cell.apply(params, state, x)
    assert_close(got, kind.step(*float64((params, *x))))


@ALL
def test_both_ways_equal_the_loop_gradients_included(kind: Kind) -> None:
    x = XS, kind.carry()
    params, state = kind.scan.init(KEY, x)
    assert_close(kind.cell.init(KEY, (XS[0], x[1]))[0], params)
    params = randomized(params)
    loop = mlax.recurrent(kind.cell)
    _, loop_state = loop.init(KEY, x)
    scanned = outputs_and_gradients(lambda p, x: kind.scan.apply(p, state, x)[0], params, x)
    _, state_in_parallel = kind.parallel.init(KEY, x)
    in_parallel = outputs_and_gradients(
        lambda p, x: kind.parallel.apply(p, state_in_parallel, x)[0], params, x
    )
    looped = outputs_and_gradients(lambda p, x: loop.apply(p, loop_state, x)[0], params, x)
    step = functools.partial(kind.step, float64(params))
    assert_close(scanned[0], oracle.over_time(step, *float64(x)))
    assert_close(scanned, looped)
    assert_close(in_parallel, looped)


@ALL
def test_none_is_a_carry_of_zeros(kind: Kind) -> None:
    zeros = jax.tree.map(jnp.zeros_like, kind.carry())
    for layer, x in ((kind.scan, XS), (kind.cell, XS[0]), (mlax.recurrent(kind.cell), XS)):
        params, state = layer.init(KEY, (x, None))
        assert_close(
            jax.jit(layer.apply)(params, state, (x, None))[0],
            jax.jit(layer.apply)(params, state, (x, zeros))[0],
        )


@ALL
def test_any_cut_into_chunks_gives_the_whole(kind: Kind) -> None:
    """The law of decoding: all 32 ways to cut 6 tokens, here as a tree of prefixes."""
    whole, decoder = mlax.carried(kind.parallel), mlax.carried(kind.scan, decodes=True)
    params, state = whole.init(KEY, XS)
    expected, _ = jax.jit(whole.apply)(params, state, XS)  # in parallel, and the chunks in order
    decode = jax.jit(functools.partial(decoder.apply, inference_mode=True))
    states = {0: [mlax.init_state(decoder, params, XS)]}  # one for each way to cut what was read
    for stop in range(1, 7):
        states[stop] = []
        for start in range(stop):
            for state in states[start]:
                y, after = decode(params, state, XS[start:stop])
                np.testing.assert_allclose(y, expected[start:stop], rtol=1e-5, atol=1e-5)
                states[stop].append(after)
    assert len(states[6]) == 32
    steps = mlax.carried(mlax.recurrent(kind.cell), decodes=True)
    state = mlax.init_state(steps, params, XS)
    y, _ = jax.jit(functools.partial(steps.apply, inference_mode=True))(params, state, XS)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-5)


@ALL
def test_half_precision(kind: Kind) -> None:
    dtype = jnp.bfloat16
    xs = jnp.concatenate([XS] * 20).astype(dtype)
    params, state = kind.parallel.init(KEY, (xs, None))
    apply = jax.jit(kind.parallel.apply)
    (ys, h), _ = apply(params, state, (xs, None))
    assert ys.dtype == dtype
    assert {leaf.dtype for leaf in jax.tree.leaves(h)} == {np.dtype("float32")}
    exact, _ = apply(params, state, (xs.astype(jnp.float32), None))
    np.testing.assert_allclose(ys.astype(jnp.float32), exact[0], atol=0.1, rtol=0.05)
    (_, after), _ = jax.eval_shape(apply, params, state, (xs, cast(h, dtype)))
    assert {leaf.dtype for leaf in jax.tree.leaves(after)} == {np.dtype(dtype)}


@ALL
def test_a_sequence_of_no_steps(kind: Kind) -> None:
    x = XS[:0], kind.carry()
    params, state = kind.scan.init(KEY, x)
    (ys, h), _ = kind.scan.apply(params, state, x)
    assert ys.shape[0] == 0
    assert_close(h, x[1])


@ALL
def test_a_stack_under_repeat_batched_and_generate(kind: Kind) -> None:
    def model(decodes: bool = False) -> AnyLayer:
        layer = mlax.series(mlax.carried(kind.scan, decodes=decodes), mlax.dense(3))
        body = mlax.repeat(mlax.residual(layer), 2)
        tokens: AnyLayer = mlax.series(mlax.embed(5, 3), body, mlax.dense(5))
        return mlax.batched(tokens, state_axis=0 if decodes else None)

    prompt = jnp.array([[1, 2], [3, 4]])
    params, state = model().init(KEY, prompt)
    caches = mlax.init_state(model(True), params, prompt)
    tokens = mlax.generate(model(True).apply, params, caches, prompt, 3, temperature=0).tokens
    logits, _ = jax.jit(model().apply)(params, state, jnp.concatenate([prompt, tokens], -1))
    np.testing.assert_array_equal(tokens, logits[:, 1:-1].argmax(-1))


def test_params_of_lru_as_in_the_paper() -> None:
    params, _ = mlax.lru(4096, r_min=0.5, r_max=0.9, max_phase=1.0).init(KEY, (XS, None))
    radius, phase = np.exp(-np.exp(params.nu_log)), np.exp(params.theta_log)
    assert 0.5 <= radius.min() < 0.51 < 0.89 < radius.max() <= 0.9001
    assert np.mean(radius**2) == pytest.approx((0.5**2 + 0.9**2) / 2, abs=0.01)  # uniform in area
    assert 0 < phase.min() < 0.01 < 0.99 < phase.max() <= 1.0
    np.testing.assert_allclose(np.exp(params.gamma_log), np.sqrt(1 - radius**2), rtol=1e-3)
    assert params.b_real.std() == pytest.approx(np.sqrt(1 / 6), rel=0.05)
    assert params.c_imag.std() == pytest.approx(np.sqrt(1 / 4096), rel=0.05)


def test_params_of_selective_ssm_as_in_the_paper() -> None:
    xs = jnp.ones((2, 512))
    params, _ = mlax.selective_ssm(3).init(KEY, (xs, None))
    delta = np.log1p(np.exp(np.asarray(params.delta_bias, np.float64)))
    assert 0.00099 <= delta.min() < 0.0012 < 0.09 < delta.max() <= 0.1001
    assert np.mean(np.log10(delta)) == pytest.approx(-2, abs=0.1)  # uniform in the logarithm
    np.testing.assert_allclose(np.exp(params.a_log[7]), [1, 2, 3], rtol=1e-6)
    assert params.kernel.shape == (512, 32 + 6)
    assert np.abs(params.delta_kernel).max() == pytest.approx(32**-0.5, rel=0.01)


def test_each_gate_of_min_gru_is_drawn_apart() -> None:
    params, _ = mlax.min_gru(4, bias_initializer=jax.nn.initializers.ones).init(KEY, (XS, None))
    assert not np.allclose(params.kernel[:, :4], params.kernel[:, 4:])
    assert params.bias.tolist() == [1.0] * 8


def recurred(decay: Any, x: Any, h: Any) -> Any:
    hs = []
    for a, b in zip(np.broadcast_to(decay, x.shape), x, strict=True):
        h = a * h + b
        hs.append(h)
    return np.stack(hs)


@pytest.mark.parametrize("length", [1, 2, 7])
@pytest.mark.parametrize("decay_shape", [(), (1, 3), "as x"])
@pytest.mark.parametrize("is_complex", [False, True])
@pytest.mark.parametrize("implementation", ["associative", "sequential"])
def test_linear_recurrence(
    length: int, decay_shape: Any, is_complex: bool, implementation: Any
) -> None:
    shape = (length, 2, 3)
    decay_shape = shape if decay_shape == "as x" else decay_shape
    draw = np.random.default_rng(0).normal
    decay, x, h = draw(size=decay_shape), draw(size=shape), draw(size=shape[1:])
    if is_complex:
        decay, x, h = (a + 1j * draw(size=np.shape(a)) for a in (decay / 2, x, h))
    dtype = np.complex64 if is_complex else np.float32
    arrays = [jnp.asarray(a, dtype) for a in (decay, x, h)]
    way = functools.partial(linear_recurrence, implementation=implementation)
    run = jax.jit(way, static_argnames="reverse")
    got = run(*arrays)
    assert got.dtype == dtype
    np.testing.assert_allclose(got, recurred(decay, x, h), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(run(*arrays[:2]), recurred(decay, x, 0 * h), rtol=1e-4, atol=1e-4)
    backwards = recurred(np.broadcast_to(decay, shape)[::-1], x[::-1], h)[::-1]
    np.testing.assert_allclose(run(*arrays, reverse=True), backwards, rtol=1e-4, atol=1e-4)


def test_half_precision_is_summed_in_float32() -> None:
    x = jnp.full(1000, 0.01, jnp.bfloat16)
    run = jax.jit(functools.partial(linear_recurrence, implementation="associative"))
    h = run(jnp.ones((), jnp.bfloat16), x)
    assert h.dtype == jnp.bfloat16
    np.testing.assert_allclose(float(h[-1]), 1000 * float(x[0]), rtol=0.005)


def test_a_symbolic_length() -> None:
    (length,) = jax.export.symbolic_shape("length")
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((3,), (length, 3), (3,))]
    for reverse in (False, True):
        function = functools.partial(linear_recurrence, reverse=reverse)
        exported = jax.export.export(jax.jit(function))(*shapes)
        arrays = normal(3, seed=1), normal(5, 3), normal(3, seed=2)
        assert_close(exported.call(*arrays), function(*arrays))
    tree = functools.partial(linear_recurrence, implementation="associative")
    with pytest.raises(ValueError, match="expected implementation to be None or sequential for"):
        jax.export.export(jax.jit(tree))(*shapes)


X = jnp.ones((4, 2))
FAST: Any = "fast"


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda: linear_recurrence(X, jnp.ones((4, 2), int)), "expected x to be of a floating"),
        (lambda: linear_recurrence(X + 0j, X), "expected decay to be real, as x is, got complex64"),
        (lambda: linear_recurrence(X, X, jnp.ones(2) + 0j), "expected h to be real"),
        (lambda: linear_recurrence(X[:3], X), r"expected decay to be of a shape that broadcasts"),
        (lambda: linear_recurrence(X[None], X), r"expected decay to be of a shape that broadcasts"),
        (lambda: linear_recurrence(X, X, jnp.ones(1)), r"expected h to be of shape \(2,\)"),
        (lambda: linear_recurrence(X, X, implementation=FAST), "expected implementation to be "),
        (lambda: linear_recurrence(X, jnp.ones(())), "expected x with at least 1 axis"),
    ],
)
def test_errors_of_linear_recurrence(call: Callable[[], Any], text: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^linear_recurrence: {text}"):
        call()


@ALL
def test_errors_of_all(kind: Kind) -> None:
    with pytest.raises(ValueError, match=r"expected xs \(length, features\).*mlax\.batched"):
        kind.scan.init(KEY, (normal(2, 6, 3), None))
    with pytest.raises(TypeError, match=r"expected x to be a pair \(x, h\)"):
        kind.scan.init(KEY, XS)
    with pytest.raises(TypeError, match="of a floating dtype, as its parameters"):
        kind.scan.init(KEY, (jnp.ones((6, 3), int), None))
    with pytest.raises(TypeError, match="of a real dtype"):
        kind.cell.init(KEY, (XS[0] + 0j, None))
    bad = jax.tree.map(lambda a: a[..., :1], kind.carry())
    with pytest.raises(ValueError, match=r"expected h.* to be of shape \(.*or with None"):
        kind.cell.init(KEY, (XS[0], bad))
    with pytest.raises(TypeError, match="expected h.* to be of a floating dtype, which it keeps"):
        kind.cell.init(KEY, (XS[0], cast(kind.carry(), jnp.int32)))
    params, state = kind.scan.init(KEY, (XS, None))
    with pytest.raises(ValueError, match="expected x with 3 features in its last axis"):
        kind.scan.apply(params, state, (normal(6, 2), None))


def test_errors_of_hyperparameters() -> None:
    with pytest.raises(ValueError, match="lru: expected r_min and r_max with 0 <= r_min < r_max"):
        mlax.lru(4, r_min=0.9, r_max=0.5).init(KEY, (XS, None))
    with pytest.raises(ValueError, match="lru_cell: expected max_phase to be positive and finite, got 0"):
        mlax.lru_cell(4, max_phase=0)
    with pytest.raises(TypeError, match=r"lru: expected the carry to be a pair \(real part of h"):
        mlax.lru(4).init(KEY, (XS, jnp.zeros(4)))
    with pytest.raises(ValueError, match="selective_ssm: expected delta_min and delta_max with 0"):
        mlax.selective_ssm(4, delta_min=0.0).init(KEY, (XS, None))
    with pytest.raises(ValueError, match="min_gru: expected features to be a positive integer"):
        mlax.min_gru(0)
