"""`Series` and `SeriesRng`: modules one after the other."""

from typing import Any

from mlax.layer import AxisName, Key
from mlax.nn.child import Composite


class _Series(Composite):
    """y = layer_n(... layer_1(x)); `forward` in a subclass says whether it needs a key."""

    def _run(self, x: Any, rng: Key | None, inference_mode: bool, batch_axis_name: AxisName) -> Any:
        for i, key in enumerate(self._keys(rng)):
            x = self._call(i, x, key, inference_mode, batch_axis_name)
        return x


class Series(_Series):
    """Modules that need no key, one after the other: y = layer_n(... layer_1(x)).

    They are held in the parameter `layers`, a list; any iterable of modules can be passed.
    """

    def forward(
        self, x: Any, rng: None = None, inference_mode: bool = False, batch_axis_name: AxisName = ()
    ) -> Any:
        """Return the output of the last layer."""
        return self._run(x, None, inference_mode, batch_axis_name)


class SeriesRng(_Series):
    """Modules that may need keys, one after the other.

    They are held in the parameter `layers`, a list, and get their keys as in `mlax.series`.
    """

    def forward(
        self, x: Any, rng: Key | None, inference_mode: bool = False, batch_axis_name: AxisName = ()
    ) -> Any:
        """Return the output of the last layer."""
        return self._run(x, rng, inference_mode, batch_axis_name)
