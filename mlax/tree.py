"""Working on params, state, modules and any other pytree: by path, by pattern, in parts.

A path is spelled with dots: attribute names, dict keys and places, as "head.kernel" or
"0.kernel". Where a function takes `where`, that is a pattern as in `fnmatch` ("*.kernel",
"head.*"; a star also matches dots), or a predicate `(path, leaf) -> bool`.
"""

import fnmatch
import math
from collections.abc import Callable, Hashable
from typing import Any, TypeAlias, TypeVar

import jax
import numpy as np
from jax.tree_util import DictKey, FlattenedIndexKey, GetAttrKey, SequenceKey

__all__ = ["combine", "count", "map_with_path", "mask", "nbytes", "partition", "paths"]

T = TypeVar("T")

Where: TypeAlias = str | Callable[[str, Any], bool]


def paths(tree: Any) -> list[str]:
    """Return the path of each leaf, in the order of the leaves.

    >>> paths({"head": {"kernel": 1.0}, "layers": (2.0, 3.0)})
    ['head.kernel', 'layers.0', 'layers.1']
    """
    return [_spelled(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def map_with_path(fn: Callable[..., Any], tree: T, *rest: Any) -> T:
    """Return the tree of fn(path, leaf, *leaves of the rest).

    >>> map_with_path(lambda path, leaf: f"{path}: {leaf}", {"a": 1, "b": (2,)})
    {'a': 'a: 1', 'b': ('b.0: 2',)}
    """
    mapped: T = jax.tree_util.tree_map_with_path(
        lambda path, *leaves: fn(_spelled(path), *leaves), tree, *rest
    )
    return mapped


def mask(tree: T, where: Where) -> T:
    """Return the tree with True for each leaf that `where` selects, False for the others.

    It is what `optax.masked` takes; with `optax.set_to_zero` it freezes parameters.

    Raises:
        ValueError: a pattern selects no leaf.

    >>> mask({"head": 1.0, "stem": 2.0}, "head")
    {'head': True, 'stem': False}
    """
    return _selected("mask", tree, where)


def partition(tree: T, where: Where) -> tuple[T, T]:
    """Return the leaves that `where` selects and the others, with None in place of what is not there.

    Raises:
        ValueError: a pattern selects no leaf.

    >>> partition({"head": 1.0, "stem": 2.0}, "head")
    ({'head': 1.0, 'stem': None}, {'head': None, 'stem': 2.0})
    """
    selected = _selected("partition", tree, where)
    chosen: T = jax.tree.map(lambda leaf, s: leaf if s else None, tree, selected)
    others: T = jax.tree.map(lambda leaf, s: None if s else leaf, tree, selected)
    return chosen, others


def combine(tree: T, *others: T) -> T:
    """Return the tree with each None filled from the first of the others that has a leaf there.

    >>> combine({"head": 1.0, "stem": None}, {"head": None, "stem": 2.0})
    {'head': 1.0, 'stem': 2.0}
    """
    combined: T = jax.tree.map(
        lambda *leaves: next((leaf for leaf in leaves if leaf is not None), None),
        tree,
        *others,
        is_leaf=lambda node: node is None,
    )
    return combined


def count(tree: Any) -> int:
    """Return the number of elements of all arrays.

    >>> import jax.numpy as jnp
    >>> count({"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4)})
    16
    """
    return sum(math.prod(np.shape(leaf)) for leaf in jax.tree.leaves(tree))


def nbytes(tree: Any) -> int:
    """Return the size of all arrays in bytes.

    >>> import jax.numpy as jnp
    >>> nbytes({"kernel": jnp.ones((3, 4)), "bias": jnp.ones(4, jnp.bfloat16)})
    56
    """
    leaves = jax.tree.leaves(tree)
    return sum(math.prod(np.shape(leaf)) * _dtype(leaf).itemsize for leaf in leaves)


def _dtype(leaf: Any) -> np.dtype[Any]:
    """Return the dtype, for a number of Python that which jax gives it."""
    dtype: np.dtype[Any] = leaf.dtype if hasattr(leaf, "dtype") else jax.dtypes.result_type(leaf)
    return dtype


def _selected(owner: str, tree: T, where: Where) -> T:
    selected = map_with_path(_predicate(where), tree)
    if isinstance(where, str) and not any(jax.tree.leaves(selected)):
        raise ValueError(f"{owner}: expected {where!r} to match a path, got none of {paths(tree)}")
    return selected


def _predicate(where: Where) -> Callable[[str, Any], bool]:
    if isinstance(where, str):
        return lambda path, _: fnmatch.fnmatchcase(path, where)
    return lambda path, leaf: bool(where(path, leaf))


def _spelled(path: tuple[Hashable, ...]) -> str:
    return ".".join(map(_entry, path))


def _entry(entry: Any) -> str:
    if isinstance(entry, GetAttrKey):
        return str(entry.name)
    if isinstance(entry, SequenceKey):
        return str(entry.idx)
    if isinstance(entry, DictKey | FlattenedIndexKey):
        return str(entry.key)
    return str(entry)
