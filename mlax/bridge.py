"""From modules to pairs and back: `as_layer` and `as_module`."""

from typing import Any, TypeVar

import jax
import jax.numpy as jnp

from mlax import arguments
from mlax.combinators.child import AnyLayer, require_layer
from mlax.module import Module, Parameter
from mlax.pair import AxisName, Key, Layer, PairBase, needs_rng

M = TypeVar("M", bound=Module)


class AsLayer(PairBase[Any, Any, Any, Any]):
    """The type of `as_layer`: parameters and state are modules of the class that went in."""

    def __call__(self, module: M) -> Layer[M, M, Any, Any]:
        """Return the module as a layer."""
        return self.bind(module)


def apply(
    params: Module,
    state: Module,
    x: Any,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[Any, Module]:
    """Return the output of the module: see `mlax.Apply` and `mlax.as_layer`."""
    y, module = params.combine(state)(x, rng, inference_mode, batch_axis_name)
    return y, state if inference_mode else module.filter(inverse=True)


def _require_module(owner: str, name: str, value: Any) -> None:
    if not isinstance(value, Module):
        raise TypeError(arguments.message(owner, name, "a module", repr(value)))


@AsLayer.of(
    apply,
    needs_rng=lambda module: needs_rng(module.forward),
    checks={"module": _require_module},
)
def as_layer(rng: Key, x: Any, module: Module) -> tuple[Module, Module]:
    """A module as a pair: its trained parameters are params, the rest of it is state.

    The module itself is never changed. One that is initialized keeps its parameters;
    another is set up, with the keys it was built with: `rng` makes no parameters here. For
    that it is called once, in inference mode, on zeros shaped like x.

    Args:
        module: any module. It needs a key if its `forward` does.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.as_layer(mlax.nn.Linear(jax.random.key(0), 2))
    >>> params, state = init(jax.random.key(1), jnp.ones(3))
    >>> apply(params, state, jnp.ones(3))[0].shape
    (2,)
    """
    copied: Module = jax.tree.map(lambda leaf: leaf, module)
    if not copied.initialized:
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), x)
        _, copied = copied(zeros, rng, inference_mode=True)
    return copied.partition()


def as_module(layer: AnyLayer, rng: Key) -> "LayerModule | LayerModuleRng":
    """Return a layer as a module, with the parameters `params` and `state`.

    Args:
        layer: any layer.
        rng: the key that the layer is initialised with, at the first call.

    >>> import jax, jax.numpy as jnp, mlax
    >>> module = mlax.as_module(mlax.linear(2), jax.random.key(0))
    >>> y, module = module(jnp.ones(3), None)
    >>> module.params.data.kernel.shape
    (3, 2)
    """
    require_layer("as_module", "layer", layer)
    return (LayerModuleRng if needs_rng(layer.apply) else LayerModule)(layer, rng)


class _LayerModule(Module):
    """A layer as a module, but for the need of a key, which the signature of `forward` tells."""

    def __init__(self, layer: AnyLayer, rng: Key) -> None:
        """Keep the layer and the key until the first call."""
        super().__init__()
        self._layer = layer
        self.rng = rng
        self.params: Parameter = Parameter(trainable=True)
        self.state: Parameter = Parameter(trainable=False)

    def setup(self, x: Any) -> None:
        """Initialise the layer."""
        self.params.data, self.state.data = self._layer.init(self.rng, x)

    def _run(self, x: Any, rng: Key | None, inference_mode: bool, batch_axis_name: AxisName) -> Any:
        y, self.state.data = self._layer.apply(
            self.params.data, self.state.data, x, rng, inference_mode, batch_axis_name
        )
        return y


class LayerModule(_LayerModule):
    """A layer that needs no key, as a module."""

    def forward(
        self,
        x: Any,
        rng: Key | None = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> Any:
        """Apply the layer."""
        return self._run(x, rng, inference_mode, batch_axis_name)


class LayerModuleRng(_LayerModule):
    """A layer that needs a key, as a module."""

    def forward(
        self,
        x: Any,
        rng: Key | None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> Any:
        """Apply the layer."""
        return self._run(x, rng, inference_mode, batch_axis_name)
