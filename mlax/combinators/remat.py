"""A layer whose inner values are computed again in the backward pass.

params and variables are those of the layer.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import jax

from mlax import arguments
from mlax.combinators.child import (
    AnyLayer,
    Child,
    any_needs_rng,
    apply_child,
    init_child,
    init_keys,
    require_layer,
)
from mlax.equality import by_parts
from mlax.pair import AxisName, Key, Layer, PairBase, State

P = TypeVar("P")
X = TypeVar("X")
Y = TypeVar("Y")

Policy = Callable[..., bool]


@by_parts
class RematConfig(NamedTuple):
    """Configuration of `remat`."""

    layer: Child
    """What is kept of the layer."""
    policy: Policy | None
    """What is kept for the backward pass."""


class Remat(PairBase[Any, State[Any, RematConfig], Any, Any]):
    """The type of `remat`."""

    def __call__(
        self, layer: Layer[P, Any, X, Y], policy: Policy | None = None
    ) -> Layer[P, State[Any, RematConfig], X, Y]:
        """Return the layer, with its inner values computed again."""
        return self.bind(layer, policy)


def apply(
    params: Any,
    state: State[Any, RematConfig],
    x: Any,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[Any, State[Any, RematConfig]]:
    """Return the output of the layer: see `mlax.Apply` and `mlax.remat`."""
    child, policy = arguments.config_of("remat", state, RematConfig)

    def run(params: Any, variables: Any, x: Any, rng: Key | None) -> tuple[Any, Any]:
        return apply_child(
            "remat", child, params, variables, x, rng, inference_mode, batch_axis_name
        )

    y, variables = jax.checkpoint(run, policy=policy)(params, state.variables, x, rng)
    return y, State(variables, state.config)


@Remat.of(
    apply,
    needs_rng=lambda layer, policy=None: any_needs_rng(layer),
    checks={"layer": require_layer, "policy": arguments.check_optional_callable},
)
def remat(
    rng: Key, x: Any, layer: AnyLayer, policy: Policy | None = None
) -> tuple[Any, State[Any, RematConfig]]:
    """A layer of which only the input is kept for the backward pass; the rest is done again.

    Args:
        layer: any layer.
        policy: what else is kept, one of `jax.checkpoint_policies`.

    Source: `jax.checkpoint`; Chen et al., "Training deep nets with sublinear memory cost",
    2016.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.remat(mlax.linear(3), jax.checkpoint_policies.dots_saveable)
    >>> params, state = init(jax.random.key(0), jnp.ones(2))
    >>> apply(params, state, jnp.ones(2))[0].shape
    (3,)
    """
    (key,) = init_keys(rng, 1)
    params, variables, child = init_child("remat", None, layer, key, x)
    return params, State(variables, RematConfig(child, policy))
