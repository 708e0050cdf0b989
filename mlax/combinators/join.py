"""Joining the entries of a tuple or dict into one array: `add` and `concatenate`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlax import arguments
from mlax.pair import AxisName, Key, State, layer


class AddConfig(NamedTuple):
    """Configuration of `add`: nothing but its name."""


class ConcatenateConfig(NamedTuple):
    """Configuration of `concatenate`."""

    axis: int
    """The axis along which the entries follow each other."""


def apply_add(
    params: tuple[()],
    state: State[tuple[()], AddConfig],
    x: Any,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, State[tuple[()], AddConfig]]:
    """Return the sum of the entries: see `mlax.Apply` and `mlax.add`."""
    arguments.config_of("add", state, AddConfig)
    entries = _entries("add", x)
    if len({entry.shape for entry in entries}) != 1:
        raise ValueError(_unequal("add", "entries of one shape", entries))
    return sum(entries[1:], start=entries[0]), state


@layer(apply_add)
def add(rng: Key, x: Any) -> tuple[tuple[()], State[tuple[()], AddConfig]]:
    """The sum of the entries of a tuple of arrays of one shape, or of a dict of them.

    Raises:
        TypeError: x is not a tuple or dict.
        ValueError: x is empty, or its entries are not of one shape.

    >>> import jax, jax.numpy as jnp, mlax
    >>> x = (jnp.ones(2), jnp.ones(2))
    >>> params, state = mlax.add.init(jax.random.key(0), x)
    >>> mlax.add.apply(params, state, x)[0]
    Array([2., 2.], dtype=float32)
    """
    jax.eval_shape(lambda x: apply_add((), State((), AddConfig()), x)[0], x)
    return (), State((), AddConfig())


def apply_concatenate(
    params: tuple[()],
    state: State[tuple[()], ConcatenateConfig],
    x: Any,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, State[tuple[()], ConcatenateConfig]]:
    """Return the entries one after the other: see `mlax.Apply` and `mlax.concatenate`."""
    config = arguments.config_of("concatenate", state, ConcatenateConfig)
    entries = _entries("concatenate", x)
    (axis,) = arguments.canonical_axes("concatenate", config.axis, entries[0].ndim)
    if len({(e.ndim, *e.shape[:axis], *e.shape[axis + 1 :]) for e in entries}) != 1:
        raise ValueError(_unequal("concatenate", f"one shape but for axis {axis}", entries))
    return jnp.concatenate(entries, axis), state


@layer(apply_concatenate, checks={"axis": arguments.check_integer})
def concatenate(
    rng: Key, x: Any, axis: int = -1
) -> tuple[tuple[()], State[tuple[()], ConcatenateConfig]]:
    """The arrays in a tuple one after the other along an axis, or those in a dict by name.

    A dict is joined in the order of its sorted names, since no other order survives jax.

    Args:
        axis: the axis along which they are put together.

    Raises:
        TypeError: x is not a tuple or dict.
        ValueError: x is empty, or its entries differ in shape along another axis.

    Source: `jax.numpy.concatenate`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> x = (jnp.ones(2), jnp.zeros(1))
    >>> init, apply = mlax.concatenate()
    >>> params, state = init(jax.random.key(0), x)
    >>> apply(params, state, x)[0]
    Array([1., 1., 0.], dtype=float32)
    """
    state = State((), ConcatenateConfig(axis))
    jax.eval_shape(lambda x: apply_concatenate((), state, x)[0], x)
    return (), state


def _entries(owner: str, x: Any) -> list[jax.Array]:
    wanted = "a tuple or dict of arrays"
    if not isinstance(x, tuple | list | dict):
        raise TypeError(arguments.message(owner, "x", wanted, type(x).__name__))
    entries = [x[name] for name in sorted(x)] if isinstance(x, dict) else list(x)
    for entry in entries:
        if not hasattr(entry, "shape"):
            raise TypeError(arguments.message(owner, "x", wanted, f"one of {type(entry).__name__}"))
    if not entries:
        raise ValueError(arguments.message(owner, "x", "at least one array", "none"))
    return entries


def _unequal(owner: str, wanted: str, entries: list[jax.Array]) -> str:
    return arguments.message(owner, "x", wanted, f"shapes {[entry.shape for entry in entries]}")
