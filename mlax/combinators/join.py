"""Joining the entries of a tuple or dict into one array: `add`, `multiply` and `concatenate`."""

import functools
import operator
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from mlax import mesh
from mlax.arguments import Axis, canonical_axes, described
from mlax.errors import message
from mlax.layer import Key
from mlax.pair import stateless

Entries: TypeAlias = tuple[jax.Array, ...] | list[jax.Array] | dict[str, jax.Array]
"""Arrays to join."""


class AddConfig(NamedTuple):
    """Configuration of `add`: no hyperparameters."""


def apply_add(params: tuple[()], config: AddConfig, x: Entries) -> jax.Array:
    """Return the sum of the entries: see `mlax.add`."""
    y: jax.Array = functools.reduce(operator.add, _of_one_shape("add", x))
    return y


@stateless(apply_add, AddConfig)
def add(rng: Key, x: Any) -> tuple[()]:
    """The sum of the entries of a tuple or dict of arrays of one shape.

    Raises:
        TypeError: x is not a tuple or dict.
        ValueError: x is empty, or its entries differ in shape.

    >>> import jax, jax.numpy as jnp, mlax
    >>> x = (jnp.ones(2), jnp.ones(2))
    >>> params, state = mlax.add.init(jax.random.key(0), x)
    >>> mlax.add.apply(params, state, x)[0]
    Array([2., 2.], dtype=float32)
    """
    _of_one_shape("add", x)
    return ()


class MultiplyConfig(NamedTuple):
    """Configuration of `multiply`: no hyperparameters."""


def apply_multiply(params: tuple[()], config: MultiplyConfig, x: Entries) -> jax.Array:
    """Return the product of the entries: see `mlax.multiply`."""
    y: jax.Array = functools.reduce(operator.mul, _of_one_shape("multiply", x))
    return y


@stateless(apply_multiply, MultiplyConfig)
def multiply(rng: Key, x: Any) -> tuple[()]:
    """The product of the entries of a tuple or dict of arrays of one shape.

    Raises:
        TypeError: x is not a tuple or dict.
        ValueError: x is empty, or its entries differ in shape.

    >>> import jax, jax.numpy as jnp, mlax
    >>> gated = mlax.branch(mlax.dense(4), mlax.series(mlax.dense(4), mlax.f(jax.nn.sigmoid)))
    >>> init, apply = mlax.series(gated, mlax.multiply())
    >>> params, state = init(jax.random.key(0), jnp.ones(2))
    >>> apply(params, state, jnp.ones(2))[0].shape
    (4,)
    """
    _of_one_shape("multiply", x)
    return ()


class ConcatenateConfig(NamedTuple):
    """Configuration of `concatenate`."""

    axis: int
    """The axis along which the entries are concatenated."""
    ndim: int | None
    """Number of axes of each entry, None if `axis` counts from the last."""


def apply_concatenate(params: tuple[()], config: ConcatenateConfig, x: Entries) -> jax.Array:
    """Return the concatenated entries: see `mlax.concatenate`."""
    entries = mesh.placed_together(*_joinable(x, config.axis))
    return jnp.concatenate(entries, config.axis)


@stateless(apply_concatenate, ConcatenateConfig)
def concatenate(rng: Key, x: Any, axis: Axis = -1) -> tuple[()]:
    """The entries of a tuple or dict of arrays, concatenated along an axis.

    The entries of a dict are taken in the order of their sorted names, the only one jax keeps.

    Args:
        axis: the axis along which the entries are concatenated.

    Raises:
        TypeError: x is not a tuple or dict.
        ValueError: x is empty, or its entries differ in shape along another axis, or have other
            axes than in `init` and `axis` counts from the first.

    Source: `jax.numpy.concatenate`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> x = (jnp.ones(2), jnp.zeros(1))
    >>> init, apply = mlax.concatenate()
    >>> params, state = init(jax.random.key(0), x)
    >>> apply(params, state, x)[0]
    Array([1., 1., 0.], dtype=float32)
    """
    _joinable(x, axis)
    return ()


def _entries(owner: str, x: Any) -> list[Any]:
    wanted = "a tuple or dict of arrays"
    if not isinstance(x, tuple | list | dict):
        raise TypeError(message(owner, "x", wanted, described(x)))
    entries = [x[name] for name in sorted(x)] if isinstance(x, dict) else list(x)
    for entry in entries:
        if not hasattr(entry, "shape"):
            raise TypeError(message(owner, "x", wanted, f"{described(entry)} among them"))
    if not entries:
        raise ValueError(message(owner, "x", "at least one array", "none"))
    return entries


def _of_one_shape(owner: str, x: Any) -> list[Any]:
    entries = _entries(owner, x)
    if len({entry.shape for entry in entries}) != 1:
        raise ValueError(_unequal(owner, "entries of one shape", entries))
    return entries


def _joinable(x: Any, axis: int) -> list[Any]:
    entries = _entries("concatenate", x)
    (along,) = canonical_axes("concatenate", axis, len(entries[0].shape))
    others = {(len(e.shape), *e.shape[:along], *e.shape[along + 1 :]) for e in entries}
    if len(others) != 1:
        raise ValueError(_unequal("concatenate", f"one shape except along axis {along}", entries))
    return entries


def _unequal(owner: str, wanted: str, entries: list[Any]) -> str:
    return message(owner, "x", wanted, f"shapes {[entry.shape for entry in entries]}")
