"""`Recurrent` and `RecurrentRng`: a cell run over a leading time axis, as modules."""

from typing import Any

import jax

from mlax import arguments
from mlax.bridge import as_layer
from mlax.combinators.recurrent import RecurrentConfig, recurrent
from mlax.module import Module
from mlax.pair import AxisName, Key, State


class Recurrent(Module):
    """A cell that needs no key, run over time: (xs, h) -> (ys, h), see `mlax.recurrent`."""

    _config: RecurrentConfig

    def __init__(self, cell: Module, reverse: bool = False, unroll: int = 1) -> None:
        """Keep the cell, a module from (x, h) to (y, h)."""
        super().__init__()
        _check(self, cell, reverse, unroll)
        self.cell = cell
        self.reverse = reverse
        self.unroll = unroll

    def setup(  # pyright: ignore[reportIncompatibleMethodOverride] -- the documented name
        self, xh: tuple[Any, Any]
    ) -> None:
        """Set up the cell, for the first step that is run."""
        _set_up(self, xh)

    def forward(
        self,
        xh: tuple[Any, Any],
        rng: None = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> tuple[Any, Any]:
        """Return the outputs of all steps and the last carry."""
        return _run(self, xh, None, inference_mode, batch_axis_name)


class RecurrentRng(Module):
    """A cell that needs a key, run over time: (xs, h) -> (ys, h), see `mlax.recurrent`."""

    _config: RecurrentConfig

    def __init__(self, cell: Module, reverse: bool = False, unroll: int = 1) -> None:
        """Keep the cell, a module from (x, h) to (y, h)."""
        super().__init__()
        _check(self, cell, reverse, unroll)
        self.cell = cell
        self.reverse = reverse
        self.unroll = unroll

    def setup(  # pyright: ignore[reportIncompatibleMethodOverride] -- the documented name
        self, xh: tuple[Any, Any]
    ) -> None:
        """Set up the cell, for the first step that is run."""
        _set_up(self, xh)

    def forward(
        self,
        xh: tuple[Any, Any],
        rng: Key | None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> tuple[Any, Any]:
        """Return the outputs of all steps and the last carry."""
        return _run(self, xh, rng, inference_mode, batch_axis_name)


def _check(module: Module, cell: Any, reverse: bool, unroll: int) -> None:
    if not isinstance(cell, Module):
        owner = type(module).__name__
        raise TypeError(arguments.message(owner, "cell", "a module", repr(cell)))
    recurrent.check(as_layer(cell), reverse, unroll)


def _set_up(module: Recurrent | RecurrentRng, xh: tuple[Any, Any]) -> None:
    layer = recurrent(as_layer(module.cell), module.reverse, module.unroll)
    unused_key = jax.random.key(0)  # a module that is set up makes its parameters of its own keys
    params, state = layer.init(unused_key, xh)
    module.cell = params.combine(state.variables)
    module._config = state.config


def _run(
    module: Recurrent | RecurrentRng,
    xh: tuple[Any, Any],
    rng: Key | None,
    inference_mode: bool,
    batch_axis_name: AxisName,
) -> tuple[Any, Any]:
    params, variables = module.cell.partition()
    state = State(variables, module._config)
    y, state = recurrent.apply(params, state, xh, rng, inference_mode, batch_axis_name)
    module.cell = params.combine(state.variables)
    return y
