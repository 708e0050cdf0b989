"""How the arrays inside a model are sharded while it runs under a plan of `mlax.sharding`.

The plan is set around `apply`; every child reads it by its path, under any transformation of jax.
Mesh axes are automatic here: a constraint is a request that the compiler fulfils.
"""

import contextlib
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

import jax
from jax import lax
from jax.sharding import PartitionSpec

from mlax.taps import setting
from mlax.tree import LATER_CALL, path_of, spelled_key

T = TypeVar("T")


class Constraints(NamedTuple):
    """What a plan asks of a model."""

    params: Mapping[tuple[str, ...], Mapping[str, PartitionSpec]]
    """By the path of a layer whose own params are resharded while it runs: the spec of each."""
    outputs: Callable[[str], PartitionSpec | None]
    """By the path of a layer: the spec of its output; None leaves it to the compiler."""
    require: Callable[[str, Any, PartitionSpec], None]
    """Raises if no array in the output of a layer fits a spec, or one fits only in part."""
    roles: Mapping[str, tuple[str, ...]]
    """The mesh axes for the roles that layers give to axes of an array: "experts", "tokens"."""
    path: tuple[str, ...] = ()
    """The path of the layer that runs."""


_CONSTRAINTS: ContextVar[Constraints | None] = ContextVar("constraints", default=None)
_NOTHING = contextlib.nullcontext()


def constraining(constraints: Constraints | None) -> contextlib.AbstractContextManager[None]:
    """Run a model under these constraints."""
    return setting(_CONSTRAINTS, constraints)


def below(key: int | str | None) -> contextlib.AbstractContextManager[None]:
    """Add a key to the path while a child runs."""
    constraints = _CONSTRAINTS.get()
    if constraints is None or key is None:
        return _NOTHING
    name = LATER_CALL.sub("", spelled_key(key))
    return constraining(constraints._replace(path=(*constraints.path, name)))


def are_set() -> bool:
    """Return whether the model runs under a plan."""
    return _CONSTRAINTS.get() is not None


def gathering(apply: Callable[..., T]) -> Callable[..., T]:
    """Return `apply` of a layer, made to reshard its own params while it runs.

    It is for the innermost layer with a path: each copy in a `mlax.repeat` is resharded when it
    runs, after its dtype was cast. The backward pass reshards params again rather than save them.
    (A policy for the whole model would overrule every `mlax.remat` in it.)
    """
    constraints = _CONSTRAINTS.get()
    specs = None if constraints is None else constraints.params.get(constraints.path)
    if specs is None:
        return apply

    def place(path: Any, leaf: Any) -> Any:
        spec = specs.get(path_of(path))
        if spec is None:
            return leaf
        return lax.with_sharding_constraint(leaf, PartitionSpec(*spec[len(spec) - leaf.ndim :]))

    def run(
        params: Any, state: Any, x: Any, rng: Any, inference_mode: Any, batch_axis_name: Any
    ) -> T:
        def gathered(params: Any, state: Any, x: Any, rng: Any) -> T:
            params = jax.tree_util.tree_map_with_path(place, params)
            return apply(params, state, x, rng, inference_mode, batch_axis_name)

        if not inference_mode:
            gathered = jax.checkpoint(gathered, policy=_saves)
        return gathered(params, state, x, rng)

    return run


def _saves(primitive: Any, *_: Any, **__: Any) -> bool:
    """Return whether the backward pass saves what a primitive returns: not resharded params."""
    return bool(primitive.name != "sharding_constraint")


def output(y: T, asked: PartitionSpec | None) -> T:
    """Return the output of a layer, sharded as the plan, or else the layer itself, asks."""
    constraints = _CONSTRAINTS.get()
    if constraints is None:
        return y
    path = ".".join(constraints.path)
    spec = constraints.outputs(path) if path else None
    if spec is not None:
        constraints.require(path, y, spec)
    where = asked if spec is None else spec
    if where is None:
        return y
    placed: T = jax.tree.map(
        lambda a: lax.with_sharding_constraint(a, where) if a.ndim >= len(where) else a, y
    )
    return placed


def split(x: jax.Array, *roles: str) -> jax.Array:
    """Return an array inside a layer, its leading axes split by their roles.

    (The compiler pads an axis that the mesh axes do not divide.)
    """
    constraints = _CONSTRAINTS.get()
    if constraints is None:
        return x
    spec = (constraints.roles.get(role) for role in roles)
    split: jax.Array = lax.with_sharding_constraint(x, PartitionSpec(*spec))
    return split
