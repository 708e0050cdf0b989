"""A plan as a table: how each parameter is sharded, and the bytes of everything on each device."""

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
from jax.extend.core import Jaxpr, Literal
from jax.sharding import AbstractMesh, Mesh, PartitionSpec

from mlax.costs import bodies_of
from mlax.mesh import names_in
from mlax.outline import Model, cut, short, spelled
from mlax.tree import nbytes, paths


class Shapes(NamedTuple):
    """The `jax.ShapeDtypeStruct` of each array, with its sharding."""

    params: Any
    """Of params."""
    state: Any
    """Of the state."""
    x: Any
    """Of x."""
    y: Any
    """Of y, in training."""
    optimizer: Any
    """Of the state of the optimizer; None without one."""


_LINE = "{:<33} {:<20} {:<16} {:>8}"


def printed(shapes: Shapes, mesh: Mesh | AbstractMesh, parts: dict[str, int]) -> str:
    """Return the table of a plan with these bytes by part, at most 80 columns wide."""
    head = _LINE.format("parameter", "whole", "split over", "bytes")
    rows = [head, "-" * len(head)]
    for path, leaf in zip(paths(shapes.params), jax.tree.leaves(shapes.params), strict=True):
        cells = path, spelled(leaf), _axes(leaf.sharding.spec)
        fitting = (cut(cell, width) for cell, width in zip(cells, (33, 20, 16), strict=True))
        rows.append(_LINE.format(*fitting, short(bytes_on_device(leaf))))
    sizes = ", ".join(f"{name} {size}" for name, size in mesh.shape.items())
    rows += ["", f"on each of {mesh.size} devices ({sizes})"]
    for name, size in {**parts, "sum": sum(parts.values())}.items():
        rows.append(f"  {name:<24} {short(size):>8}")
    return "\n".join(rows)


def bytes_by_part(
    shapes: Shapes, model: Model, mesh: AbstractMesh, apply: Callable[..., tuple[Any, Any]]
) -> dict[str, int]:
    """Return the bytes on each device of what a training step needs.

    The axes of the mesh are automatic, and `apply` is that of the plan on this mesh.
    """
    parts = {
        "params": shapes.params, "gradients": shapes.params, "optimizer": shapes.optimizer,
        "variables": shapes.state, "x": shapes.x,
    }
    found = {name: sum(map(bytes_on_device, jax.tree.leaves(p))) for name, p in parts.items()}
    try:
        return {**found, "activations (estimate)": _activation_bytes(shapes, model, mesh, apply)}
    except ValueError as error:
        if "inference_mode=True" not in str(error):
            raise
        return found  # a model with caches has no backward pass


def bytes_on_device(leaf: Any) -> int:
    """Return the bytes of the part of an array that a device holds, all if it has no sharding."""
    where = getattr(leaf, "sharding", None)
    shape = leaf.shape if where is None else where.shard_shape(leaf.shape)
    size: int = math.prod(shape) * leaf.dtype.itemsize
    return size


def _activation_bytes(
    shapes: Shapes, model: Model, mesh: AbstractMesh, apply: Callable[..., tuple[Any, Any]]
) -> int:
    """Estimate the bytes on each device that are saved for the backward pass.

    An array counts as sharded like others of its shape with a sharding constraint, or else like the
    batch: what a layer computes in parts takes less. Copies of params, such as those in another
    dtype, are sharded like params. What the backward pass recomputes comes on top.
    """
    def kept(params: Any, state: Any, x: Any, rng: Any) -> list[Any]:
        _, backward = jax.vjp(lambda params: apply(params, state, x, rng)[0], params)
        return jax.tree.leaves(backward)

    args = model.params, model.child.state(model.variables), model.x, model.rng
    with jax.sharding.use_abstract_mesh(mesh):
        jaxpr = jax.make_jaxpr(kept)(*args).jaxpr
    params = jax.tree.leaves(shapes.params)
    given = {*jaxpr.invars, *jaxpr.constvars}
    of_params = set(jaxpr.invars[: len(params)])
    for eqn in jaxpr.eqns:
        if of_params.issuperset(v for v in eqn.invars if not isinstance(v, Literal)):
            of_params.update(eqn.outvars)
            if eqn.primitive.name == "sharding_constraint":
                given.update(eqn.outvars)
    new = {v for v in jaxpr.outvars if not isinstance(v, Literal)} - given

    specs = (leaf.sharding.spec for leaf in jax.tree.leaves(shapes.x) if leaf.ndim)
    batch: PartitionSpec = next(specs, PartitionSpec())
    split = set(names_in(batch))
    places = {shape: spec for shape, spec in _constrained(jaxpr) if split <= set(names_in(spec))}
    share = sum(map(bytes_on_device, params)) / max(nbytes(params), 1)

    def on_device(aval: Any) -> float:
        spec = places.get(aval.shape, places.get(aval.shape[1:], batch))
        shards: int = math.prod(mesh.shape.get(name, 1) for name in names_in(spec))
        return nbytes(aval) / shards

    return int(sum(share * nbytes(v.aval) if v in of_params else on_device(v.aval) for v in new))


def _constrained(jaxpr: Jaxpr) -> Iterator[tuple[tuple[int, ...], PartitionSpec]]:
    """Yield the shapes and specs of arrays with sharding constraints."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "sharding_constraint":
            aval: Any = eqn.outvars[0].aval
            yield aval.shape, eqn.params["sharding"].spec
        for body in bodies_of(eqn):
            yield from _constrained(body)


def _axes(spec: PartitionSpec) -> str:
    """Return the mesh axes for each axis of an array, "-" where it is whole."""
    return ", ".join("+".join(map(str, names_in([entry]))) or "-" for entry in spec)
