"""Pairs made of pairs: `Combinator`, and `transform` for those that run a layer in a loop or a map.

Their `init` returns what it made of the layer, a `Made`, and their `apply` runs it by a `Call`.
"""

from collections.abc import Callable, Iterator
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar, overload

import jax

from mlax.arguments import AnyLayer, described, saturated
from mlax.belonging import ANOTHER_STATE, config_of, pair_of, require_equal
from mlax.combinators.child import Child, Made, apply_child
from mlax.combinators.making import shapes
from mlax.errors import message
from mlax.layer import AxisName, Key, Layer, State
from mlax.layer import C, P, S, V, X, X_contra, Y, Y_co
from mlax.pair import BoundApply, HParams, PairBase

K = TypeVar("K", bound=tuple[Any, ...])
H = ParamSpec("H")


class Combinator(PairBase[P, S, X_contra, Y_co]):
    """A pair that takes layers as hyperparameters."""

    def layer_needs_rng(self, hparams: HParams) -> bool:
        """Return whether the combinator or one of its layers needs a key."""
        if super().layer_needs_rng(hparams):
            return True
        return any(place.layer.needs_rng for place in places_of(hparams))

    def make(self, rng: Key, x: Any, hparams: HParams) -> tuple[P, S]:
        """Return `(params, state)`."""
        return self.make_with_output(rng, x, hparams)[:2]

    def make_with_output(
        self, rng: Key, x: Any, hparams: HParams
    ) -> tuple[P, S, Callable[[], Any]]:
        """Return params, state, and a function that returns the shapes of the output."""
        raise NotImplementedError

    def adopt(self, bound: BoundApply, state: Any, x: Any) -> Any:
        """Return the state with the `apply` of each of these layers in its children."""
        config: Any = config_of(self.__name__, state, self.config or tuple)
        passed = bound.arguments
        replaced: dict[str, Any] = {}
        for name in config._fields:
            kept = getattr(config, name)
            if name not in passed:
                continue
            if isinstance(kept, Child):
                replaced[name] = kept.adopted(self.__name__, passed[name])
            elif isinstance(kept, tuple) and kept and isinstance(kept[0], Child):
                replaced[name] = adopted_children(self.__name__, kept, passed[name])
            else:
                require_equal(self.__name__, name, passed[name], kept)
        return State(state.variables, config._replace(**replaced))


class Place(NamedTuple):
    """Where a layer stands among hyperparameters."""

    hparam: str
    """The name of the hyperparameter."""
    position: int | None
    """Its position there, None if the hyperparameter is the layer itself."""
    layer: AnyLayer
    """The layer."""


def places_of(hparams: HParams) -> Iterator[Place]:
    """Yield each layer among the hyperparameters, with its place."""
    for name, value in hparams:
        if isinstance(value, Layer):
            yield Place(name, None, value)
        elif isinstance(value, tuple):
            for i, entry in enumerate(value):
                if isinstance(entry, Layer):
                    yield Place(name, i, entry)
                elif isinstance(entry, tuple) and len(entry) == 2 and isinstance(entry[1], Layer):
                    yield Place(name, i, entry[1])


def adopted_children(
    owner: str, children: tuple[Child, ...], layers: tuple[AnyLayer, ...]
) -> tuple[Child, ...]:
    """Return the children with the `apply` of these layers, one for each child."""
    if len(children) != len(layers):
        wanted, got = f"that of {len(layers)} layers", f"that of {len(children)}"
        raise ValueError(message(owner, "state", wanted, got, ANOTHER_STATE))
    return tuple(child.adopted(owner, one) for child, one in zip(children, layers, strict=True))


class Call(NamedTuple):
    """How a combinator was called: `call(child, params, variables, x)` runs one of its layers."""

    owner: str
    """The name of the combinator, for errors."""
    rng: Key | None
    """Its key."""
    inference_mode: bool
    """Whether it was called for inference."""
    batch_axis_name: AxisName
    """The names of the batch axes."""

    def __call__(
        self, child: Child, params: Any, variables: Any, x: Any, rng: Any = ..., /
    ) -> tuple[Any, Any]:
        """Return the output of a child and its next variables.

        A child that needs a key gets `rng`, by default the key of the combinator.
        """
        key = (self.rng if rng is ... else rng) if child.needs_rng else None
        return apply_child(self.owner, child, params, variables, x, key, *self[2:])


