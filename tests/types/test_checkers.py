"""The type checkers other than mypy (`tests/test_types.py`) on our own files.

`composition.py`, `models.py`, `programs.py`, `shell.py` and `transformations.py` hold the cases:
mypy reads them with the other tests, pyright reads them here.
"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def run(*command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """Run a module with this interpreter; pyright finds imports through the one on PATH."""
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "PYTHONPATH": str(ROOT),
        "MYPYPATH": str(ROOT / "typings") if "mypy.stubtest" in command else "",
        "PYRIGHT_PYTHON_IGNORE_WARNINGS": "1",
    }
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, env=environment, capture_output=True, text=True
    )


def test_pyright_is_clean() -> None:
    done = run("pyright", "mlax", "tests/types", cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    "name", ["composition.py", "models.py", "programs.py", "shell.py", "transformations.py"]
)
def test_lines_that_must_be_errors_are_errors_for_pyright(name: str, tmp_path: Path) -> None:
    """Like `warn_unused_ignores` in mypy: the comments are disabled, and each line is an error."""
    case = shutil.copy(ROOT / "tests" / "types" / name, tmp_path)
    options = {"enableTypeIgnoreComments": False, "extraPaths": [str(ROOT)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(options))
    report = json.loads(run("pyright", "--outputjson", cwd=tmp_path).stdout)
    errors = {
        diagnostic["range"]["start"]["line"]
        for diagnostic in report["generalDiagnostics"]
        if diagnostic["severity"] == "error"
    }
    lines = Path(case).read_text().splitlines()
    assert errors == {i for i, line in enumerate(lines) if "# type: ignore" in line}


def test_every_public_symbol_has_a_known_type(tmp_path: Path) -> None:
    done = run("pyright", "--verifytypes", "mlax", "--ignoreexternal", "--outputjson", cwd=tmp_path)
    report = json.loads(done.stdout)["typeCompleteness"]
    unknown = [symbol for symbol in report["symbols"] if not symbol["isTypeKnown"]]
    assert report["completenessScore"] == 1, unknown


def test_the_stubs_of_jaxlib_are_true(tmp_path: Path) -> None:
    allowlist = str(ROOT / "typings" / "stubtest-allowlist.txt")
    options = ("--ignore-missing-stub", "--ignore-unused-allowlist", "--allowlist", allowlist)
    done = run("mypy.stubtest", "jaxlib._jax", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


CONSUMER = """
import jax
from jax import Array

import mlax
from mlax import Layer, nn, typed
from mlax.types import (
    BatchedConfig,
    BiasConfig,
    BiasParams,
    LinearConfig,
    LinearParams,
    State,
    TupleState,
    Variables,
)

States = tuple[State[tuple[()], LinearConfig], State[tuple[()], BiasConfig]]
Params = tuple[LinearParams, BiasParams]
model: Layer[Params, TupleState[States], Array, Array] = mlax.series(mlax.linear(4), mlax.bias(-1))
batch: Layer[Params, State[Variables[States], BatchedConfig], Array, Array] = mlax.batched(model)
step: typed.Jitted[[Params, Array], Array]

def build(width: int) -> Layer[tuple[object, ...], object, Array, Array]:
    raise NotImplementedError

init, apply = mlax.series(mlax.linear(4), mlax.bias(-1))
params, state = init(jax.random.key(0), jax.numpy.ones(3))
kernel: Array = params[0].kernel

def loss(params: object, x: Array) -> Array:
    return x.sum()

value, grads = typed.value_and_grad(loss)(params, kernel)
total: Array = value
y, layer = nn.Linear(jax.random.key(0), 3)(kernel, None)
same: nn.Linear = layer
output: Array = y
params[2]{error}
"""


def test_a_project_that_imports_mlax(tmp_path: Path) -> None:
    """Without our mypy.ini, an index out of range is an error, and the only one."""
    (tmp_path / "wrong.py").write_text(CONSUMER.replace("{error}", ""))
    (tmp_path / "right.py").write_text(CONSUMER.replace("{error}", "  # type: ignore[misc]"))
    done = run("mypy", "--strict", "wrong.py", "right.py", cwd=tmp_path)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert len(errors) == 1, done.stdout + done.stderr
    assert errors[0].startswith("wrong.py") and "out of range" in errors[0]


MISTAKES = """
import jax
import mlax

layer = mlax.dense(4)
mlax.series(layer, jax.nn.relu)
mlax.parallel(layer, lambda x: x + 1)
mlax.branch(layer, mlax.dense)
mlax.series([layer, layer])
mlax.residual(mlax.dense)
"""
WORDS = "call pairs, put functions into f, unpack lists"


def test_mistakes_are_told_in_words(tmp_path: Path) -> None:
    """A function, an uncalled pair or a list among layers: the argument, not all overloads."""
    (tmp_path / "mistakes.py").write_text(MISTAKES + "mlax.series(a=layer, b=jax.nn.relu)\n")
    done = run("mypy", "--strict", "mistakes.py", cwd=tmp_path)
    *told, _ = done.stdout.splitlines()
    assert len(told) == 6, done.stdout + done.stderr
    assert all("error: Argument" in line and WORDS in line for line in told), done.stdout
    assert max(map(len, told)) < 600

    (tmp_path / "mistakes.py").write_text(MISTAKES)
    report = json.loads(run("pyright", "--outputjson", cwd=tmp_path).stdout)
    messages = [diagnostic["message"] for diagnostic in report["generalDiagnostics"]]
    assert len(messages) == 5 and all(WORDS in message for message in messages), messages
