"""Layers that run by a plan on 8 devices: outputs, states and gradients are those of one device."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec as P

import mlax
from mlax import models

KEY = jax.random.key(0)


class Case(NamedTuple):
    """A layer and its batch."""

    layer: Any
    x: Any
    strategy: str = "fsdp+tensor"
    axes: tuple[str, ...] = ("data", "model")
    options: dict[str, Any] = {}


def normal(*shape: int) -> Any:
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


TOKENS = np.random.default_rng(0).integers(0, 16, (8, 6)).astype(np.int32)
BLOCK = mlax.transformer_block(
    mlax.attention(4, 2, causal=True), mlax.mlp(32, jax.nn.silu, gated=True), dropout_rate=0.2
)
MOE = mlax.moe(mlax.mlp(16), 4)
CASES: dict[str, Callable[[], Case]] = {
    "dense": lambda: Case(mlax.dense(8), normal(8, 4)),
    "series": lambda: Case(
        mlax.series(mlax.dense(16), mlax.f(jnp.tanh), mlax.linear(8), mlax.bias((0, -1))),
        normal(8, 4),
    ),
    "conv": lambda: Case(
        mlax.batched(mlax.series(mlax.conv(8, 3), mlax.f(jnp.tanh), mlax.conv(4, 3))),
        normal(8, 6, 6, 2),
    ),
    "embed": lambda: Case(mlax.embed(16, 8), TOKENS),
    "norms": lambda: Case(
        mlax.batched(mlax.series(mlax.dense(8), mlax.batch_norm(), mlax.layer_norm())),
        normal(16, 4),
    ),
    "dropout": lambda: Case(
        mlax.batched(mlax.series(mlax.dense(8), mlax.dropout(0.5, axis=0))), normal(8, 4)
    ),
    "attention": lambda: Case(mlax.attention(4, causal=True), normal(8, 6, 16)),
    "fused": lambda: Case(mlax.attention(4, 2, fused=True), normal(8, 6, 16)),
    "block": lambda: Case(BLOCK, normal(8, 6, 16)),
    "repeat": lambda: Case(mlax.repeat(BLOCK, 3, remat=True), normal(8, 6, 16)),
    "sequence": lambda: Case(
        mlax.repeat(BLOCK, 2), normal(8, 6, 16), "fsdp+tensor",
        options={"x_spec": P("data", "model"), "outputs": [("*", P("data", "model"))]},
    ),
    "lstm": lambda: Case(
        mlax.batched(mlax.carried(mlax.recurrent(mlax.lstm_cell(8)))), normal(8, 6, 4)
    ),
    "mamba": lambda: Case(mlax.batched(mlax.mamba_block(16)), normal(8, 6, 8)),
    "moe": lambda: Case(MOE, normal(8, 6, 8), "fsdp+expert", ("data", "expert")),
    "moe einsum": lambda: Case(
        mlax.repeat(mlax.block(moe=mlax.moe(mlax.mlp(16), 4, dispatch="einsum"))(
            lambda sub, x: x + sub.moe(x).y
        ), 2),
        normal(8, 6, 8), "expert+fsdp+tensor", ("data", "expert", "model"),
    ),
    "gpt2": lambda: Case(models.gpt2(models.Gpt2Config(16, 8, 16, 2, 4)), TOKENS),
    "recurrences": lambda: Case(
        mlax.batched(
            mlax.series(
                mlax.carried(mlax.recurrent(mlax.gru_cell(8))),
                mlax.carried(mlax.bidirectional(mlax.rnn_cell(4), mlax.rnn_cell(4))),
                mlax.f(lambda pair: jnp.concatenate(jax.tree.leaves(pair), -1)),
                mlax.carried(mlax.lru(8)), mlax.carried(mlax.min_gru(8)),
                mlax.carried(mlax.selective_ssm(4)),
            )
        ),
        normal(8, 6, 4),
    ),
    "images": lambda: Case(
        mlax.batched(
            mlax.series(
                mlax.separable_conv(8, filter_shape=3), mlax.group_norm(2), mlax.max_pool(2),
                mlax.conv_transpose(8, filter_shape=2), mlax.instance_norm(),
                mlax.scaler((0, 0, -1)), mlax.global_avg_pool(), mlax.rms_norm(),
            )
        ),
        normal(8, 4, 4, 2),
    ),
    "branches": lambda: Case(
        mlax.batched(
            mlax.series(
                mlax.position_embedding(8),
                mlax.residual(mlax.attention(4)),
                mlax.branch(mlax.dense(8), mlax.frozen(mlax.dense(8))), mlax.concatenate(-1),
                mlax.residual(mlax.stochastic_depth(mlax.mlp(16), 0.5)),
            )
        ),
        normal(8, 6, 8),
    ),
    "lora": lambda: Case(mlax.lora(BLOCK, "*.kernel", 2), normal(8, 6, 16)),
    "quantized": lambda: Case(mlax.quantized(mlax.repeat(BLOCK, 2)), normal(8, 6, 16)),
    "pipeline": lambda: Case(
        mlax.series(mlax.dense(8), mlax.pipeline(mlax.mlp(16), 4, microbatches=2)), normal(8, 4),
        "fsdp", ("data", "stage"),
    ),
    "ensemble": lambda: Case(mlax.ensemble(mlax.dense(8), 3), normal(8, 4)),
    "cast": lambda: Case(mlax.cast(mlax.mlp(16), compute_dtype=jnp.bfloat16), normal(8, 4)),
}


def mesh_of(axes: tuple[str, ...], types: AxisType) -> Any:
    sizes = {2: (4, 2), 3: (2, 2, 2)}[len(axes)]
    return jax.make_mesh(sizes, axes, (types,) * len(axes))


def loss_of(apply: Any, state: Any, x: Any, rng: Any) -> Callable[[Any], Any]:
    def loss(params: Any) -> tuple[Any, Any]:
        y, after = apply(params, state, x, rng)
        leaves = [a for a in jax.tree.leaves(y) if jnp.issubdtype(a.dtype, jnp.floating)]
        return sum(jnp.mean(jnp.sin(a.astype(jnp.float32))) for a in leaves), (y, after)

    return loss


@pytest.fixture(scope="module")
def expected() -> Callable[[str], Any]:
    """Return what one device computes, once for each case."""
    found: dict[str, Any] = {}

    def compute(name: str) -> Any:
        if name not in found:
            case = CASES[name]()
            params, state = jax.jit(case.layer.init)(KEY, case.x)
            loss = loss_of(case.layer.apply, state, case.x, jax.random.key(1))
            results = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
            found[name] = case, params, state, results
        return found[name]

    return compute


@pytest.mark.parametrize("types", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("name", CASES)
def test_a_plan_changes_no_numbers(name: str, types: AxisType, expected: Any) -> None:
    case, params, state, results = expected(name)
    mesh = mesh_of(case.axes, types)
    plan = mlax.sharding.plan(case.layer, case.x, case.strategy, mesh, **case.options)

    def step(params: Any, state: Any, x: Any) -> Any:
        loss = loss_of(plan.apply, state, x, jax.random.key(1))
        (value, (y, after)), grads = jax.value_and_grad(loss, has_aux=True)(params)
        if types is AxisType.Explicit:
            assert jax.tree.map(lambda a: jax.typeof(a).sharding.spec, y) == jax.tree.map(
                lambda a, s: P(*s.spec, *[None] * (a.ndim - len(s.spec))), y, plan.y
            )
        return (value, (y, after)), grads

    with jax.set_mesh(mesh):
        arrays = jax.device_put((params, state, case.x), (plan.params, plan.state, plan.x))
        found = jax.jit(step, out_shardings=((None, (None, plan.state)), plan.params))(*arrays)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(results), strict=True):
        tolerance = 2e-2 if name == "cast" else 1e-5
        np.testing.assert_allclose(
            np.asarray(a, np.float32), np.asarray(b, np.float32), atol=tolerance, rtol=tolerance
        )
    for sharding, grad in zip(jax.tree.leaves(plan.params), jax.tree.leaves(found[1]), strict=True):
        assert grad.sharding.is_equivalent_to(sharding, grad.ndim)
