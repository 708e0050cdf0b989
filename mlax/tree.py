"""Working with params, state, modules and any other pytree: by path, by pattern, in parts.

A path joins attribute names, dict keys and indices with dots, as in "head.kernel" or "0.kernel".
A key that is not a name is quoted, so that no two leaves share a path: "'a.b'.kernel".

Every argument `where` is a pattern as in `fnmatch`, a list of patterns of which at least one has
to match, or a predicate `(path, leaf) -> bool`. A pattern matches whole paths, and a star also
matches dots: "6.*" selects everything below 6, "*.kernel" every kernel, but "6" only a leaf with
exactly that path.
"""

import fnmatch
import math
import operator
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

from mlax.errors import expected

__all__ = ["combine", "count", "freeze", "map_with_path", "mask", "nbytes", "partition", "paths"]

T = TypeVar("T")
K = TypeVar("K")
V = TypeVar("V")
A = TypeVar("A", bound=jax.Array)
B = TypeVar("B", bound=tuple[Any, ...] | list[Any])

if TYPE_CHECKING:
    Mask: TypeAlias = bool | tuple["Mask", ...] | list["Mask"] | dict[Any, "Mask"] | None
else:
    Mask = bool | tuple | list | dict | None
"""A tree of bools: what `mask` returns for params."""

Where: TypeAlias = str | Sequence[str] | Callable[[str, Any], bool]
"""Which leaves: a pattern, several patterns, or a predicate on path and leaf."""


def paths(tree: Any) -> list[str]:
    """Return the path of each leaf, with dict entries in insertion order.

    (`jax.tree.leaves` orders leaves by sorted keys, and so does every dict that has been through
    jax.)

    >>> paths({"stem": 1.0, "head": {"kernel": 1.0}, "layers": (2.0, 3.0)})
    ['stem', 'head.kernel', 'layers.0', 'layers.1']
    """
    return [".".join(path) for path in walk(tree)]


def walk(tree: Any) -> Iterator[tuple[str, ...]]:
    """Yield the entries of the path of each leaf."""
    if isinstance(tree, dict):
        children: list[Any] = [((DictKey(key),), child) for key, child in tree.items()]
    else:
        children = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: node is not tree)
    for path, child in children:
        if not path:
            yield ()
            continue
        for rest in walk(child):
            yield (*map(_entry, path), *rest)


