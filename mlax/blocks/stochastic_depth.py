"""A layer that is dropped at random: y = keep / (1 - rate) * layer(x) in training.

params and variables are those of the layer.
"""

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from mlax import arguments
from mlax.combinators.child import (
    AnyLayer,
    Child,
    apply_child,
    apply_keys,
    init_child,
    init_keys,
    require_layer,
)
from mlax.pair import AxisName, Key, Layer, PairBase, State

P = TypeVar("P")
X = TypeVar("X")
Y = TypeVar("Y")


class StochasticDepthConfig(NamedTuple):
    """Configuration of `stochastic_depth`."""

    layer: Child
    """What is kept of the layer."""
    rate: float
    """Probability that it is dropped."""


class StochasticDepth(PairBase[Any, State[Any, StochasticDepthConfig], Any, Any]):
    """The type of `stochastic_depth`: what is known of the layer is known of the dropped one."""

    def __call__(
        self, layer: Layer[P, Any, X, Y], rate: float
    ) -> Layer[P, State[Any, StochasticDepthConfig], X, Y]:
        """Return the layer, dropped at random."""
        return self.bind(layer, rate)


def apply(
    params: Any,
    state: State[Any, StochasticDepthConfig],
    x: Any,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[Any, State[Any, StochasticDepthConfig]]:
    """Return the output of the layer, or zeros: see `mlax.Apply` and `mlax.stochastic_depth`."""
    child, rate = arguments.config_of("stochastic_depth", state, StochasticDepthConfig)
    layer_rng, drop_rng = apply_keys(rng, [child.needs_rng, True])
    y, variables = apply_child(
        "stochastic_depth",
        child,
        params,
        state.variables,
        x,
        layer_rng,
        inference_mode,
        batch_axis_name,
    )
    if not inference_mode:
        key = arguments.required_key("stochastic_depth", drop_rng)
        factor = jax.random.bernoulli(key, 1.0 - rate) / (1.0 - rate)
        y = jax.tree.map(lambda leaf: _scaled(leaf, factor), y)
    return y, State(variables, state.config)


def _scaled(leaf: jax.Array, factor: jax.Array) -> jax.Array:
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        wanted, got = "of a floating dtype", jnp.dtype(leaf.dtype).name
        raise TypeError(arguments.message("stochastic_depth", "the output", wanted, got))
    return leaf * factor.astype(leaf.dtype)


@StochasticDepth.of(
    apply,
    needs_rng=True,
    checks={"layer": require_layer, "rate": arguments.check_rate},
)
def stochastic_depth(
    rng: Key, x: Any, layer: AnyLayer, rate: float
) -> tuple[Any, State[Any, StochasticDepthConfig]]:
    """Stochastic depth: the output of a layer, or with probability `rate` zeros.

    Made for the branch of a residual connection: residual(stochastic_depth(block, rate)).
    In training the output is divided by 1 - rate if it is kept, in inference it is returned
    as it is. An example is dropped or kept as a whole, and each by itself if each has its
    own key, as under `mlax.batched`.

    Needs a key in training: `rng` itself, or, if the layer needs one too,
    fold_in(rng, 0) for the layer and fold_in(rng, 1) for the drop.

    Args:
        layer: any layer. Its variables are updated whether it is dropped or not.
        rate: probability in [0, 1).

    Raises:
        TypeError: an argument is of the wrong type, or the layer returns integers.
        ValueError: `rate` is outside [0, 1), or there is no key.
        Exception: whatever the layer raises, with a note of its path.

    Source: Huang et al., "Deep networks with stochastic depth", 2016;
    `torchvision.ops.stochastic_depth` with mode "row".

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.batched(mlax.residual(mlax.stochastic_depth(mlax.f(jnp.negative), 0.5)))
    >>> params, state = init(jax.random.key(0), jnp.ones((8, 1)))
    >>> y, state = apply(params, state, jnp.ones((8, 1)), jax.random.key(1))
    >>> sorted(set(y.ravel().tolist()))
    [-1.0, 1.0]
    """
    (key,) = init_keys(rng, 1)
    params, variables, child = init_child("stochastic_depth", None, layer, key, x)
    return params, State(variables, StochasticDepthConfig(child, rate))
