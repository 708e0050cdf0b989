"""n members of one layer on one input: y[i] = layer_i(x).

params, variables and y are those of the layer, each array with a leading axis of n members.
"""

from typing import Any, NamedTuple, TypeVar

import jax

from mlax import arguments
from mlax.combinators.child import (
    AnyLayer,
    Child,
    any_needs_rng,
    apply_child,
    copy_keys,
    require_copies,
    require_layer,
    stacked_children,
)
from mlax.pair import AxisName, Key, Layer, PairBase, State

P = TypeVar("P")
X = TypeVar("X")
Y = TypeVar("Y")


class EnsembleConfig(NamedTuple):
    """Configuration of `ensemble`."""

    layer: Child
    """What is kept of the layer."""
    n: int
    """Number of members."""


class Ensemble(PairBase[Any, State[Any, EnsembleConfig], Any, Any]):
    """The type of `ensemble`: parameters and output are those of the layer."""

    def __call__(
        self, layer: Layer[P, Any, X, Y], n: int
    ) -> Layer[P, State[Any, EnsembleConfig], X, Y]:
        """Return n members of the layer."""
        return self.bind(layer, n)


def apply(
    params: Any,
    state: State[Any, EnsembleConfig],
    x: Any,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[Any, State[Any, EnsembleConfig]]:
    """Return the outputs of all members: see `mlax.Apply` and `mlax.ensemble`."""
    child, n = arguments.config_of("ensemble", state, EnsembleConfig)
    require_copies("ensemble", params, n)
    keys = copy_keys(rng, n) if rng is not None and child.needs_rng else None

    def member(params: Any, variables: Any, key: Key | None) -> tuple[Any, Any]:
        return apply_child(
            "ensemble", child, params, variables, x, key, inference_mode, batch_axis_name
        )

    y, variables = jax.vmap(member, axis_size=n)(params, state.variables, keys)
    return y, State(variables, state.config)


@Ensemble.of(
    apply,
    needs_rng=lambda layer, n: any_needs_rng(layer),
    checks={"layer": require_layer, "n": arguments.check_size},
)
def ensemble(rng: Key, x: Any, layer: AnyLayer, n: int) -> tuple[Any, State[Any, EnsembleConfig]]:
    """n members of a layer, each with parameters of its own, on one input by `jax.vmap`.

    Member i is initialised with fold_in(rng, i). If the layer needs a key, member i gets
    fold_in(rng, i), and a single member `rng` itself, as the children of `mlax.series` do.

    Args:
        layer: any layer.
        n: number of members.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.ensemble(mlax.linear(3), 5)
    >>> params, state = init(jax.random.key(0), jnp.ones(2))
    >>> apply(params, state, jnp.ones(2))[0].shape
    (5, 3)
    """
    params, variables, child = stacked_children("ensemble", layer, rng, x, n)
    return params, State(variables, EnsembleConfig(child, n))
