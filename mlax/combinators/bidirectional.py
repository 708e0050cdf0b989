"""Two cells run over time, one in each direction: y_t = (forward y_t, backward y_t).

params and variables are dicts with the entries "forward" and "backward".
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from mlax import mesh
from mlax.arguments import read_layer, read_pair
from mlax.combinators.block import Sublayers, block
from mlax.combinators.recurrent import recurrent
from mlax.combinators.types import DictState
from mlax.errors import message
from mlax.layer import Layer
from mlax.layer import X, Y

H1 = TypeVar("H1")
H2 = TypeVar("H2")


def bidirectional(
    cell_forward: Layer[Any, Any, tuple[X, H1], tuple[Y, H1]],
    cell_backward: Layer[Any, Any, tuple[X, H2], tuple[Y, H2]], *,
    unroll: int = 1,
) -> Layer[
    dict[str, Any], DictState,
    tuple[X, tuple[H1 | None, H2 | None] | None], tuple[Y, tuple[H1, H2]],
]:
    """Two cells, one run from the first step to the last, the other from the last to the first.

    (xs, (h_forward, h_backward)) -> (ys, (h_forward, h_backward)), where ys are the outputs of
    recurrent(cell_forward) and of recurrent(cell_backward, reverse=True), concatenated along
    the last axis. None in place of the carries means zeros, if the cells take None as that, as in
    `mlax.recurrent`. The two get their keys by the rule of `mlax.series`.

    Args:
        cell_forward: layer from (x, h) to (y, h).
        cell_backward: layer from (x, h) to (y, h).
        unroll: number of steps per iteration of the loops, as in `mlax.recurrent`.

    Raises:
        TypeError: an argument or the input is of the wrong type.
        ValueError: the outputs of a step are scalars.
        Exception: whatever a cell raises, with a note that gives its path.

    Source: Schuster and Paliwal, "Bidirectional recurrent neural networks", 1997.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.bidirectional(mlax.gru_cell(4), mlax.gru_cell(4))
    >>> x = (jnp.ones((7, 3)), (jnp.zeros(4), jnp.zeros(4)))
    >>> params, state = init(jax.random.key(0), x)
    >>> (ys, (h_forward, h_backward)), state = apply(params, state, x)
    >>> params["backward"].kernel.shape, ys.shape
    ((3, 12), (7, 8))
    """
    read_layer("bidirectional", "cell_forward", cell_forward)
    read_layer("bidirectional", "cell_backward", cell_backward)
    forward = recurrent(cell_forward, unroll=unroll)
    backward = recurrent(cell_backward, reverse=True, unroll=unroll)
    return block(forward=forward, backward=backward)(_bidirectional)


def _bidirectional(sub: Sublayers, x: Any) -> Any:
    xs, carries = read_pair("bidirectional", "x", x, "(xs, (h_forward, h_backward))")
    carries = (None, None) if carries is None else carries
    of_both = read_pair("bidirectional", "x[1]", carries, "(h_forward, h_backward)")
    (forward, h_forward), (backward, h_backward) = (
        sub.forward((xs, of_both[0])),
        sub.backward((xs, of_both[1])),
    )
    return jax.tree.map(_joined, forward, backward), (h_forward, h_backward)


def _joined(forward: jax.Array, backward: jax.Array) -> jax.Array:
    """Return the outputs of all steps, with the two cells concatenated along the last axis."""
    if forward.ndim < 2:
        wanted = "an array with at least 1 axis at each step, to concatenate along"
        raise ValueError(message("bidirectional", "y", wanted, "a scalar"))
    return jnp.concatenate(mesh.placed_together(forward, backward), -1)


_bidirectional.__name__ = "bidirectional"
