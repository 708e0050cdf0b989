"""One layer at several places of a composition, with one set of parameters.

`init` lets every place make parameters, keeps those of the first, and leaves a hole in the
parameters of the composition where the others were. `apply` fills the holes. The variables
of the layer stay with each place.
"""

import functools
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import jax

from mlax import arguments
from mlax.combinators.child import (
    AnyLayer,
    Child,
    any_needs_rng,
    apply_child,
    init_child,
    init_keys,
    require_equal_shapes,
    require_layer,
    shapes,
)
from mlax.equality import by_parts
from mlax.pair import AxisName, Key, Layer, PairBase, State, layer

P = TypeVar("P")
S = TypeVar("S")
X = TypeVar("X")
Y = TypeVar("Y")
X2 = TypeVar("X2")
Y2 = TypeVar("Y2")


class SharedParams(NamedTuple):
    """Parameters of `shared`."""

    shared: Any
    """Those of the layer."""
    rest: Any
    """Those of the composition, with holes where the layer stands."""


class SharedConfig(NamedTuple):
    """Configuration of `shared`."""

    composition: Child
    """What is kept of the composition."""
    hole: int
    """The number of the holes that the layer leaves."""


@by_parts
class ReuseConfig(NamedTuple):
    """Configuration of `reuse`."""

    fn: Callable[[Any, Any], Any]
    """Function of the shared parameters and x."""


@functools.partial(jax.tree_util.register_dataclass, data_fields=["params"], meta_fields=["maker"])
@dataclass(frozen=True)
class _Tied:
    """The parameters of a place where a shared layer stands."""

    params: Any
    maker: "_Maker | None" = None


@functools.partial(jax.tree_util.register_dataclass, data_fields=[], meta_fields=["number"])
@dataclass(frozen=True)
class _Hole:
    """What is left of them in the parameters of the composition."""

    number: int


@dataclass(eq=False)
class _Maker:
    """What one run of `shared.init` knows of its layer: the parameters that came first."""

    params: Any = None
    shapes: Any = None
    made: bool = False


