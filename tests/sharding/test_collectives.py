"""What devices send to each other in a training step, counted in the compiled program.

The figures are what each method needs, so that an all-gather too many fails.
"""

import collections
import re
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType

import mlax
from tests.sharding.test_equal import mesh_of

X = jax.ShapeDtypeStruct((8, 8, 16), jnp.float32)
MLP = mlax.mlp(64)
BLOCK = mlax.repeat(mlax.transformer_block(mlax.attention(4, causal=True), MLP), 3)
DATA, MODEL, EXPERT = ("data",), ("data", "model"), ("data", "expert")

# Sums over all devices: one of all gradients; by tensor, one forward and one backward for each
# pair of products. Gathers: one for each parameter, and those that the gradient of x needs again.
NEEDED = [
    (MLP, "data", DATA, {"all-reduce": 1}),
    (MLP, "fsdp", DATA, {"all-reduce": 1, "all-gather": 4 + 1}),
    (MLP, "tensor", MODEL, {"all-reduce": 1 + 1}),
    (MLP, "fsdp+tensor", MODEL, {"all-reduce": 1 + 1, "all-gather": 4 + 1}),
    (BLOCK, "data", DATA, {"all-reduce": 1}),
    (BLOCK, "fsdp", DATA, {"all-reduce": 1, "all-gather": 16 + 6}),
    (BLOCK, "tensor", MODEL, {"all-reduce": 1 + 2 + 2}),
    (BLOCK, "fsdp+tensor", MODEL, {"all-reduce": 1 + 2 + 2, "all-gather": 16 + 6}),
]


def compiled_step(layer: Any, strategy: str, axes: tuple[str, ...]) -> Any:
    """Return the compiled gradient of a layer by a strategy."""
    mesh = jax.make_mesh((8,), axes) if len(axes) == 1 else mesh_of(axes, AxisType.Auto)
    plan = mlax.sharding.plan(layer, X, strategy, mesh)

    def gradients(params: Any, state: Any, x: Any) -> Any:
        def loss(params: Any) -> Any:
            y = jax.tree.leaves(plan.apply(params, state, x)[0])[0]
            return jnp.mean(jnp.square(y))

        return jax.grad(loss)(params)

    shapes = plan.shapes
    lowered = jax.jit(gradients, out_shardings=plan.params).lower(
        shapes.params, shapes.state, shapes.x
    )
    return lowered.compile(), plan


def collectives(compiled: Any) -> dict[str, int]:
    """Return how many there are of each kind, those in a loop once."""
    kinds = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
    return collections.Counter(re.findall(rf" ({kinds})(?:-start)?\(", compiled.as_text()))


@pytest.mark.parametrize(("layer", "strategy", "axes", "needed"), NEEDED)
def test_devices_send_what_the_method_needs(
    layer: Any, strategy: str, axes: Any, needed: dict[str, int]
) -> None:
    found = collectives(compiled_step(layer, strategy, axes)[0])
    if jax.__version_info__[:2] == (0, 10):
        assert found == needed
    assert all(count <= needed.get(kind, 0) for kind, count in found.items())


def test_experts_are_split_and_so_is_their_work() -> None:
    layer = mlax.moe(mlax.mlp(256), 4)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), X)
    one = jax.jit(layer.apply).lower(*shapes, X).compile()
    plan = mlax.sharding.plan(layer, X, "expert", mesh_of(EXPERT, AxisType.Auto))
    split = jax.jit(plan.apply).lower(plan.shapes.params, plan.shapes.state, plan.shapes.x)
    compiled = split.compile()
    whole, part = one.cost_analysis() or {}, compiled.cost_analysis() or {}
    assert whole["flops"] / part["flops"] > 7
    found = collectives(compiled)
    assert found["all-gather"] <= 8 and found["all-reduce"] <= 3


@pytest.mark.parametrize("remat", [False, True])
def test_gathered_params_are_not_kept_for_the_backward_pass(remat: bool) -> None:
    layer = mlax.repeat(mlax.mlp(64), 5, remat=remat)
    compiled, plan = compiled_step(layer, "fsdp", DATA)
    whole = {"f32[5,16,64]", "f32[5,64,16]"}
    assert not whole.intersection(re.findall(r"f32\[[\d,]+\]", compiled.as_text()))
    inputs, hidden = 5 * 8 * 16 * 4, 5 * 8 * 64 * 4
    kept = plan.bytes_by_part()["activations (estimate)"]
    assert inputs <= kept < inputs + (1 if remat else 10) * hidden
