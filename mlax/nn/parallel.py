"""`Parallel` and `ParallelRng`: modules side by side."""

from collections.abc import Iterable, Mapping
from typing import Any

from mlax.errors import message
from mlax.layer import AxisName, Key
from mlax.nn.child import Composite


class _Parallel(Composite):
    """y[i] = layer_i(x[i]); `forward` in a subclass says whether it needs a key."""

    def _run(
        self, x: Iterable[Any], rng: Key | None, inference_mode: bool, batch_axis_name: AxisName
    ) -> list[Any]:
        entries, keys = list(x), self._keys(rng)
        if len(entries) != len(keys) or isinstance(x, Mapping):
            wanted = f"an iterable of {len(keys)} entries, one for each layer"
            got = "a dict" if isinstance(x, Mapping) else f"{len(entries)} entries"
            raise ValueError(message(type(self).__name__, "x", wanted, got))
        return [
            self._call(i, entry, key, inference_mode, batch_axis_name)
            for i, (entry, key) in enumerate(zip(entries, keys, strict=True))
        ]


class Parallel(_Parallel):
    """Modules that need no key, side by side: y[i] = layer_i(x[i]), a list.

    They are held in the parameter `layers`, a list; any iterable of modules can be passed.
    """

    def forward(
        self, x: Iterable[Any], rng: None = None,
        inference_mode: bool = False, batch_axis_name: AxisName = (),
    ) -> list[Any]:
        """Return the outputs of the layers."""
        return self._run(x, None, inference_mode, batch_axis_name)


class ParallelRng(_Parallel):
    """Modules that may need keys, side by side: y[i] = layer_i(x[i]), a list.

    They are held in the parameter `layers`, a list, and get their keys as in `mlax.series`.
    """

    def forward(
        self, x: Iterable[Any], rng: Key | None,
        inference_mode: bool = False, batch_axis_name: AxisName = (),
    ) -> list[Any]:
        """Return the outputs of the layers."""
        return self._run(x, rng, inference_mode, batch_axis_name)
