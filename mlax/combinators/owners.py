"""The layers that the arrays of a model belong to."""

from collections import Counter
from typing import Any, NamedTuple

from mlax.combinators.child import Child, layers_by_path
from mlax.combinators.ensemble import EnsembleConfig
from mlax.combinators.moe import MoeConfig
from mlax.combinators.pipeline import PipelineConfig
from mlax.combinators.repeat import RepeatConfig
from mlax.layers.conv import ConvConfig
from mlax.layers.dense import DenseConfig
from mlax.layers.linear import LinearConfig

STACKED = RepeatConfig, EnsembleConfig, PipelineConfig
"""Combinators of one layer whose arrays have a leading axis of copies."""
PRODUCTS = DenseConfig, LinearConfig, ConvConfig
"""Layers that multiply by a kernel."""


class Owner(NamedTuple):
    """A layer that has arrays."""

    path: tuple[str, ...]
    """Its path."""
    chain: tuple[Child, ...]
    """The layer, after the combinators whose only layer it is."""
    order: int
    """How many products come before it in the layer above it."""
    copies: int
    """The number of leading axes of its arrays that hold copies of it."""
    expert_axis: int | None
    """Which of these holds the experts of a `mlax.moe`, if any does."""
    stage_axis: tuple[int, str] | None
    """Which of these holds the copies of a `mlax.pipeline`, and its mesh axis, if any."""

    @property
    def config(self) -> Any:
        """The config of the layer."""
        return self.chain[-1].config


def owners_of(child: Child) -> dict[str, Owner]:
    """Return the layers in a layer by path, as `mlax.paths` spells the paths of their params."""
    owners: dict[str, Owner] = {}
    products: Counter[str] = Counter()
    for path, chain in layers_by_path(child):
        name, outer = ".".join(path), ".".join(path[:-1])
        above = owners[outer] if path else None
        copies, expert_axis, stage_axis = above[3:] if above else (0, None, None)
        if above and isinstance(above.config, MoeConfig) and path[-1] == "experts":
            copies, expert_axis = copies + 1, copies
        for one in chain:
            if isinstance(one.config, PipelineConfig):
                stage_axis = copies, one.config.axis_name
            copies += isinstance(one.config, STACKED)
        owners[name] = Owner(path, chain, products[outer], copies, expert_axis, stage_axis)
        products[outer] += isinstance(owners[name].config, PRODUCTS)
    return owners


def owner_of(owners: dict[str, Owner], path: str) -> Owner:
    """Return the innermost layer that the array at a path belongs to."""
    while path not in owners:
        path = path.rpartition(".")[0]
    return owners[path]
