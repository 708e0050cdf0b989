"""`F` and `FRng`: `mlax.f` and `mlax.f_rng` as modules."""

from collections.abc import Callable
from typing import Any

from mlax.layer import AxisName, Key, State
from mlax.layers.f import FConfig, FRngConfig, f, f_rng
from mlax.module import Module


class F(Module):
    """A function as a module: see `mlax.f`."""

    def __init__(
        self, train_fn: Callable[..., Any], infer_fn: Callable[..., Any] | None = None
    ) -> None:
        """Hold the functions for training and for inference."""
        super().__init__()
        f(train_fn, infer_fn)  # checks the arguments
        self._config = FConfig(train_fn, infer_fn)

    def forward(
        self, x: Any, rng: None = None, inference_mode: bool = False, batch_axis_name: AxisName = ()
    ) -> Any:
        """Return the value of the function at x."""
        y, _ = f.apply((), State((), self._config), x, None, inference_mode, batch_axis_name)
        return y


class FRng(Module):
    """A function of the input and a key as a module: see `mlax.f_rng`."""

    def __init__(
        self, train_fn: Callable[..., Any], infer_fn: Callable[..., Any] | None = None
    ) -> None:
        """Hold the functions for training and for inference."""
        super().__init__()
        f_rng(train_fn, infer_fn)  # checks the arguments
        self._config = FRngConfig(train_fn, infer_fn)

    def forward(
        self, x: Any, rng: Key | None, inference_mode: bool = False, batch_axis_name: AxisName = ()
    ) -> Any:
        """Return the value of the function at x and rng."""
        y, _ = f_rng.apply((), State((), self._config), x, rng, inference_mode, batch_axis_name)
        return y
