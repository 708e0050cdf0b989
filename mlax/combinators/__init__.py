"""The author's kit: the building blocks of combinators, ours and yours.

Most combinators only call their layers. They are plain functions, decorated with `combinator` (or
with `mlax.block`, if the layers are already known). This is all of `series`, except its types:

    @mlax.combinator
    def series(x, *layers: mlax.Sublayer):
        for layer in layers:
            x = layer(x)
        return x

A combinator that runs a layer in a loop, under `jax.vmap` or the like, is a `transform`: `init`
makes the child, `apply` runs it. This one recomputes the activations of its layer in the backward
pass:

    class RecomputeConfig(NamedTuple):
        layer: Child

    def apply(call, config, params, variables, x):
        def run(params, variables, x, rng):
            return call(config.layer, params, variables, x, rng)
        return jax.checkpoint(run)(params, variables, x, call.rng)

    @transform(apply, RecomputeConfig)
    def recompute(rng, x, layer: mlax.Layer):
        return init_only_child("recompute", layer, rng, x)

A loop carries the variables from step to step, and stacks what `mlax.tap` records beside them:

    class LoopConfig(NamedTuple):
        layer: Child
        n: int

    def apply(call, config, params, variables, x):
        def step(carry, rng):
            x, before = carry
            y, after = call(config.layer, params, before, x, rng)
            after, values = separated(after, before)
            return (y, after), values
        rngs = None if call.rng is None else jax.random.split(call.rng, config.n)
        (x, variables), values = jax.lax.scan(step, (x, variables), rngs, config.n)
        return x, rejoined(variables, values)

    @transform(apply, LoopConfig)
    def loop(rng, x, layer: mlax.Layer, n: mlax.types.Size):
        return init_only_child("loop", layer, rng, x)

Keys, batch axes, state, pickling, paths in errors and profiles, and the check that a state belongs
to the layer then work as in our own combinators. `mlax.testing.check_laws` tests that they do. With
annotations and `@transform(apply, RecomputeConfig, Around)`, type checkers know the params,
variables, x and y of `recompute(layer)` as they know those of the layer.
"""

# fmt: off
from mlax.combinators.child import (
    Child, ChildKey, Made, add_path, apply_child, apply_keys, by_key, collected, copy_keys,
    from_file, has_path, joined, kind_of, only_child_of, packed, require_copies,
    require_equal_shapes, split, stacked, variables_of,
)
from mlax.combinators.making import (
    cast_floating, computing_in, init_child, init_copies, init_keys, init_only_child,
    making_copies, shapes,
)
from mlax.combinators.transforms import (
    Around, Call, Combinator, Place, Transform, places_of, transform,
)
from mlax.combinators.wiring import Sublayer, Wired, WiredConfig, combinator
from mlax.taps import rejoined, separated, tapping

__all__ = [
    "Around", "Call", "Child", "ChildKey", "Combinator", "Made", "Place", "Sublayer", "Transform",
    "Wired", "WiredConfig", "add_path", "apply_child", "apply_keys", "cast_floating", "collected",
    "combinator", "computing_in", "copy_keys", "by_key", "from_file", "has_path", "init_child",
    "init_copies", "init_keys", "init_only_child", "joined", "kind_of", "making_copies",
    "only_child_of", "packed", "places_of", "rejoined", "require_copies", "require_equal_shapes",
    "separated", "shapes", "split", "stacked", "tapping", "transform", "variables_of",
]
# fmt: on
