"""Layers one after the other: y = layer_n(... layer_1(x)).

params and variables are tuples with one entry for each layer, or dicts if named.
"""

from typing import Any

from mlax.combinators import Sublayer, combinator
from mlax.combinators.types import Series


@combinator(kind=Series, routes=True)
def series(x: Any, /, *layers: Sublayer, **named: Sublayer) -> Any:
    """Layers in series: the output of each is the input of the next.

    In `init`, layer i gets the key fold_in(rng, i). In `apply`, only layers that need a key get
    one: if there is only one it gets `rng`; of several, the j-th gets fold_in(rng, j).

    Args:
        layers: any number; without any it is the identity. params and variables are tuples.
        named: layers with names, in the order written, instead of `layers`. params and
            variables are dicts with these names.

    Raises:
        TypeError: something is not a layer, or only some layers have names.
        Exception: whatever a layer raises, with a note that gives its path.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.series(mlax.linear(4), mlax.bias(-1), mlax.f(jax.nn.relu))
    >>> params, state = init(jax.random.key(0), jnp.ones(3))
    >>> params[0].kernel.shape
    (3, 4)
    >>> y, state = apply(params, state, jnp.ones(3))
    >>> y.shape
    (4,)
    >>> init, apply = mlax.series(stem=mlax.linear(4), head=mlax.linear(2))
    >>> params, state = init(jax.random.key(0), jnp.ones(3))
    >>> params["head"].kernel.shape
    (4, 2)
    """
    for layer in (*layers, *named.values()):
        x = layer(x)
    return x
