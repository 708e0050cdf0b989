"""Tests of `flops`, against closed formulas."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import mlax
from mlax.types import Flops

N, L, D, H = 3, 7, 8, 16


def f32(*shape: int) -> jax.ShapeDtypeStruct:
    """Return the shape of an array in float32."""
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def carry(length: int) -> tuple[Any, Any]:
    """Return the input of an lstm and its first carry."""
    return f32(length, D), (f32(H), f32(H))


DENSE = 2 * N * D * H
ATTENTION = 4 * 2 * L * D * D + 2 * 2 * L * L * D
"""Four projections, and the products of queries and keys, and of weights and values."""
MLP = 2 * 2 * L * D * H
FORMULAS: dict[str, tuple[Any, Any, int]] = {
    "linear": (mlax.linear(H), f32(N, D), DENSE),
    "dense": (mlax.dense(H), f32(N, D), DENSE),
    "embed": (mlax.embed(5, D), jax.ShapeDtypeStruct((N,), jnp.int32), 0),
    "layer_norm": (mlax.layer_norm(), f32(N, D), 0),
    "max_pool": (mlax.max_pool(2, 2), f32(8, 8, D), 0),
    "conv": (mlax.conv(H, 3), f32(9, 9, D), 2 * 7 * 7 * 3 * 3 * D * H),
    "conv, same": (mlax.conv(H, 3, padding="SAME"), f32(9, 9, D), 2 * 9 * 9 * 3 * 3 * D * H),
    "conv, strides": (mlax.conv(H, 3, strides=2), f32(9, 9, D), 2 * 4 * 4 * 3 * 3 * D * H),
    "conv, dilated": (
        mlax.conv(H, 3, filter_dilation=2), f32(9, D), 2 * 5 * 3 * D * H
    ),
    "conv, groups": (
        mlax.conv(H, 3, feature_group_count=4), f32(9, 9, D), 2 * 7 * 7 * 3 * 3 * D // 4 * H
    ),
    "depthwise_conv": (mlax.depthwise_conv(3), f32(9, 9, D), 2 * 7 * 7 * 3 * 3 * D),
    "conv_transpose": (
        mlax.conv_transpose(H, filter_shape=3, strides=2), f32(5, 5, D), 2 * 5 * 5 * 3 * 3 * D * H
    ),
    "batched": (mlax.batched(mlax.conv(H, 3)), f32(N, 9, 9, D), 2 * N * 7 * 7 * 3 * 3 * D * H),
    "lstm_cell": (mlax.lstm_cell(H), (f32(D), (f32(H), f32(H))), 2 * (D + H) * 4 * H),
    "recurrent": (mlax.recurrent(mlax.lstm_cell(H)), carry(L), L * 2 * (D + H) * 4 * H),
    "attention": (mlax.attention(2), f32(L, D), ATTENTION),
    "attention, few kv heads": (
        mlax.attention(4, 1), f32(L, D),
        2 * 2 * L * D * D + 2 * 2 * L * D * D // 4 + 2 * 2 * L * L * D,
    ),
    "transformer_block": (
        mlax.transformer_block(mlax.attention(2), mlax.mlp(H)), f32(L, D), ATTENTION + MLP
    ),
    "repeat": (mlax.repeat(mlax.residual(mlax.dense(D)), 5), f32(N, D), 5 * 2 * N * D * D),
    "ensemble": (mlax.ensemble(mlax.dense(H), 5), f32(N, D), 5 * DENSE),
    "parallel": (
        mlax.parallel(mlax.dense(H), mlax.linear(H)), (f32(N, D), f32(N, D)), 2 * DENSE
    ),
}


def forward(layer: Any, x: Any) -> tuple[Any, Any]:
    """Return `apply` in training as a function of params and x, and the shapes of params."""
    key = jax.eval_shape(lambda: jax.random.key(0))
    params, state = jax.eval_shape(layer.init, key, x)
    return lambda params, x: layer.apply(params, state, x, jax.random.key(0))[0], params


@pytest.mark.parametrize("name", FORMULAS)
def test_layers_have_the_operations_of_their_formulas(name: str) -> None:
    layer, x, expected = FORMULAS[name]
    apply, params = forward(layer, x)
    assert mlax.flops(apply, params, x) == Flops(expected)

    def both(params: Any, x: Any) -> Any:
        y, pullback = jax.vjp(apply, params, x)
        return pullback(y)

    assert mlax.flops(both, params, x) == Flops(3 * expected)


def test_what_is_computed_again_counts_again() -> None:
    apply, params = forward(mlax.remat(mlax.series(mlax.dense(H), mlax.dense(D))), f32(N, D))
    gradient = jax.grad(lambda params, x: apply(params, x).sum())
    # The gradient by x is not asked for; the output of the second layer is not needed again.
    assert mlax.flops(gradient, params, f32(N, D)).total == 2 * DENSE + DENSE + 3 * DENSE


def test_loops_count_by_their_length_and_unknown_ones_are_marked() -> None:
    x = f32(N, N)

    def body(_: Any, x: Any) -> Any:
        return x @ x

    once = 2 * N**3
    assert mlax.flops(lambda x: jax.lax.fori_loop(0, 5, body, x), x).total == 5 * once
    unknown = mlax.flops(lambda n, x: jax.lax.fori_loop(0, n, body, x), 5, x)
    assert unknown == Flops(once, frozenset({"while"}))
    nested = mlax.flops(lambda n, x: jax.lax.map(lambda x: body(n, x), x), 5, f32(4, N, N))
    assert nested == Flops(4 * once)


def test_branches_count_as_the_largest() -> None:
    def either(is_long: Any, x: Any) -> Any:
        return jax.lax.cond(is_long, lambda x: x @ x @ x, lambda x: x @ x, x)

    assert mlax.flops(either, True, f32(N, N)) == Flops(2 * 2 * N**3, frozenset({"cond"}))
    same = mlax.flops(lambda b, x: jax.lax.cond(b, lambda x: x @ x, lambda x: x @ x.T, x), True,
                      f32(N, N))
    assert same == Flops(2 * N**3)


def test_what_can_not_be_seen_is_marked() -> None:
    def call(x: Any) -> Any:
        return jax.pure_callback(lambda x: x @ x, x, x) @ x

    assert mlax.flops(call, f32(N, N)) == Flops(2 * N**3, frozenset({"pure_callback"}))


def test_groups_of_rows_count_each_row_once() -> None:
    x, kernels, sizes = f32(10, D), f32(4, D, H), jax.ShapeDtypeStruct((4,), jnp.int32)
    assert mlax.flops(jax.lax.ragged_dot, x, kernels, sizes).total == 2 * 10 * D * H

    def gradient(x: Any, kernels: Any, sizes: Any) -> Any:
        return jax.grad(lambda x, k: jax.lax.ragged_dot(x, k, sizes).sum(), (0, 1))(x, kernels)

    assert mlax.flops(gradient, x, kernels, sizes).total == 3 * 2 * 10 * D * H


def test_shards_add_up() -> None:
    mesh = Mesh(jax.devices()[:4], "i")
    product = jax.shard_map(lambda a, b: a @ b, mesh=mesh, in_specs=(P("i"), P()), out_specs=P("i"))
    assert mlax.flops(product, f32(8, D), f32(D, H)).total == 2 * 8 * D * H


@pytest.mark.parametrize(("function", "name"), [
    (jnp.linalg.cholesky, "cholesky"), (jnp.linalg.qr, "qr"), (jnp.linalg.svd, "svd"),
    (jnp.linalg.eigh, "eigh"), (jnp.linalg.inv, "triangular_solve"), (jnp.fft.fft, "fft"),
])  # fmt: skip
def test_decompositions_are_unknown(function: Any, name: str) -> None:
    assert name in mlax.flops(function, f32(N, N)).unknown
