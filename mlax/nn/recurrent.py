"""`Recurrent` and `RecurrentRng`: a cell run over a leading time axis, as modules."""

from typing import Any

import jax

from mlax.bridge import as_layer
from mlax.combinators.recurrent import RecurrentConfig, recurrent
from mlax.errors import message
from mlax.layer import AxisName, Key, State
from mlax.module import Module


class _Recurrent(Module):
    """A cell run over time; `forward` in a subclass says whether it needs a key."""

    _config: RecurrentConfig
    cell: Module

    def __init__(self, cell: Module, reverse: bool = False, unroll: int = 1) -> None:
        """Hold the cell, a module from (x, h) to (y, h)."""
        super().__init__()
        if not isinstance(cell, Module):
            raise TypeError(message(type(self).__name__, "cell", "a module", repr(cell)))
        recurrent(as_layer(cell), reverse, unroll)  # checks the arguments
        self.cell = cell
        self.reverse = reverse
        self.unroll = unroll

    def setup(  # pyright: ignore[reportIncompatibleMethodOverride] -- the documented name
        self, xh: tuple[Any, Any]
    ) -> None:
        """Set up the cell with the first step to run."""
        layer = recurrent(as_layer(self.cell), self.reverse, self.unroll)
        unused_key = jax.random.key(0)  # a module makes its parameters from its own keys
        params, state = layer.init(unused_key, xh)
        self.cell = params.combine(state.variables)
        self._config = state.config

    def _run(
        self, xh: tuple[Any, Any], rng: Key | None, inference_mode: bool, batch_axis_name: AxisName
    ) -> tuple[Any, Any]:
        params, variables = self.cell.partition()
        state = State(variables, self._config)
        y, state = recurrent.apply(params, state, xh, rng, inference_mode, batch_axis_name)
        self.cell = params.combine(state.variables)
        return y


class Recurrent(_Recurrent):
    """A cell that needs no key, run over time: (xs, h) -> (ys, h), see `mlax.recurrent`."""

    def forward(
        self, xh: tuple[Any, Any], rng: None = None,
        inference_mode: bool = False, batch_axis_name: AxisName = (),
    ) -> tuple[Any, Any]:
        """Return the outputs of all steps and the last carry."""
        return self._run(xh, None, inference_mode, batch_axis_name)


class RecurrentRng(_Recurrent):
    """A cell that needs a key, run over time: (xs, h) -> (ys, h), see `mlax.recurrent`."""

    def forward(
        self, xh: tuple[Any, Any], rng: Key | None,
        inference_mode: bool = False, batch_axis_name: AxisName = (),
    ) -> tuple[Any, Any]:
        """Return the outputs of all steps and the last carry."""
        return self._run(xh, rng, inference_mode, batch_axis_name)
