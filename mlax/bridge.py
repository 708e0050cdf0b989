"""From modules to pairs and back: `as_layer` and `as_module`."""

from collections.abc import Callable
from types import NoneType
from typing import Annotated, Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from mlax.arguments import AnyLayer, Rule, described, read_layer, require_key
from mlax.belonging import ANOTHER_STATE, pair_of, require_equal
from mlax.combinators import making_copies
from mlax.errors import message
from mlax.layer import AxisName, Key, Layer, needs_rng
from mlax.module import Module, Parameter
from mlax.pair import BoundApply, HParams, PairBase

M = TypeVar("M", bound=Module)


class AsLayer(PairBase[Any, Any, Any, Any]):
    """The type of `as_layer`: parameters and state are modules of the same class."""

    def __call__(self, module: M | Callable[[Key], M]) -> Layer[M, M, Any, Any]:
        """Return the module as a layer."""
        return self.bind(module)

    def layer_needs_rng(self, hparams: HParams) -> bool:
        """Return whether `forward` of the module needs a key."""
        module = dict(hparams)["module"]
        built = module if isinstance(module, Module) else _built(module, jax.random.key(0))
        return needs_rng(built.forward)

    def adopt(self, bound: BoundApply, state: Any, x: Any) -> Any:
        """Return the state, which must be a module with the attributes of this one."""
        module = bound.arguments["module"]
        own = module if isinstance(module, Module) else _built(module, jax.random.key(0))
        _require_alike(own, state)
        return state


def apply(
    params: Module, state: Module, x: Any, rng: Key | None = None,
    inference_mode: bool = False, batch_axis_name: AxisName = (),
) -> tuple[Any, Module]:
    """Return the output of the module: see `mlax.Apply` and `mlax.as_layer`."""
    y, module = state.combine(params)(x, rng, inference_mode, batch_axis_name)
    return y, state if inference_mode else module.filter(inverse=True)


_NOT_COMPARED = (Parameter, jax.Array, np.ndarray, NoneType)


def _require_alike(own: Any, kept: Any) -> None:
    """Require one class and equal static attributes, except for keys and what `setup` fills in."""
    if type(own) is not type(kept):
        wanted = f"a {type(own).__name__}, as this layer makes it"
        raise TypeError(message("as_layer", "state", wanted, described(kept), ANOTHER_STATE))
    for name, value in vars(own).items():
        other = vars(kept).get(name, value)
        if isinstance(value, Module):
            _require_alike(value, other)
        elif isinstance(value, Parameter) and isinstance(value.data, list):
            for one, another in zip(value.data, getattr(other, "data", ()), strict=False):
                if isinstance(one, Module):
                    _require_alike(one, another)
        elif name != "initialized" and not isinstance(value, _NOT_COMPARED):
            require_equal("as_layer", f"{type(own).__name__}.{name}", value, other)


def _read_module(owner: str, name: str, value: Any) -> Any:
    if isinstance(value, Module):
        return value
    if callable(value) and not isinstance(value, type | PairBase | Layer):
        return value
    got = repr(value) if isinstance(value, PairBase) else described(value)
    if isinstance(value, type):
        got = f"the class {value.__name__}"
    way_out = "as in mlax.as_layer(lambda rng: nn.Linear(rng, 3))"
    raise TypeError(message(owner, name, "a module or a function of a key", got, way_out))


def _built(build: Callable[[Key], Any], rng: Key) -> Module:
    module = build(rng)
    if not isinstance(module, Module):
        got = described(module)
        raise TypeError(message("as_layer", "the result of the function", "a module", got))
    return module


def _as_layer(
    rng: Key, x: Any, module: Annotated[Any, Rule(_read_module)]
) -> tuple[Module, Module]:
    """A module as a pair: its trained parameters are params, everything else is state.

    The module itself is never changed. An initialized module keeps its parameters. Any other is
    set up by a call in inference mode on zeros shaped like x, with the keys it was built with;
    `rng` makes none of its parameters. A function of a key builds a new module for each `rng`,
    as `mlax.repeat` and `mlax.ensemble` require.

    Args:
        module: any module, or a function from a key to a module. The layer needs a key if
            `forward` does.

    Raises:
        TypeError: `module` is neither.
        ValueError: a combinator makes copies of one module, which would all be equal.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.as_layer(lambda rng: mlax.nn.Linear(rng, 2))
    >>> params, state = init(jax.random.key(1), jnp.ones(3))
    >>> apply(params, state, jnp.ones(3))[0].shape
    (2,)
    """
    if isinstance(module, Module):
        if making_copies():
            way_out = "a module brings its own keys: mlax.as_layer(lambda rng: nn.Linear(rng, 3))"
            wanted = "a function of a key for copies"
            raise ValueError(message("as_layer", "module", wanted, "a module", way_out))
        built: Module = jax.tree.map(lambda leaf: leaf, module)
    else:
        built = _built(module, rng)
    if not built.initialized:
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), x)
        _, built = built(zeros, rng, inference_mode=True)
    if not isinstance(module, Module):
        _forget_keys(built)
    return built.partition()


def _forget_keys(module: Module) -> None:
    """Set traced keys in attributes to None: tracers can't be part of a tree structure."""
    children = jax.tree.leaves(module, is_leaf=lambda n: n is not module and isinstance(n, Module))
    for child in children:
        if isinstance(child, Module):
            _forget_keys(child)
    for name, value in list(vars(module).items()):
        if isinstance(value, Tracer):
            setattr(module, name, None)


_as_layer.__name__ = _as_layer.__qualname__ = "as_layer"
as_layer: AsLayer = AsLayer(_as_layer, apply, None, False)


def as_module(layer: AnyLayer, rng: Key) -> "LayerModule | LayerModuleRng":
    """Return a layer as a module, with the parameters `params` and `state`.

    Args:
        layer: any layer.
        rng: the key that initialises the layer at the first call.

    >>> import jax, jax.numpy as jnp, mlax
    >>> module = mlax.as_module(mlax.linear(2), jax.random.key(0))
    >>> y, module = module(jnp.ones(3), None)
    >>> module.params.data.kernel.shape
    (3, 2)
    """
    read_layer("as_module", "layer", layer)
    require_key("as_module", rng)
    return (LayerModuleRng if layer.needs_rng else LayerModule)(layer, rng)


class _LayerModule(Module):
    """A layer as a module; the signature of `forward` in a subclass says whether it needs a key."""

    _spent = ("rng",)

    def __init__(self, layer: AnyLayer, rng: Key) -> None:
        super().__init__()
        self.layer = layer
        self.rng = rng
        self.params: Parameter = Parameter(trainable=True)
        self.state: Parameter = Parameter(trainable=False)

    def setup(self, x: Any) -> None:
        made = self.layer.init(self.rng, x)
        self.params.data, self.state.data = pair_of("as_module", "init", "(params, state)", made)

    def forward(
        self, x: Any, rng: Key | None, inference_mode: bool = False, batch_axis_name: AxisName = ()
    ) -> Any:
        apply, params, state = self.layer.apply, self.params.data, self.state.data
        result = apply(params, state, x, rng, inference_mode, batch_axis_name)
        y, self.state.data = pair_of("as_module", "apply", "(y, state)", result)
        return y


class LayerModuleRng(_LayerModule):
    """A layer that needs a key, as a module."""


class LayerModule(_LayerModule):
    """A layer that needs no key, as a module."""

    def forward(
        self, x: Any, rng: Key | None = None, inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> Any:
        """Apply the layer."""
        return super().forward(x, rng, inference_mode, batch_axis_name)
