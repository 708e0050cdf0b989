"""A model as a table: what each layer returns, holds and costs, without making an array.

Everything comes from two abstract evaluations, of `apply` in training and of its gradient with
respect to params and x. Rows are the layers of a model by path, as `mlax.paths` spells the paths of
their params; a combinator of one layer shares the row of that layer.
"""

import html
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from mlax import taps
from mlax.arguments import AnyLayer, described, read_integer, read_layer
from mlax.combinators.child import (
    Child, abstract_child, apply_child, children_of, has_path, one_tracing, shapes,
)
from mlax.errors import expected, message
from mlax.costs import Flops, by_scope
from mlax.statistics import WARNS
from mlax.tree import LATER_CALL, predicate, spelled_key, walk

Rules: TypeAlias = Sequence[tuple[str, PartitionSpec]]
"""Patterns of paths and how arrays there are sharded; the first that matches counts."""


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
    mesh: Mesh | AbstractMesh | None = None, rules: Rules = (),
) -> Summary:
    """Return a table of a model: outputs, parameters, bytes and operations of each layer.

    Nothing is computed or compiled. `mlax.flops` says what operations are.

    Args:
        layer: any layer.
        x: an input of it, or its shapes and dtypes.
        depth: how many levels of layers to print; None prints all.
        inference_mode: whether to evaluate `apply` as in inference, without a gradient.
        mesh: a mesh, which needs no devices if abstract, to count bytes for each device of.
        rules: (pattern of paths, PartitionSpec) for params and variables; an array that no
            pattern matches is whole on every device.

    Raises:
        TypeError: an argument is not what it should be.
        ValueError: a rule names an axis that the mesh does not have, or that does not divide.
        Exception: whatever `init` or `apply` raises, with a note that gives the path; or their
            gradient, if there is none, as of `jax.lax.while_loop`: pass inference_mode=True.

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
    read_depth("summary", depth)
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
            y, after = apply_child(
                "summary", made.child, params, variables, x, rng, inference_mode
            )
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
    params, variables = (_arrays(tree, mesh, rules) for tree in (made.params, made.variables))
    counts = _added((path, size) for path, size, _ in params)
    nbytes, held = (_added((path, n) for path, _, n in arrays) for arrays in (params, variables))
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
    """Return the function and its gradient by the first two arguments, without their results.

    What comes before the gradient is the function itself.
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


class Model(NamedTuple):
    """A model as shapes and dtypes."""

    params: Any
    """Its parameters."""
    variables: Any
    """Its variables."""
    child: Child
    """The model as the layer of a combinator."""
    x: Any
    """Its input."""
    rng: Any
    """A key."""
    output: Any
    """Its output in training."""


def read_depth(owner: str, depth: int | None) -> None:
    """Require a number of levels, or None."""
    if depth is not None and read_integer(owner, "depth", depth, "at least 0") < 0:
        raise ValueError(message(owner, "depth", "at least 0", depth))


def abstract_model(owner: str, layer: AnyLayer, x: Any) -> Model:
    """Return a model as its `init` would make it."""
    read_layer(owner, "layer", layer)
    key = jax.eval_shape(lambda: jax.random.key(0))
    x = shapes(x)
    with one_tracing():
        made = abstract_child(owner, None, layer, key, x)
    return Model(made.params, made.variables, made.child, x, key, made.output())


def layers_by_path(
    child: Child, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], tuple[Child, ...]]]:
    """Yield all layers in a layer by path, each with the only layers inside."""
    chain: tuple[Child, ...] = (child,)
    inner = children_of(child.config)
    while len(inner) == 1 and inner[0].key is None:
        chain += (inner[0],)
        inner = children_of(inner[0].config)
    yield path, chain
    for one in inner:
        assert one.key is not None  # only children have no key
        yield from layers_by_path(one, (*path, spelled_key(one.key)))


def _arrays(
    tree: Any, mesh: Mesh | AbstractMesh | None, rules: Rules
) -> list[tuple[tuple[str, ...], int, int]]:
    """Return the path, the number of elements and the bytes on a device of each array."""
    found = []
    for path, leaf in zip(walk(tree), jax.tree.leaves(tree), strict=True):
        size = math.prod(leaf.shape)
        shards = 1 if mesh is None else _shards(".".join(path), leaf.shape, mesh.shape, rules)
        found.append((path, size, size * leaf.dtype.itemsize // shards))
    return found


def _shards(
    path: str, shape: tuple[int, ...], sizes: Mapping[Any, int], rules: Rules
) -> int:
    """Return into how many parts the first rule for a path splits an array."""
    shards = 1
    spec = next((spec for pattern, spec in rules if predicate(pattern)(path, None)), ())
    if len(spec) > len(shape):
        wanted, got = f"at least {len(spec)} axes, as {spec} has", f"shape {shape}"
        raise ValueError(message("summary", path, wanted, got))
    for length, names in zip(shape, spec, strict=False):
        for name in names if isinstance(names, tuple) else () if names is None else (names,):
            if name not in sizes:
                wanted = f"an axis of the mesh, {', '.join(map(repr, sizes))}"
                raise ValueError(message("summary", f"the axis for {path}", wanted, repr(name)))
            shards *= sizes[name]
            if length % sizes[name]:
                wanted = f"axes that the {sizes[name]} shards of {name!r} divide"
                raise ValueError(message("summary", path, wanted, f"shape {shape}"))
            length //= sizes[name]
    return shards


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
        yield _cut(name, 23), _cut(output, 20), *sizes, *costs


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else f"{text[: width - 1]}…"


def _notes(table: Summary) -> Iterator[str]:
    """Yield what question marks mean."""
    for name in sorted(table.rows[0].forward.unknown | table.rows[0].backward.unknown):
        yield f"? {_UNKNOWN.get(name, f'{name} is not looked into')}"


_UNKNOWN = {
    "while": "a loop of unknown length counts once",
    "cond": "of branches, that with the most counts",
}


def short(number: int) -> str:
    """Return a number with at most three digits and a letter."""
    if number < 1000:
        return str(number)
    power = min(int(f"{number:.2e}".split("e")[1]) // 3, 6)
    return f"{number / 1000**power:.3g}{'KMGTPE'[power - 1]}"


_SHORT = re.compile("^(float|int|uint|complex)(?=[0-9])")
"""Names of dtypes that their first letter stands for."""


def spelled(output: Any) -> str:
    """Return shapes and dtypes, as in "f32[5,2]"."""
    leaves = [
        _SHORT.sub(lambda found: found[0][0], leaf.dtype.name.replace("bfloat", "bf"))
        + f"[{','.join(map(str, leaf.shape))}]"
        for leaf in jax.tree.leaves(output)
    ]
    return leaves[0] if len(leaves) == 1 else f"({', '.join(leaves)})" if leaves else "-"
