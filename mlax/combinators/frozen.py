"""A layer that is not trained: it always runs in inference mode, and its params get no gradient.

params and variables are those of the layer.
"""

from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax

from mlax.arguments import AnyLayer
from mlax.combinators import Around, Call, Child, Made, init_only_child, transform
from mlax.layer import Key

H = ParamSpec("H")
K = TypeVar("K", bound=tuple[Any, ...])


class FrozenConfig(NamedTuple):
    """Configuration of `frozen`."""

    layer: Child
    """The layer."""

    def view(self, params: Any, variables: Any) -> tuple[Child, Any, Any]:
        """Return the layer with its params, without a gradient, and its variables."""
        return self.layer, jax.lax.stop_gradient(params), variables


class Frozen(Around[H, K]):
    """The type of `frozen`."""

    def layer_needs_rng(self, hparams: Any) -> bool:
        """Return False: inference needs no key."""
        return False


def apply(call: Call, config: FrozenConfig, params: Any, variables: Any, x: Any) -> tuple[Any, Any]:
    """Return the output of the layer in inference: see `mlax.frozen`."""
    call = call._replace(rng=None, inference_mode=True)
    return call(*config.view(params, variables), x)


@transform(apply, FrozenConfig, Frozen)
def frozen(rng: Key, x: Any, layer: AnyLayer) -> Made:
    """A layer that always runs in inference mode and whose parameters get no gradient.

    Its state does not change, it needs no key, and the gradient with respect to x passes
    through. The optimizer sees zero gradients for its parameters; if it changes them
    all the same, as weight decay does, exclude them with `mlax.mask`.

    Args:
        layer: any layer.

    >>> import jax, jax.numpy as jnp, mlax
    >>> init, apply = mlax.frozen(mlax.series(mlax.linear(3), mlax.dropout(0.5, 0)))
    >>> params, state = init(jax.random.key(0), jnp.ones(2))
    >>> grads = jax.grad(lambda params: apply(params, state, jnp.ones(2))[0].sum())(params)
    >>> grads[0].kernel
    Array([[0., 0., 0.],
           [0., 0., 0.]], dtype=float32)
    """
    return init_only_child("frozen", layer, rng, x)
