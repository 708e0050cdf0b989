"""What the devices of a mesh send each other in a training step: on paper, and as compiled.

Bytes are those that each device receives, by the ring algorithms on n devices:

    all-gather          (n - 1) / n of the result
    reduce-scatter      (n - 1) / n of what is summed
    all-reduce          both, one after the other
    all-to-all          (n - 1) / n of the result
    collective-permute  the result
"""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax

from mlax.mesh import names_in
from mlax.outline import short
from mlax.sharding import Plan
from mlax.tree import paths


class Kind(NamedTuple):
    """What a collective does."""

    name: str
    """What XLA calls it."""
    devices: int
    """The number of devices of each group."""


class Traffic(NamedTuple):
    """Collectives of one kind."""

    arrays: int
    """The number of arrays."""
    nbytes: float
    """The bytes that each device receives."""


def table(found: dict[Kind, Traffic]) -> str:
    """Return collectives as a table."""
    rows = [f"{'collective':<20} {'over devices':>12} {'arrays':>8} {'bytes':>8}"]
    rows += ["-" * len(rows[0])]
    for (name, devices), (arrays, nbytes) in sorted(found.items()):
        rows.append(f"{name:<20} {devices:>12} {arrays:>8} {short(int(nbytes)):>8}")
    return "\n".join(rows)


def on_paper(
    plan: Plan[Any, Any, Any, Any], num_layers: int, itemsize: int, remat: bool
) -> dict[Kind, Traffic]:
    """Return the collectives of a training step of a language model.

    - A sharded parameter is gathered, for the forward and for the backward pass (once where
      the compiler finds the other needless, as for an embedding).
    - Its gradient is summed over the devices that have other examples, and ends up sharded alike.
    - A kernel that is split over its rows, as tensor parallelism splits the second of two, makes
      sums of activations: of its output, and in the backward pass of the input of the first. So
      do an embedding and the head. With remat, the output of attention is summed again.

    Args:
        plan: the plan.
        num_layers: the number of blocks, whose params are stacked.
        itemsize: the bytes of a number while layers run.
        remat: whether the backward pass recomputes each block.
    """
    sizes, shapes = plan.mesh.shape, plan.shapes
    batch = names_in(shapes.x.sharding.spec)
    tokens = math.prod(shapes.x.sharding.shard_shape(shapes.x.shape))

    def devices(names: Iterable[Any]) -> int:
        return math.prod(sizes[name] for name in names)

    def needed() -> Iterator[tuple[str, int, int, float]]:
        for path, leaf in zip(paths(shapes.params), jax.tree.leaves(shapes.params), strict=True):
            spec, copies = plan.used[path][0], num_layers if "body." in path else 1
            stored, used = names_in(leaf.sharding.spec), names_in(spec)
            nbytes = leaf.size * itemsize / devices(used)
            parts = [name for name in stored if name not in used]
            yield "all-gather", devices(parts), 2 * copies, 2 * nbytes
            scattered = [name for name in parts if name in batch]
            yield "reduce-scatter", devices(scattered), copies, nbytes
            rest = devices(name for name in batch if name not in (*used, *scattered))
            yield "all-reduce", rest, copies, nbytes / devices(scattered)
            rows = names_in(tuple(spec)[-2:-1])
            times = copies * (3 if remat and "attention" in path else 2)
            sums = times * tokens * leaf.shape[-1] * itemsize
            yield "all-reduce", devices(name for name in rows if name not in batch), times, sums

    return _added((Kind(name, n), arrays, nbytes) for name, n, arrays, nbytes in needed() if n > 1)


def compiled(text: str) -> dict[Kind, Traffic]:
    """Return the collectives of a program that XLA compiled.

    The body of a loop counts as often as it runs, if the compiler knows how often.
    """
    bodies = dict(re.findall(r"^(?:ENTRY )?%?([\w.-]+) \(.*?\{\n(.*?)^\}", text, re.M | re.S))
    (entry,) = re.findall(r"^ENTRY %?([\w.-]+)", text, re.M)
    times: Counter[str] = Counter({entry: 1})
    for name in reversed(bodies):  # what is called comes before what calls it
        for line in bodies[name].splitlines():
            count = re.search(r'known_trip_count":\{"n":"(\d+)"', line)
            for callee in re.findall(r"(?:body|calls|to_apply)=%?([\w.-]+)", line):
                times[callee] += times[name] * (int(count[1]) if count else 1)
    return _added(
        (Kind(kind, _group_size(line)), times[name] * len(arrays), times[name] * sum(arrays))
        for name, body in bodies.items()
        for line in body.splitlines()
        for result, kind in re.findall(rf" = (.*?) ({'|'.join(_RECEIVED)})\(", line)
        for arrays in [_nbytes(result, _group_size(line) if kind == "reduce-scatter" else 1)]
    )


_RECEIVED: dict[str, Callable[[int], float]] = {
    "all-gather": lambda n: (n - 1) / n,
    "all-reduce": lambda n: 2 * (n - 1) / n,
    "all-to-all": lambda n: (n - 1) / n,
    "collective-permute": lambda n: 1,
    "reduce-scatter": lambda n: (n - 1) / n,
}
"""For each kind, how much of an array a device receives."""


def _added(found: Iterable[tuple[Kind, int, float]]) -> dict[Kind, Traffic]:
    totals: dict[Kind, Traffic] = defaultdict(lambda: Traffic(0, 0.0))
    for kind, arrays, nbytes in found:
        before = totals[kind]
        received = _RECEIVED[kind.name](kind.devices) * nbytes
        totals[kind] = Traffic(before.arrays + arrays, before.nbytes + received)
    return dict(totals)


def _nbytes(shapes: str, times: int) -> list[int]:
    """Return the bytes of each array of a result, as in "f32[8,2]{1,0}" or a tuple of such."""
    found = re.findall(r"\b[a-z]+(\d+)\w*\[([\d,]*)\]", shapes)
    counts = [math.prod(map(int, re.findall(r"\d+", lengths))) for _, lengths in found]
    return [times * n * int(bits) // 8 for n, (bits, _) in zip(counts, found, strict=True)]


def _group_size(line: str) -> int:
    """Return the number of devices of a group, which XLA spells in several ways."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return listed[1].count(",") + 1
    if regular := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(regular[1])
    if named := re.search(r"replica_groups=mesh\[(.*?)\].*?\{(.*?)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", named[1]))
        return math.prod(int(sizes[name]) for name in re.findall(r"'(\w+)'", named[2]))
    return 2  # of a permutation, which has pairs instead
