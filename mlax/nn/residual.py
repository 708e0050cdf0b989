"""`Residual` and `ResidualRng`: a module with a shortcut around it."""

from typing import Any

import jax
import jax.numpy as jnp

from mlax.arguments import require_array
from mlax.combinators import require_equal_shapes, shapes
from mlax.layer import AxisName, Key
from mlax.module import Module
from mlax.nn.base import Documented
from mlax.nn.child import call_child, keys_for, read_module


class _Residual(Documented):
    """y = x + layer(x), or shortcut(x) + layer(x).

    `forward` in a subclass says whether it needs a key.
    """

    _way_out = "pass a module, as in Residual(layer), or two, as in Residual(layer, shortcut)"

    layer: Module
    shortcut: Module | None

    def __init__(self, layer: Module, shortcut: Module | None = None) -> None:
        """Hold the layer, and the shortcut if there is one."""
        super().__init__()
        self.layer = layer
        self.shortcut = shortcut

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; the layer and the shortcut must be modules."""
        if name == "layer" or name == "shortcut" and value is not None:
            read_module(type(self).__name__, name, value)
        super().__setattr__(name, value)

    def _run(
        self, x: jax.Array, rng: Key | None, inference_mode: bool, batch_axis_name: AxisName
    ) -> jax.Array:
        owner, call = type(self).__name__, (inference_mode, batch_axis_name)
        modules = [self.layer] if self.shortcut is None else [self.layer, self.shortcut]
        keys = keys_for(modules, rng)
        y, self.layer = call_child(self, "layer", None, self.layer, x, keys[0], *call)
        around: Any = x
        if self.shortcut is not None:
            around, self.shortcut = call_child(
                self, "shortcut", None, self.shortcut, x, keys[1], *call
            )
        require_array(owner, around, "x")
        require_array(owner, y, "the output of the layer")
        way_out = f"pass {owner}(layer, shortcut) a shortcut with an output like that of the layer"
        require_equal_shapes(owner, shapes(around), shapes(y), "the output of the layer", way_out)
        return jnp.add(around, y)


class Residual(_Residual):
    """A residual connection of modules that need no key: see `mlax.residual`.

    The modules are `layer` and `shortcut`, which is None if x itself is added.
    """

    def forward(
        self, x: jax.Array, rng: None = None,
        inference_mode: bool = False, batch_axis_name: AxisName = (),
    ) -> jax.Array:
        """Return the sum."""
        return self._run(x, None, inference_mode, batch_axis_name)


class ResidualRng(_Residual):
    """A residual connection of modules that may need keys: see `mlax.residual`.

    The modules are `layer` and `shortcut`, which is None if x itself is added. They get their keys
    as in `mlax.series`.
    """

    def forward(
        self, x: jax.Array, rng: Key | None,
        inference_mode: bool = False, batch_axis_name: AxisName = (),
    ) -> jax.Array:
        """Return the sum."""
        return self._run(x, rng, inference_mode, batch_axis_name)
