"""The laws of a layer, as functions for layers of your own.

`check_laws(layer, x)` checks them all; each is also a function of an `Example`. `spy()` is a layer
to check combinators with. `FEATURES` are checks that a layer works with what JAX offers: meshes,
`jax.export`, strict modes; `FEATURES["explicit_mesh"](Example(layer, x))` raises what goes wrong,
and a NotImplementedError where the feature does not apply to x.
"""

from mlax.testing.citizenship import FEATURES
from mlax.testing.laws import (
    LAWS, Example, check_batch_axis, check_copies, check_gradients, check_inference, check_keys,
    check_laws, check_paths, check_shapes, check_state, check_strangers, check_transformations,
)
from mlax.testing.spy import spy

__all__ = [
    "FEATURES", "LAWS", "Example", "check_batch_axis", "check_copies", "check_gradients",
    "check_inference", "check_keys", "check_laws", "check_paths", "check_shapes", "check_state",
    "check_strangers", "check_transformations", "spy",
]
