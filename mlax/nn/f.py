"""`F` and `FRng`: `mlax.f` and `mlax.f_rng` as modules."""

from collections.abc import Callable
from typing import Any

from mlax.arguments import described
from mlax.errors import message
from mlax.layers.f import f, f_rng
from mlax.module import Module
from mlax.nn.base import OverPair, PairModule, PairModuleRng


class _Function(OverPair[Any, Any]):
    """A function as a module."""

    def __init__(
        self, train_fn: Callable[..., Any], infer_fn: Callable[..., Any] | None = None
    ) -> None:
        """Hold the functions for training and for inference."""
        super().__init__()
        self.train_fn = train_fn
        self.infer_fn = infer_fn

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a module is no function."""
        if isinstance(value, Module):
            owner, way_out = type(self).__name__, "put the module itself where a module belongs"
            raise TypeError(message(owner, name, "a function", described(value), way_out))
        super().__setattr__(name, value)


class F(_Function, PairModule[Any, Any]):
    """A function as a module: see `mlax.f`."""

    _pair = f
    _way_out = "pass functions, as in F(jax.nn.relu)"


class FRng(_Function, PairModuleRng[Any, Any]):
    """A function of the input and a key as a module: see `mlax.f_rng`."""

    _pair = f_rng
    _way_out = F._way_out
