"""A layer from (x, h) to (y, h) as a layer from x to y, which starts with a carry of its own.

params are those of the layer; so are variables, together with the carry if the layer decodes.
"""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple, TypeAlias, TypeVar, overload

import jax
import jax.numpy as jnp

from mlax.arguments import AnyLayer, read_pair, require_ndims
from mlax.combinators import (
    Call, Child, Made, Transform, init_only_child, require_equal_shapes, shapes, transform,
)
from mlax.decoding import require_inference
from mlax.layer import Key, Layer, State
from mlax.layer import C, P, S, V, X, Y
from mlax.serialization import serializable

H = TypeVar("H")

Start: TypeAlias = Callable[[Any], Any]
"""Returns the first carry for an x."""


class CarriedConfig(NamedTuple):
    """Configuration of `carried`."""

    layer: Child
    """The layer."""
    start: Start | None
    """The function that makes the first carry, None for zeros."""
    decodes: bool
    """Whether the carry is kept from call to call."""
    ndims: tuple[int, ...]
    """Number of axes of each array of x."""


@serializable
class CarriedVariables(NamedTuple):
    """Variables of `carried` when it decodes."""

    carry: Any
    """The carry after the last call."""
    layer: Any
    """The variables of the layer."""


class Carried(Transform[Any, State[Any, CarriedConfig], Any, Any]):
    """The type of `carried`: it has the params and variables types of the layer."""

    @overload
    def __call__(
        self, layer: Layer[P, State[V, C], tuple[X, H], tuple[Y, H]], start: Start | None = None,
        *, decodes: Literal[False] = False,
    ) -> Layer[P, State[V, CarriedConfig], X, Y]: ...
    @overload
    def __call__(
        self, layer: Layer[P, S, tuple[X, H], tuple[Y, H]], start: Start | None = None, *,
        decodes: Literal[True],
    ) -> Layer[P, State[CarriedVariables, CarriedConfig], X, Y]: ...
    @overload
    def __call__(
        self, layer: Layer[P, S, tuple[X, H], tuple[Y, H]], start: Start | None = None, *,
        decodes: bool = False,
    ) -> Layer[P, State[Any, CarriedConfig], X, Y]: ...
    def __call__(
        self, layer: AnyLayer, start: Start | None = None, *, decodes: bool = False
    ) -> AnyLayer:
        """Return the layer without its carry."""
        return self.bind(layer, start, decodes=decodes)


def apply(
    call: Call, config: CarriedConfig, params: Any, variables: Any, x: Any
) -> tuple[Any, Any]:
    """Return the output of the layer without the carry: see `mlax.carried`."""
    require_ndims("carried", x, config.ndims)
    if not config.decodes:
        start = None if config.start is None else config.start(x)
        result, variables = call(config.layer, params, variables, (x, start))
        return read_pair("carried", "the output of the layer", result, "(y, h)")[0], variables
    require_inference("carried", call.inference_mode, "decodes")
    result, after = call(config.layer, params, variables.layer, (x, variables.carry))
    y, carry = read_pair("carried", "the output of the layer", result, "(y, h)")
    return y, CarriedVariables(carry, after)


@transform(apply, CarriedConfig, Carried)
def carried(
    rng: Key, x: Any, layer: AnyLayer, start: Start | None = None, *, decodes: bool = False
) -> Made:
    """A layer from (x, h) to (y, h), such as `mlax.recurrent(cell)`, as a layer from x to y.

    Each call of `apply` starts with the carry start(x), or with zeros. With `decodes`, the carry is
    a variable: each call, in inference mode, continues where the previous one ended, so a sequence
    may come in chunks of any length. The params are the same as without `decodes`.

    Args:
        layer: a layer from (x, h) to (y, h), where h keeps its shapes and dtypes.
        start: `start(x)` returns the first carry. None means zeros, for a layer that takes None
            as that: `mlax.lru` and its kind, and `mlax.recurrent` and `mlax.bidirectional` with
            cells of mlax.
        decodes: whether the carry is kept from call to call.

    Raises:
        ValueError: `decodes` is set and `apply` is not in inference mode, or x has other axes
            than in `init`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> lstm = mlax.recurrent(mlax.lstm_cell(4))
    >>> xs = jax.random.normal(jax.random.key(1), (6, 3))
    >>> params, state = mlax.carried(lstm).init(jax.random.key(0), xs)
    >>> ys, _ = mlax.carried(lstm).apply(params, state, xs)
    >>> decoder = mlax.carried(lstm, decodes=True)
    >>> state = mlax.init_state(decoder, params, xs)
    >>> first, state = decoder.apply(params, state, xs[:2], inference_mode=True)
    >>> second, state = decoder.apply(params, state, xs[2:], inference_mode=True)
    >>> jnp.allclose(jnp.concatenate([first, second]), ys, atol=1e-6)
    Array(True, dtype=bool)
    """
    carry = None if start is None else jax.eval_shape(start, shapes(x))
    made = init_only_child("carried", layer, rng, (shapes(x), carry))
    y, after = read_pair("carried", "the output of the layer", made.output(), "(y, h)")
    if start is not None:
        require_equal_shapes("carried", carry, after, "the next carry", error=TypeError)
    made = made._replace(output=lambda: y)
    if not decodes:
        return made
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), after)
    first = zeros if start is None else start(x)
    return made._replace(variables=CarriedVariables(first, made.variables))
