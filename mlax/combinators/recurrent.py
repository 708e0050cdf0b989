"""A cell run over a leading time axis: (y_t, h_t) = cell(x_t, h_{t-1}).

params and variables are those of the cell.
"""

from typing import Any, NamedTuple, TypeVar, overload

import jax
import jax.numpy as jnp
from jax import lax

from mlax import mesh
from mlax.arguments import AnyLayer, Unroll, leading_length, read_pair, require_ndims
from mlax.combinators import (
    Call, Child, Made, Transform, init_only_child, rejoined, require_equal_shapes, separated,
    shapes, stacked, transform,
)
from mlax.errors import message
from mlax.layer import Key, Layer, State
from mlax.layer import C, P, S, V, X, Y

H = TypeVar("H")


class RecurrentConfig(NamedTuple):
    """Configuration of `recurrent`."""

    cell: Child
    """The cell."""
    reverse: bool
    """Whether the last step is run first."""
    unroll: int
    """Number of steps per iteration of the loop."""
    ndims: tuple[int, ...]
    """The ranks of the leaves of (xs, h) in `init`."""


class Recurrent(Transform[Any, State[Any, RecurrentConfig], tuple[Any, Any], tuple[Any, Any]]):
    """The type of `recurrent`: the loop has the params and variables types of the cell."""

    @overload
    def __call__(
        self, cell: Layer[P, State[V, C], tuple[X, H], tuple[Y, H]], reverse: bool = False,
        unroll: int = 1,
    ) -> Layer[P, State[V, RecurrentConfig], tuple[X, H | None], tuple[Y, H]]: ...
    @overload
    def __call__(
        self, cell: Layer[P, S, tuple[X, H], tuple[Y, H]], reverse: bool = False, unroll: int = 1
    ) -> Layer[P, State[Any, RecurrentConfig], tuple[X, H | None], tuple[Y, H]]: ...
    def __call__(self, cell: AnyLayer, reverse: bool = False, unroll: int = 1) -> AnyLayer:
        """Return the cell run over time."""
        return self.bind(cell, reverse, unroll)


def apply(
    call: Call, config: RecurrentConfig, params: Any, variables: Any, x: tuple[Any, Any]
) -> tuple[tuple[Any, Any], Any]:
    """Return the outputs of all steps and the last carry: see `mlax.recurrent`."""
    cell, reverse, unroll, ndims = config
    xs, h = read_pair("recurrent", "x", x, "(xs, h)")
    length = leading_length("recurrent", "xs", xs, "time")
    require_ndims("recurrent", xs, ndims[: len(jax.tree.leaves(xs))])
    is_one = unroll == 1 and unroll is not True or unroll is False
    if not is_one and type(length) is not int:  # symbolic, in jax.export
        way_out = "several steps at a time need a known length"
        raise ValueError(message("recurrent", "unroll", f"1 for {length} steps", unroll, way_out))
    rng = call.rng if cell.needs_rng else None
    steps = jnp.arange(length)
    indices = None if rng is None else steps[::-1] if reverse else steps

    def step(carry: tuple[Any, Any], inputs: tuple[Any, Any]) -> tuple[tuple[Any, Any], Any]:
        h, variables = carry
        x, index = inputs
        key = None if rng is None else jax.random.fold_in(rng, index)
        result, after = call(cell, params, variables, (x, h), key)
        after, values = separated(after, variables)
        y, h = read_pair("recurrent", "the output of the cell", result, "(y, h)")
        return (h, after), (y, values)

    if h is None:
        first, i = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), (xs, indices))
        (h, _), _ = jax.eval_shape(step, (None, variables), (first, i))
        h = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), h)
    h, variables = mesh.settled(step, (h, variables), (xs, indices), length)
    (h, variables), (ys, values) = lax.scan(
        step, (h, variables), (xs, indices), reverse=reverse, unroll=unroll
    )
    return (ys, h), rejoined(variables, values)


@transform(apply, RecurrentConfig, Recurrent)
def recurrent(
    rng: Key, x: tuple[Any, Any], cell: AnyLayer, reverse: bool = False, unroll: Unroll = 1
) -> Made:
    """A cell run over time by `jax.lax.scan`: (xs, h) -> (ys, h).

    The cell maps (x, h) to (y, h). `xs` and `ys` are pytrees with a leading time axis, h is
    the carry, a pytree that keeps its shapes and dtypes. All steps share the parameters; the
    variables of the cell are passed from step to step. If h is None, the first step gets zeros, of
    the shapes of the carry that the cell returns for None. If the cell needs a key, the i-th step
    to run gets fold_in(rng, i).

    Args:
        cell: layer from (x, h) to (y, h).
        reverse: run from the last step to the first; outputs keep the time index of their input.
        unroll: number of steps per iteration of the loop, as in `jax.lax.scan`: True or 0 for all.

    Raises:
        TypeError: an argument is of the wrong type, or the carry changes its shapes or dtypes.
        ValueError: the leaves of `xs` have no common leading axis or other ranks than in `init`, or
            `unroll` is negative.
        Exception: whatever the cell raises, with a note that gives its path.

    >>> import jax, jax.numpy as jnp, mlax
    >>> cell = mlax.f(lambda xh: (xh[0] + xh[1], xh[0] + xh[1]))
    >>> init, apply = mlax.recurrent(cell)
    >>> x = (jnp.arange(4.0), jnp.zeros(()))
    >>> params, state = init(jax.random.key(0), x)
    >>> (ys, h), state = apply(params, state, x)
    >>> ys
    Array([0., 1., 3., 6.], dtype=float32)
    """
    xs, h = shapes(read_pair("recurrent", "x", x, "(xs, h)"))
    length = leading_length("recurrent", "xs", xs, "time")
    first = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), xs)
    made = init_only_child("recurrent", cell, rng, (first, h))
    spelled = "the output of the cell"
    y, carry = read_pair("recurrent", spelled, made.output(), "(y, h)")
    if h is not None:
        require_equal_shapes("recurrent", h, carry, "the next carry", error=TypeError)
    return made._replace(output=lambda: (stacked(y, length), carry))
