"""A trained array that does not depend on x: y = value.

    x      anything, including None
    value  `shape`
    y      the shape and dtype of value
"""

from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

from mlax.arguments import DType, Rule, entries, read_integer
from mlax.errors import message
from mlax.initializers import Initializer, initialize
from mlax.layer import Key
from mlax.pair import stateless
from mlax.serialization import serializable


def read_shape(owner: str, name: str, value: Any) -> tuple[int, ...]:
    """Require the shape of an array."""
    wanted = "made of integers of at least 0"
    shape = tuple(read_integer(owner, name, n, wanted) for n in entries(owner, name, value))
    if min(shape, default=0) < 0:
        raise ValueError(message(owner, name, wanted, repr(value)))
    return shape


Shape: TypeAlias = Annotated[Sequence[int], Rule(read_shape)]
"""The shape of an array."""


@serializable
class ParameterParams(NamedTuple):
    """Parameters of `parameter`."""

    value: jax.Array
    """The array."""


class ParameterConfig(NamedTuple):
    """Configuration of `parameter`: no hyperparameters."""


def apply(params: ParameterParams, config: ParameterConfig, x: Any) -> jax.Array:
    """Return the array: see `mlax.parameter`."""
    return params.value


@stateless(apply, ParameterConfig)
def parameter(
    rng: Key, x: Any, shape: Shape, initializer: Initializer = jax.nn.initializers.zeros, *,
    dtype: DType = jnp.float32,
) -> ParameterParams:
    """A trained array, such as a class token or a table of positions: y = value.

    For `mlax.block`, where `sub.NAME()` is the array.

    Args:
        shape: the shape of the array.
        initializer: called with `shape`.
        dtype: dtype of the array and of y.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: a length is negative.

    >>> import jax, jax.numpy as jnp, mlax
    >>> @mlax.block(token=mlax.parameter((1, 4), jax.random.normal))
    ... def with_class_token(sub, patches):
    ...     return jnp.concatenate([sub.token(), patches])
    >>> params, state = with_class_token.init(jax.random.key(0), jnp.ones((9, 4)))
    >>> with_class_token.apply(params, state, jnp.ones((9, 4)))[0].shape
    (10, 4)
    """
    return ParameterParams(
        initialize("parameter", "initializer", initializer, rng, tuple(shape), dtype)
    )
