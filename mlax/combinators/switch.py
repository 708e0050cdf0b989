"""One of several layers, chosen by the input: y = layers[index_fn(x)](x)."""

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from mlax import mesh
from mlax.arguments import AnyLayer
from mlax.combinators import (
    Call, Child, Made, Transform, apply_keys, collected, init_child, init_keys, joined,
    require_equal_shapes, separated, shapes, split, transform,
)
from mlax.errors import message
from mlax.layer import Apply, Key, Layer, State
from mlax.layer import X, X_contra, Y
from mlax.pair import HParams

IndexFn = Callable[[Any], jax.Array]


class SwitchConfig(NamedTuple):
    """Configuration of `switch`."""

    index_fn: IndexFn
    """Function of x that chooses the layer."""
    layers: tuple[Child, ...]
    """The layers."""


class Alternative(Protocol[X_contra, Y]):
    """A layer whose output has exactly the type Y: a checker may not widen it."""

    @property
    def apply(self) -> Apply[Any, Any, X_contra, Y]:
        """The function of the layer."""
        ...

    def _takes(self, y: Y, /) -> None: ...


class Switch(Transform[Any, State[Any, SwitchConfig], Any, Any]):
    """The type of `switch`: all layers have the same input and output."""

    def __call__(
        self, index_fn: IndexFn, /, *layers: Alternative[X, Y]
    ) -> Layer[tuple[Any, ...], State[Any, SwitchConfig], X, Y]:
        """Return the layer that runs one of `layers`."""
        return self.bind(index_fn, *layers)

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HParams:
        """Return the hyperparameters, which must include at least one layer."""
        hparams = super().read(args, kwargs)
        if not dict(hparams).get("layers"):
            raise ValueError(message("switch", "layers", "at least one layer", "none"))
        return hparams


def apply(call: Call, config: SwitchConfig, params: Any, variables: Any, x: Any) -> tuple[Any, Any]:
    """Return the output of the chosen layer: see `mlax.switch`."""
    index_fn, children = config
    params, variables = mesh.on_mesh_of(x, (params, variables))
    each_params, each_variables = split("switch", children, params, variables)
    keys = apply_keys(call.rng, [child.needs_rng for child in children])

    def branch(i: int) -> Callable[[Any], tuple[Any, list[Any]]]:
        def run(x: Any) -> tuple[Any, list[Any]]:
            y, after = call(children[i], each_params[i], each_variables[i], x, keys[i])
            after, _ = separated(after, each_variables[i])
            return y, [after if i == j else other for j, other in enumerate(each_variables)]

        return run

    branches = mesh.placed_alike([branch(i) for i in range(len(children))], x)
    y, after = lax.switch(index_fn(x), branches, x)
    return y, joined(children, after)


@transform(apply, SwitchConfig, Switch)
def switch(rng: Key, x: Any, index_fn: IndexFn, /, *layers: AnyLayer) -> Made:
    """One of several layers, chosen by the input, by `jax.lax.switch`.

    Only the chosen layer runs, and only its variables change; under `jax.vmap` all run and
    one result is selected. params and variables are tuples. The layers get their keys by the
    rule of `mlax.series`.

    Args:
        index_fn: function from x to an integer scalar, the index of the layer. An index out of
            range is clamped, as in `jax.lax.switch`.
        layers: at least one, with outputs of equal shapes and dtypes.

    Raises:
        ValueError: there is no layer, or the outputs differ in shape or dtype.

    >>> import jax, jax.numpy as jnp, mlax
    >>> sign = lambda x: (x.sum() > 0).astype(int)
    >>> init, apply = mlax.switch(sign, mlax.f(jnp.zeros_like), mlax.f(jnp.sqrt))
    >>> params, state = init(jax.random.key(0), jnp.ones(2))
    >>> apply(params, state, jnp.array([4.0, 9.0]))[0]
    Array([2., 3.], dtype=float32)
    """
    x = shapes(x)
    index = jax.eval_shape(index_fn, x)
    if index.shape or not jnp.issubdtype(index.dtype, jnp.integer):
        got = f"{index.dtype.name}{list(index.shape)}"
        what = "the result of index_fn"
        way_out = "return the index of a layer, for example with jnp.argmax"
        raise TypeError(message("switch", what, "an integer scalar", got, way_out))
    made = [
        init_child("switch", i, child, key, x)
        for i, (child, key) in enumerate(zip(layers, init_keys(rng, len(layers)), strict=True))
    ]
    outputs = [one.output() for one in made]
    for i, output in enumerate(outputs):
        require_equal_shapes("switch", outputs[0], output, f"the output of layer {i}")
    return collected(made)._replace(output=lambda: outputs[0])
