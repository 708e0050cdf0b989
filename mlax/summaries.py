"""A model as a table: what each layer returns, holds and costs, without making an array.

Everything comes from two abstract evaluations, of `apply` in training and of its gradient with
respect to params and x. Rows are the layers of a model by path, as `mlax.paths` spells the paths of
their params; a combinator of one layer shares the row of that layer.
"""

import html
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh

from mlax import taps
from mlax.arguments import AnyLayer, described
from mlax.combinators.child import apply_child, has_path, layers_by_path, variables_of
from mlax.combinators.making import shapes
from mlax.costs import Flops, by_scope
from mlax.errors import expected, message
from mlax.outline import abstract_model, cut, require_depth, short, spelled
from mlax.sharding.planning import plan
from mlax.sharding.rules import REST_IS_WHOLE, Rules
from mlax.sharding.table import bytes_on_device
from mlax.statistics import WARNS
from mlax.tree import LATER_CALL, walk


class Row(NamedTuple):
    """A layer, with everything inside it."""

    path: tuple[str, ...]
    """The keys that lead to it; () for the model."""
    kinds: tuple[str, ...]
    """Its pair, and the pairs of only layers inside."""
    output: Any
    """Shapes and dtypes of what it returns, stacked over copies and steps; None if not called."""
    params: int
    """Number of parameters."""
    nbytes: int
    """Their bytes, on each device of a mesh."""
    variables: int
    """Bytes of its variables, on each device."""
    forward: Flops
    """Operations of `apply`."""
    backward: Flops
    """Operations of the gradient beyond those."""


class Summary(NamedTuple):
    """What `summary` returns, printed as a table."""

    rows: tuple[Row, ...]
    """The model, then its layers in order."""
    depth: int | None
    """How many levels of layers are printed; None prints all."""

    def __str__(self) -> str:
        head, *lines = (_LINE.format(*cells).rstrip() for cells in _cells(self))
        return "\n".join([head, "-" * len(head), *lines, *_notes(self)])

    def __repr__(self) -> str:
        return str(self)

    def _repr_html_(self) -> str:
        """Return the table for notebooks."""
        head, *rows = (
            "".join(f"<td>{html.escape(cell).replace('  ', '&emsp;')}</td>" for cell in cells)
            for cells in _cells(self)
        )
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        head = head.replace("td>", "th>")
        notes = "".join(f"<p>{note}</p>" for note in _notes(self))
        return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{notes}"


def summary(
    layer: AnyLayer, x: Any, *, depth: int | None = None, inference_mode: bool = False,
    mesh: Mesh | AbstractMesh | None = None, rules: Rules | None = None,
) -> Summary:
    """Return a table of a model: outputs, parameters, bytes and operations of each layer.

    Nothing is computed or compiled. `mlax.flops` says what operations are.

    Args:
        layer: any layer.
        x: an input of it, or its shapes and dtypes.
        depth: how many levels of layers to print; None prints all.
        inference_mode: whether to evaluate `apply` as in inference, without a gradient.
        mesh: a mesh, abstract or not, for bytes on each of its devices.
        rules: how params and variables are sharded, as in `mlax.sharding.plan`; those that no rule
            matches are replicated.

    Raises:
        TypeError: an argument is not what it should be.
        ValueError: the rules do not fit the model and the mesh.
        Exception: whatever `init` or `apply` raises, with a note that gives the path; or what their
            gradient raises, as that of `jax.lax.while_loop` does: pass inference_mode=True.

    >>> import jax, jax.numpy as jnp, mlax
    >>> model = mlax.series(mlax.dense(8), mlax.f(jnp.tanh), mlax.dense(2))
    >>> mlax.summary(model, jax.ShapeDtypeStruct((5, 3), jnp.float32))
    layer                    output               params  bytes  state  FLOPs   grad
    --------------------------------------------------------------------------------
    series                   f32[5,2]                 50    200      0    400    800
      0 dense                f32[5,8]                 32    128      0    240    480
      1 f                    f32[5,8]                  0      0      0      0      0
      2 dense                f32[5,2]                 18     72      0    160    320
    """
    require_depth("summary", depth)
    if not isinstance(mesh, Mesh | AbstractMesh | None):
        raise TypeError(message("summary", "mesh", "a mesh, or None", described(mesh)))
    if rules and mesh is None:
        raise ValueError(expected("summary", "a mesh for rules", "None"))
    made = abstract_model("summary", layer, x)
    layers = dict(layers_by_path(made.child))
    places = {".".join(path): path for path in layers}

    outputs: dict[str, Any] = {}

    def run(params: Any, x: Any, variables: Any, rng: Any) -> Any:
        with taps.tapping(places.__contains__, has_scopes=True), taps.setting(WARNS, False):
            y, after = apply_child("summary", made.child, params, variables, x, rng, inference_mode)
            values = {"": y, **taps.separated(after, variables)[1]}
        outputs.update(jax.tree.map(_shape, values))
        return y

    traced = run if inference_mode else _with_gradient(run)
    try:
        jaxpr = jax.make_jaxpr(traced)(made.params, shapes(x), made.variables, made.rng)
    except Exception as error:
        if not inference_mode and not has_path(error):
            error.add_note("summary: for a model without a gradient, pass inference_mode=True")
        raise
    found = by_scope(jaxpr, _Scope("", False), _scope)
    forward, backward = (
        _added(
            (places[LATER_CALL.sub("", scope.path)], flops)
            for scope, flops in found.items()
            if scope.is_backward is is_backward
        )
        for is_backward in (False, True)
    )
    placed = made.params, made.variables
    if mesh is not None and rules:
        rules = rules if isinstance(rules, str) else (*rules, REST_IS_WHOLE)
        planned = plan(layer, x, rules, mesh).shapes
        placed = planned.params, variables_of(planned.state)
    counts = _by_layer(made.params, lambda leaf: leaf.size)
    nbytes, held = (_by_layer(tree, bytes_on_device) for tree in placed)
    nothing = Flops(0)
    return Summary(
        tuple(
            Row(
                path, tuple(one.kind for one in chain), outputs.get(name),
                counts.get(path, 0), nbytes.get(path, 0), held.get(path, 0),
                forward.get(path, nothing), backward.get(path, nothing),
            )
            for (name, path), chain in zip(places.items(), layers.values(), strict=True)
        ),
        depth,
    )


