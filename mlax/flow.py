"""What flows between the layers of a model, found in the program that JAX traces.

`apply` is traced once, in training, with a named scope around each layer and a mark on what it
returns. Every operation then belongs to a layer, and what a layer reads is followed back to the
layers that returned it. So the edges between the layers of a wiring are those of its function,
whatever it does in between; where it combines several values there is a `Join`. Values that come
only from parameters, variables and keys are not followed, nor is the carry of a loop into the next
step.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from mlax import taps
from mlax.combinators.child import apply_child
from mlax.costs import bodies_of
from mlax.statistics import WARNS
from mlax.outline import Model

Path: TypeAlias = tuple[str, ...]


class Join(NamedTuple):
    """An operation of a wiring that combines values of several layers."""

    number: int
    """How many joins come before it."""


Node: TypeAlias = str | Join
"""A layer by its key, "a:1" for the second call of "a"; a join; `INPUT` or `OUTPUT`."""

INPUT, OUTPUT = "->", "<-"


class Graph(NamedTuple):
    """What flows inside a layer."""

    nodes: dict[Node, str]
    """Layers and joins in the order in which they run; the operation of a join, "" for a layer."""
    edges: dict[tuple[Node, Node], None]
    """Each from one node to another, in order."""
    values: dict[Node, list[Any]]
    """Shapes and dtypes of what others read from a node."""


class Flow:
    """What flows inside the layers of a model."""

    def __init__(self, jaxpr: ClosedJaxpr, inputs: range, output: Any) -> None:
        """Read the program of a model, whose x is at these arguments."""
        self.output = output  # shapes and dtypes of what it returns
        self.shapes: list[Any] = []  # of each value
        self._steps: list[_Step] = []
        arguments = self._numbered(jaxpr.jaxpr.invars)
        outputs = self._read(jaxpr.jaxpr, arguments, ())
        self.below: dict[Path, list[_Step]] = defaultdict(list)  # steps in a layer
        self.readers: dict[int, set[Path | None]] = defaultdict(set)  # None stands for the caller
        self.of_x: set[int] = {arguments[i] for i in inputs}  # values that depend on x
        for step in self._steps:
            for end in range(len(step.path) + 1):
                self.below[step.path[:end]].append(step)
            for value in step.inputs:
                self.readers[value].add(step.path)
            if not self.of_x.isdisjoint(step.inputs):
                self.of_x.update(step.outputs)
        for value in outputs:
            self.readers[value].add(None)

    def graph(self, path: Path) -> Graph:
        """Return what flows inside the layer at a path."""
        return _Sources(self, path).graph()

    def _numbered(self, variables: Iterable[Any]) -> list[int]:
        """Return numbers for new values."""
        before = len(self.shapes)
        self.shapes += [variable.aval for variable in variables]
        return list(range(before, len(self.shapes)))

    def _read(self, jaxpr: Jaxpr, inputs: Sequence[int], path: Path) -> list[int]:
        """Note the steps of a function, and return what it returns."""
        numbers = dict(zip(jaxpr.invars, inputs, strict=True))
        numbers.update(zip(jaxpr.constvars, self._numbered(jaxpr.constvars), strict=True))

        def read(variables: Iterable[Any]) -> list[int]:
            return [
                self._numbered([v])[0] if isinstance(v, Literal) else numbers[v] for v in variables
            ]

        for eqn in jaxpr.eqns:
            scope = taps.path_of_scope(str(eqn.source_info.name_stack))
            own = path if scope is None else tuple(_KEY.findall(scope))
            outputs = self._outputs(eqn, read(eqn.invars), own)
            numbers.update(zip(eqn.outvars, outputs, strict=True))
        return read(jaxpr.outvars)

    def _outputs(self, eqn: JaxprEqn, inputs: list[int], path: Path) -> list[int]:
        """Note the steps of an equation, and return what it returns."""
        primitive = eqn.primitive.name
        bodies = list(bodies_of(eqn))
        if primitive == "cond":
            index, *inputs = inputs
            branches = [self._read(body, inputs, path) for body in bodies]
            return [
                self._step(path, primitive, [index, *values], variable)
                for values, variable in zip(zip(*branches, strict=True), eqn.outvars, strict=True)
            ]
        if primitive == "while":
            bodies = [eqn.params["body_jaxpr"].jaxpr]
            inputs = inputs[eqn.params["cond_nconsts"] :]
        if len(bodies) == 1 and len(bodies[0].invars) == len(inputs):
            (body,) = bodies
            inputs = self._alike(_PART, inputs, body.invars, path)
            return self._alike("stack", self._read(body, inputs, path), eqn.outvars, path)
        outputs = self._numbered(eqn.outvars)
        self._steps.append(_Step(path, primitive, inputs, outputs))
        return outputs

    def _alike(
        self, name: str, values: list[int], variables: Iterable[Any], path: Path
    ) -> list[int]:
        """Return values as a loop slices or stacks them."""
        return [
            value if self.shapes[value].shape == variable.aval.shape
            else self._step(path, name, [value], variable)
            for value, variable in zip(values, variables, strict=True)
        ]

    def _step(self, path: Path, name: str, inputs: list[int], variable: Any) -> int:
        (output,) = self._numbered([variable])
        self._steps.append(_Step(path, name, inputs, [output]))
        return output


_PART = "the part of a step"
"""The name of what a loop does at each step to a value that it runs over."""

_KEY = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|[^.]+""")


