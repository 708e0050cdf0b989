"""Several layers applied to one input: y[i] = layer_i(x).

params, variables and y are tuples with one entry for each layer, or dicts if the layers have names.
"""

from typing import Any

from mlax.combinators import Sublayer, combinator
from mlax.combinators.types import Branch


@combinator(kind=Branch, routes=True)
def branch(x: Any, /, *layers: Sublayer, **named: Sublayer) -> Any:
    """Apply several layers to one input; the results are a tuple.

    The layers get their keys by the rule of `mlax.series`. `mlax.add`, `mlax.multiply` and
    `mlax.concatenate` join the results.

    Args:
        layers: any number. y, params and variables are tuples.
        named: layers with names instead of `layers`. y, params and variables are dicts with
            these names.

    Raises:
        TypeError: something is not a layer, or only some layers have names.
        Exception: whatever a layer raises, with a note that gives its path.

    >>> import jax, jax.numpy as jnp, mlax
    >>> split = mlax.branch(mlax.linear(4), mlax.f(jnp.negative))
    >>> init, apply = mlax.series(split, mlax.concatenate())
    >>> params, state = init(jax.random.key(0), jnp.ones(2))
    >>> apply(params, state, jnp.ones(2))[0].shape
    (6,)
    """
    if named:
        return {name: layer(x) for name, layer in named.items()}
    return tuple(layer(x) for layer in layers)
