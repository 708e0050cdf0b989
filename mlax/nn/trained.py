"""The base of modules with one trained array: `Bias`, `Conv`, `Embed`, `Linear` and `Scaler`."""

from typing import Any, ClassVar

import jax

from mlax.layer import AxisName, Key, Layer, State
from mlax.module import Module


class Trained(Module):
    """A layer of mlax as a module: its params are one array, the data of a parameter."""

    _params: ClassVar[type[Any]]
    """The type of the params of the layer."""
    _name: ClassVar[str]
    """The name of the parameter."""

    def __init__(
        self, rng: Key, layer: Layer[Any, State[tuple[()], Any], jax.Array, jax.Array]
    ) -> None:
        """Hold the key and the layer; a subclass adds the parameter."""
        super().__init__()
        self.rng = rng
        self._layer = layer

    def setup(self, x: jax.Array) -> None:
        """Create the array."""
        params, self._state = self._layer.init(self.rng, x)
        (getattr(self, self._name).data,) = params

    def forward(
        self, x: jax.Array, rng: None = None,
        inference_mode: bool = False, batch_axis_name: AxisName = (),
    ) -> jax.Array:
        """Return the output of the layer."""
        y, _ = self._layer.apply(self._params(getattr(self, self._name).data), self._state, x)
        return y
