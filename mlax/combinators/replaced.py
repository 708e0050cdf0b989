"""A model with another layer at a path: models are values, and so is the changed one."""

from typing import Any

from mlax.arguments import AnyLayer, read_layer
from mlax.combinators.child import kind_of
from mlax.combinators.wiring import Place, Transform, Wired, places_of
from mlax.errors import expected
from mlax.layer import Layer
from mlax.pair import BoundApply, BoundInit, HParams


def replaced(layer: AnyLayer, path: str, new: AnyLayer) -> AnyLayer:
    """Return a model with another layer at a path, which is that of its params.

    A combinator of one layer has no key in the path: "body.mlp" goes through `mlax.repeat` and
    `mlax.residual`. What is changed is the expression, so all copies of a repeated layer change,
    and layers that a function makes inside, such as those of `mlax.mlp`, can't be.

    Args:
        layer: a layer made of combinators.
        path: keys joined with dots, as in `mlax.paths`; "" is the layer itself.
        new: what to put there.

    Raises:
        TypeError: `layer` or `new` is no layer.
        ValueError: there is no layer at the path. The error names those where the path ends.

    >>> import jax.numpy as jnp, mlax
    >>> model = mlax.series(stem=mlax.dense(8), body=mlax.repeat(mlax.residual(mlax.dense(8)), 3))
    >>> mlax.replaced(model, "body", mlax.f(jnp.tanh))
    series(stem=dense(8), body=f(tanh))
    """
    read_layer("replaced", "layer", layer)
    read_layer("replaced", "new", new)
    return _replaced(layer, path.split(".") if path else [], new, path)


def _replaced(layer: AnyLayer, keys: list[str], new: AnyLayer, path: str) -> AnyLayer:
    if not keys:
        return new
    children = _children(layer)
    child, rest = children.get("") if len(children) == 1 else None, keys
    if child is None:
        child, rest = children.get(keys[0]), keys[1:]
    if child is None:
        names = ", ".join(children) or "no layers of its own"
        raise ValueError(
            expected("replaced", f"a layer at {path!r}", f"{kind_of(layer)} with {names}")
        )
    init: Any = layer.init
    pair, hparams = init.pair, _put(init.hparams, child, _replaced(child.layer, rest, new, path))
    needs = pair.layer_needs_rng(hparams)
    return Layer(BoundInit(pair, hparams), BoundApply(pair, hparams, needs), needs)


def _children(layer: AnyLayer) -> dict[str, Place]:
    """Return where the layers of a combinator stand, by key."""
    init: Any = layer.init
    if not isinstance(init, BoundInit):
        return {}
    places = list(places_of(init.hparams))
    if isinstance(init.pair, Wired):
        _, children = init.pair.children_of(init.hparams)
        return dict(zip(map(str, children), places, strict=True))
    if isinstance(init.pair, Transform) and len(places) == 1:
        return {init.pair.child_key: places[0]}
    return {p.hparam if p.position is None else str(p.position): p for p in places}


def _put(hparams: HParams, place: Place, layer: AnyLayer) -> HParams:
    """Return hyperparameters with another layer at a place."""
    values = dict(hparams)
    if place.position is None:
        values[place.hparam] = layer
    else:
        entries = list(values[place.hparam])
        old = entries[place.position]
        entries[place.position] = layer if isinstance(old, Layer) else (old[0], layer)
        values[place.hparam] = tuple(entries)
    return tuple(values.items())
