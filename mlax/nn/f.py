"""`F` and `FRng`: `mlax.f` and `mlax.f_rng` as modules."""

from collections.abc import Callable
from typing import Any

from mlax.layers.f import f, f_rng
from mlax.nn.base import PairModule, PairModuleRng


class F(PairModule[Any, Any]):
    """A function as a module: see `mlax.f`."""

    _pair = f
    _way_out = "pass functions, as in F(jax.nn.relu)"

    def __init__(
        self, train_fn: Callable[..., Any], infer_fn: Callable[..., Any] | None = None
    ) -> None:
        """Hold the functions for training and for inference."""
        super().__init__()
        self.train_fn = train_fn
        self.infer_fn = infer_fn


class FRng(PairModuleRng[Any, Any]):
    """A function of the input and a key as a module: see `mlax.f_rng`."""

    _pair = f_rng
    _way_out = F._way_out

    def __init__(
        self, train_fn: Callable[..., Any], infer_fn: Callable[..., Any] | None = None
    ) -> None:
        """Hold the functions for training and for inference."""
        super().__init__()
        self.train_fn = train_fn
        self.infer_fn = infer_fn
