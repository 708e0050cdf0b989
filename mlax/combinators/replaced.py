"""A model with another layer at a path: models are values, and so is the changed one."""

import inspect
from collections.abc import Iterator
from typing import Any, NamedTuple

from mlax.arguments import AnyLayer, read_layer
from mlax.combinators.child import kind_of
from mlax.combinators.wiring import Transform, Wired
from mlax.errors import expected
from mlax.layer import Layer
from mlax.pair import BoundApply, BoundInit, HParams


class _Place(NamedTuple):
    """Where a layer stands among the hyperparameters of a combinator."""

    key: str
    """Its key in params."""
    layer: AnyLayer
    hparam: str
    """The name of the hyperparameter."""
    position: int | None
    """Its position there, None if the hyperparameter is the layer itself."""

    def put(self, hparams: HParams, layer: AnyLayer) -> HParams:
        """Return the hyperparameters with another layer here."""
        values = dict(hparams)
        value: Any = layer
        if self.position is not None:
            entries = list(values[self.hparam])
            old = entries[self.position]
            entries[self.position] = layer if isinstance(old, Layer) else (old[0], layer)
            value = tuple(entries)
        return tuple((name, value if name == self.hparam else v) for name, v in hparams)


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
    places = list(_places(layer))
    if len(places) == 1 and places[0].key == "":
        place, rest = places[0], keys
    else:
        found = [place for place in places if place.key == keys[0]]
        if not found:
            names = ", ".join(place.key for place in places) or "no layers of its own"
            what = f"a layer at {path!r}"
            raise ValueError(expected("replaced", what, f"{kind_of(layer)} with {names}"))
        place, rest = found[0], keys[1:]
    init: Any = layer.init
    pair, hparams = init.pair, place.put(init.hparams, _replaced(place.layer, rest, new, path))
    needs = pair.layer_needs_rng(hparams)
    return Layer(BoundInit(pair, hparams), BoundApply(pair, hparams, needs), needs)


def _places(layer: AnyLayer) -> Iterator[_Place]:
    """Yield where the layers of a combinator stand."""
    init: Any = layer.init
    if not isinstance(init, BoundInit):
        return
    found: list[_Place] = []
    for name, value in init.hparams:
        if isinstance(value, Layer):
            found.append(_Place(name, value, name, None))
        elif isinstance(value, tuple):
            for i, entry in enumerate(value):
                if isinstance(entry, Layer):
                    found.append(_Place(str(i), entry, name, i))
                elif isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], Layer):
                    found.append(_Place(str(entry[0]), entry[1], name, i))
    if isinstance(init.pair, Wired) and init.pair.is_numbered:
        is_named = inspect.Parameter.VAR_KEYWORD
        kinds = init.pair.__signature__.parameters
        found = [
            place if kinds[place.hparam].kind is is_named else place._replace(key=str(i))
            for i, place in enumerate(found)
        ]
    elif isinstance(init.pair, Transform) and len(found) == 1:
        found = [found[0]._replace(key=init.pair.child_key)]
    yield from found
