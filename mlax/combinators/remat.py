"""A layer whose activations are recomputed in the backward pass (rematerialization).

params and variables are those of the layer.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from mlax.arguments import AnyLayer
from mlax.combinators import Around, Call, Child, Made, init_only_child, transform
from mlax.layer import Key

Policy = Callable[..., bool]


class RematConfig(NamedTuple):
    """Configuration of `remat`."""

    layer: Child
    """The layer."""
    policy: Policy | None
    """Which activations are saved for the backward pass."""


def apply(call: Call, config: RematConfig, params: Any, variables: Any, x: Any) -> tuple[Any, Any]:
    """Return the output of the layer: see `mlax.remat`."""

    def run(params: Any, variables: Any, x: Any, rng: Key | None) -> tuple[Any, Any]:
        return call(config.layer, params, variables, x, rng)

    recomputed: Callable[..., tuple[Any, Any]] = jax.checkpoint(run, policy=config.policy)
    return recomputed(params, variables, x, call.rng)


@transform(apply, RematConfig, Around)
def remat(rng: Key, x: Any, layer: AnyLayer, *, policy: Policy | None = None) -> Made:
    """Rematerialization: only the input of the layer is saved for the backward pass.

    The backward pass recomputes the activations from it, which trades time for memory.

    Args:
        layer: any layer.
        policy: which activations to save anyway, one of `jax.checkpoint_policies`.

    Source: `jax.checkpoint`; Chen et al., "Training deep nets with sublinear memory cost",
    2016.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.remat(mlax.linear(3), policy=jax.checkpoint_policies.dots_saveable)
    >>> params, state = init(jax.random.key(0), jnp.ones(2))
    >>> apply(params, state, jnp.ones(2))[0].shape
    (3,)
    """
    return init_only_child("remat", layer, rng, x)
