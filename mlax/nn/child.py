"""The base of modules made of modules: `layers`, their keys, and paths in errors."""

from collections.abc import Iterable
from typing import Any

from mlax.combinators import add_path, apply_keys
from mlax.errors import message
from mlax.layer import AxisName, Key, needs_rng
from mlax.module import Module, Parameter


class Composite(Module):
    """Modules in the parameter `layers`, a list."""

    def __init__(self, layers: Iterable[Module]) -> None:
        """Hold the layers, given as any iterable of modules."""
        super().__init__()
        modules = list(layers)
        for module in modules:
            if not isinstance(module, Module):
                raise TypeError(message(type(self).__name__, "layers", "modules", repr(module)))
        self.layers: Parameter = Parameter(None, modules)

    def _keys(self, rng: Key | None) -> list[Key | None]:
        """Return the key of each layer, by the rule of `mlax.combinators.apply_keys`."""
        return apply_keys(rng, [needs_rng(layer.forward) for layer in self.layers.data])

    def _call(
        self, index: int, x: Any, rng: Key | None, inference_mode: bool, batch_axis_name: AxisName
    ) -> Any:
        """Return the output of a layer, and replace the layer by the one that the call returns."""
        layers: list[Module] = self.layers.data
        layer = layers[index]
        try:
            y, layers[index] = layer(x, rng, inference_mode, batch_axis_name)
        except Exception as error:
            add_path(error, type(self).__name__, index, type(layer).__name__)
            raise
        return y
