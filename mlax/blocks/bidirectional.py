"""Two cells run over time, one in each direction: y_t = (forward y_t, backward y_t).

params and variables are dicts with the entries "forward" and "backward".
"""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from mlax import arguments
from mlax.combinators.child import (
    AnyLayer,
    ChildrenState,
    DictState,
    any_needs_rng,
    apply_child,
    apply_keys,
    collected,
    init_child,
    init_keys,
    joined_state,
    require_layer,
    shapes,
    split,
)
from mlax.combinators.recurrent import recurrent
from mlax.pair import AxisName, Key, Layer, PairBase

X = TypeVar("X")
Y = TypeVar("Y")
H1 = TypeVar("H1")
H2 = TypeVar("H2")


class Bidirectional(PairBase[Any, ChildrenState, Any, Any]):
    """The type of `bidirectional`: what is known of the cells is known of the loops."""

    def __call__(
        self,
        cell_forward: Layer[Any, Any, tuple[X, H1], tuple[Y, H1]],
        cell_backward: Layer[Any, Any, tuple[X, H2], tuple[Y, H2]],
        unroll: int = 1,
    ) -> Layer[dict[str, Any], DictState, tuple[X, tuple[H1, H2]], tuple[Y, tuple[H1, H2]]]:
        """Return the two cells run over time."""
        return self.bind(cell_forward, cell_backward, unroll)


def apply(
    params: Any,
    state: ChildrenState,
    x: tuple[Any, tuple[Any, Any]],
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[tuple[Any, tuple[Any, Any]], ChildrenState]:
    """Return the outputs and the last carries: see `mlax.Apply` and `mlax.bidirectional`."""
    xs, carries = _inputs(x)
    children = split("bidirectional", params, state)
    keys = apply_keys(rng, [child.needs_rng for child, _, _ in children])
    outputs, last, variables = [], [], []
    for (child, p, v), h, key in zip(children, carries, keys, strict=True):
        (ys, h), v = apply_child(
            "bidirectional", child, p, v, (xs, h), key, inference_mode, batch_axis_name
        )
        outputs.append(ys)
        last.append(h)
        variables.append(v)
    ys = jax.tree.map(_joined, *outputs)
    return (ys, (last[0], last[1])), joined_state(state.config, variables)


@Bidirectional.of(
    apply,
    needs_rng=lambda cell_forward, cell_backward, unroll=1: any_needs_rng(
        cell_forward, cell_backward
    ),
    checks={
        "cell_forward": require_layer,
        "cell_backward": require_layer,
        "unroll": arguments.check_size,
    },
)
def bidirectional(
    rng: Key,
    x: tuple[Any, tuple[Any, Any]],
    cell_forward: AnyLayer,
    cell_backward: AnyLayer,
    unroll: int = 1,
) -> tuple[Any, ChildrenState]:
    """A cell run from the first step to the last, and one from the last to the first.

    (xs, (h_forward, h_backward)) -> (ys, (h_forward, h_backward)), where ys are the outputs of
    recurrent(cell_forward) and of recurrent(cell_backward, reverse=True), concatenated along
    the last axis. Keys are given out to these two as by `mlax.series`.

    Args:
        cell_forward: layer from (x, h) to (y, h).
        cell_backward: layer from (x, h) to (y, h).
        unroll: number of steps in one iteration of the loops, as in `mlax.recurrent`.

    Raises:
        TypeError: an argument is of the wrong type, or the input has not this form.
        ValueError: the outputs of a step are scalars.
        Exception: whatever a cell raises, with a note of its path.

    Source: Schuster and Paliwal, "Bidirectional recurrent neural networks", 1997.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.bidirectional(mlax.gru_cell(4), mlax.gru_cell(4))
    >>> x = (jnp.ones((7, 3)), (jnp.zeros(4), jnp.zeros(4)))
    >>> params, state = init(jax.random.key(0), x)
    >>> (ys, (h_forward, h_backward)), state = apply(params, state, x)
    >>> params["backward"].kernel.shape, ys.shape
    ((3, 12), (7, 8))
    """
    xs, carries = shapes(_inputs(x))
    layers = {
        "forward": recurrent(cell_forward, unroll=unroll),
        "backward": recurrent(cell_backward, reverse=True, unroll=unroll),
    }
    return collected(
        [
            init_child("bidirectional", name, layer, key, (xs, h))
            for (name, layer), key, h in zip(
                layers.items(), init_keys(rng, 2), carries, strict=True
            )
        ]
    )


def _joined(forward: jax.Array, backward: jax.Array) -> jax.Array:
    """Return the outputs of all steps, those of the two cells along the last axis."""
    if forward.ndim < 2:
        wanted = "an array with at least 1 axis at each step, to join it along"
        raise ValueError(arguments.message("bidirectional", "y", wanted, "a scalar"))
    return jnp.concatenate((forward, backward), -1)


def _inputs(x: Any) -> tuple[Any, tuple[Any, Any]]:
    if isinstance(x, tuple | list) and len(x) == 2:
        xs, carries = x
        if isinstance(carries, tuple | list) and len(carries) == 2:
            return xs, (carries[0], carries[1])
    wanted = "of the form (xs, (h_forward, h_backward))"
    got = jax.tree.structure(x)
    raise TypeError(arguments.message("bidirectional", "x", wanted, got))
