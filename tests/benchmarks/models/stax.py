"""The dense models with `jax.example_libraries.stax`."""

from typing import Any

import jax
from jax.example_libraries import stax

from tests.benchmarks.model import Dense, Make, Model, Tree, mean_square


def dense(sizes: Dense) -> Model:
    """Return dense layers with relu between them."""
    *hidden, last = sizes.widths[1:]
    layers = [layer for width in hidden for layer in (stax.Dense(width), stax.Relu)]
    init, apply = stax.serial(*layers, stax.Dense(last))

    def loss(params: Tree, state: Tree, x: jax.Array, key: Any) -> tuple[jax.Array, Tree]:
        return mean_square(apply(params, x)), state

    return Model(lambda key: (init(key, sizes.shape.shape)[1], ()), loss)


MODELS: dict[str, Make] = {"mlp": dense, "dense100": dense}
