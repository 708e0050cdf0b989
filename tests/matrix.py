"""Run the tests on each Python that mlax supports, with the JAX that goes with it.

    python -m tests.matrix [--only VERSION ...] [-- PYTEST_ARGUMENT ...]

as in `python -m tests.matrix --only 3.12 -- tests/golden`. A Python is looked for on PATH, then
among those of pyenv; one that is missing is skipped. Each gets a fresh virtual environment. The
exit status is 0 if tests ran and all of them passed.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent

JAX = {"3.11": "jax==0.10.*", "3.12": "jax", "3.13": "jax"}
"""What to install for each Python, next to what pyproject.toml says: the oldest JAX, the newest."""


class Outcome(NamedTuple):
    """A line of the table."""

    python: str
    jax: str
    result: str
    time: str


def main() -> int:
    """Run the tests, print the table and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix")
    parser.add_argument("--only", action="append", choices=JAX, help="a version; may be repeated")
    parser.add_argument("pytest", nargs="*", help="arguments of pytest, after --")
    arguments = parser.parse_args()
    outcomes = [outcome_of(version, arguments.pytest) for version in arguments.only or JAX]
    for line in [Outcome("python", "jax", "result", "time"), *outcomes]:
        print("".join(f"{entry:12}" for entry in line).rstrip())
    ran = [outcome for outcome in outcomes if outcome.result != "missing"]
    return 0 if ran and all(outcome.result == "passed" for outcome in ran) else 1


def outcome_of(version: str, pytest: Sequence[str]) -> Outcome:
    """Run the tests on one Python."""
    python = found(version)
    if python is None:
        return Outcome(version, "", "missing", "")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as directory:
        jax, result = result_of(python, Path(directory), JAX[version], pytest)
    return Outcome(version, jax, result, f"{time.monotonic() - start:.0f} s")


def result_of(
    python: str, directory: Path, requirement: str, pytest: Sequence[str]
) -> tuple[str, str]:
    """Return the version of JAX, and what came of the tests in a new environment."""
    subprocess.run([python, "-m", "venv", directory], check=True)
    programs = directory / ("Scripts" if os.name == "nt" else "bin")
    inside = {**os.environ, "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    inside.pop("PYTHONPATH", None)

    def run(*command: str) -> bool:
        return subprocess.run([programs / "python", *command], cwd=ROOT, env=inside).returncode == 0

    quiet = "--quiet", "--disable-pip-version-check"
    if not run("-m", "pip", "install", *quiet, "-e", ".[test]", requirement):
        return "", "not installed"
    print_version = "import importlib.metadata as m; print(m.version('jax'), end='')"
    jax = output_of(str(programs / "python"), "-c", print_version) or ""
    return jax, "passed" if run("-m", "pytest", *pytest) else "failed"


def found(version: str) -> str | None:
    """Return the path of a Python of this version that can make environments, if there is one."""
    candidates = [shutil.which(f"python{version}")]
    installed = (output_of("pyenv", "versions", "--bare") or "").split()
    for name in sorted(installed, key=lambda name: [part.zfill(9) for part in name.split(".")]):
        if name.startswith(f"{version}."):
            prefix = output_of("pyenv", "prefix", name)
            candidates.insert(1, f"{prefix}/bin/python{version}")
    check = "import ensurepip, sys; print(*sys.version_info[:2], sep='.', end='')"
    return next((c for c in candidates if c and output_of(c, "-c", check) == version), None)


def output_of(*command: str) -> str | None:
    """Return what a command prints, or None if there is no such command or it fails."""
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return ran.stdout.strip()


if __name__ == "__main__":
    sys.exit(main())
