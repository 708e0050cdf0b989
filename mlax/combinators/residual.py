"""A layer with a shortcut around it: y = shortcut(x) + layer(x)."""

from typing import Annotated, Any, TypeAlias

import jax
import jax.numpy as jnp

from mlax.arguments import Rule, described, read_integer
from mlax.combinators import Sublayer, combinator, require_equal_shapes, shapes
from mlax.combinators.types import Residual
from mlax.errors import message


def _read_entry(owner: str, name: str, value: Any) -> int | str:
    return value if isinstance(value, str) else read_integer(owner, name, value)


Entry: TypeAlias = Annotated[int | str, Rule(_read_entry)]
"""The index or name of an entry."""


@combinator(kind=Residual, numbered=True, routes=True)
def residual(
    x: Any, /, layer: Sublayer, shortcut: Sublayer | None = None, *, at: Entry | None = None
) -> Any:
    """A residual connection: y = x + layer(x), or y = shortcut(x) + layer(x).

    params and variables are tuples with an entry for the layer and one for the shortcut, if
    there is one. The two get their keys by the rule of `mlax.series`.

    Args:
        layer: a layer from an array to an array, or, with `at`, from a pytree to one like it.
        shortcut: a layer whose output has the shape and dtype of the output of `layer`, for when x
            itself doesn't.
        at: index or name of the entry of x and layer(x) to add. The other entries of y are
            those of layer(x).

    Raises:
        TypeError: x is not an array and `at` is None, or has no entry `at`.
        ValueError: the arrays that are added differ in shape or dtype.

    Source: He et al., "Deep residual learning for image recognition", 2016.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.residual(mlax.linear(3))
    >>> params, state = init(jax.random.key(0), jnp.ones(3))
    >>> y, state = apply(params, state, jnp.zeros(3))
    >>> y
    Array([0., 0., 0.], dtype=float32)
    """
    y = layer(x)
    around = x if shortcut is None else shortcut(x)
    if at is None:
        return _sum(around, y)
    total = _sum(_entry(around, at), _entry(y, at))
    if isinstance(y, dict):
        return {**y, at: total}
    replaced = list(y)
    replaced[int(at)] = total
    return type(y)(*replaced) if hasattr(y, "_fields") else type(y)(replaced)


def _sum(around: Any, y: Any) -> Any:
    """Return the sum of two arrays, or the shape of the sum of two shapes."""
    for value in (around, y):
        if not hasattr(value, "shape"):
            way_out = "choose the entry to add to with residual(layer, at=0)"
            raise TypeError(message("residual", "x", "an array", described(value), way_out))
    way_out = "pass residual(layer, shortcut) a shortcut with an output like that of the layer"
    if around.shape != y.shape or around.dtype != y.dtype:
        what = "the output of the layer"
        require_equal_shapes("residual", shapes(around), shapes(y), what, way_out)
    if isinstance(y, jax.ShapeDtypeStruct):
        return jax.eval_shape(jnp.add, around, y)
    return jnp.add(around, y)


def _entry(value: Any, at: int | str) -> Any:
    """Return the entry `at` of a tuple, list or dict."""
    if isinstance(value, tuple | list) and isinstance(at, int) and -len(value) <= at < len(value):
        return value[at]
    if isinstance(value, dict) and at in value:
        return value[at]
    wanted = f"a tuple, list or dict with the entry {at!r}"
    raise TypeError(message("residual", "x", wanted, described(value)))