class Transform(Combinator[P, S, X_contra, Y_co]):
    """A combinator made by `transform`."""

    child_key: str = ""
    """The key of its only layer in params; "" if params are those of the layer."""

    def __init__(
        self, init: Callable[..., Made], apply: Callable[..., tuple[Any, Any]],
        config: type[tuple[Any, ...]], needs_rng: bool,
    ) -> None:
        """Make a combinator from the two functions that `transform` takes."""

        def run(
            params: Any, state: Any, x: Any, rng: Key | None = None, inference_mode: bool = False,
            batch_axis_name: AxisName = (),
        ) -> tuple[Any, Any]:
            call = Call(self.__name__, rng, inference_mode, batch_axis_name)
            x = jax.tree.map(saturated, x)  # before a transformation of JAX sees it
            result = apply(call, state.config, params, state.variables, x)
            y, variables = pair_of(self.__name__, "apply", "(y, variables)", result)
            return y, State(variables, state.config)

        run.__doc__ = apply.__doc__
        super().__init__(init, run, config, needs_rng)

    def make_with_output(
        self, rng: Key, x: Any, hparams: HParams
    ) -> tuple[P, S, Callable[[], Any]]:
        """Return params, state, and a function that returns the shapes of the output."""
        made: Any = PairBase.make(self, rng, x, hparams)
        if not isinstance(made, Made):
            wanted, got = "a Made, as init_child and the like return it", described(made)
            raise TypeError(message(self.__name__, "what init returns", wanted, got))
        values = dict(self.bound(hparams).arguments)
        values.setdefault("ndims", tuple(len(leaf.shape) for leaf in jax.tree.leaves(shapes(x))))
        values.update((place.hparam, made.child) for place in places_of(tuple(values.items())))
        config: Any = self.config
        state: Any = State(made.variables, config(*(values[name] for name in config._fields)))
        return made.params, state, made.output


class UserTransform(Transform[Any, Any, Any, Any]):
    """A combinator made by `transform`, without types of its own."""

    def __call__(self, *args: Any, **kwargs: Any) -> Layer[Any, Any, Any, Any]:
        """Return the layer that has these hyperparameters."""
        return self.bind(*args, **kwargs)


class Around(Transform[Any, State[Any, K], Any, Any], Generic[H, K]):
    """A combinator made by `transform` whose params, variables, x and y are typed as its layer's.

    Its `init` is `init(rng, x, layer, **hparams)`. If the state of the layer is not a `State`, the
    types of its variables are unknown.
    """

    # Both use the same type variables, so that mypy picks the first for a layer that holds an Any.
    @overload
    def __call__(
        self, layer: Layer[P, State[V, C], X, Y], /, *args: H.args, **kwargs: H.kwargs
    ) -> Layer[P, State[V, K], X, Y]: ...
    @overload
    def __call__(
        self, layer: Layer[P, S, X, Y], /, *args: H.args, **kwargs: H.kwargs
    ) -> Layer[P, State[Any, K], X, Y]: ...
    def __call__(self, layer: AnyLayer, /, *args: H.args, **kwargs: H.kwargs) -> AnyLayer:
        """Return the combinator of this layer."""
        return self.bind(layer, *args, **kwargs)


T = TypeVar("T", bound=Transform[Any, Any, Any, Any])


@overload
def transform(
    apply: Callable[..., tuple[Any, Any]], config: type[tuple[Any, ...]], *, needs_rng: bool = False
) -> Callable[[Callable[..., Made]], UserTransform]: ...
@overload
def transform(
    apply: Callable[..., tuple[Any, Any]], config: type[K], kind: type[Around[..., Any]], *,
    needs_rng: bool = False,
) -> Callable[[Callable[Concatenate[Key, Any, AnyLayer, H], Made]], Around[H, K]]: ...
@overload
def transform(
    apply: Callable[..., tuple[Any, Any]], config: type[tuple[Any, ...]], kind: type[T], *,
    needs_rng: bool = False,
) -> Callable[[Callable[..., Made]], T]: ...
def transform(
    apply: Any, config: Any, kind: Any = UserTransform, *, needs_rng: bool = False
) -> Any:
    """Return a decorator from `init(rng, x, **hparams) -> Made` and `apply` to a combinator.

    For combinators that run a layer in a loop, under `jax.vmap` and the like. One that only calls
    its layers is simpler to write with `mlax.combinator`.

    Args:
        apply: `apply(call, config, params, variables, x) -> (y, variables)`, which runs the layer
            with `call(config.layer, params, variables, x)`.
        config: a named tuple type whose fields are named after hyperparameters; if one is a layer,
            the field holds the `Child`. A field `ndims` holds the rank of each array in x.
        kind: the class of the combinator, for its types.
        needs_rng: whether it needs a key itself. It always needs one if one of its layers does.
    """
    return lambda init: kind(init, apply, config, needs_rng)
