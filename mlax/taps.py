"""How intermediate values leave a model: they travel with the variables.

While `mlax.tap` runs a model, each selected child returns its variables as `Tapped`, which any
jax transformation carries out of a loop or a map as it carries the variables.
"""

import contextlib
import dataclasses
import functools
import re
import urllib.parse
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

import jax

from mlax.tree import spelled_key

T = TypeVar("T")


@contextlib.contextmanager
def setting(variable: ContextVar[T], value: T) -> Iterator[None]:
    """Set a context variable within a `with` statement."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["variables", "values"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Tapped:
    """Variables, together with intermediate values by path."""

    variables: Any
    """The variables of a child."""
    values: dict[str, Any]
    """The outputs of children by path."""


@dataclasses.dataclass(frozen=True)
class _Tap:
    wants: Callable[[str], bool]
    has_scopes: bool
    marks: bool
    path: tuple[str, ...] = ()


_TAP: ContextVar[_Tap | None] = ContextVar("tap", default=None)


def tapping(
    wants: Callable[[str], bool], has_scopes: bool = False, marks: bool = False
) -> contextlib.AbstractContextManager[None]:
    """Record the outputs of all children whose path is selected.

    If `has_scopes`, each child runs in a named scope that `path_of_scope` reads. If `marks`, each
    array that it returns is the result of an operation in that scope, even if it is its input.
    """
    return setting(_TAP, _Tap(wants, has_scopes, marks))


def path_of_scope(name_stack: str) -> str | None:
    """Return the path of the innermost child in a name stack, None if there is none."""
    found = re.findall("<([^<>]*)>", name_stack)
    return urllib.parse.unquote(found[-1]) if found else None


_NOTHING = contextlib.nullcontext()


def below(key: int | str | None) -> contextlib.AbstractContextManager[None]:
    """Add a key to the path while a child runs."""
    tap = _TAP.get()
    if tap is None or key is None:
        return _NOTHING
    return _entered(dataclasses.replace(tap, path=(*tap.path, spelled_key(key))))


@contextlib.contextmanager
def _entered(tap: _Tap) -> Iterator[None]:
    scope = f"<{urllib.parse.quote('.'.join(tap.path))}>"
    with setting(_TAP, tap), jax.named_scope(scope) if tap.has_scopes else _NOTHING:
        yield


def marked(result: Any) -> Any:
    """Return what `apply` of a child returned, with an operation that stands for its output."""
    tap = _TAP.get()
    if tap is None or not tap.marks or not isinstance(result, tuple) or len(result) != 2:
        return result
    return jax.tree.map(_mark, result[0]), result[1]


@jax.custom_jvp  # as custom_vmap has no gradient
def _mark(y: jax.Array) -> Any:
    return _mark_of_any_rank(y)


_mark.defjvp(lambda primals, tangents: (_mark(*primals), *tangents))


@jax.custom_batching.custom_vmap
def _mark_of_any_rank(y: jax.Array) -> Any:
    return jax.lax.optimization_barrier(y)


@_mark_of_any_rank.def_vmap
def _mark_of_batch(_: int, in_batched: list[bool], y: jax.Array) -> tuple[Any, bool]:
    """Mark a batch with its axis in front, wherever a loop has put it."""
    return _mark_of_any_rank(y), in_batched[0]


def is_wanted(key: int | str) -> bool:
    """Return whether a value below this path is selected."""
    tap = _TAP.get()
    return tap is not None and tap.wants(".".join((*tap.path, spelled_key(key))))


def recorded(key: int | str | None, y: Any, variables: Any) -> Any:
    """Return the variables of a child, with its output if it is selected."""
    tap = _TAP.get()
    if tap is None:
        return variables
    path = ".".join(tap.path if key is None else (*tap.path, spelled_key(key)))
    return Tapped(variables, {path: y}) if path and tap.wants(path) else variables


def separated(variables: Any, like: Any) -> tuple[Any, dict[str, Any]]:
    """Return variables structured like `like`, and the values; the innermost of a path wins."""
    if _TAP.get() is None:
        return variables, {}
    values: dict[str, Any] = {}

    def leaves_of(tree: Any) -> list[Any]:
        leaves: list[Any] = []
        for node in jax.tree.leaves(tree, is_leaf=lambda n: isinstance(n, Tapped)):
            if isinstance(node, Tapped):
                values.update(node.values)
                leaves += leaves_of(node.variables)
            else:
                leaves.append(node)
        return leaves

    return jax.tree.unflatten(jax.tree.structure(like), leaves_of(variables)), values


def rejoined(variables: Any, values: dict[str, Any]) -> Any:
    """Return variables that carry the values, the inverse of `separated`."""
    return Tapped(variables, values) if values else variables
