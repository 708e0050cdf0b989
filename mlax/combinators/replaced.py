"""A model with another layer at a path: models are values, and so is the changed one."""

from typing import Annotated, Any

from mlax.arguments import AnyLayer, Rule, described, read_layer
from mlax.combinators import Place, Transform, Wired, kind_of, places_of
from mlax.combinators.composed import Composed, composed
from mlax.combinators.tap import TapInit, tap
from mlax.errors import expected, message
from mlax.layer import Layer
from mlax.pair import BoundApply, BoundInit, HParams
from mlax.tree import spelled_key


def replaced(layer: AnyLayer, path: str, new: AnyLayer) -> AnyLayer:
    """Return a model with another layer at a path, as the paths of its params are written.

    Combinators whose params are those of their one layer, such as `mlax.repeat` and `mlax.batched`,
    have no key in the path: "body.mlp" goes through `mlax.repeat`. The expression changes, and with
    it all copies of a repeated layer.

    Layers that a function of x makes, such as those of `mlax.models` and `mlax.mlp`, are replaced
    once x is known: if the path does not exist, it is `init` that raises.

    Args:
        layer: a layer made of others.
        path: keys joined with dots, as in `mlax.paths`; "" is the layer itself.
        new: what to put there.

    Raises:
        TypeError: `layer` or `new` is not a layer, or `path` is not a string.
        ValueError: there is no layer at the path. The error lists the layers where it ends.

    >>> import jax.numpy as jnp, mlax
    >>> model = mlax.series(stem=mlax.dense(8), body=mlax.repeat(mlax.residual(mlax.dense(8)), 3))
    >>> mlax.replaced(model, "body", mlax.f(jnp.tanh))
    series(stem=dense(8), body=f(tanh))
    """
    read_layer("replaced", "layer", layer)
    read_layer("replaced", "new", new)
    return _replaced(layer, _read_path("replaced", "path", path), new)


def _read_path(owner: str, name: str, value: Any) -> str:
    if not isinstance(value, str):
        wanted = 'a string, as in mlax.paths, such as "0" or "body.mlp"'
        raise TypeError(message(owner, name, wanted, described(value)))
    return value


def _replaced(
    layer: AnyLayer, path: str, new: AnyLayer, whole: str = "", kind: str = ""
) -> AnyLayer:
    if not path:
        return new
    init: Any = layer.init
    whole, kind = whole or path, kind or kind_of(layer)
    if isinstance(init, TapInit):
        return tap(_replaced(init.layer, path, new, whole), init.where)
    if isinstance(init, BoundInit) and isinstance(init.pair, Composed):
        return composed_replaced(layer, path, new)
    children = _children(layer)
    for key, child in children.items():
        rest = f".{path}" if not key else path.removeprefix(key)
        if path == key or rest != path and rest.startswith("."):
            inner = _replaced(child.layer, rest.removeprefix("."), new, whole)
            pair, hparams = init.pair, _put(init.hparams, child, inner)
            needs = pair.layer_needs_rng(hparams)
            return Layer(BoundInit(pair, hparams), BoundApply(pair, hparams, needs), needs)
    got = f"{kind} with {', '.join(children) or 'no layers of its own'}"
    raise ValueError(expected("replaced", f"a layer at {whole!r}", got))


def _composed(
    x: Any, layer: AnyLayer, path: Annotated[str, Rule(_read_path)], new: AnyLayer
) -> AnyLayer:
    """The layer that a function of x makes, with another one at a path."""
    init: Any = layer.init
    made = init.pair.layer_for(x, init.hparams)
    return _replaced(made, path, new, kind=kind_of(layer))


_composed.__name__, _composed.__qualname__ = "replaced", "composed_replaced"
composed_replaced: Composed[..., Any, Any, Any, Any] = composed(
    needs_rng=lambda layer, path, new: layer.needs_rng or new.needs_rng
)(_composed)


def _children(layer: AnyLayer) -> dict[str, Place]:
    """Return the places of the layers of a combinator, by key."""
    init: Any = layer.init
    if not isinstance(init, BoundInit):
        return {}
    places = list(places_of(init.hparams))
    if isinstance(init.pair, Wired):
        _, children = init.pair.children_of(init.hparams)
        return dict(zip(map(spelled_key, children), places, strict=True))
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