def _apply_tied(
    params: _Tied,
    state: State[Any, Hashable],
    x: Any,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[Any, State[Any, Hashable]]:
    child = arguments.config_of("shared", state, Child)
    y, variables = apply_child(
        "shared", child, params.params, state.variables, x, rng, inference_mode, batch_axis_name
    )
    return y, State(variables, child)


@layer(_apply_tied, needs_rng=lambda maker, layer: any_needs_rng(layer))
def tied(rng: Key, x: Any, maker: _Maker, layer: AnyLayer) -> tuple[_Tied, State[Any, Hashable]]:
    """A place where the layer stands."""
    params, variables, child = init_child("shared", None, layer, rng, x)
    if maker.made:
        got = shapes(params)
        require_equal_shapes("shared", maker.shapes, got, "the parameters at every place")
    else:
        maker.params, maker.shapes, maker.made = params, shapes(params), True
    return _Tied(maker.params, maker), State(variables, child)


def _apply_reuse(
    params: _Tied,
    state: State[tuple[()], ReuseConfig],
    x: Any,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[Any, State[tuple[()], ReuseConfig]]:
    config = arguments.config_of("reuse", state, ReuseConfig)
    return config.fn(params.params, x), state


def _require_tied(owner: str, name: str, value: Any) -> None:
    require_layer(owner, name, value)
    if not isinstance(_maker_of(value), _Maker):
        wanted = "the layer that mlax.shared hands to its composition"
        raise TypeError(arguments.message(owner, name, wanted, repr(value)))


def _maker_of(tied: AnyLayer) -> Any:
    return next(iter(getattr(tied.init, "args", ())), None)


@layer(_apply_reuse, checks={"tied": _require_tied, "fn": arguments.check_callable})
def reuse(
    rng: Key, x: Any, tied: AnyLayer, fn: Callable[[Any, Any], Any]
) -> tuple[_Tied, State[tuple[()], ReuseConfig]]:
    """Another function of the parameters of a shared layer: y = fn(params, x).

    Args:
        tied: the layer that `mlax.shared` hands to its composition. It must stand somewhere
            before this in the order of `init`, where it makes the parameters.
        fn: function of the parameters of that layer and of x.

    Raises:
        TypeError: an argument is of the wrong type.
        ValueError: the layer has made no parameters yet.

    >>> import jax, jax.numpy as jnp, mlax
    >>> logits = lambda params, x: x @ params.embedding.T
    >>> language_model = mlax.shared(
    ...     mlax.embed(50, 8),
    ...     lambda tied: mlax.series(tied, mlax.linear(8), mlax.reuse(tied, logits)),
    ... )
    >>> params, state = language_model.init(jax.random.key(0), jnp.arange(3))
    >>> language_model.apply(params, state, jnp.arange(3))[0].shape
    (3, 50)
    """
    maker: _Maker = _maker_of(tied)
    if not maker.made:
        raise ValueError("reuse: expected the shared layer to stand before it, got no parameters")
    return _Tied(maker.params, maker), State((), ReuseConfig(fn))


class Shared(PairBase[SharedParams, State[Any, SharedConfig], Any, Any]):
    """The type of `shared`: input and output are those of the composition."""

    def __call__(
        self,
        layer: Layer[P, S, X, Y],
        composition: Callable[[Layer[P, S, X, Y]], Layer[Any, Any, X2, Y2]],
    ) -> Layer[SharedParams, State[Any, SharedConfig], X2, Y2]:
        """Return the composition."""
        return self.bind(layer, composition)


def apply(
    params: SharedParams,
    state: State[Any, SharedConfig],
    x: Any,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[Any, State[Any, SharedConfig]]:
    """Return the output of the composition: see `mlax.Apply` and `mlax.shared`."""
    child, number = arguments.config_of("shared", state, SharedConfig)
    arguments.require_params("shared", params, SharedParams)

    def filled(node: Any) -> Any:
        return _Tied(params.shared) if node == _Hole(number) else node

    rest = jax.tree.map(filled, params.rest, is_leaf=lambda node: isinstance(node, _Hole))
    y, variables = apply_child(
        "shared", child, rest, state.variables, x, rng, inference_mode, batch_axis_name
    )
    return y, State(variables, state.config)


def _model(layer: AnyLayer, composition: Callable[[AnyLayer], AnyLayer], maker: _Maker) -> AnyLayer:
    model = composition(tied(maker, layer))
    require_layer("shared", "the result of composition", model)
    return model


@Shared.of(
    apply,
    needs_rng=lambda layer, composition: any_needs_rng(_model(layer, composition, _Maker())),
    checks={"layer": require_layer, "composition": arguments.check_callable},
)
def shared(
    rng: Key, x: Any, layer: AnyLayer, composition: Callable[[AnyLayer], AnyLayer]
) -> tuple[SharedParams, State[Any, SharedConfig]]:
    """A composition that uses one layer at several places, as siamese networks do.

    The parameters of the layer are kept once, in `params.shared`, and their gradients are
    the sums over the places. Each place has its own variables.

    Args:
        layer: the layer that is shared. Its parameters are those that the first place makes.
        composition: function of the shared layer to the composition. `mlax.reuse` makes
            layers of its parameters that compute something else, as tied weights do.

    Raises:
        ValueError: the layer is used nowhere, or its parameters would not have equal shapes at
            every place.

    >>> import jax, jax.numpy as jnp, mlax
    >>> siamese = mlax.shared(mlax.linear(4), lambda encoder: mlax.parallel(encoder, encoder))
    >>> params, state = siamese.init(jax.random.key(0), (jnp.ones(3), jnp.ones(3)))
    >>> params.shared.kernel.shape
    (3, 4)
    >>> (a, b), state = siamese.apply(params, state, (jnp.ones(3), jnp.ones(3)))
    >>> bool((a == b).all())
    True
    """
    maker = _Maker()
    (key,) = init_keys(rng, 1)
    model = _model(layer, composition, maker)
    params, variables, child = init_child("shared", None, model, key, x)

    def is_place(node: Any) -> bool:
        return isinstance(node, _Hole) or isinstance(node, _Tied) and node.maker is maker

    places = [node for node in jax.tree.leaves(params, is_leaf=is_place) if is_place(node)]
    made = [node.params for node in places if isinstance(node, _Tied)]
    maker.params = None
    if not made:
        raise ValueError("shared: expected the composition to use the layer, got one without it")
    for place in made:
        _require_one_set(maker.shapes, shapes(place))
    number = 1 + max((node.number for node in places if isinstance(node, _Hole)), default=-1)

    def emptied(node: Any) -> Any:
        return _Hole(number) if isinstance(node, _Tied) and node.maker is maker else node

    rest = jax.tree.map(emptied, params, is_leaf=is_place)
    return SharedParams(made[0], rest), State(variables, SharedConfig(child, number))


def _require_one_set(made: Any, kept: Any) -> None:
    """Require that the parameters came out of the composition as the layer made them."""
    for one, other in zip(jax.tree.leaves(made), jax.tree.leaves(kept), strict=True):
        if one.shape != other.shape:
            raise ValueError(
                "shared: expected the layer outside of what makes copies of it, got one set of "
                "parameters for each copy; put mlax.repeat or mlax.ensemble around mlax.shared"
            )
        if one.dtype != other.dtype:
            raise ValueError(
                f"shared: expected the parameters to stay in {one.dtype.name} at every place, got "
                f"{other.dtype.name}; put mlax.cast around the layer that is given to mlax.shared"
            )
