"""What modules made of modules do with their children: keys, calls, paths in errors."""

from collections.abc import Iterable
from typing import Any

from mlax.arguments import described
from mlax.combinators import add_path, apply_keys
from mlax.equality import source
from mlax.errors import message
from mlax.layer import AxisName, Key, Layer, needs_rng
from mlax.module import Module, Parameter
from mlax.nn.base import Documented


def read_module(owner: str, name: str, value: Any) -> Module:
    """Require a module; the error says how to make one from the value."""
    if isinstance(value, Module):
        return value
    way_out = ""
    if isinstance(value, Layer):
        way_out = f"make it a module with mlax.as_module({source(value)}, rng)"
    elif isinstance(value, type):
        way_out = f"make an instance, as in {value.__name__}(...)"
    elif callable(value) and not hasattr(value, "bind"):
        way_out = f"make it a module with nn.F({source(value)})"
    wanted = "modules" if name == "layers" else "a module"
    raise TypeError(message(owner, name, wanted, source(value), way_out))


def keys_for(modules: Iterable[Module], rng: Key | None) -> list[Key | None]:
    """Return the key of each module, by the rule of `mlax.combinators.apply_keys`."""
    return apply_keys(rng, [needs_rng(module.forward) for module in modules])


def call_child(
    parent: Module, name: str, index: int | None, module: Module, x: Any, rng: Key | None,
    inference_mode: bool, batch_axis_name: AxisName,
) -> tuple[Any, Module]:
    """Return the output of a module and the module after the call; errors get its path.

    It is the attribute called `name` of the parent, or has an index among its layers.
    """
    owner = f"{type(parent).__name__}.{name}".strip(".")
    try:
        return module(x, rng, inference_mode, batch_axis_name)
    except Exception as error:
        add_path(error, owner, index, type(module).__name__)
        gets_no_key = needs_rng(module.forward) and not needs_rng(parent.forward)
        if gets_no_key and not inference_mode and "expected rng" in str(error):
            error.add_note(f"{owner} gets no key: {_WITH_KEYS} pass keys on")
        raise


_WITH_KEYS = "SeriesRng, ParallelRng, ResidualRng and RecurrentRng"


class Composite(Documented):
    """Modules in the parameter `layers`, a list."""

    _way_out = "pass one list of modules"

    def __init__(self, layers: Iterable[Module]) -> None:
        """Hold the layers, given as any iterable of modules."""
        super().__init__()
        owner = type(self).__name__
        if isinstance(layers, Module) or not isinstance(layers, Iterable):
            wanted = "an iterable of modules"
            raise TypeError(message(owner, "layers", wanted, described(layers), self._way_out))
        modules = [read_module(owner, "layers", module) for module in layers]
        self.layers: Parameter = Parameter(None, modules)

    def _keys(self, rng: Key | None) -> list[Key | None]:
        layers, owner = self.layers.data, type(self).__name__
        if not isinstance(layers, list):
            raise TypeError(message(owner, "layers.data", "a list of modules", described(layers)))
        return keys_for([read_module(owner, "layers", layer) for layer in layers], rng)

    def _call(
        self, index: int, x: Any, rng: Key | None, inference_mode: bool, batch_axis_name: AxisName
    ) -> Any:
        """Return the output of a layer, and replace the layer by the one that the call returns."""
        layers: list[Module] = self.layers.data
        call = rng, inference_mode, batch_axis_name
        y, layers[index] = call_child(self, "", index, layers[index], x, *call)
        return y
