"""The arrays of a model, with the layers that they belong to."""

from collections import Counter
from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

import jax

from mlax.combinators.child import Child
from mlax.combinators.ensemble import EnsembleConfig
from mlax.combinators.lora import LoraConfig
from mlax.combinators.moe import MoeConfig
from mlax.combinators.pipeline import PipelineConfig
from mlax.combinators.quantized import QuantizedConfig
from mlax.combinators.repeat import RepeatConfig
from mlax.layers.conv import ConvConfig
from mlax.layers.dense import DenseConfig
from mlax.layers.linear import LinearConfig
from mlax.summaries import Model, layers_by_path
from mlax.tree import walk

Path: TypeAlias = tuple[str, ...]

PRODUCTS = DenseConfig, LinearConfig, ConvConfig
"""Layers whose features may be split: over their outputs, and over their inputs, in turn."""


class Owner(NamedTuple):
    """A layer that has arrays."""

    path: Path
    """Its path."""
    chain: tuple[Child, ...]
    """The layer, after those that it is the only layer of."""
    order: int
    """Which of the products in the layer above it is, from 0."""
    copies: int
    """The number of leading axes of its arrays that hold copies of it."""
    expert_axis: int | None
    """Which of these holds the experts of a `mlax.moe`, if any does."""
    stage_axis: tuple[int, str] | None
    """Which of these holds the copies of a `mlax.pipeline`, and its axis of the mesh, if any."""

    @property
    def config(self) -> Any:
        """The config of the layer."""
        return self.chain[-1].config


class Leaf(NamedTuple):
    """An array of a model."""

    path: str
    """Its path; that of a variable begins with "variables"."""
    shape: tuple[int, ...]
    """Its shape."""
    owner: Owner
    """Its layer."""
    name: Path
    """Its path in the layer."""
    is_weight: bool
    """Whether it is a parameter, or in the place of one in `mlax.lora` or `mlax.quantized`."""


def leaves_of(model: Model) -> tuple[list[Leaf], list[Leaf]]:
    """Return the parameters and the variables of a model in the order of their trees."""
    owners = _owners(layers_by_path(model.child))
    params, variables = [], []
    for path, leaf in zip(walk(model.params), jax.tree.leaves(model.params), strict=True):
        params.append(_leaf(owners, ".".join(path), path, leaf.shape, True))
    for path, leaf in zip(walk(model.variables), jax.tree.leaves(model.variables), strict=True):
        place = _place_of_weight(owners, path)
        found = _leaf(
            owners, ".".join(("variables", *path)), place or path, leaf.shape, place is not None
        )
        variables.append(found)
    return params, variables


def _leaf(
    owners: dict[Path, Owner], name: str, path: Path, shape: tuple[int, ...], is_weight: bool
) -> Leaf:
    end = max(end for end in range(len(path) + 1) if path[:end] in owners)
    return Leaf(name, shape, owners[path[:end]], path[end:], is_weight)


def _place_of_weight(owners: dict[Path, Owner], path: Path) -> Path | None:
    """Return the path of the parameter that a variable is the weight of, None if it is none."""
    names: dict[type, str] = {LoraConfig: "base", QuantizedConfig: "weights"}
    for i, key in enumerate(path):
        chain = owners[path[:i]].chain if path[:i] in owners else ()
        if any(names.get(type(child.config)) == key for child in chain):
            return (*path[:i], *path[i + 1 :])
    return None


def _owners(layers: Iterable[tuple[Path, tuple[Child, ...]]]) -> dict[Path, Owner]:
    owners: dict[Path, Owner] = {}
    products: Counter[Path] = Counter()
    for path, chain in layers:
        above = owners.get(path[:-1]) if path else None
        copies = above.copies if above else 0
        expert_axis, stage_axis = above[-2:] if above else (None, None)
        if above and isinstance(above.config, MoeConfig) and path[-1] == "experts":
            copies, expert_axis = copies + 1, copies
        for child in chain:
            if isinstance(child.config, PipelineConfig):
                stage_axis = copies, child.config.axis_name
            copies += isinstance(child.config, RepeatConfig | EnsembleConfig | PipelineConfig)
        owner = Owner(path, chain, products[path[:-1]], copies, expert_axis, stage_axis)
        owners[path] = owner
        products[path[:-1]] += isinstance(owner.config, PRODUCTS)
    return owners
