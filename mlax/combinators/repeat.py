"""n copies of a layer in series, run by one loop.

params and variables are those of the layer, each array with a leading axis of n copies.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, overload

import jax
from jax import lax

from mlax import mesh
from mlax.arguments import AnyLayer, Size
from mlax.combinators import (
    Call, Child, Made, Transform, copy_keys, init_copies, require_copies, require_equal_shapes,
    shapes, transform,
)
from mlax.layer import Key, Layer, State
from mlax.layer import C, P, S, V, X

Policy = Callable[..., bool]


class RepeatConfig(NamedTuple):
    """Configuration of `repeat`."""

    layer: Child
    """The layer."""
    n: int
    """Number of copies."""
    unroll: int
    """Number of copies per iteration of the loop."""
    remat: bool
    """Whether the backward pass recomputes the activations of each copy."""
    policy: Policy | None
    """Which activations to save anyway."""


class Repeat(Transform[Any, State[Any, RepeatConfig], Any, Any]):
    """The type of `repeat`: the copies have the params and variables types of the layer."""

    @overload
    def __call__(
        self, layer: Layer[P, State[V, C], X, X], n: int, *,
        unroll: int = 1, remat: bool = False, policy: Policy | None = None,
    ) -> Layer[P, State[V, RepeatConfig], X, X]: ...
    @overload
    def __call__(
        self, layer: Layer[P, S, X, X], n: int, *,
        unroll: int = 1, remat: bool = False, policy: Policy | None = None,
    ) -> Layer[P, State[Any, RepeatConfig], X, X]: ...
    def __call__(self, layer: AnyLayer, n: int, **hparams: Any) -> AnyLayer:
        """Return n copies of the layer in series."""
        return self.bind(layer, n, **hparams)


def apply(call: Call, config: RepeatConfig, params: Any, variables: Any, x: Any) -> tuple[Any, Any]:
    """Return the output of the last copy: see `mlax.repeat`."""
    require_copies("repeat", params, config.n)
    keys = copy_keys(call.rng, config.n) if config.layer.needs_rng else None
    return in_series(call, config, (params, variables, keys), x)


def in_series(call: Call, config: RepeatConfig, copies: Any, x: Any) -> tuple[Any, Any]:
    """Return the output of the last copy; `copies` are params, variables and keys, stacked."""
    child, n, unroll, remat, policy = config

    def step(x: Any, copy: tuple[Any, Any, Key | None]) -> tuple[Any, Any]:
        p, v, key = copy
        return call(child, p, v, x, key)

    if remat or policy is not None:
        step = jax.checkpoint(step, prevent_cse=False, policy=policy)
    x = mesh.settled(step, x, copies, n)
    y, variables = lax.scan(step, x, copies, n, unroll=unroll)
    return y, variables


@transform(apply, RepeatConfig, Repeat)
def repeat(
    rng: Key, x: Any, layer: AnyLayer, n: Size, *,
    unroll: Size = 1, remat: bool = False, policy: Policy | None = None,
) -> Made:
    """n copies of a layer in series, each with its own parameters, run by `jax.lax.scan`.

    The copies have the keys, parameters and results of n layers in `mlax.series`, but the layer
    is traced and compiled once, however many copies there are. (Keys whose bits change under
    `jax.vmap`, such as "rbg" keys, give different parameters.)

    Args:
        layer: a layer whose output has the shapes and dtypes of its input.
        n: number of copies.
        unroll: number of copies per iteration of the loop, as in `jax.lax.scan`.
        remat: rematerialization: save only the inputs of the copies for the backward pass and
            recompute the activations, see `mlax.remat`.
        policy: which activations to save anyway, as in `jax.checkpoint`. A policy implies
            `remat`.

    Raises:
        ValueError: the output of the layer differs from its input, or a number is not positive.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.repeat(mlax.residual(mlax.linear(3)), 12)
    >>> params, state = init(jax.random.key(0), jnp.ones(3))
    >>> params[0].kernel.shape
    (12, 3, 3)
    """
    made = init_copies("repeat", layer, rng, x, n)
    require_equal_shapes("repeat", shapes(x), made.output(), "the output of the layer")
    return made
