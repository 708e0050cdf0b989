"""A layer that is dropped at random: y = where(keep, layer(x), 0) / (1 - rate) in training.

params and variables are those of the layer.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlax.arguments import AnyLayer, Rate, require_ndims, required_key
from mlax.combinators import Around, Call, Child, Made, apply_keys, init_only_child, transform
from mlax.errors import message
from mlax.layer import Key
from mlax.mesh import key_of_shard


class StochasticDepthConfig(NamedTuple):
    """Configuration of `stochastic_depth`."""

    layer: Child
    """The layer."""
    rate: float
    """Probability that it is dropped."""
    ndims: tuple[int, ...]
    """The ranks of the leaves of x in `init`."""


def apply(
    call: Call, config: StochasticDepthConfig, params: Any, variables: Any, x: Any
) -> tuple[Any, Any]:
    """Return the output of the layer, or zeros: see `mlax.stochastic_depth`."""
    child, rate, ndims = config
    require_ndims("stochastic_depth", x, ndims)
    layer_rng, drop_rng = apply_keys(call.rng, [child.needs_rng, True])
    y, variables = call(child, params, variables, x, layer_rng)
    if not call.inference_mode:
        key = key_of_shard(required_key("stochastic_depth", drop_rng), call.batch_axis_name)
        kept = jax.random.bernoulli(key, 1.0 - rate)
        y = jax.tree.map(lambda leaf: _kept(leaf, kept, 1 / (1.0 - rate)), y)
    return y, variables


def _kept(leaf: jax.Array, kept: jax.Array, factor: float) -> jax.Array:
    if not jnp.issubdtype(leaf.dtype, jnp.inexact):
        wanted, got = "of a floating dtype", jnp.dtype(leaf.dtype).name
        raise TypeError(message("stochastic_depth", "the output", wanted, got))
    return jnp.where(kept, leaf, 0) * jnp.asarray(factor, leaf.dtype)


@transform(apply, StochasticDepthConfig, Around, needs_rng=True)
def stochastic_depth(rng: Key, x: Any, layer: AnyLayer, rate: Rate) -> Made:
    """Stochastic depth: the output of a layer, replaced by zeros with probability `rate`.

    Meant for the branch of a residual connection: residual(stochastic_depth(block, rate)).
    In training, an output that is kept is divided by 1 - rate; in inference, the output is
    returned unchanged. Each example is dropped or kept as a whole, independently of the others
    if each has its own key, as under `mlax.batched`. A dropped output is 0 even where the layer
    returns infinity or NaN.

    Needs a key in training: `rng` itself decides, or, if the layer needs a key too, the layer
    gets fold_in(rng, 0) and fold_in(rng, 1) decides.

    Args:
        layer: any layer. Its variables are updated whether it is dropped or not.
        rate: probability of dropping the output, in [0, 1).

    Raises:
        TypeError: an argument is of the wrong type, or the layer returns integers.
        ValueError: `rate` is outside [0, 1), there is no key, or x has another rank than in `init`.
        Exception: whatever the layer raises, with a note that gives its path.

    Source: Huang et al., "Deep networks with stochastic depth", 2016;
    `torchvision.ops.stochastic_depth` with mode "row".

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.batched(mlax.residual(mlax.stochastic_depth(mlax.f(jnp.negative), 0.5)))
    >>> params, state = init(jax.random.key(0), jnp.ones((8, 1)))
    >>> y, state = apply(params, state, jnp.ones((8, 1)), jax.random.key(1))
    >>> sorted(set(y.ravel().tolist()))
    [-1.0, 1.0]
    """
    return init_only_child("stochastic_depth", layer, rng, x)
