"""Layers side by side: y[i] = layer_i(x[i]).

params, variables, x and y are tuples with one entry for each layer, or dicts if named.
"""

from typing import Any

from mlax.combinators import Sublayer, by_key, combinator, packed
from mlax.combinators.types import Parallel


@combinator(kind=Parallel, routes=True)
def parallel(x: Any, /, *layers: Sublayer, **named: Sublayer) -> Any:
    """Layers side by side: a tuple goes in, one entry for each layer, and a tuple comes out.

    The layers get their keys by the rule of `mlax.series`.

    Args:
        layers: any number. params and variables are tuples.
        named: layers with names instead of `layers`. x, y, params and variables are dicts
            with these names.

    Raises:
        TypeError: something is not a layer, only some layers have names, or x is not a tuple
            (a dict if the layers have names).
        ValueError: x does not have one entry for each layer.
        Exception: whatever a layer raises, with a note that gives its path.

    >>> import jax, jax.numpy as jnp, mlax
    >>> x = (jnp.ones(3), jnp.ones(2))
    >>> init, apply = mlax.parallel(mlax.linear(4), mlax.f(jnp.negative))
    >>> params, state = init(jax.random.key(0), x)
    >>> y, state = apply(params, state, x)
    >>> y[0].shape, y[1]
    ((4,), Array([-1., -1.], dtype=float32))
    """
    keys: list[Any] = list(named) or list(range(len(layers)))
    xs = by_key("parallel", "x", x, keys)
    return packed(keys, [layer(x) for layer, x in zip((*layers, *named.values()), xs, strict=True)])
