"""A model as a drawing: boxes for its layers, and arrows for what flows between them, with shapes.

A layer made of layers is a frame around them, which run from top to bottom; a loop is a frame
around its body, drawn once. `mlax.flow` finds the arrows, and `mlax.figures` draws them.
"""

import dataclasses
import functools
import pathlib
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

from mlax.arguments import AnyLayer
from mlax.combinators.child import Child, Nothing, layers_by_path
from mlax.combinators.composed import ComposedConfig
from mlax.combinators.ensemble import EnsembleConfig
from mlax.combinators.making import shapes
from mlax.combinators.moe import MoeConfig
from mlax.combinators.pipeline import PipelineConfig
from mlax.combinators.repeat import RepeatConfig
from mlax.figures import SIGNS, Figure, Rows, box, frame, join, page
from mlax.flow import INPUT, OUTPUT, Flow, Graph, Join, Node, Path, flow
from mlax.outline import abstract_model, cut, require_depth, spelled
from mlax.tree import LATER_CALL


@dataclasses.dataclass(frozen=True)
class Diagram:
    """What `diagram` returns; notebooks show it as a drawing, and `str` is its SVG text."""

    svg: str
    """The text."""

    def __str__(self) -> str:
        return self.svg

    def __repr__(self) -> str:
        return f"Diagram of {len(self.svg)} characters; save it with .save(path)"

    def _repr_svg_(self) -> str:
        """Return the drawing for notebooks."""
        return self.svg

    def save(self, path: str | pathlib.Path) -> None:
        """Write the text into a file, such as "model.svg"."""
        pathlib.Path(path).write_text(self.svg, encoding="utf-8")


def diagram(
    layer: AnyLayer, x: Any, *, depth: int | None = None, inference_mode: bool = False
) -> Diagram:
    """Draw a model: its layers in the order in which they run, and what flows between them.

    A box shows the name and kind of a layer, an arrow the shape and dtype of what is read from it.
    A frame surrounds the layers inside a layer. Circles are sums and other operations in a wiring
    that join outputs of layers. Consecutive equal layers are drawn once, and a layer that is called
    again has a dashed box. Nothing is computed or compiled.

    The layers are drawn, and what flows between them from x to y. What else a layer or wiring does
    is not: its own parameters, such as the router of `mlax.moe`; parameters of another layer, as
    with tied weights; and functions of one value that it applies in between, such as an activation.
    (In `mlax.f` that is a layer, and has a box.)

    Args:
        layer: any layer.
        x: an input of it, or its shapes and dtypes.
        depth: how many levels of layers to draw; None draws all.
        inference_mode: whether to evaluate `apply` as in inference.

    Raises:
        Exception: whatever `init` or `apply` raises, with a note that gives the path.

    >>> import jax.numpy as jnp, mlax
    >>> model = mlax.series(mlax.dense(8), mlax.residual(mlax.dense(8)))
    >>> drawing = mlax.diagram(model, jnp.ones((5, 3)))
    >>> drawing  # doctest: +ELLIPSIS
    Diagram of ... characters; save it with .save(path)
    >>> str(drawing)[:4]
    '<svg'
    """
    require_depth("diagram", depth)
    model = abstract_model("diagram", layer, x)
    x = shapes(x)
    found = flow(model, x, inference_mode)
    ends = spelled(x), spelled(found.output)
    figure = _Drawing(found, dict(layers_by_path(model.child)), depth).figure((), *ends)
    return Diagram(page(figure, *ends))