class _Step(NamedTuple):
    """An operation."""

    path: Path
    """The layer that it belongs to."""
    name: str
    """Its primitive."""
    inputs: list[int]
    """What it reads."""
    outputs: list[int]
    """What it returns."""


def flow(model: Model, x: Any, inference_mode: bool = False) -> Flow:
    """Return what flows inside a model, given the shapes and dtypes of its x."""

    def run(x: Any, params: Any, variables: Any, rng: Any) -> Any:
        with taps.tapping(lambda path: False, has_scopes=True, marks=True):
            with taps.setting(WARNS, False):
                call = params, variables, x, rng, inference_mode
                return apply_child("diagram", model.child, *call)[0]

    traced = jax.make_jaxpr(run, return_shape=True)
    jaxpr, output = traced(x, model.params, model.variables, model.rng)
    return Flow(jaxpr, range(len(jax.tree.leaves(x))), output)


class _Sources:
    """From which nodes the values inside a layer come."""

    def __init__(self, flow: Flow, path: Path) -> None:
        self._flow, self._path = flow, path
        self._nodes: dict[Node, str] = {}
        self._order: dict[Node, int] = {INPUT: -1}
        self._edges: dict[tuple[Node, Node], None] = {}
        self._sources: dict[int, frozenset[Node]] = {}
        self._maker: dict[int, Node] = {}
        self._read: dict[Node, dict[int, None]] = defaultdict(dict)
        self._joined: dict[Node, frozenset[Node]] = {}  # all that a join combines

    def graph(self) -> Graph:
        """Return what flows between the nodes."""
        depth = len(self._path)
        for step in self._flow.below[self._path]:
            if step.name == _PART and len(step.path) == depth:
                self._sliced(*step.inputs, *step.outputs)
                continue
            self._note_read(step.inputs, step.path[depth : depth + 1])
            if len(step.path) > depth:
                self._made(step, step.path[depth], "")
            else:
                self._wired(step)
        returned = [v for v in self._sources if any(map(self._is_outside, self._flow.readers[v]))]
        self._note_read(returned, ())
        self._order[OUTPUT] = len(self._nodes)
        self._connect(returned, OUTPUT)
        return self._pruned()

    def _made(self, step: "_Step", node: Node, operation: str) -> None:
        """Note a step of a node."""
        if node not in self._nodes:
            self._order[node] = len(self._nodes)
            self._nodes[node] = operation
        self._connect(step.inputs, node)
        self._sources.update(dict.fromkeys(step.outputs, frozenset([node])))
        self._maker.update(dict.fromkeys(step.outputs, node))

    def _sliced(self, value: int, part: int) -> None:
        """Note that a loop reads a value step by step: what reads the parts reads the value."""
        self._sources[part] = self._sources_of(value)
        if value in self._maker or self._is_read_from_outside(value):
            self._maker[part] = self._maker.get(value, INPUT)

    def _wired(self, step: "_Step") -> None:
        """Note a step of the wiring, which is a join if no one node has all that it reads."""
        each = [self._sources_of(value) for value in step.inputs]
        sources = frozenset[Node]().union(*each)
        if not sources or sources in each:
            self._sources.update(dict.fromkeys(step.outputs, sources))
            return
        for join in sorted(sources, key=self._order.__getitem__):
            if sources - {join} <= self._joined.get(join, frozenset()):
                self._made(step._replace(inputs=[]), join, "")
                if self._nodes[join] != step.name:
                    self._nodes[join] = ""
                return
        join = Join(len(self._joined))
        self._joined[join] = sources.union(*(self._joined.get(one, ()) for one in sources))
        self._made(step, join, step.name)

    def _is_outside(self, path: Path | None) -> bool:
        return path is None or path[: len(self._path)] != self._path

    def _sources_of(self, value: int) -> frozenset[Node]:
        if value in self._sources:
            return self._sources[value]
        return frozenset([INPUT] if value in self._flow.of_x else [])

    def _note_read(self, values: Iterable[int], reader: Path) -> None:
        """Note which values are read by another node than the one that made them."""
        for value in values:
            if value in self._maker:
                if (self._maker[value],) != reader:
                    self._read[self._maker[value]][value] = None
            elif self._is_read_from_outside(value):
                self._read[INPUT][value] = None

    def _is_read_from_outside(self, value: int) -> bool:
        return value not in self._sources and value in self._flow.of_x

    def _connect(self, values: Iterable[int], node: Node) -> None:
        """Note that a node reads values; one that is called again may read what came later."""
        for value in values:
            for source in sorted(self._sources_of(value), key=self._order.__getitem__):
                if self._order[source] < self._order[node]:
                    self._edges[source, node] = None

    def _pruned(self) -> Graph:
        """Return the graph without joins that nothing reads."""
        edges, nodes = dict(self._edges), dict(self._nodes)
        for node in reversed(self._nodes):
            if isinstance(node, Join) and not any(source == node for source, _ in edges):
                del nodes[node]
                edges = {edge: None for edge in edges if edge[1] != node}
        shapes = self._flow.shapes
        values = {
            node: [shapes[value] for value in read] for node, read in self._read.items()
            if node == INPUT or node in nodes
        }
        return Graph(nodes, edges, values)
