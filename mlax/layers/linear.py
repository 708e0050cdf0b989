"""Linear transformation: y = x @ kernel, over the last axis of x.

    x       (..., in_features)
    kernel  (in_features, out_features), transposed if `transposed_kernel`
    y       (..., out_features)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike

from mlax import arguments
from mlax.arguments import Shaped
from mlax.initializers import Initializer, glorot_uniform, initialize
from mlax.pair import AxisName, Key, State, layer


class LinearParams(NamedTuple):
    """Parameters of `linear`."""

    kernel: jax.Array
    """(in_features, out_features), or the other way round if transposed."""


class LinearConfig(NamedTuple):
    """Configuration of `linear`."""

    precision: lax.PrecisionLike
    """Precision of the product."""
    accum_dtype: DTypeLike | None
    """Dtype of the sums and of the result."""
    transposed_kernel: bool
    """Whether the kernel is (out_features, in_features)."""


def matmul(
    owner: str,
    x: jax.Array,
    kernel: jax.Array,
    precision: lax.PrecisionLike = None,
    accum_dtype: DTypeLike | None = None,
) -> jax.Array:
    """Return x @ kernel, the kernel in the dtype of x, and require that they fit."""
    x = arguments.array(owner, x)
    arguments.require_features(owner, x, kernel)
    return jnp.matmul(
        x, kernel.astype(x.dtype), precision=precision, preferred_element_type=accum_dtype
    )


def apply(
    params: LinearParams,
    state: State[tuple[()], LinearConfig],
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, State[tuple[()], LinearConfig]]:
    """Return x @ kernel: see `mlax.Apply` and `mlax.linear`."""
    precision, accum_dtype, transposed_kernel = arguments.config_of("linear", state, LinearConfig)
    arguments.require_params("linear", params, LinearParams)
    kernel = params.kernel.T if transposed_kernel else params.kernel
    return matmul("linear", x, kernel, precision, accum_dtype), state


@layer(
    apply,
    checks={
        "out_features": arguments.check_size,
        "precision": arguments.check_precision,
        "transposed_kernel": arguments.check_bool,
        "accum_dtype": arguments.check_optional_dtype,
        "kernel_initializer": arguments.check_callable,
        "dtype": arguments.check_dtype,
    },
)
def linear(
    rng: Key,
    x: Shaped,
    out_features: int,
    precision: lax.PrecisionLike = None,
    accum_dtype: DTypeLike | None = None,
    transposed_kernel: bool = False,
    kernel_initializer: Initializer = glorot_uniform,
    dtype: DTypeLike = jnp.float32,
) -> tuple[LinearParams, State[tuple[()], LinearConfig]]:
    """Linear transformation of the last axis, without bias: y = x @ kernel.

    (..., in_features) -> (..., out_features), any number of leading axes.

    Args:
        out_features: length of the last axis of y.
        precision: of the product: one `jax.lax.Precision` or a pair, for x and the kernel.
        accum_dtype: dtype of the sums, and so of y; None is that of x.
        transposed_kernel: keep the kernel as (out_features, in_features).
        kernel_initializer: called with the shape of the kernel as it is kept.
        dtype: dtype of the kernel. It is cast to that of x when it is used.

    Raises:
        TypeError: an argument is of the wrong type, or x is not floating and the kernel is.
        ValueError: `out_features` is not positive, or the last axis of x does not fit.

    Source: `jax.lax.dot_general`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> params, state = mlax.linear.init(jax.random.key(0), jnp.ones(3), out_features=2)
    >>> params.kernel.shape
    (3, 2)
    >>> y, state = mlax.linear.apply(params, state, jnp.ones((5, 3)))
    >>> y.shape
    (5, 2)
    """
    arguments.require_rank("linear", x, 1)
    arguments.require_castable("linear", x, dtype)
    shape = (x.shape[-1], out_features)
    if transposed_kernel:
        shape = shape[::-1]
    kernel = initialize("linear", "kernel_initializer", kernel_initializer, rng, shape, dtype)
    config = LinearConfig(precision, arguments.optional_dtype(accum_dtype), transposed_kernel)
    return LinearParams(kernel), State((), config)
