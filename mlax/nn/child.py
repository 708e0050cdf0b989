"""What the modules made of modules do with their children."""

from collections.abc import Iterable, Sequence
from typing import Any

from mlax import arguments
from mlax.combinators.child import add_path, apply_keys
from mlax.module import Module
from mlax.pair import AxisName, Key, needs_rng


def listed(owner: Module, layers: Iterable[Module]) -> list[Module]:
    """Return the layers as a list, and require that they are modules."""
    modules = list(layers)
    for module in modules:
        if not isinstance(module, Module):
            raise TypeError(
                arguments.message(type(owner).__name__, "layers", "modules", repr(module))
            )
    return modules


def child_keys(rng: Key | None, layers: Sequence[Module]) -> list[Key | None]:
    """Return the key of each layer, by the rule of `mlax.combinators.child.apply_keys`."""
    return apply_keys(rng, [needs_rng(layer.forward) for layer in layers])


def call_child(
    owner: Any, index: int, x: Any, rng: Key | None, inference_mode: bool, batch_axis_name: AxisName
) -> Any:
    """Return the output of one of the layers of `owner`, and keep what it has become."""
    layers: list[Module] = owner.layers.data
    layer = layers[index]
    try:
        y, layers[index] = layer(x, rng, inference_mode, batch_axis_name)
    except Exception as error:
        add_path(error, type(owner).__name__, index, type(layer).__name__)
        raise
    return y
