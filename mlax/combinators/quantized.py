"""Weights in 8 bits: W is kept as round(W / scale) in int8, with a scale for each output channel.

    W       (..., inputs, outputs), or an embedding (vocab_size, embed_dim)
    values  the shape of W, int8
    scale   (..., 1, outputs), or (vocab_size, 1): max |W| / 127 over the other axis

so that |values * scale - W| is at most half a step, max |W| / 254 over that axis, up to rounding in
the dtype of W. Only weights are quantized: they are multiplied out where they are used.

Integers can't be trained: they are variables, and params are those that are left.
"""

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp

from mlax.arguments import AnyLayer, described
from mlax.combinators import Call, Child, Made, init_only_child, transform
from mlax.combinators.child import variables_of
from mlax.combinators.lora import Pattern
from mlax.errors import message
from mlax.layer import Key, Layer, State
from mlax.pair import require_params_like
from mlax.serialization import serializable
from mlax.tree import Where, combine, map_with_path, partition

S = TypeVar("S")
X = TypeVar("X")


@serializable
class Int8(NamedTuple):
    """What is kept in the place of an array: values * scale."""

    values: jax.Array
    """int8, the shape of the array."""
    scale: jax.Array
    """The dtype of the array, 1 along one of the last two axes."""


@serializable
class QuantizedVariables(NamedTuple):
    """Variables of `quantized`."""

    weights: Any
    """The params of the layer: `Int8` for those that are quantized, None for the others."""
    layer: Any
    """The variables of the layer."""


class QuantizedConfig(NamedTuple):
    """Configuration of `quantized`."""

    layer: Child
    """The layer."""
    where: Where
    """Which leaves of its params are quantized."""


def apply(
    call: Call, config: QuantizedConfig, params: Any, variables: QuantizedVariables, x: Any
) -> tuple[Any, QuantizedVariables]:
    """Return the output of the layer with its weights multiplied out: see `mlax.quantized`."""
    full = _joined(params, variables.weights)
    y, after = call(config.layer, full, variables.layer, x)
    return y, QuantizedVariables(variables.weights, after)


def _joined(params: Any, weights: Any) -> Any:
    """Return the params of the layer."""
    products = jax.tree.map(
        lambda small: small.values.astype(small.scale.dtype) * small.scale,
        weights, is_leaf=lambda node: isinstance(node, Int8),
    )
    return combine(params, products)


def is_weight(path: str, leaf: Any) -> bool:
    """Return whether a leaf is a kernel or an embedding: what a layer multiplies x with."""
    return path.endswith(("kernel", "embedding")) and len(leaf.shape) >= 2


def _int8(path: str, leaf: jax.Array) -> Int8:
    if not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise TypeError(message("quantized", path, "of a floating dtype", described(leaf)))
    if leaf.ndim < 2:
        raise ValueError(message("quantized", path, "of two axes or more", described(leaf)))
    axis = -1 if path.endswith("embedding") else -2
    wide = leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32))
    largest = jnp.max(jnp.abs(wide), axis, keepdims=True, initial=0)
    scale = (jnp.where(largest > 0, largest, 127) / 127).astype(leaf.dtype)
    steps = jnp.round(wide / scale.astype(wide.dtype))
    return Int8(jnp.clip(steps, -127, 127).astype(jnp.int8), scale)


@transform(apply, QuantizedConfig)
def quantized(rng: Key, x: Any, layer: AnyLayer, where: Pattern = is_weight) -> Made:
    """A layer whose weights are kept in int8, a quarter of their size in float32.

    Each output channel of a kernel has a scale, for each index of its leading axes, and each row of
    an embedding: the largest error is max |W| / 254 over the channel or row. What is quantized is a
    variable; params are the others, such as biases, with None in its place.

    `mlax.init_quantized` starts from params that are there already, and `mlax.merge_quantized`
    returns params of the layer alone.

    Args:
        layer: any layer.
        where: which leaves of its params, by path, floating and of two axes or more; by default
            all whose name ends in kernel or embedding.

    Raises:
        TypeError: a selected leaf is not floating.
        ValueError: a pattern selects no leaf, or one of less than two axes.

    >>> import jax, jax.numpy as jnp, mlax
    >>> model, x = mlax.series(mlax.dense(8), mlax.f(jnp.tanh), mlax.dense(4)), jnp.ones(6)
    >>> params, state = model.init(jax.random.key(0), x)
    >>> small = mlax.quantized(model)
    >>> biases, small_state = mlax.init_quantized(small, x, params, state)
    >>> small_state.variables.weights[0].kernel.values.dtype, mlax.paths(biases)
    (dtype('int8'), ['0.bias', '2.bias'])
    >>> y, _ = small.apply(biases, small_state, x)
    """
    made = init_only_child("quantized", layer, rng, x)
    chosen, others = partition(made.params, where)
    weights = map_with_path(_int8, chosen)
    return made._replace(params=others, variables=QuantizedVariables(weights, made.variables))


def init_quantized(
    layer: Layer[Any, S, X, Any], x: X, params: Any, state: Any
) -> tuple[Any, S]:
    """Return params and state of a layer made by `quantized`, for params that are there.

    Args:
        layer: a layer made by `mlax.quantized`.
        x: an input, or its shapes and dtypes.
        params: the params of the layer within.
        state: its state.

    Raises:
        TypeError: the params are of another structure or dtype.
        ValueError: the params are of other shapes.
    """
    others, own = jax.eval_shape(layer.init, jax.random.key(0), x)
    if not isinstance(own, State) or not isinstance(own.variables, QuantizedVariables):
        got = described(layer)
        raise TypeError(message("init_quantized", "layer", "one made by mlax.quantized", got))
    full = jax.eval_shape(_joined, others, own.variables.weights)
    require_params_like("init_quantized", full, params)
    chosen, others = partition(params, own.config.where)
    weights = jax.jit(lambda chosen: map_with_path(_int8, chosen))(chosen)
    started: Any = State(QuantizedVariables(weights, variables_of(state)), own.config)
    return others, started


def merge_quantized(params: Any, state: Any) -> tuple[Any, Any]:
    """Return params and state of the layer within `quantized`, with its weights multiplied out.

    Raises:
        TypeError: the state is none of `mlax.quantized`.
    """
    config = getattr(state, "config", None)
    if not isinstance(config, QuantizedConfig):
        wanted, got = "that of mlax.quantized", described(state)
        raise TypeError(message("merge_quantized", "state", wanted, got))
    merged = _joined(params, state.variables.weights)
    return merged, config.layer.state(state.variables.layer)
