"""n copies of a layer one after the other, run by one loop.

params and variables are those of the layer, each array with a leading axis of n copies.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax
from jax import lax

from mlax import arguments
from mlax.combinators.child import (
    AnyLayer,
    Child,
    any_needs_rng,
    apply_child,
    copy_keys,
    output_shape,
    require_copies,
    require_equal_shapes,
    require_layer,
    shapes,
    stacked_children,
)
from mlax.equality import by_parts
from mlax.pair import AxisName, Key, Layer, PairBase, State

P = TypeVar("P")
X = TypeVar("X")

Policy = Callable[..., bool]


@by_parts
class RepeatConfig(NamedTuple):
    """Configuration of `repeat`."""

    layer: Child
    """What is kept of the layer."""
    n: int
    """Number of copies."""
    unroll: int
    """How many copies are written out in one iteration of the loop."""
    remat: bool
    """Whether the backward pass computes again what is inside a copy."""
    policy: Policy | None
    """What is kept for the backward pass all the same."""


class Repeat(PairBase[Any, State[Any, RepeatConfig], Any, Any]):
    """The type of `repeat`: the parameters are those of the layer."""

    def __call__(
        self,
        layer: Layer[P, Any, X, X],
        n: int,
        unroll: int = 1,
        remat: bool = False,
        policy: Policy | None = None,
    ) -> Layer[P, State[Any, RepeatConfig], X, X]:
        """Return n copies of the layer in series."""
        return self.bind(layer, n, unroll, remat, policy)


def apply(
    params: Any,
    state: State[Any, RepeatConfig],
    x: Any,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[Any, State[Any, RepeatConfig]]:
    """Return the output of the last copy: see `mlax.Apply` and `mlax.repeat`."""
    child, n, unroll, remat, policy = arguments.config_of("repeat", state, RepeatConfig)
    require_copies("repeat", params, n)
    keys = copy_keys(rng, n) if rng is not None and child.needs_rng else None

    def step(x: Any, copy: tuple[Any, Any, Key | None]) -> tuple[Any, Any]:
        p, v, key = copy
        return apply_child("repeat", child, p, v, x, key, inference_mode, batch_axis_name)

    if remat:
        step = jax.checkpoint(step, prevent_cse=False, policy=policy)
    y, variables = lax.scan(step, x, (params, state.variables, keys), n, unroll=unroll)
    return y, State(variables, state.config)


@Repeat.of(
    apply,
    needs_rng=lambda layer, *_, **__: any_needs_rng(layer),
    checks={
        "layer": require_layer,
        "n": arguments.check_size,
        "unroll": arguments.check_size,
        "remat": arguments.check_bool,
        "policy": arguments.check_optional_callable,
    },
)
def repeat(
    rng: Key,
    x: Any,
    layer: AnyLayer,
    n: int,
    unroll: int = 1,
    remat: bool = False,
    policy: Policy | None = None,
) -> tuple[Any, State[Any, RepeatConfig]]:
    """n copies of a layer in series, each with parameters of its own, run by `jax.lax.scan`.

    The copies have the keys, parameters and results that n layers in `mlax.series` would
    have, but they are traced and compiled once, however many they are. (Keys of a kind whose
    bits depend on `jax.vmap`, as "rbg", give other parameters.)

    Args:
        layer: layer whose output has the shapes and dtypes of its input.
        n: number of copies.
        unroll: number of copies in one iteration of the loop, as in `jax.lax.scan`.
        remat: keep only the inputs of the copies for the backward pass, see `mlax.remat`.
        policy: what else is kept, as in `jax.checkpoint`. A policy implies `remat`.

    Raises:
        ValueError: the output of the layer is not like its input, or a number is not positive.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.repeat(mlax.residual(mlax.linear(3)), 12)
    >>> params, state = init(jax.random.key(0), jnp.ones(3))
    >>> params[0].kernel.shape
    (12, 3, 3)
    """
    x = shapes(x)
    params, variables, child = stacked_children("repeat", layer, rng, x, n)
    one = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), (params, variables))
    y = output_shape("repeat", child, one[0], one[1], x, rng)
    require_equal_shapes("repeat", x, y, "the output of the layer")
    remat = remat or policy is not None
    return params, State(variables, RepeatConfig(child, n, unroll, remat, policy))