class _Scope(NamedTuple):
    """Where an operation belongs."""

    path: str
    is_backward: bool


def _scope(outer: _Scope, name_stack: str) -> _Scope:
    path = taps.path_of_scope(name_stack)
    is_backward = outer.is_backward or "transpose(" in name_stack
    return _Scope(outer.path if path is None else path, is_backward)


def _with_gradient(run: Callable[..., Any]) -> Callable[..., None]:
    """Return the function and its gradient in the first two arguments, without their results.

    What runs before the gradient is the function itself.
    """

    def both(params: Any, x: Any, *others: Any) -> None:
        leaves, structure = jax.tree.flatten((params, x))
        floating = [i for i, leaf in enumerate(leaves) if _is_floating(leaf)]

        def total(values: list[Any]) -> Any:
            for i, value in zip(floating, values, strict=True):
                leaves[i] = value
            y = run(*jax.tree.unflatten(structure, leaves), *others)
            real = [jnp.real(leaf) for leaf in jax.tree.leaves(y) if _is_floating(leaf)]
            sums = (jnp.sum(leaf.astype(jnp.float32)) for leaf in real)
            return sum(sums, jnp.zeros(()))

        jax.grad(total)([leaves[i] for i in floating])

    return both


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jax.dtypes.result_type(leaf))


def _is_floating(leaf: Any) -> bool:
    return bool(jnp.issubdtype(jax.dtypes.result_type(leaf), jnp.inexact))


def _by_layer(tree: Any, size: Callable[[Any], int]) -> dict[tuple[str, ...], int]:
    """Return the sum over all arrays of a layer, by its path."""
    return _added(zip(walk(tree), map(size, jax.tree.leaves(tree)), strict=True))


A = TypeVar("A", int, Flops)


def _added(values: Iterable[tuple[tuple[str, ...], A]]) -> dict[tuple[str, ...], A]:
    """Return the sums of values at each path and below it."""
    sums: dict[tuple[str, ...], A] = {}
    for path, value in values:
        for end in range(len(path) + 1):
            prefix = path[:end]
            sums[prefix] = sums[prefix] + value if prefix in sums else value
    return sums


# Printing.


_HEAD = "layer", "output", "params", "bytes", "state", "FLOPs", "grad"
_LINE = "{:<23}  {:<20} {:>6} {:>6} {:>6} {:>6} {:>6}"


def _cells(table: Summary) -> Iterator[tuple[str, ...]]:
    """Yield the head and the rows of a table."""
    yield _HEAD
    for row in table.rows:
        if table.depth is not None and len(row.path) > table.depth:
            continue
        name = " ".join(dict.fromkeys((*row.path[-1:], *row.kinds[:1])))
        sizes = (short(n) for n in (row.params, row.nbytes, row.variables))
        costs = (short(n.total) + "?" * bool(n.unknown) for n in (row.forward, row.backward))
        name, output = "  " * len(row.path) + name, spelled(row.output)
        yield cut(name, 23), cut(output, 20), *sizes, *costs


def _notes(table: Summary) -> Iterator[str]:
    """Yield what question marks mean."""
    for name in sorted(table.rows[0].forward.unknown | table.rows[0].backward.unknown):
        yield f"? {_UNKNOWN.get(name, f'{name} is not looked into')}"


_UNKNOWN = {
    "while": "a loop of unknown length counts once",
    "cond": "of several branches, the one with the most counts",
}
