"""`Parallel` and `ParallelRng`: modules side by side."""

from collections.abc import Iterable
from typing import Any

from mlax import arguments
from mlax.module import Module, Parameter
from mlax.nn.child import call_child, child_keys, listed
from mlax.pair import AxisName, Key


class Parallel(Module):
    """Modules that need no key, side by side: y[i] = layer_i(x[i]), a list.

    They are kept in the parameter `layers`, a list. Any iterable of modules will do.
    """

    def __init__(self, layers: Iterable[Module]) -> None:
        """Keep the layers."""
        super().__init__()
        self.layers: Parameter = Parameter(None, listed(self, layers))

    def forward(
        self,
        x: Iterable[Any],
        rng: None = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> list[Any]:
        """Return the outputs of the layers."""
        return _run(self, x, [None] * len(self.layers.data), inference_mode, batch_axis_name)


class ParallelRng(Module):
    """Modules of which some may need a key, side by side: y[i] = layer_i(x[i]), a list.

    They are kept in the parameter `layers`, a list. Keys are given out as by `mlax.series`.
    """

    def __init__(self, layers: Iterable[Module]) -> None:
        """Keep the layers."""
        super().__init__()
        self.layers: Parameter = Parameter(None, listed(self, layers))

    def forward(
        self,
        x: Iterable[Any],
        rng: Key | None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> list[Any]:
        """Return the outputs of the layers."""
        keys = child_keys(rng, self.layers.data)
        return _run(self, x, keys, inference_mode, batch_axis_name)


def _run(
    module: Parallel | ParallelRng,
    x: Iterable[Any],
    keys: list[Key | None],
    inference_mode: bool,
    batch_axis_name: AxisName,
) -> list[Any]:
    entries = list(x)
    if len(entries) != len(keys):
        wanted = f"an iterable of {len(keys)} entries, one for each layer"
        got = f"{len(entries)} entries"
        raise ValueError(arguments.message(type(module).__name__, "x", wanted, got))
    return [
        call_child(module, i, entry, key, inference_mode, batch_axis_name)
        for i, (entry, key) in enumerate(zip(entries, keys, strict=True))
    ]
