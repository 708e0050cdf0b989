"""What the leaves of a tree are in a file."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from mlax.errors import expected, message
from mlax.safetensors import DTYPES
from mlax.tree import path_of

INDEX = ".index.json"
"""How the name of a file ends that says which tensors are in which others."""


class Leaf(NamedTuple):
    """How a leaf is stored in a file."""

    dtype: np.dtype[Any]
    """Its dtype."""
    shape: tuple[int, ...]
    """Its shape, that of the data for PRNG keys."""
    key: str | None
    """The implementation of PRNG keys, None for other leaves."""

    @property
    def nbytes(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        dtype, shape = self.dtype.name, self.shape
        if self.key is not None:
            dtype, shape = f"key of {self.key}", shape[:-1]
        return f"{dtype}[{','.join(map(str, shape))}]"


NUMBERS: dict[type, np.dtype[Any]] = {
    bool: np.dtype(bool), int: np.dtype(np.int64), float: np.dtype(np.float64),
}
"""The dtypes of Python numbers."""


def leaf_of(owner: str, name: str, leaf: Any) -> Leaf:
    """Return how a leaf is stored in a file, or raise if no file can hold it."""
    kind = NUMBERS.get(type(leaf))
    if kind is NUMBERS[int] and not -(2**63) <= leaf < 2**63:
        raise ValueError(message(owner, name or "the tree", "a 64-bit integer", leaf))
    if kind is not None:
        return Leaf(kind, (), None)
    arrays = jax.Array | np.ndarray | np.generic
    if owner == "load":
        arrays |= jax.ShapeDtypeStruct
    if not isinstance(leaf, arrays) or isinstance(leaf, Tracer):
        got = "a traced array" if isinstance(leaf, Tracer) else type(leaf).__name__
        raise TypeError(message(owner, name or "the tree", "an array, key or real number", got))
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        implementations: list[object] = []

        def data_of(key: jax.Array) -> jax.Array:
            implementations.append(jax.random.key_impl(key))
            return jax.random.key_data(key)

        data = jax.eval_shape(data_of, leaf)
        return Leaf(np.dtype(data.dtype), data.shape, str(implementations[0]))
    dtype = np.dtype(leaf.dtype)
    dtype = dtype.newbyteorder("<") if dtype.byteorder == ">" else dtype
    if dtype not in DTYPES.values():
        known = ", ".join(entry.name for entry in DTYPES.values())
        wanted = f"of a dtype among {known}"
        raise TypeError(message(owner, name or "the tree", wanted, dtype.name, "cast it"))
    return Leaf(dtype, tuple(leaf.shape), None)


def named(owner: str, tree: Any) -> dict[str, Any]:
    """Return the leaves by name, in jax's order."""
    leaves: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        name = path_of(path)
        if name in leaves or name == "__metadata__":
            what = "leaves with distinct names, none of them __metadata__"
            raise ValueError(expected(owner, what, f"{name!r}", "rename a key of a dict"))
        leaves[name] = leaf
    return leaves