@overload
def map_with_path(fn: Callable[..., A], tree: T, *rest: Any) -> T: ...
@overload
def map_with_path(fn: Callable[..., V], tree: T, *rest: Any) -> Any: ...
def map_with_path(fn: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Return the tree of fn(path, leaf, *leaves), with the leaves of `rest` at the same place.

    >>> map_with_path(lambda path, leaf: f"{path}: {leaf}", {"a": 1, "b": (2,)})
    {'a': 'a: 1', 'b': ('b.0: 2',)}
    """

    def call(path: tuple[Any, ...], *leaves: Any) -> Any:
        return fn(path_of(path), *leaves)

    return jax.tree_util.tree_map_with_path(call, tree, *rest)


# With these type variables, mypy tells a dict[str, Any] from an Any.
# pyright: reportInvalidTypeVarUse=false
@overload
def mask(tree: dict[K, V], where: Where) -> Mask: ...
@overload
def mask(tree: B, where: Where) -> Mask: ...
@overload
def mask(tree: T, where: Where) -> Any: ...
def mask(tree: Any, where: Where) -> Any:
    """Return the tree with True for each leaf that `where` selects, False for the others.

    A pattern matches whole paths: "6.*" selects the leaves below 6, "6" only a leaf at that path.
    `optax.masked` takes the result; with `optax.set_to_zero` it freezes parameters. (For tuples,
    lists and dicts it is a `mlax.types.Mask`; no type says that it has the structure of the tree.)

    Raises:
        TypeError: `where` is not a pattern, a list of patterns or a function.
        ValueError: a pattern selects no leaf.

    >>> mask({"head": 1.0, "stem": 2.0}, "head")
    {'head': True, 'stem': False}
    """
    return _selected("mask", tree, where)


def partition(tree: T, where: Where) -> tuple[T, T]:
    """Return the leaves that `where` selects, and the others, each with None for missing leaves.

    Raises:
        TypeError: `where` is not a pattern, a list of patterns or a function.
        ValueError: a pattern selects no leaf.

    >>> partition({"head": 1.0, "stem": 2.0}, "head")
    ({'head': 1.0, 'stem': None}, {'head': None, 'stem': 2.0})
    """
    selected = _selected("partition", tree, where)
    chosen: T = jax.tree.map(lambda leaf, s: leaf if s else None, tree, selected)
    others: T = jax.tree.map(lambda leaf, s: None if s else leaf, tree, selected)
    return chosen, others


def combine(tree: T, *others: T) -> T:
    """Return the tree with each None replaced by the first leaf at its place in the others.

    >>> combine({"head": 1.0, "stem": None}, {"head": None, "stem": 2.0})
    {'head': 1.0, 'stem': 2.0}
    """

    def first(*leaves: Any) -> Any:
        return next((leaf for leaf in leaves if leaf is not None), None)

    combined: T = jax.tree.map(first, tree, *others, is_leaf=lambda node: node is None)
    return combined


def freeze(params: T, where: Where = "*", copies: Sequence[int] | None = None) -> T:
    """Return params whose selected leaves get no gradient, for use in a loss.

    With `copies`, only these indices of the leading axis get none: some copies of a `mlax.repeat`
    are fixed and the others trained. The optimizer sees zero gradients; if it changes leaves all
    the same, as weight decay does, `mlax.mask` excludes them, as a whole.

    Args:
        params: params, for use in a loss.
        where: which leaves, as in `mlax.mask`.
        copies: indices of their leading axis, which must be of one length for all of them: select
            the leaves of the repeated layer alone, such as "body.*".

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: `where` selects no leaf, or leaves lack such a copy or differ in copies.

    >>> import jax, jax.numpy as jnp, mlax
    >>> params = {"body": jnp.ones((3, 2)), "head": jnp.ones(2)}
    >>> def loss(params):
    ...     params = mlax.freeze(params, "body", copies=[0])
    ...     return jnp.sum(params["body"] * params["head"])
    >>> jax.grad(loss)(params)["body"]
    Array([[0., 0.],
           [1., 1.],
           [1., 1.]], dtype=float32)
    """
    if callable(getattr(params, "init", None)):
        got, way_out = "a layer", "for a layer there is mlax.frozen"
        raise TypeError(expected("freeze", "params to be a tree of arrays", got, way_out))
    selected = require_selected("freeze", params, where)
    indices = None if copies is None else _read_copies(copies)
    lengths: dict[int, str] = {}

    def fixed(path: str, leaf: jax.Array, is_selected: bool) -> jax.Array:
        if not is_selected or indices is None:
            return lax.stop_gradient(leaf) if is_selected else leaf
        if not indices:
            return leaf
        length, *rest = np.shape(leaf) or (0,)
        lengths.setdefault(length, path)
        if not all(-length <= copy < length for copy in indices):
            got = f"shape {np.shape(leaf)}"
            raise ValueError(expected("freeze", f"{path} to have copies {indices}", got))
        if len(lengths) > 1:
            what = "leaves with one number of copies"
            got = " and ".join(f"{length} ({path})" for length, path in lengths.items())
            way_out = "select those of the repeated layer alone with where"
            raise ValueError(expected("freeze", what, got, way_out))
        is_fixed = np.zeros(length, bool)
        is_fixed[indices] = True
        return jnp.where(is_fixed.reshape(-1, *[1] * len(rest)), lax.stop_gradient(leaf), leaf)

    return map_with_path(fixed, params, selected)


def _read_copies(copies: Any) -> list[int]:
    """Require a sequence of integers."""
    try:
        if isinstance(copies, str):
            raise TypeError
        return [operator.index(copy) for copy in copies]
    except TypeError:
        what = "copies to be indices, such as [0, 1]"
        raise TypeError(expected("freeze", what, repr(copies))) from None


def count(tree: Any) -> int:
    """Return the total number of elements in all arrays.

    >>> import jax.numpy as jnp
    >>> count({"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)})
    16
    """
    return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(tree))


def nbytes(tree: Any) -> int:
    """Return the total size of all arrays in bytes.

    >>> import jax.numpy as jnp
    >>> nbytes({"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4, jnp.bfloat16)})
    56
    """
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(np.shape(leaf)) * _dtype(leaf).itemsize for leaf in leaves)


def _dtype(leaf: Any) -> np.dtype[Any]:
    """Return the dtype of a leaf, for a Python number the dtype jax gives it."""
    dtype: np.dtype[Any] = leaf.dtype if hasattr(leaf, "dtype") else jax.dtypes.result_type(leaf)
    return dtype


def _selected(owner: str, tree: Any, where: Where, way_out: str = "") -> Any:
    selected = map_with_path(predicate(read_where(owner, where)), tree)
    require_match(owner, where, paths(tree), way_out)
    return selected


def require_selected(owner: str, tree: Any, where: Where, way_out: str = "") -> Any:
    """Return the tree with True for each leaf that `where` selects, which must be at least one."""
    selected = _selected(owner, tree, where, way_out)
    if not any(jax.tree.leaves(selected)):
        got = f"none of {_listed(paths(tree))}"
        raise ValueError(expected(owner, "where to select a leaf", got, way_out))
    return selected


def read_where(owner: str, where: Any) -> Where:
    """Require a pattern, patterns or a predicate, and return patterns as a tuple."""
    read: Where = where
    if isinstance(where, str) or callable(where):
        return read
    if isinstance(where, Sequence) and where and all(isinstance(w, str) for w in where):
        return tuple(where)
    what = "where to be a pattern, a list of patterns or a function of path and leaf"
    raise TypeError(expected(owner, what, type(where).__name__))


def predicate(where: Where) -> Callable[[str, Any], bool]:
    """Return `where` as a function of path and leaf."""
    if callable(where):
        return lambda path, leaf: bool(where(path, leaf))
    patterns = (where,) if isinstance(where, str) else where
    return lambda path, _: any(fnmatch.fnmatchcase(path, pattern) for pattern in patterns)


def require_match(owner: str, where: Where, found: Sequence[str], way_out: str = "") -> None:
    """Require that each pattern matches one of the paths."""
    if callable(where) or where == "*":
        return
    for pattern in (where,) if isinstance(where, str) else where:
        if not fnmatch.filter(found, pattern):
            below = f"{pattern}.*"
            if fnmatch.filter(found, below):
                way_out = f"{below!r} matches everything below it"
            got = f"none among {_listed(found)}"
            raise ValueError(expected(owner, f"{pattern!r} to match a path", got, way_out))


def _listed(found: Sequence[str]) -> str:
    more = f", ... ({len(found)} paths)" if len(found) > _MOST_PATHS else ""
    return f"{', '.join(found[:_MOST_PATHS])}{more}" or "no paths"


_MOST_PATHS = 16


def path_of(entries: Sequence[Any]) -> str:
    """Return the path that jax gives as a sequence of keys."""
    return ".".join(map(_entry, entries))


def _entry(entry: Any) -> str:
    if isinstance(entry, GetAttrKey):
        return str(entry.name)
    if isinstance(entry, SequenceKey):
        return str(entry.idx)
    if isinstance(entry, DictKey | FlattenedIndexKey):
        return spelled_key(entry.key)
    return spelled_key(str(entry))


def spelled_key(key: Hashable) -> str:
    """Return a key as written in a path: quoted if it is neither a name nor a number."""
    is_name = not isinstance(key, str) or key.replace(":", "_").isidentifier()
    return str(key) if is_name else repr(key)


LATER_CALL = re.compile(r":\d+")
"""What marks the later calls of a layer of a `mlax.block` in its key."""
