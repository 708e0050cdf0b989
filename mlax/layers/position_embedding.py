"""Learned positions: y = x + embedding[positions].

    x          (..., length, features)
    positions  (..., length), counted from 0 if they aren't given
    embedding  (max_length, features)
    y          (..., length, features)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jax.sharding import PartitionSpec

from mlax import arguments, mesh
from mlax.arguments import DType, Size
from mlax.decoding import require_inference
from mlax.errors import expected, message
from mlax.initializers import Initializer, initialize
from mlax.layer import AxisName, Key, State
from mlax.pair import layer
from mlax.positions import signed
from mlax.serialization import serializable


@serializable
class PositionEmbeddingParams(NamedTuple):
    """Parameters of `position_embedding`."""

    embedding: jax.Array
    """(max_length, features)."""


@serializable
class PositionEmbeddingVariables(NamedTuple):
    """Variables of `position_embedding` when it decodes."""

    next_position: jax.Array
    """(...), the position of the next token."""


class PositionEmbeddingConfig(NamedTuple):
    """Configuration of `position_embedding`."""

    decodes: bool
    """Whether positions continue from the previous call."""


def apply(
    params: PositionEmbeddingParams, state: State[Any, PositionEmbeddingConfig], x: Any,
    rng: Key | None = None, inference_mode: bool = False, batch_axis_name: AxisName = (),
) -> tuple[jax.Array, State[Any, PositionEmbeddingConfig]]:
    """Return x + embedding[positions]: see `mlax.Apply` and `mlax.position_embedding`."""
    x, positions = _read(x)
    x = jnp.asarray(x)
    size, features = params.embedding.shape
    if x.shape[-1] != features:
        what = f"x of {features} features, as the embedding has"
        raise ValueError(expected("position_embedding", what, f"shape {x.shape}"))
    arguments.require_castable("position_embedding", x, params.embedding.dtype)
    if state.config.decodes:
        require_inference("position_embedding", inference_mode, "decodes")
    if positions is None:
        first = jnp.zeros(x.shape[:-2], jnp.int32)
        if state.config.decodes:
            first = state.variables.next_position
        positions = _counted(first, x.shape[-2], size)
    positions = jnp.broadcast_to(signed(jnp.asarray(positions)), x.shape[:-1])
    embedding = jnp.asarray(params.embedding)
    sharding = PartitionSpec(*mesh.spec_of(positions), mesh.spec_of(embedding)[1])
    rows = embedding.at[positions].get(
        mode="fill", fill_value=jnp.nan, out_sharding=mesh.output_sharding(sharding)
    )
    y = x + jnp.where(positions[..., None] < 0, 0, rows).astype(x.dtype)
    if not state.config.decodes:
        return y, state
    after = jnp.max(positions, -1).astype(jnp.int32) + 1
    after = jnp.maximum(state.variables.next_position, after)
    return y, State(PositionEmbeddingVariables(after), state.config)


def _read(x: Any) -> tuple[Any, Any]:
    """Return x and its positions, or None if they are counted."""
    positions = None
    if isinstance(x, tuple | list):
        x, positions = arguments.read_pair("position_embedding", "x", x, "(x, positions)")
    arguments.require_rank("position_embedding", x, 2)
    if positions is not None:
        arguments.require_integers("position_embedding", positions, "positions")
        if positions.shape not in (x.shape[:-1], x.shape[-2:-1]):
            wanted, got = f"of shape {x.shape[:-1]}", f"shape {positions.shape}"
            raise ValueError(message("position_embedding", "positions", wanted, got))
    return x, positions


def _counted(first: jax.Array, length: int, size: int) -> jax.Array:
    """Return positions counted from the first ones, which must be in the embedding."""
    last = length
    if not isinstance(first, Tracer):
        last += int(np.max(np.asarray(first), initial=0))
    if type(last) is int and last > size:  # it may be symbolic, in jax.export
        wanted = f"at most {size} positions, as the embedding has"
        way_out = "make max_length larger"
        raise ValueError(expected("position_embedding", wanted, f"{last}", way_out))
    counted = jnp.arange(length).reshape(*(1,) * first.ndim, length)
    return first[..., None] + counted


@layer(apply, config=PositionEmbeddingConfig)
def position_embedding(
    rng: Key, x: Any, max_length: Size, *, decodes: bool = False,
    embed_initializer: Initializer = jax.nn.initializers.normal(0.02), dtype: DType = jnp.float32,
) -> tuple[PositionEmbeddingParams, State[Any, PositionEmbeddingConfig]]:
    """Learned positions: y = x + embedding[positions].

    (..., length, features) -> (..., length, features). The input is x, whose positions are counted
    from 0, or a pair (x, positions). A negative position is padding, to which nothing is added.

    With `decodes`, each call of `apply`, in inference mode, takes the next tokens of a sequence:
    positions continue where the previous call ended.

    Args:
        max_length: number of positions.
        decodes: whether positions continue from the previous call.
        embed_initializer: called with (max_length, features).
        dtype: dtype of the embedding. It is cast to the dtype of x when used.

    Raises:
        TypeError: an argument is of the wrong type, or x is not floating.
        ValueError: there are more positions than `max_length`. (Where their number is known only in
            compiled code, y is NaN at the positions beyond.)

    Source: Radford et al., "Improving language understanding by generative pre-training", 2018.

    >>> import jax, jax.numpy as jnp, mlax
    >>> x = jnp.zeros((3, 4))
    >>> params, state = mlax.position_embedding(8).init(jax.random.key(0), x)
    >>> y, _ = mlax.position_embedding(8).apply(params, state, x)
    >>> jnp.array_equal(y, params.embedding[:3])
    Array(True, dtype=bool)
    """
    x, _ = _read(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        wanted, got = "of a floating dtype", jnp.dtype(x.dtype).name
        raise TypeError(message("position_embedding", "x", wanted, got))
    owner, shape = "position_embedding", (max_length, x.shape[-1])
    embedding = initialize(owner, "embed_initializer", embed_initializer, rng, shape, dtype)
    variables: Any = ()
    if decodes:
        variables = PositionEmbeddingVariables(jnp.zeros(x.shape[:-2], jnp.int32))
    return PositionEmbeddingParams(embedding), State(variables, PositionEmbeddingConfig(decodes))
