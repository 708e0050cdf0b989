"""`Series` and `SeriesRng`: modules one after the other."""

from collections.abc import Iterable
from typing import Any

from mlax.module import Module, Parameter
from mlax.nn.child import call_child, child_keys, listed
from mlax.pair import AxisName, Key


class Series(Module):
    """Modules that need no key, one after the other: y = layer_n(... layer_1(x)).

    They are kept in the parameter `layers`, a list. Any iterable of modules will do.
    """

    def __init__(self, layers: Iterable[Module]) -> None:
        """Keep the layers."""
        super().__init__()
        self.layers: Parameter = Parameter(None, listed(self, layers))

    def forward(
        self,
        x: Any,
        rng: None = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> Any:
        """Return the output of the last layer."""
        return _run(self, x, [None] * len(self.layers.data), inference_mode, batch_axis_name)


class SeriesRng(Module):
    """Modules of which some may need a key, one after the other.

    They are kept in the parameter `layers`, a list. Keys are given out as by `mlax.series`.
    """

    def __init__(self, layers: Iterable[Module]) -> None:
        """Keep the layers."""
        super().__init__()
        self.layers: Parameter = Parameter(None, listed(self, layers))

    def forward(
        self,
        x: Any,
        rng: Key | None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> Any:
        """Return the output of the last layer."""
        keys = child_keys(rng, self.layers.data)
        return _run(self, x, keys, inference_mode, batch_axis_name)


def _run(
    module: Series | SeriesRng,
    x: Any,
    keys: list[Key | None],
    inference_mode: bool,
    batch_axis_name: AxisName,
) -> Any:
    for i, key in enumerate(keys):
        x = call_child(module, i, x, key, inference_mode, batch_axis_name)
    return x
