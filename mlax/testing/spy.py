"""A layer that records how it is called, to check what a combinator passes to its layers.

    training:   y = scale * (x - mean of x over batch_axis_name) + normal noise
    inference:  y = scale * x

x is any pytree, and y is one like it; leaves that are not floating are returned unchanged.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.random import define_prng_impl, threefry_prng_impl

from mlax import mesh
from mlax.arguments import required_key
from mlax.layer import AxisName, Key, State
from mlax.pair import layer


class SpyParams(NamedTuple):
    """Parameters of `spy`."""

    scale: jax.Array
    """Float32 scalar."""


class SpyConfig(NamedTuple):
    """Configuration of `spy`: no hyperparameters."""


class SpyCall(NamedTuple):
    """What a spy was called with."""

    inference_mode: bool
    """The mode."""
    batch_axis_name: AxisName
    """The batch axes."""


def apply(
    params: SpyParams, state: State[tuple[()], SpyConfig], x: Any, rng: Key | None = None,
    inference_mode: bool = False, batch_axis_name: AxisName = (),
) -> tuple[Any, State[tuple[()], SpyConfig]]:
    """Return x with noise, and record the call: see `mlax.Apply` and `mlax.testing.spy`."""
    for calls in _recording:
        calls.append(SpyCall(inference_mode, batch_axis_name))
    leaves, structure = jax.tree.flatten(x)
    key = None if inference_mode else required_key("spy", rng)
    if key is not None and jax.random.key_impl(key) == RECORDED:
        # A combinator in place of the spy would derive keys from its own. What is mapped over is
        # among the arguments, so that each example and each copy counts.
        for one in (key, jax.random.fold_in(key, 0), jax.random.fold_in(key, 1)):
            jax.debug.callback(_record_key, jax.random.key_data(one), params.scale, leaves)
    y = [_noisy(leaf, params.scale, key, i, batch_axis_name) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, y), state


def _noisy(leaf: Any, scale: jax.Array, key: Key | None, i: int, batch_axis_name: AxisName) -> Any:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        return leaf
    scale = scale.astype(leaf.dtype)
    if key is None:
        return scale * leaf
    key = jax.random.fold_in(jax.random.fold_in(key, 0), i)
    centred = leaf - mesh.batch_mean("spy", leaf, batch_axis_name)
    return scale * centred + jax.random.normal(key, leaf.shape, leaf.dtype)


@layer(apply, config=SpyConfig, needs_rng=True)
def spy(rng: Key, x: Any) -> tuple[SpyParams, State[tuple[()], SpyConfig]]:
    """A layer to check combinators with: it needs a key and the batch axes.

    In place of each layer of a combinator, it lets `mlax.testing.check_laws` see that the key, the
    mode and `batch_axis_name` reach them all, and that no two layers, steps, copies or examples
    share a key. x is any pytree, and y has its shapes and dtypes.

    >>> import jax.numpy as jnp, mlax
    >>> from mlax.testing import check_laws, spy
    >>> check_laws(mlax.series(spy(), mlax.residual(spy())), jnp.ones(3))
    """
    return SpyParams(1.0 + jax.random.uniform(rng)), State((), SpyConfig())


_recording: list[list[SpyCall]] = []


@contextlib.contextmanager
def recorded_calls() -> Iterator[list[SpyCall]]:
    """Record the calls of all spies that are traced or run."""
    calls: list[SpyCall] = []
    _recording.append(calls)
    try:
        yield calls
    finally:
        _recording.remove(calls)


# Keys that record their use: each draw and each split consumes its key.

_used: list[bytes] = []


def _record_key(key: Any, *_: Any) -> None:
    _used.append(np.asarray(key).tobytes())


def _random_bits(key: jax.Array, bit_width: int, shape: tuple[int, ...]) -> jax.Array:
    jax.debug.callback(_record_key, key)
    bits: jax.Array = threefry_prng_impl.random_bits(key, bit_width, shape)
    return bits


def _split(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    jax.debug.callback(_record_key, key)
    keys: jax.Array = threefry_prng_impl.split(key, shape)
    return keys


RECORDED = define_prng_impl(
    key_shape=threefry_prng_impl.key_shape, seed=threefry_prng_impl.seed, split=_split,
    random_bits=_random_bits, fold_in=threefry_prng_impl.fold_in, name="recorded", tag="rec",
)
"""Makes keys of the default kind, which record their use, from a seed or from key data."""


def keys_used(function: Callable[[Key], Any], rng: Key) -> list[bytes]:
    """Return the keys that `function` consumes, each as often as it is consumed."""
    jax.effects_barrier()
    _used.clear()
    data = jax.random.key_data(rng).ravel()[:2]
    jax.block_until_ready(function(jax.random.wrap_key_data(data, impl=RECORDED)))
    jax.effects_barrier()
    return list(_used)
