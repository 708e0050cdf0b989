"""The gpt program learns, writes, saves and resumes."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import mlax
from mlax.examples import gpt

COUNT = jax.device_count()  # JAX has started, so that programs here change no other test's devices
PNG = b"\x89PNG\r\n\x1a\n"


def small(decodes: bool = False) -> Any:
    """Return a model that learns in a few steps."""
    attention = mlax.attention(2, causal=True, cache_length=gpt.CONTEXT if decodes else None)
    return mlax.series(
        mlax.embed(len(gpt.ALPHABET), 16), mlax.residual(attention), mlax.dense(len(gpt.ALPHABET))
    )


def test_the_text_is_what_python_comes_with() -> None:
    text = gpt.load()
    assert len(text.train) > 8 * len(text.test) > 300_000
    assert "statement" in gpt.decode(text.train)
    assert gpt.decode(gpt.encode("The café\n")) == "The caf\n"


def test_batches_are_pieces_of_the_text() -> None:
    text = gpt.load().train
    pieces = gpt.batch(text, 3, 0)
    assert pieces.shape == (gpt.BATCH_SIZE, gpt.CONTEXT + 1)
    assert gpt.decode(pieces[0]) in gpt.decode(text)
    np.testing.assert_array_equal(pieces, gpt.batch(text, 3, 0))
    assert (pieces != gpt.batch(text, 4, 0)).any()


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Make the program small, and run it in a folder of its own."""
    text = gpt.load()
    monkeypatch.setattr(gpt, "load", lambda: gpt.Text(text.train, text.test[:3000]))
    monkeypatch.setitem(gpt.MODELS, "gpt", small)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_learns_and_writes(few: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpt.main(["--steps", "60", "--every", "30"])
    assert (few / "gpt.png").read_bytes().startswith(PNG)
    printed = capsys.readouterr()
    assert float(printed.out.split("held-out loss: ")[1].split()[0]) < 4.0  # log(96) is 4.6
    assert (printed.out + printed.err).count("The ") >= 2


def test_it_goes_on_where_it_was_stopped(few: Path) -> None:
    gpt.main(["--steps", "4", "--every", "2"])
    run = gpt.program("gpt", 4, 0)
    whole = mlax.load(few / "gpt.safetensors", run.start)
    assert whole.done == 4
    carry = run.start.carry
    for i in range(2):
        carry, _ = run.step(carry, gpt.batch(gpt.load().train, i, 0), i)
    mlax.save(few / "gpt.safetensors", run.start._replace(carry=carry, done=2))
    gpt.main(["--steps", "4", "--every", "2", "--resume"])
    resumed = mlax.load(few / "gpt.safetensors", run.start)
    for a, b in zip(jax.tree.leaves(resumed), jax.tree.leaves(whole), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--steps", "0"], ["--resume"], ["--model", "rnn"], ["--devices", str(2 * COUNT)],
        ["--parallel", "pipeline"],
    ],
    ids=str,
)
def test_wrong_options_are_named(
    few: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        gpt.main(arguments)
    assert arguments[0] in capsys.readouterr().err


@pytest.mark.parametrize(("name", "near"), [("lstm", 0.3), ("ssm", 1.0)])
def test_recurrent_models_are_models_too(
    name: str, near: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpt, "CONTEXT", 16)
    monkeypatch.setattr(gpt, "BATCH_SIZE", 2)
    run = gpt.program(name, 2, 0)
    _, loss = run.step(run.start.carry, gpt.batch(gpt.load().train, 0, 0), 0)
    assert float(loss) == pytest.approx(np.log(len(gpt.ALPHABET)), abs=near)
    assert len(run.write(run.start.carry.params, "The ", 3, jax.random.key(0))) == 7


def dropped(decodes: bool = False) -> Any:
    """Return a model that draws numbers."""
    block = mlax.transformer_block(mlax.attention(2, causal=True), mlax.mlp(16), dropout_rate=0.5)
    return mlax.series(mlax.embed(len(gpt.ALPHABET), 8), block, mlax.dense(len(gpt.ALPHABET)))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shorten the context, and use a model with dropout."""
    monkeypatch.setattr(gpt, "CONTEXT", 16)
    monkeypatch.setitem(gpt.MODELS, "gpt", dropped)


def steps(run: gpt.Program, carry: gpt.Carry, which: range) -> tuple[gpt.Carry, list[float]]:
    text, losses = gpt.load().train, []
    for i in which:
        carry, loss = run.step(carry, gpt.batch(text, i, 0), i)
        losses.append(float(loss))
    return carry, losses


@functools.cache
def on_one_device() -> list[float]:
    """Return the losses of three steps of the tiny model."""
    run = gpt.program("gpt", 8, 0)
    return steps(run, run.start.carry, range(3))[1]


@pytest.mark.parametrize("parallel", gpt.PARALLEL)
def test_losses_on_many_devices_are_those_of_one(tiny: None, parallel: str) -> None:
    run = gpt.program("gpt", 8, 0, 8, parallel)
    _, losses = steps(run, run.start.carry, range(3))
    np.testing.assert_allclose(losses, on_one_device(), rtol=1e-4)
    kernel = run.start.carry.params[1]["mlp"]["up"].kernel
    assert kernel.sharding.is_fully_replicated is (parallel == "data")


@pytest.mark.parametrize(("before", "after"), [(1, 8), (8, 1)])
def test_a_run_goes_on_on_another_number_of_devices(
    tiny: None, tmp_path: Path, before: int, after: int
) -> None:
    first, second = (gpt.program("gpt", 8, 0, n, "fsdp") for n in (before, after))
    carry, _ = steps(first, first.start.carry, range(2))
    _, wanted = steps(first, carry, range(2, 4))
    mlax.save(tmp_path / "gpt.safetensors", first.start._replace(carry=carry, done=2))
    saved = mlax.load(tmp_path / "gpt.safetensors", second.start)
    _, found = steps(second, saved.carry, range(saved.done, 4))
    np.testing.assert_allclose(found, wanted, rtol=1e-4)
