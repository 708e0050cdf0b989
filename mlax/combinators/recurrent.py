"""A cell run over a leading time axis: (y_t, h_t) = cell(x_t, h_{t-1}).

params and variables are those of the cell.
"""

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax import lax

from mlax import arguments
from mlax.combinators.child import (
    AnyLayer,
    Child,
    any_needs_rng,
    apply_child,
    init_child,
    init_keys,
    require_layer,
    shapes,
)
from mlax.pair import AxisName, Key, Layer, PairBase, State

P = TypeVar("P")
X = TypeVar("X")
Y = TypeVar("Y")
H = TypeVar("H")


class RecurrentConfig(NamedTuple):
    """Configuration of `recurrent`."""

    cell: Child
    """What is kept of the cell."""
    reverse: bool
    """Whether the last step is run first."""
    unroll: int
    """How many steps are written out in one iteration of the loop."""


class Recurrent(PairBase[Any, State[Any, RecurrentConfig], tuple[Any, Any], tuple[Any, Any]]):
    """The type of `recurrent`: what is known of the cell is known of the loop."""

    def __call__(
        self,
        cell: Layer[P, Any, tuple[X, H], tuple[Y, H]],
        reverse: bool = False,
        unroll: int = 1,
    ) -> Layer[P, State[Any, RecurrentConfig], tuple[X, H], tuple[Y, H]]:
        """Return the cell run over time."""
        return self.bind(cell, reverse, unroll)


def apply(
    params: Any,
    state: State[Any, RecurrentConfig],
    x: tuple[Any, Any],
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[tuple[Any, Any], State[Any, RecurrentConfig]]:
    """Return the outputs of all steps and the last carry: see `mlax.Apply` and `mlax.recurrent`."""
    cell, reverse, unroll = arguments.config_of("recurrent", state, RecurrentConfig)
    xs, h = _pair("x", "(xs, h)", x)
    length = arguments.leading_length("recurrent", "xs", xs, "time")
    use_key = rng is not None and cell.needs_rng
    steps = jnp.arange(length)
    indices = (steps[::-1] if reverse else steps) if use_key else None

    def step(carry: tuple[Any, Any], inputs: tuple[Any, Any]) -> tuple[tuple[Any, Any], Any]:
        h, variables = carry
        x, index = inputs
        key = None if rng is None or index is None else jax.random.fold_in(rng, index)
        result, variables = apply_child(
            "recurrent", cell, params, variables, (x, h), key, inference_mode, batch_axis_name
        )
        y, h = _pair("the output of the cell", "(y, h)", result)
        return (h, variables), y

    (h, variables), ys = lax.scan(
        step, (h, state.variables), (xs, indices), length, reverse, unroll
    )
    return (ys, h), State(variables, state.config)


@Recurrent.of(
    apply,
    needs_rng=lambda cell, *_, **__: any_needs_rng(cell),
    checks={"cell": require_layer, "reverse": arguments.check_bool, "unroll": arguments.check_size},
)
def recurrent(
    rng: Key, x: tuple[Any, Any], cell: AnyLayer, reverse: bool = False, unroll: int = 1
) -> tuple[Any, State[Any, RecurrentConfig]]:
    """A cell run over time by `jax.lax.scan`: (xs, h) -> (ys, h).

    The cell maps (x, h) to (y, h). `xs` and `ys` are pytrees with a leading time axis, h is
    the carry, a pytree that keeps its shapes and dtypes. The parameters are shared by all
    steps; the variables of the cell go from step to step. If the cell needs a key, the step
    that is run as number i, counted in running order, gets fold_in(rng, i).

    Args:
        cell: layer from (x, h) to (y, h).
        reverse: run from the last step to the first; outputs keep the index of their input.
        unroll: number of steps in one iteration of the loop, as in `jax.lax.scan`.

    Raises:
        TypeError: an argument is of the wrong type, or the carry changes its dtypes.
        ValueError: the leaves of `xs` have no common leading axis, or `unroll` is not positive.
        Exception: whatever the cell raises, with a note of its path.

    >>> import jax, jax.numpy as jnp, mlax
    >>> cell = mlax.f(lambda xh: (xh[0] + xh[1], xh[0] + xh[1]))
    >>> init, apply = mlax.recurrent(cell)
    >>> x = (jnp.arange(4.0), jnp.zeros(()))
    >>> params, state = init(jax.random.key(0), x)
    >>> (ys, h), state = apply(params, state, x)
    >>> ys
    Array([0., 1., 3., 6.], dtype=float32)
    """
    xs, h = shapes(_pair("x", "(xs, h)", x))
    arguments.leading_length("recurrent", "xs", xs, "time")
    first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), xs)
    (key,) = init_keys(rng, 1)
    params, variables, child = init_child("recurrent", None, cell, key, (first, h))
    return params, State(variables, RecurrentConfig(child, reverse, unroll))


def _pair(name: str, spelled: str, value: Any) -> tuple[Any, Any]:
    if not isinstance(value, tuple | list) or len(value) != 2:
        got = f"{len(value)} entries" if isinstance(value, tuple | list) else type(value).__name__
        raise TypeError(arguments.message("recurrent", name, f"a pair {spelled}", got))
    return value[0], value[1]
