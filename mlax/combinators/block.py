"""Wiring: named layers and a plain function of them and x.

params and variables are dicts by the names of the layers.
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from mlax.arguments import AnyLayer, read_function
from mlax.combinators import Sublayer, Wired, WiredConfig, combinator
from mlax.combinators.types import DictState
from mlax.equality import equal, hash_of
from mlax.errors import expected
from mlax.layer import Layer, State

if TYPE_CHECKING:
    from typing_extensions import TypeVar

    # Types of a lambda are unknown. (`typing` has such defaults from Python 3.13 on.)
    X = TypeVar("X", default=Any)
    Y = TypeVar("Y", default=Any)
else:
    from typing import TypeVar

    X, Y = TypeVar("X"), TypeVar("Y")


class Sublayers:
    """The layers of a block, as attributes or by name: `sub.norm(x)`, `sub["norm"](x)`."""

    def __init__(self, layers: dict[str, Any]) -> None:
        """Hold the sublayers."""
        self._layers = layers

    def __getattr__(self, name: str) -> Sublayer:
        """Return the sublayer called `name`."""
        try:
            layer: Sublayer = self.__dict__["_layers"][name]
            return layer
        except KeyError:
            names = ", ".join(self.__dict__["_layers"])
            what = f"one of the sublayers {names}"
            raise AttributeError(expected("block", what, name)) from None

    def __getitem__(self, name: str) -> Sublayer:
        """Return the sublayer called `name`."""
        return getattr(self, name)  # type: ignore[no-any-return]  # __getattr__ declares the type


class _Wiring:
    """The function of a block, pickled by the name of the block that replaced it."""

    def __init__(self, function: Callable[[Sublayers, Any], Any]) -> None:
        self.function = function
        self.keywords = getattr(function, "keywords", {})  # of a partial, for errors
        name = getattr(function, "__name__", "block")
        self.__name__ = name if name.isidentifier() else "block"

    def __call__(self, sub: Sublayers, x: Any) -> Any:
        return self.function(sub, x)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Wiring) and equal(self.function, other.function)

    def __hash__(self) -> int:
        return hash_of(self.function)

    def __reduce__(self) -> Any:
        function = self.function
        try:
            path = function.__module__, function.__qualname__
            found = _at(*path)
        except (ImportError, AttributeError):
            return _Wiring, (function,)
        if isinstance(found, Layer) and _wiring_of(found) == self:
            return _wiring_at, path
        return _Wiring, (function,)


def _at(module: str, qualname: str) -> Any:
    found: Any = importlib.import_module(module)
    for name in qualname.split("."):
        found = getattr(found, name)
    return found


def _wiring_of(layer: AnyLayer) -> Any:
    return dict(getattr(layer.init, "hparams", ())).get("wiring")


def _wiring_at(module: str, qualname: str) -> _Wiring:
    wiring: _Wiring = _wiring_of(_at(module, qualname))
    return wiring


class Block(Wired[Any, State[Any, WiredConfig], Any, Any]):
    """The pair behind all blocks, each named after its function."""

    named_by: str | None = "wiring"
    """The function."""


@combinator(kind=Block)
def wired(x: Any, wiring: Any, /, **layers: Sublayer) -> Any:
    """The combinator behind `block`."""
    return wiring.function(Sublayers(layers), x)  # one stack frame fewer


wired.__name__ = "block"  # the name in errors


def block(
    **layers: AnyLayer,
) -> Callable[[Callable[[Sublayers, X], Y]], Layer[dict[str, Any], DictState, X, Y]]:
    """Make a layer from named layers and a function `wire(sub, x) -> y` that calls them.

    `sub.norm(x)` is the output of the layer called norm, `sub.norm.params` are its parameters.
    x and y may be any pytrees. A layer that is called several times is shared: it has one set of
    parameters, its variables are passed from call to call, and call n = 0, 1, ... gets the key
    fold_in(key, n). Keys, state, mode and batch axes are handled as in `mlax.series`; params and
    variables are dicts keyed by the names of the layers.

    `init` traces the function once to find the input shapes of the layers; no layer is run.

    Inside `jax.lax.scan`, `jax.vmap` and the like the function can't call a layer that needs a key
    or has variables: `mlax.repeat`, `mlax.recurrent` and `mlax.batched` carry both. A block is
    pickled by name, so define it at the top level of its module; with hyperparameters it becomes a
    `mlax.combinator`. A sublayer returns Any for type checkers: annotate what it returns.

    Raises:
        TypeError: something is not a layer.
        ValueError: a layer is never called.
        Exception: whatever a layer raises, with a note that gives its path.

    >>> import jax, jax.numpy as jnp, mlax
    >>> @mlax.block(embed=mlax.embed(50, 8), body=mlax.dense(8))
    ... def language_model(sub, tokens):
    ...     x = sub.body(sub.embed(tokens))
    ...     return x @ sub.embed.params.embedding.T
    >>> params, state = language_model.init(jax.random.key(0), jnp.arange(3))
    >>> y, state = language_model.apply(params, state, jnp.arange(3))
    >>> y.shape, mlax.paths(params)
    ((3, 50), ['embed.embedding', 'body.kernel', 'body.bias'])
    """

    def decorate(wire: Callable[[Sublayers, X], Y]) -> Layer[dict[str, Any], DictState, X, Y]:
        return wired.bind(_Wiring(read_function("block", "what it decorates", wire)), **layers)

    return decorate
