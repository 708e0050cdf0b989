"""A layer that computes in another precision: y = cast(layer(cast(params), cast(x))).

params and variables are those of the layer.
"""

from typing import Any, NamedTuple

import jax
from jax.typing import DTypeLike

from mlax.arguments import AnyLayer, RealDType
from mlax.combinators import (
    Around, Call, Child, Made, cast_floating, computing_in, init_only_child, shapes, transform,
)
from mlax.layer import Key


class CastConfig(NamedTuple):
    """Configuration of `cast`."""

    layer: Child
    """The layer."""
    compute_dtype: DTypeLike | None
    """Dtype that the layer computes in."""
    output_dtype: DTypeLike | None
    """Dtype of y."""

    def view(self, params: Any, variables: Any) -> tuple[Child, Any, Any]:
        """Return the layer with its params in the dtype that it computes in, and its variables."""
        return self.layer, cast_floating(params, self.compute_dtype), variables


def apply(call: Call, config: CastConfig, params: Any, variables: Any, x: Any) -> tuple[Any, Any]:
    """Return the output of the layer: see `mlax.cast`."""
    x = cast_floating(x, config.compute_dtype)
    y, variables = call(*config.view(params, variables), x)
    return cast_floating(y, config.output_dtype), variables


@transform(apply, CastConfig, Around)
def cast(
    rng: Key, x: Any, layer: AnyLayer, *,
    params_dtype: RealDType | None = None, compute_dtype: RealDType | None = None,
    output_dtype: RealDType | None = None,
) -> Made:
    """A mixed-precision policy around a layer. Only floating arrays are cast.

    Variables are never cast, and normalisations always compute their statistics in float32 or
    better.

    Args:
        layer: any layer.
        params_dtype: dtype that parameters are stored in; None keeps that of the layer.
        compute_dtype: dtype that parameters and x are cast to for the layer; None casts neither.
        output_dtype: dtype that y is cast to; None leaves y as the layer returns it.

    Source: Micikevicius et al., "Mixed precision training", 2018.

    >>> import jax, jax.numpy as jnp, mlax
    >>> half = mlax.cast(mlax.linear(3), compute_dtype=jnp.bfloat16, output_dtype=jnp.float32)
    >>> params, state = half.init(jax.random.key(0), jnp.ones(2))
    >>> params.kernel.dtype, half.apply(params, state, jnp.ones(2))[0].dtype
    (dtype('float32'), dtype('float32'))
    """
    x = jax.eval_shape(lambda x: cast_floating(x, compute_dtype), shapes(x))
    with computing_in(compute_dtype):
        made = init_only_child("cast", layer, rng, x)
        y = made.output()
    return made._replace(
        params=cast_floating(made.params, params_dtype),
        output=lambda: jax.eval_shape(lambda y: cast_floating(y, output_dtype), y),
    )
