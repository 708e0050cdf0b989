"""Print what a training step costs with mlax, by hand in JAX, and with other libraries.

    python -m tests.benchmarks [MODEL ...] [MEASURE ...] [--peers [NAME ...]]

By hand in seconds, the others as ratios to it; imports all in seconds. What mlax should reach is in
the last column, and what is over it has an exclamation mark.
"""

import argparse
import functools
import importlib
import shutil
import statistics
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax

import mlax
from tests.benchmarks import measure
from tests.benchmarks.model import SIZES, Make

MEASURES = {
    "step": "from the call until the loss is ready",
    "call": "until the call returns",
    "trace": "jax.jit(step).trace",
    "lower": "lower()",
    "operations": "in StableHLO",
    "compile": "compile()",
    "init": "the first of a fresh process, with the backend started",
    "import": "beyond that of jax, in fresh processes",
}

PEERS = {
    "linen": "flax.linen",
    "equinox": "equinox",
    "haiku": "haiku",
    "stax": "jax.example_libraries.stax",
}
"""What to import for each."""

LIMITS = {
    ("step", "mlp"): 1.0,
    ("step", "dense100"): 1.0,
    ("step", "resnet"): 0.97,
    ("step", "lstm"): 0.83,
    ("step", "encoder"): 0.95,
    ("step", "encoder-repeat"): 1.0,
    ("step", "gpt-repeat"): 1.0,
    ("call", "dense100"): 1.05,
    ("call", "resnet"): 1.05,
    ("call", "lstm"): 1.05,
    ("trace", "dense100"): 1.1,
    ("trace", "resnet"): 1.1,
    ("trace", "encoder"): 1.1,
    ("lower", "resnet"): 1.1,
    ("lower", "encoder"): 1.1,
    ("operations", "resnet"): 1.1,
    ("operations", "encoder"): 1.1,
    ("compile", "lstm"): 1.0,
    ("init", "resnet"): 0.3,
    ("init", "lstm"): 0.5,
    ("init", "encoder"): 0.5,
    ("import", "cold"): 0.06,
}
"""What mlax should reach: a ratio to the model by hand, or seconds."""


