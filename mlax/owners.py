"""The layers that the arrays of a model belong to."""

from typing import Any, NamedTuple

from mlax.combinators.child import Child
from mlax.combinators.ensemble import EnsembleConfig
from mlax.combinators.moe import MoeConfig
from mlax.combinators.repeat import RepeatConfig
from mlax.summaries import layers_by_path

STACKED = RepeatConfig, EnsembleConfig
"""Combinators of one layer whose arrays have a leading axis of copies."""


class Owner(NamedTuple):
    """A layer that has arrays."""

    path: tuple[str, ...]
    """Its path."""
    chain: tuple[Child, ...]
    """The layer, after those that it is the only layer of."""
    copies: int
    """The number of leading axes of its arrays that hold copies of it."""

    @property
    def config(self) -> Any:
        """The config of the layer."""
        return self.chain[-1].config


def owners_of(child: Child) -> dict[str, Owner]:
    """Return the layers in a layer by path, as `mlax.paths` spells the paths of their params."""
    owners: dict[str, Owner] = {}
    for path, chain in layers_by_path(child):
        above = owners[".".join(path[:-1])] if path else None
        copies = above.copies if above else 0
        if above and isinstance(above.config, MoeConfig):
            copies += path[-1] == "experts"
        copies += sum(isinstance(one.config, STACKED) for one in chain)
        owners[".".join(path)] = Owner(path, chain, copies)
    return owners


def owner_of(owners: dict[str, Owner], path: str) -> Owner:
    """Return the innermost layer that the array at a path belongs to."""
    while path not in owners:
        path = path.rpartition(".")[0]
    return owners[path]
