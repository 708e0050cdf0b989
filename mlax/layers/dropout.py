"""Dropout: y = where(mask, x, 0) / (1 - rate) in training, y = x in inference."""

from typing import NamedTuple

import jax

from mlax import arguments, functional
from mlax.arguments import Axes, Rate
from mlax.layer import AxisName, Key, Shaped, State
from mlax.pair import layer
from mlax.tracing import traced_once


class DropoutConfig(NamedTuple):
    """Configuration of `dropout`."""

    rate: float
    """Probability of dropping an element."""
    axis: int | tuple[int, ...]
    """The axes along which the mask varies."""
    ndim: int
    """Number of axes of x."""


def apply(
    params: tuple[()], state: State[tuple[()], DropoutConfig], x: jax.Array, rng: Key | None = None,
    inference_mode: bool = False, batch_axis_name: AxisName = (),
) -> tuple[jax.Array, State[tuple[()], DropoutConfig]]:
    """Return x with some elements set to zero: see `mlax.Apply` and `mlax.dropout`."""
    if inference_mode:
        return x, state
    key = arguments.required_key("dropout", rng)
    return _dropout(x, key, rate=state.config.rate, axis=state.config.axis), state


_dropout = traced_once(functional.dropout, "dropout")


@layer(apply, config=DropoutConfig, needs_rng=True)
def dropout(
    rng: Key, x: Shaped, rate: Rate, axis: Axes
) -> tuple[tuple[()], State[tuple[()], DropoutConfig]]:
    """Dropout: sets random elements to zero in training, returns x unchanged in inference.

    Needs a key in training. Dropped elements are 0 even where x is infinite or NaN.

    Args:
        rate: probability of dropping an element, in [0, 1). The others are divided by 1 - rate.
        axis: the axes along which the mask varies; it is shared along the others.

    Raises:
        TypeError: an argument is of the wrong type, or x is not floating.
        ValueError: `rate` is outside [0, 1), an axis outside x, or there is no key.

    Source: `mlax.functional.dropout`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.dropout(0.5, axis=0)
    >>> params, state = init(jax.random.key(0), jnp.ones(4))
    >>> y, state = apply(params, state, jnp.ones(4), jax.random.key(1))
    >>> sorted(set(y.tolist()))
    [0.0, 2.0]
    """
    arguments.require_castable("dropout", x, float)
    arguments.canonical_axes("dropout", axis, len(x.shape))
    plain = axis if isinstance(axis, int) else tuple(axis)
    return (), State((), DropoutConfig(rate, plain, len(x.shape)))
