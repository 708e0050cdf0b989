"""One of several layers, chosen by the input: y = layers[index_fn(x)](x)."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from mlax import arguments
from mlax.combinators.child import (
    AnyLayer,
    Child,
    any_needs_rng,
    apply_child,
    apply_keys,
    collected,
    init_child,
    init_keys,
    joined_state,
    output_shape,
    require_equal_shapes,
    require_layers,
    shapes,
    split,
)
from mlax.equality import by_parts
from mlax.pair import AxisName, Key, State, layer

IndexFn = Callable[[Any], jax.Array]


@by_parts
class SwitchConfig(NamedTuple):
    """Configuration of `switch`."""

    index_fn: IndexFn
    """Which layer an input goes to."""
    layers: tuple[Child, ...]
    """What is kept of the layers."""


def apply(
    params: Any,
    state: State[Any, SwitchConfig],
    x: Any,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[Any, State[Any, SwitchConfig]]:
    """Return the output of the chosen layer: see `mlax.Apply` and `mlax.switch`."""
    index_fn, layers = arguments.config_of("switch", state, SwitchConfig)
    children = split("switch", params, State(state.variables, layers))
    keys = apply_keys(rng, [child.needs_rng for child in layers])

    def branch(i: int) -> Callable[[Any], tuple[Any, list[Any]]]:
        def run(x: Any) -> tuple[Any, list[Any]]:
            child, p, v = children[i]
            y, v = apply_child("switch", child, p, v, x, keys[i], inference_mode, batch_axis_name)
            return y, [v if i == j else other for j, (_, _, other) in enumerate(children)]

        return run

    y, variables = lax.switch(index_fn(x), [branch(i) for i in range(len(children))], x)
    return y, State(joined_state(layers, variables).variables, state.config)


def _require_some_layers(owner: str, name: str, layers: Any) -> None:
    require_layers(owner, name, layers)
    if not layers:
        raise ValueError(arguments.message(owner, name, "at least one layer", "none"))


@layer(
    apply,
    needs_rng=lambda index_fn, *layers: any_needs_rng(*layers),
    checks={"index_fn": arguments.check_callable, "layers": _require_some_layers},
)
def switch(
    rng: Key, x: Any, index_fn: IndexFn, *layers: AnyLayer
) -> tuple[Any, State[Any, SwitchConfig]]:
    """One of several layers, chosen by the input, by `jax.lax.switch`.

    Only the chosen layer runs, and only its variables change; under `jax.vmap` all run and
    one result is selected. params and variables are tuples. Keys are given out as by
    `mlax.series`.

    Args:
        index_fn: function of x to an integer scalar, the place of the layer. One outside the
            layers is clamped, as `jax.lax.switch` does.
        layers: at least one, with outputs of equal shapes and dtypes.

    Raises:
        ValueError: there is no layer, or the outputs differ.

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
        way_out = "the place of a layer, as of jnp.argmax or x.astype(int)"
        raise TypeError(arguments.message("switch", what, "an integer scalar", got, way_out))
    keys = init_keys(rng, len(layers))
    children = [
        init_child("switch", i, child, key, x)
        for i, (child, key) in enumerate(zip(layers, keys, strict=True))
    ]
    outputs = [output_shape("switch", child, p, v, x, rng) for p, v, child in children]
    for i, output in enumerate(outputs):
        require_equal_shapes("switch", outputs[0], output, f"the output of layer {i}")
    params, state = collected(children)
    return params, State(state.variables, SwitchConfig(index_fn, state.config))