class Row(NamedTuple):
    """A line of the table."""

    measure: str
    model: str
    hand: float | None
    """The figure by hand, if there is one."""
    others: dict[str, float]
    """Ratios to that, or figures, by contender."""


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    names = [*SIZES, *MEASURES]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"any of {', '.join(names)}")
    parser.add_argument("--peers", nargs="*", default=[*PEERS], choices=PEERS, metavar="NAME",
                        help=f"any of {', '.join(PEERS)}; default all that are installed")
    parser.add_argument("--seconds", type=float, default=10.0, help="for each model and measure")
    parser.add_argument("--runs", type=int, default=1, help="how often all of it is repeated")
    parser.add_argument("--first-init", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := set(options.names).difference(names):
        parser.error(f"NAME: expected any of {', '.join(names)}, got {', '.join(unknown)}")
    jax.config.update("jax_enable_compilation_cache", False)
    if options.first_init:
        contender, name = options.first_init
        print(measure.first_init(models_of(contender)[name](SIZES[name])))
        return
    models = [name for name in SIZES if name in options.names] or list(SIZES)
    measures = [name for name in MEASURES if name in options.names] or list(MEASURES)
    contenders = ["hand", "mlax", *(peer for peer in options.peers if installed(peer))]
    runs: list[list[Row]] = []
    for _ in range(options.runs):
        runs.append([])
        print(line("", "hand", *contenders[1:], "to reach"))
        for row in rows_of(models, measures, contenders, options.seconds):
            runs[-1].append(row)
            print(shown([row], contenders), flush=True)
    if len(runs) > 1:
        print(f"\nmedians of {len(runs)} runs, and ranges")
        print(line("", "hand", *contenders[1:], "to reach", width=20))
        for rows in zip(*runs, strict=True):
            print(shown(rows, contenders))


def installed(peer: str) -> bool:
    """Return whether a peer can be imported; if not, say so."""
    try:
        importlib.import_module(PEERS[peer])
    except ImportError as error:
        print(f"{peer} is left out: {error}")
        return False
    return True


def models_of(contender: str) -> dict[str, Make]:
    """Return the models that a contender has, by name."""
    models: dict[str, Make] = importlib.import_module(f"tests.benchmarks.models.{contender}").MODELS
    return models


def rows_of(
    models: Iterable[str], measures: Sequence[str], contenders: Sequence[str], seconds: float
) -> Iterator[Row]:
    """Measure, and yield what is asked."""
    for name in models:
        built = {c: models_of(c)[name](SIZES[name]) for c in contenders if name in models_of(c)}
        figures: measure.Figures = {}
        if {"step", "call"}.intersection(measures):
            runs = {c: measure.steps(model, SIZES[name]) for c, model in built.items()}
            figures |= measure.medians(runs, seconds, 10)
        if {"trace", "lower", "operations", "compile"}.intersection(measures):
            compiled = "compile" in measures
            runs = {c: measure.stages(model, SIZES[name], compiled) for c, model in built.items()}
            figures |= measure.medians(runs, seconds, 3)
        if "init" in measures:
            program = "-m", "tests.benchmarks", "--first-init"
            runs = {c: measure.fresh("init", *program, c, name) for c in built}
            figures |= measure.medians(runs, seconds, 3)
        for kind in measures:
            if kind in figures:
                hand = figures[kind].pop("hand")
                ratios = {c: figure / hand for c, figure in figures[kind].items()}
                yield Row(kind, name, hand, ratios)
    if "import" in measures:
        yield from imports(contenders, seconds)


def imports(contenders: Iterable[str], seconds: float) -> Iterator[Row]:
    """Yield the seconds that imports take, of mlax also without compiled files."""
    timed = "import time, jax; start = time.perf_counter(); {}; print(time.perf_counter() - start)"
    every = "import mlax; [getattr(mlax, name) for name in mlax.__all__]"
    statements = {c: f"import {PEERS[c]}" for c in contenders if c in PEERS}
    statements |= {"mlax": "import mlax", "every name": every}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(mlax.__file__).parent
        shutil.copytree(source, Path(folder, "mlax"), ignore=shutil.ignore_patterns("__pycache__"))
        for kind, root, flags in (("warm", measure.ROOT, ()), ("cold", Path(folder), ("-B",))):
            runs = {
                name: measure.fresh("import", *flags, "-c", timed.format(statement), path=root)
                for name, statement in statements.items()
                if kind == "warm" or "mlax" in statement
            }
            figures = measure.medians(runs, seconds, 3)["import"]
            names = figures.pop("every name")
            yield Row("import", kind, None, figures)
            yield Row("import", f"{kind}, every name", None, {"mlax": names})


def shown(rows: Sequence[Row], contenders: Iterable[str]) -> str:
    """Return the line of the table for one row of several runs."""
    kind, model = rows[0].measure, rows[0].model
    limit = LIMITS.get((kind, model))
    hands = [row.hand for row in rows if row.hand is not None]
    entries = [quantity(kind, statistics.median(hands)) if hands else ""]
    for name in list(contenders)[1:]:
        values = [row.others[name] for row in rows if name in row.others]
        shown_as = "{:.2f}".format if hands else functools.partial(quantity, kind)
        entry = shown_as(statistics.median(values)) if values else ""
        if len(values) > 1:
            entry += f" ({shown_as(min(values))}-{shown_as(max(values))})"
        if name == "mlax" and limit is not None and statistics.median(values) > limit:
            entry += " !"
        entries.append(entry)
    reached = "" if limit is None else f"{limit:.2f}" if hands else quantity(kind, limit)
    return line(f"{kind} {model}", *entries, reached, width=12 if len(rows) == 1 else 20)


def quantity(kind: str, value: float) -> str:
    """Return a figure with its unit."""
    if kind == "operations":
        return f"{value:.0f}"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.2f} s"


def line(first: str, *entries: str, width: int = 12) -> str:
    """Return a line of columns."""
    return f"{first:26}" + "".join(f"{entry:>{width}}" for entry in entries).rstrip()


if __name__ == "__main__":
    main()
