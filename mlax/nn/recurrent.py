"""`Recurrent` and `RecurrentRng`: a cell run over a leading time axis, as modules."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from mlax import mesh
from mlax.arguments import leading_length, read_pair, saturated
from mlax.combinators import require_equal_shapes, shapes
from mlax.combinators.recurrent import recurrent
from mlax.errors import expected
from mlax.holdings import walk
from mlax.layer import AxisName, Key, needs_rng
from mlax.module import Module, Parameter, is_leaf_param
from mlax.nn.base import OverPair
from mlax.nn.child import call_child, read_module


class _Recurrent(OverPair[tuple[Any, Any], tuple[Any, Any]]):
    """A cell run over time; `forward` in a subclass says whether it needs a key."""

    _pair = recurrent
    _way_out = "pass a module from (x, h) to (y, h)"

    cell: Module

    def __init__(self, cell: Module, reverse: bool = False, unroll: int = 1) -> None:
        """Hold the cell, a module from (x, h) to (y, h)."""
        super().__init__()
        self.cell = cell
        self.reverse = reverse
        self.unroll = unroll

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; the cell must be a module."""
        if name == "cell":
            Module.__setattr__(self, name, read_module(type(self).__name__, name, value))
        else:
            super().__setattr__(name, value)

    def setup(  # pyright: ignore[reportIncompatibleMethodOverride] -- the documented name
        self, xh: tuple[Any, Any]
    ) -> None:
        """Leave the cell to the first step."""

    def _run(  # pyright: ignore[reportIncompatibleMethodOverride] -- the documented name
        self, xh: tuple[Any, Any], rng: Key | None, inference_mode: bool, batch_axis_name: AxisName
    ) -> tuple[Any, Any]:
        xs, h = jax.tree.map(saturated, read_pair("recurrent", "x", xh, "(xs, h)"))
        length = leading_length("recurrent", "xs", xs, "time")
        rng = rng if needs_rng(self.cell.forward) else None

        def step(cell: Module, h: Any, x: Any, index: Any) -> tuple[Module, Any, Any]:
            key = None if rng is None else jax.random.fold_in(rng, index)
            call = key, inference_mode, batch_axis_name
            result, cell = call_child(self, "cell", None, cell, (x, h), *call)
            spelled = "the output of the cell"
            y, after = read_pair("recurrent", spelled, result, "(y, h)")
            next_carry = "the next carry"
            if h is not None:  # which stands for zeros in a cell of mlax
                before, later = shapes(h), shapes(after)
                require_equal_shapes("recurrent", before, later, next_carry, error=TypeError)
            return cell, after, y

        inputs = xs, jnp.arange(length)[:: -1 if self.reverse else 1]
        first: list[Any] = []
        is_set_up = all(p.initialized for _, p in walk(self.cell) if isinstance(p, Module))
        if h is None or not is_set_up:
            if not length:
                got, way_out = "none", "the first step sets up the cell"
                raise ValueError(expected("recurrent", "at least one step", got, way_out))
            at, others = (-1, slice(-1)) if self.reverse else (0, slice(1, None))
            x, index = jax.tree.map(lambda leaf: leaf[at], inputs)
            self.cell, h, y = step(self.cell, h, x, index)
            inputs = jax.tree.map(lambda leaf: leaf[others], inputs)
            first = [jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], y)]
        leaves, structure = jax.tree.flatten(self.cell)

        def body(carry: tuple[list[Any], Any], inputs: tuple[Any, Any]) -> tuple[Any, Any]:
            leaves, h = carry
            cell, h, y = step(jax.tree.unflatten(structure, leaves), h, *inputs)
            return (jax.tree.leaves(cell), h), y

        leaves, h = mesh.settled(body, (leaves, h), inputs, length - len(first))
        (leaves, h), ys = lax.scan(
            body, (leaves, h), inputs, reverse=self.reverse, unroll=self.unroll
        )
        after = jax.tree.unflatten(structure, leaves)
        for own, changed in zip(leaf_params(self.cell), leaf_params(after), strict=True):
            own.data = changed.data
        parts = [ys, *first] if self.reverse else [*first, ys]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts), h


def leaf_params(module: Module) -> list[Parameter]:
    """Return the parameters that hold arrays."""
    return list(filter(is_leaf_param, jax.tree.leaves(module, is_leaf=is_leaf_param)))


class Recurrent(_Recurrent):
    """A cell that needs no key, run over time: (xs, h) -> (ys, h), see `mlax.recurrent`.

    The first step that is run sets up the cell, which is called once for each step.
    """

    def forward(
        self, xh: tuple[Any, Any], rng: None = None,
        inference_mode: bool = False, batch_axis_name: AxisName = (),
    ) -> tuple[Any, Any]:
        """Return the outputs of all steps and the last carry."""
        return self._run(xh, None, inference_mode, batch_axis_name)


class RecurrentRng(_Recurrent):
    """A cell that needs a key, run over time: (xs, h) -> (ys, h), see `mlax.recurrent`.

    The i-th step to run gets fold_in(rng, i). The first one sets up the cell, which is called
    once for each step.
    """

    def forward(
        self, xh: tuple[Any, Any], rng: Key | None,
        inference_mode: bool = False, batch_axis_name: AxisName = (),
    ) -> tuple[Any, Any]:
        """Return the outputs of all steps and the last carry."""
        return self._run(xh, rng, inference_mode, batch_axis_name)