class _Drawing:
    """The figures of the layers of a model."""

    def __init__(self, flow: Flow, layers: dict[Path, tuple[Child, ...]], depth: int | None):
        self._flow, self._layers, self._depth = flow, layers, depth
        self._frames = {path[:-1] for path in layers if path}

    def figure(self, path: Path, before: str, after: str, keys: Sequence[str] = ()) -> Figure:
        """Return the figure of a layer, or of equal ones, with the labels before and after it."""
        own = tuple(LATER_CALL.sub("", key) for key in path)
        chain = self._layers[own]
        keys = keys or own[-1:]
        outer = self._layers[own[:-1]][-1].config if own else None
        count = outer.num_experts if isinstance(outer, MoeConfig) else len(keys)
        title = _title(keys, chain, count)
        has_copies = count > 1 or any(map(_copies, chain))
        is_again = path != own and chain[0].params_type is not Nothing
        if own not in self._frames or is_again or len(path) == self._depth:
            return box(title, _color(chain), has_copies, is_again)
        return frame(title, has_copies, self._column(path, before, after))

    def _column(self, path: Path, before: str, after: str) -> Figure:
        """Return the figures inside a layer, and the arrows between them."""
        graph, keys = _folded(self._flow.graph(path), functools.partial(self._alike, path))
        labels = {node: spelled(values) for node, values in graph.values.items()}
        figures: dict[Node, Figure] = {}
        written: dict[Node, str] = {}
        for node, label in labels.items():
            known = [labels[a] for a, b in graph.edges if b == node and a in labels]
            is_last = {b for a, b in graph.edges if a == node} == {OUTPUT}
            if node == INPUT:
                known = [before]
            elif not isinstance(node, Join):
                known = [after] if is_last else []
            elif is_last or graph.nodes[node] not in SIGNS:
                known += [label]
            if label not in known and any(a == node for a, _ in graph.edges):
                written[node] = cut(label, 30)
        for node, operation in graph.nodes.items():
            if isinstance(node, Join):
                figures[node] = join(operation)
            else:
                sources = {labels[a]: None for a, b in graph.edges if b == node and a in labels}
                around = ", ".join(sources), labels.get(node, after)
                figures[node] = self.figure((*path, node), *around, keys[node])
        return Rows(graph, figures, written).figure()

    def _alike(self, path: Path, one: str, other: str) -> bool:
        """Return whether two layers are equal except for their parameters."""
        first, second = (self._layers.get((*path, key)) for key in (one, other))
        if first is None or second is None:
            return False
        return first[0]._replace(key=None) == second[0]._replace(key=None)


def _folded(
    graph: Graph, alike: Callable[[str, str], bool]
) -> tuple[Graph, dict[Node, tuple[str, ...]]]:
    """Return a graph with equal layers that follow each other as one, and the keys of each."""
    into: dict[Node, list[Node]] = defaultdict(list)
    out: dict[Node, list[Node]] = defaultdict(list)
    for source, target in graph.edges:
        into[target].append(source)
        out[source].append(target)
    first: dict[Node, Node] = {INPUT: INPUT, OUTPUT: OUTPUT}
    keys: dict[Node, tuple[str, ...]] = {}
    values = dict(graph.values)
    for node in graph.nodes:
        before = into[node][0] if len(into[node]) == 1 else INPUT
        first[node] = node
        if isinstance(node, Join):
            continue
        keys[node] = (node,)
        if isinstance(before, str) and before != INPUT and out[before] == [node]:
            outer = into[before][0] if len(into[before]) == 1 else OUTPUT
            same = [spelled(graph.values.get(one)) for one in (outer, before, node)]
            if alike(before, node) and same[0] == same[1] == same[2]:
                head = first[node] = first[before]
                keys[head] += keys.pop(node)
                values[head] = graph.values[node]
    edges = {(first[a], first[b]): None for a, b in graph.edges if first[a] != first[b]}
    nodes = {node: name for node, name in graph.nodes.items() if first[node] == node}
    return Graph(nodes, edges, {n: v for n, v in values.items() if first[n] == n}), keys


def _title(keys: Sequence[str], chain: tuple[Child, ...], number: int) -> tuple[str, str]:
    """Return the name and the kinds of a layer, or of a number of equal ones."""
    kinds = []
    for outer, child in zip((None, *chain), chain, strict=False):
        if outer is not None and isinstance(outer.config, ComposedConfig):
            continue  # what a recipe is made of
        count, function = _copies(child), getattr(child.config, "train_fn", None)
        name = getattr(function, "__name__", "<lambda>")
        more = f" ×{count}" if count else "" if name == "<lambda>" else f"({name})"
        kinds.append(child.kind + more)
    if number > 1:
        kinds[0] += f" ×{number}"
    ends = [LATER_CALL.sub("", key) for key in (*keys[:1], *keys[-1:]) if not key.isdigit()]
    name = " … ".join(dict.fromkeys(ends))
    kind = " › ".join(kinds)
    return "" if name == kind else name, kind


def _copies(child: Child) -> int | None:
    """Return how many copies of a layer there are in a loop or a map, if it says so."""
    config = child.config
    return config.n if isinstance(config, RepeatConfig | EnsembleConfig | PipelineConfig) else None


_COLORS = {
    "norm": ("#def2e0", "#5fa16a"),
    "attention|cell|lru|gru|ssm|mamba|moe": ("#ece1f9", "#8f6cc4"),
    "embed|parameter|position|relative": ("#fdeecb", "#c79a3a"),
}
_WITH_PARAMS, _WITHOUT = ("#dbe9fb", "#5b8bc9"), ("#eeeeee", "#999999")
"""Fill and border of a box, by kind."""


def _color(chain: tuple[Child, ...]) -> tuple[str, str]:
    for pattern, color in _COLORS.items():
        if any(re.search(pattern, child.kind) for child in chain):
            return color
    return _WITHOUT if chain[0].params_type is Nothing else _WITH_PARAMS
