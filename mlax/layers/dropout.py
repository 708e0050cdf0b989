"""Dropout: y = x * mask / (1 - rate) in training, y = x in inference."""

from typing import NamedTuple

import jax

from mlax import arguments, functional
from mlax.arguments import Axes, Shaped
from mlax.pair import AxisName, Key, State, layer


class DropoutConfig(NamedTuple):
    """Configuration of `dropout`."""

    rate: float
    """Probability of zero."""
    axis: tuple[int, ...]
    """The axes along which the mask varies."""


def apply(
    params: tuple[()],
    state: State[tuple[()], DropoutConfig],
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, State[tuple[()], DropoutConfig]]:
    """Return x with elements set to zero: see `mlax.Apply` and `mlax.dropout`."""
    config = arguments.config_of("dropout", state, DropoutConfig)
    if inference_mode:
        return x, state
    key = arguments.required_key("dropout", rng)
    return functional.dropout(x, key, config.rate, config.axis), state


@layer(
    apply,
    needs_rng=True,
    checks={"rate": arguments.check_rate, "axis": arguments.check_axis},
)
def dropout(
    rng: Key, x: Shaped, rate: float, axis: Axes
) -> tuple[tuple[()], State[tuple[()], DropoutConfig]]:
    """Dropout: in training elements are set to zero, in inference x is returned as it is.

    Needs a key in training.

    Args:
        rate: probability of zero, in [0, 1). What is kept is divided by 1 - rate.
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
    axes = tuple(map(int, arguments.entries("dropout", "axis", axis)))
    return (), State((), DropoutConfig(rate, axes))
