"""Dense layer: y = x @ kernel + bias, over the last axis of x.

    x       (..., in_features)
    kernel  (in_features, features), as params["linear"].kernel
    bias    (features,), as params["bias"].bias
    y       (..., features)
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mlax import arguments
from mlax.combinators.composed import composed
from mlax.combinators.series import series
from mlax.initializers import Initializer, glorot_uniform
from mlax.layers.bias import bias
from mlax.layers.linear import linear
from mlax.pair import Layer


@composed(
    checks={
        "features": arguments.check_size,
        "kernel_initializer": arguments.check_callable,
        "bias_initializer": arguments.check_callable,
        "dtype": arguments.check_dtype,
    }
)
def dense(
    x: jax.Array | jax.ShapeDtypeStruct,
    features: int,
    use_bias: bool = True,
    kernel_initializer: Initializer = glorot_uniform,
    bias_initializer: Initializer = jax.nn.initializers.zeros,
    dtype: DTypeLike = jnp.float32,
) -> Layer[Any, Any, Any, Any]:
    """Linear transformation of the last axis with a bias: y = x @ kernel + bias.

    (..., in_features) -> (..., features), any number of leading axes. The layer is
    series(linear=linear(features), bias=bias(...)), and so its params are a dict, and x keeps
    the number of axes that it has in `init`.

    Args:
        features: length of the last axis of y.
        use_bias: whether there is a bias.
        kernel_initializer: called with (in_features, features).
        bias_initializer: called with (features,).
        dtype: dtype of the parameters. They are cast to that of x when they are used.

    Raises:
        TypeError: an argument is of the wrong type, or x is not floating and a parameter is.
        ValueError: `features` is not positive, or the last axis of x does not fit.

    >>> import jax, jax.numpy as jnp, mlax
    >>> x = jnp.ones((5, 3))
    >>> params, state = mlax.dense.init(jax.random.key(0), x, features=2)
    >>> params["linear"].kernel.shape, params["bias"].bias.shape
    ((3, 2), (2,))
    >>> y, state = mlax.dense.apply(params, state, x)
    >>> y.shape
    (5, 2)
    """
    arguments.require_array("dense", x)
    children: dict[str, Layer[Any, Any, Any, Any]] = {
        "linear": linear(features, kernel_initializer=kernel_initializer, dtype=dtype)
    }
    if use_bias:
        children["bias"] = bias((0,) * (len(x.shape) - 1) + (-1,), bias_initializer, dtype)
    return series(**children)
