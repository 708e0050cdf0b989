"""Linear transformation: y = x @ kernel, over the last axis of x.

    x       (..., in_features)
    kernel  (in_features, out_features), transposed if `transposed_kernel`
    y       (..., out_features)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from mlax import arguments, mesh
from mlax.arguments import DType, Precision, Sharding, Size
from mlax.initializers import Initializer, initialize, lecun_normal
from mlax.layer import Key, Shaped
from mlax.pair import stateless
from mlax.serialization import serializable


@serializable
class LinearParams(NamedTuple):
    """Parameters of `linear`."""

    kernel: jax.Array
    """(in_features, out_features), or (out_features, in_features) if `transposed_kernel`."""


class LinearConfig(NamedTuple):
    """Configuration of `linear`."""

    precision: lax.PrecisionLike
    """Precision of the product."""
    accum_dtype: DTypeLike | None
    """Dtype of the sums and of the result."""
    transposed_kernel: bool
    """Whether the kernel is (out_features, in_features)."""
    out_sharding: PartitionSpec | None
    """Sharding of y over explicit mesh axes."""


def matmul(
    owner: str, x: jax.Array, kernel: jax.Array, precision: lax.PrecisionLike = None,
    accum_dtype: DTypeLike | None = None, out_sharding: PartitionSpec | None = None,
) -> jax.Array:
    """Return x @ kernel, with the kernel cast to the dtype of x; their shapes must fit."""
    x = arguments.array(owner, x)
    arguments.require_features(owner, x, kernel)
    sharding = mesh.output_sharding(out_sharding)
    if sharding is None:
        mesh.require_one_sharded(owner, mesh.spec_of(x)[-1], mesh.spec_of(kernel)[0])
    return jnp.matmul(
        x, kernel.astype(x.dtype), precision=precision, preferred_element_type=accum_dtype,
        out_sharding=sharding,
    )


def apply(params: LinearParams, config: LinearConfig, x: jax.Array) -> jax.Array:
    """Return x @ kernel: see `mlax.linear`."""
    kernel = params.kernel.T if config.transposed_kernel else params.kernel
    return matmul("linear", x, kernel, config.precision, config.accum_dtype, config.out_sharding)


@stateless(apply, LinearConfig, traced_once=True)
def linear(
    rng: Key, x: Shaped, out_features: Size,
    precision: Precision = None, accum_dtype: DType | None = None, transposed_kernel: bool = False,
    kernel_initializer: Initializer = lecun_normal, dtype: DType = jnp.float32,
    *, out_sharding: Sharding | None = None,
) -> LinearParams:
    """Linear transformation of the last axis, without bias: y = x @ kernel.

    (..., in_features) -> (..., out_features), with any number of leading axes.

    Args:
        out_features: length of the last axis of y.
        precision: precision of the product: a `jax.lax.Precision`, or a pair for x and kernel.
        accum_dtype: dtype of the sums and of y; None means the dtype of x.
        transposed_kernel: store the kernel as (out_features, in_features).
        kernel_initializer: called with (in_features, out_features); the result is transposed if
            `transposed_kernel`.
        dtype: dtype of the kernel. It is cast to the dtype of x when used.
        out_sharding: sharding of y on a mesh with explicit axes; ignored elsewhere. `mlax.batched`
            and `jax.vmap` put the batch axis in front. Required where both x and the kernel are
            sharded along in_features.

    Raises:
        TypeError: an argument is of the wrong type, or x is not floating and the kernel is.
        ValueError: `out_features` is not positive, the last axis of x does not fit, or the
            sharding of y is ambiguous.

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
    axes = (1, 0) if transposed_kernel else None
    kernel = initialize(
        "linear", "kernel_initializer", kernel_initializer, rng, shape, dtype, axes=axes
    )
    return LinearParams(kernel)
