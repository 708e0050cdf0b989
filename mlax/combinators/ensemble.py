"""n independent copies of a layer applied to one input: y[i] = layer_i(x).

params, variables and y are those of the layer, each array with a leading axis of n members.
"""

from typing import Any, NamedTuple

import jax

from mlax import mesh
from mlax.arguments import AnyLayer, Size
from mlax.combinators import (
    Around, Call, Child, Made, copy_keys, init_copies, require_copies, stacked, transform,
)
from mlax.layer import Key


class EnsembleConfig(NamedTuple):
    """Configuration of `ensemble`."""

    layer: Child
    """The layer."""
    n: int
    """Number of members."""


def apply(
    call: Call, config: EnsembleConfig, params: Any, variables: Any, x: Any
) -> tuple[Any, Any]:
    """Return the outputs of all members: see `mlax.ensemble`."""
    child, n = config
    require_copies("ensemble", params, n)
    keys = copy_keys(call.rng, n) if child.needs_rng else None

    params, variables, keys = mesh.sharded_together("ensemble", (params, variables, keys))

    def member(params: Any, variables: Any, key: Key | None) -> tuple[Any, Any]:
        return call(child, params, variables, x, key)

    return jax.vmap(member, axis_size=n)(params, variables, keys)


@transform(apply, EnsembleConfig, Around)
def ensemble(rng: Key, x: Any, layer: AnyLayer, n: Size) -> Made:
    """n copies of a layer, each with its own parameters, applied to one input by `jax.vmap`.

    Member i is initialised with fold_in(rng, i). If the layer needs a key, member i gets
    fold_in(rng, i), and a single member gets `rng` itself, as in `mlax.series`.

    Args:
        layer: any layer.
        n: number of members.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.ensemble(mlax.linear(3), 5)
    >>> params, state = init(jax.random.key(0), jnp.ones(2))
    >>> apply(params, state, jnp.ones(2))[0].shape
    (5, 3)
    """
    made = init_copies("ensemble", layer, rng, x, n)
    return made._replace(output=lambda: stacked(made.output(), n))
