"""The arrays of a model, with the layers that they belong to."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import jax

from mlax.combinators.lora import LoraConfig
from mlax.combinators.owners import Owner, owner_of, owners_of
from mlax.combinators.quantized import QuantizedConfig
from mlax.outline import Model
from mlax.tree import walk


class Leaf(NamedTuple):
    """An array of a model."""

    path: str
    """Its path; that of a variable starts with "variables"."""
    shape: tuple[int, ...]
    """Its shape."""
    owner: Owner
    """Its layer."""
    name: tuple[str, ...]
    """Its path in the layer."""
    is_weight: bool
    """Whether it is a parameter, or stands in for one in `mlax.lora` or `mlax.quantized`."""


def leaves_of(model: Model) -> tuple[list[Leaf], list[Leaf]]:
    """Return the parameters and the variables of a model in the order of their trees."""
    owners = owners_of(model.child)
    params, variables = [], []
    for path, leaf in _arrays(model.params):
        owner = owner_of(owners, ".".join(path))
        name = path[len(owner.path) :]
        params.append(Leaf(".".join(path), leaf.shape, owner, name, is_weight=True))
    for path, leaf in _arrays(model.variables):
        place = _place_of_weight(owners, path)
        owner = owner_of(owners, ".".join(place or path))
        name = (place or path)[len(owner.path) :]
        full = ".".join(("variables", *path))
        variables.append(Leaf(full, leaf.shape, owner, name, is_weight=place is not None))
    return params, variables


def _arrays(tree: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    return zip(walk(tree), jax.tree.leaves(tree), strict=True)


_WEIGHTS: dict[type, str] = {LoraConfig: "base", QuantizedConfig: "weights"}
"""The variable that holds the params of the layer inside."""


def _place_of_weight(owners: dict[str, Owner], path: tuple[str, ...]) -> tuple[str, ...] | None:
    """Return the path of the parameter whose weight a variable holds, None if it holds none."""
    for i, key in enumerate(path):
        owner = owners.get(".".join(path[:i]))
        if owner and any(_WEIGHTS.get(type(child.config)) == key for child in owner.chain):
            return *path[:i], *path[i + 1 :]
    return None
