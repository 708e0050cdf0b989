"""Tests of `mamba_block`: its formula in NumPy, and decoding."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from tests.oracle import KEY, assert_close, normal, randomized
from tests.sweeps import oracle

XS = normal(6, 4)


def written_out(params: Any, xs: Any, window: int) -> Any:
    """Return the output of the block with the hidden features of its params."""
    def silu(x: Any) -> Any:
        return x * oracle.sigmoid(x)

    root = np.sqrt(np.mean(xs**2, -1, keepdims=True) + 1e-6)
    normed = xs / root * params["norm"].scale
    up, gate = normed @ params["up"].kernel, normed @ params["gate"].kernel
    kernel, ys = params["conv"]["conv"].kernel[:, :, 0], np.zeros_like(up)
    for t in range(len(xs)):
        for k in range(window):
            before = t - (window - 1) + k
            if before >= 0:
                ys[t] += kernel[:, k] * up[before]
    hidden = silu(ys + params["conv"]["bias"].bias)

    def step(x: Any, h: Any) -> Any:
        return oracle.selective_ssm_cell(x, h, *params["ssm"])

    ys, _ = oracle.over_time(step, hidden, np.zeros(params["ssm"].a_log.shape))
    return xs + (ys * silu(gate)) @ params["down"].kernel


@pytest.mark.parametrize("window", [3, 1])
def test_the_formula(window: int) -> None:
    layer = mlax.mamba_block(5, state_features=2, window=window)
    params, state = layer.init(KEY, XS)
    params = jax.tree.map(lambda leaf: leaf / 2, randomized(params))
    y, _ = jax.jit(layer.apply)(params, state, XS)
    params, xs = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), (params, XS))
    assert_close(y, written_out(params, xs, window))


@pytest.mark.parametrize("parts", [[1, 4, 1], [3, 3]], ids=str)
def test_decoding_in_parts(parts: list[int]) -> None:
    def stack(decodes: bool = False) -> Any:
        return mlax.repeat(mlax.mamba_block(state_features=2, decodes=decodes), 2)

    params, state = stack().init(KEY, XS)
    expected, _ = stack().apply(params, state, XS)
    state = mlax.init_state(stack(True), params, XS)
    decode = jax.jit(functools.partial(stack(True).apply, inference_mode=True))
    ys = []
    for xs in jnp.split(XS, np.cumsum(parts)[:-1].tolist()):
        y, state = decode(params, state, xs)
        ys.append(y)
    np.testing.assert_allclose(jnp.concatenate(ys), expected, rtol=1e-5, atol=1e-5)
