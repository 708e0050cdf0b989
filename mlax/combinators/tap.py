"""Intermediate values: y = (layer(x), {path: output of the layer at that path}).

params and state are those of the layer, so that a trained model can be inspected as it is.
"""

import dataclasses
from typing import Any

from mlax.arguments import AnyLayer, read_layer
from mlax.belonging import pair_of
from mlax.combinators import separated, tapping
from mlax.equality import source
from mlax.layer import AxisName, Key, Layer, State
from mlax.layer import P, S, X, Y
from mlax.pair import bare
from mlax.tree import Where, predicate, read_where, require_match


@dataclasses.dataclass(frozen=True)
class TapInit:
    """The `init` of the layer, under another name."""

    layer: AnyLayer
    """The layer."""
    where: Where
    """Which layers inside are recorded."""
    __name__ = "tap"
    is_bound = True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Return params and state of the layer."""
        return self.layer.init(*args, **kwargs)

    def __repr__(self) -> str:
        return f"tap({self.layer!r}, {source(self.where)})"


@dataclasses.dataclass(frozen=True)
class _TapApply:
    """The `apply` of the layer, with intermediate values added to its output."""

    layer: AnyLayer
    where: Where

    @property
    def bare(self) -> Any:
        """What a state refers to: the `apply` of the layer, so that its states serve here too."""
        return bare(self.layer.apply)

    @property
    def needs_rng(self) -> bool:
        """Whether the layer needs a key in training, for `jax.jit` and other wrappers of this."""
        return self.layer.needs_rng

    def __call__(
        self, params: Any, state: Any, x: Any, /, rng: Key | None = None,
        inference_mode: bool = False, batch_axis_name: AxisName = (),
    ) -> Any:
        wanted = predicate(self.where)
        met: dict[str, None] = {}

        def wants(path: str) -> bool:
            met[path] = None
            return wanted(path, None)

        with tapping(wants):
            result = self.layer.apply(params, state, x, rng, inference_mode, batch_axis_name)
            y, after = pair_of("tap", "apply", "(y, state)", result)
            values: dict[str, Any] = {}
            if isinstance(after, State):
                variables, values = separated(after.variables, state.variables)
                after = State(variables, after.config)
        require_match("tap", self.where, list(met))
        return (y, values), after


def tap(layer: Layer[P, S, X, Y], where: Where = "*") -> Layer[P, S, X, tuple[Y, dict[str, Any]]]:
    """Return a layer whose output is (y, values): y, and the outputs of the layers inside.

    Params and state are those of `layer`: `mlax.tap(model).apply(params, state, x)` inspects a
    trained model. Paths are written as in `mlax.paths`: "2" is the third layer of a series,
    "body.0" the first one in body. Values inside a loop or a map (`mlax.repeat`, `mlax.recurrent`,
    `mlax.batched`) are stacked on a leading axis. If a block calls the layer "a" several times, the
    later calls appear as "a:1", "a:2". The weights of `mlax.attention` appear as "weights" below
    its path; they are then computed by plain products. Layers in `mlax.switch` are not recorded.

    Args:
        layer: any layer.
        where: which layers: a pattern or a list of patterns, as in `mlax.mask`, or a predicate
            `(path, None) -> bool`.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: a pattern matches no layer.

    >>> import jax, jax.numpy as jnp, mlax
    >>> model = mlax.series(stem=mlax.dense(4), body=mlax.series(mlax.f(jnp.tanh), mlax.dense(2)))
    >>> params, state = model.init(jax.random.key(0), jnp.ones(3))
    >>> (y, values), _ = mlax.tap(model, ["stem", "body.0"]).apply(params, state, jnp.ones(3))
    >>> y.shape, values["stem"].shape, values["body.0"].shape
    ((2,), (4,), (4,))
    """
    read_layer("tap", "layer", layer)
    where = read_where("tap", where)
    tapped: Any = _TapApply(layer, where)  # an `Apply`, as no dataclass can declare
    return Layer(TapInit(layer, where), tapped, layer.needs_rng)
