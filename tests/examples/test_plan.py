"""The plan program plans and lowers a model that no machine here could hold, and counts right."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec

import mlax
from mlax.examples import collectives, plan as program
from mlax.examples.collectives import Kind
from mlax.examples.meshes import make_mesh
from mlax.models import LlamaConfig, llama

jax.devices()  # JAX has started, so that programs here change no other test's devices
CONFIG = LlamaConfig(64, 32, 3, 4, 4, 64)


def test_70b_on_8192_devices(capsys: pytest.CaptureFixture[str]) -> None:
    program.main(["--platform", "tpu", "--sequence", "--length", "8192"])
    printed = capsys.readouterr().out
    assert "on each of 8192 devices (data 64, model 128)" in printed
    assert "params, gradients and optimizer take 1.000 of an equal share" in printed
    assert "FLOPs take 1.000 of an equal share" in printed
    assert "exported, for 8192 devices of tpu" in printed


def planned(outputs: Any = (), config: LlamaConfig = CONFIG) -> program.Plan:
    model = mlax.cast(llama(config, remat=True), compute_dtype=jnp.float32)
    tokens = jax.ShapeDtypeStruct((4, 8), jnp.int32)
    mesh = make_mesh((2, 4), ("data", "model"))
    return mlax.sharding.plan(
        model, tokens, "fsdp+tensor", mesh, outputs=outputs, optimizer=program.Optimizer()
    )


def test_the_compiled_program_sends_what_the_paper_says() -> None:
    """But for the embedding, which is gathered once; the CPU sums gradients whole."""
    plan = planned()
    shapes = plan.shapes
    step = program.step_of(plan).lower(shapes.params, shapes.optimizer, shapes.x)
    found = collectives.compiled(step.compile().as_text())
    paper = collectives.on_paper(plan, CONFIG.num_layers, 4, remat=True)
    once = 4 * (64 * 32 // 4) / 2  # bytes of the quarter that a device uses, of which it had half
    gathers = Kind("all-gather", 2)
    assert found[gathers].arrays == paper[gathers].arrays - 1
    assert found[gathers].nbytes == paper[gathers].nbytes - once
    grads = paper[Kind("reduce-scatter", 2)], found[Kind("all-reduce", 2)]
    assert grads[1].nbytes == pytest.approx(2 * grads[0].nbytes, rel=0.1)
    sums = Kind("all-reduce", 4)
    assert paper[sums].nbytes <= found[sums].nbytes < 2 * paper[sums].nbytes


@pytest.mark.parametrize("heads", [4, 2])
@pytest.mark.parametrize("outputs", [[], [("body", PartitionSpec("data", "model"))]])
def test_flops_on_a_device_are_those_of_what_it_computes(heads: int, outputs: Any) -> None:
    """Two heads cannot be split over four devices, but their positions can."""
    config = CONFIG._replace(num_heads=heads, num_kv_heads=heads, num_layers=1)
    flops, share = program.flops_on_device(planned(outputs, config))
    assert flops == share if heads == 4 or outputs else flops > 1.5 * share


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--mesh", "8by8"], "--mesh: expected lengths"),
        (["--mesh", "8"], "a mesh with an axis 'model' for 'tensor'"),
        (["--mesh", "4x4", "--compile"], "expected 16 devices for a mesh of data 4 x model 4"),
        (["--mesh", "64x64", "--compile"], "at most 2048 devices"),
    ],
)
def test_wrong_options_are_told(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        program.main(["--model", "gpt2", *arguments])
    assert told in capsys.readouterr().err
