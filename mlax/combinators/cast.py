"""A layer in another precision than its parameters: y = cast(layer(cast(params), cast(x))).

params and variables are those of the layer.
"""

from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mlax import arguments
from mlax.combinators.child import (
    AnyLayer,
    Child,
    any_needs_rng,
    apply_child,
    init_child,
    init_keys,
    require_layer,
    shapes,
)
from mlax.pair import AxisName, Key, Layer, PairBase, State

P = TypeVar("P")
X = TypeVar("X")
Y = TypeVar("Y")


class CastConfig(NamedTuple):
    """Configuration of `cast`."""

    layer: Child
    """What is kept of the layer."""
    compute_dtype: DTypeLike | None
    """Dtype of parameters and x inside."""
    output_dtype: DTypeLike | None
    """Dtype of y."""


class Cast(PairBase[Any, State[Any, CastConfig], Any, Any]):
    """The type of `cast`: what is known of the layer is known of the cast one."""

    def __call__(
        self,
        layer: Layer[P, Any, X, Y],
        params_dtype: DTypeLike | None = None,
        compute_dtype: DTypeLike | None = None,
        output_dtype: DTypeLike | None = None,
    ) -> Layer[P, State[Any, CastConfig], X, Y]:
        """Return the layer under this policy."""
        return self.bind(layer, params_dtype, compute_dtype, output_dtype)


def apply(
    params: Any,
    state: State[Any, CastConfig],
    x: Any,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[Any, State[Any, CastConfig]]:
    """Return the output of the layer: see `mlax.Apply` and `mlax.cast`."""
    child, compute_dtype, output_dtype = arguments.config_of("cast", state, CastConfig)
    y, variables = apply_child(
        "cast",
        child,
        _cast(params, compute_dtype),
        state.variables,
        _cast(x, compute_dtype),
        rng,
        inference_mode,
        batch_axis_name,
    )
    return _cast(y, output_dtype), State(variables, state.config)


@Cast.of(
    apply,
    needs_rng=lambda layer, *_, **__: any_needs_rng(layer),
    checks={
        "layer": require_layer,
        "params_dtype": arguments.check_optional_dtype,
        "compute_dtype": arguments.check_optional_dtype,
        "output_dtype": arguments.check_optional_dtype,
    },
)
def cast(
    rng: Key,
    x: Any,
    layer: AnyLayer,
    params_dtype: DTypeLike | None = None,
    compute_dtype: DTypeLike | None = None,
    output_dtype: DTypeLike | None = None,
) -> tuple[Any, State[Any, CastConfig]]:
    """A mixed-precision policy around a layer. Only floating arrays are cast.

    Variables are never cast, and normalisations compute their statistics in float32 or
    better whatever they are given.

    Args:
        layer: any layer.
        params_dtype: dtype that parameters are kept in; None as the layer makes them.
        compute_dtype: dtype that parameters and x are cast to for the layer; None as they are.
        output_dtype: dtype that y is cast to; None as the layer returns it.

    Source: Micikevicius et al., "Mixed precision training", 2018.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.cast(mlax.linear(3), jnp.float32, jnp.bfloat16, jnp.float32)
    >>> params, state = init(jax.random.key(0), jnp.ones(2))
    >>> params.kernel.dtype, apply(params, state, jnp.ones(2))[0].dtype
    (dtype('float32'), dtype('float32'))
    """
    (key,) = init_keys(rng, 1)
    x = jax.eval_shape(lambda x: _cast(x, compute_dtype), shapes(x))
    params, variables, child = init_child("cast", None, layer, key, x)
    dtypes = arguments.optional_dtype(compute_dtype), arguments.optional_dtype(output_dtype)
    return _cast(params, params_dtype), State(variables, CastConfig(child, *dtypes))


def _cast(tree: Any, dtype: DTypeLike | None) -> Any:
    if dtype is None:
        return tree
    return jax.tree.map(
        lambda a: jnp.asarray(a, dtype) if jnp.issubdtype(jnp.result_type(a), jnp.floating) else a,
        tree,
    )
