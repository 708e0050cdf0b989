"""n copies of a layer in series, on the devices of a mesh axis: GPipe's schedule.

Each of S devices, a stage, holds n / S of the copies. The batch is split into M microbatches. In
step t, stage s runs its copies on microbatch t - s, and the next stage receives the activations:

    step      0   1   2   3   4   5       M = 4 microbatches, S = 3 stages
    stage 0   0   1   2   3
    stage 1       0   1   2   3
    stage 2           0   1   2   3

A stage idles for S - 1 of the M + S - 1 steps: the bubble is (S - 1) / (M + S - 1) of the time, in
the backward pass too. params and variables are those of `mlax.repeat`: those of the layer, each
array with a leading axis of n copies.

Source: Huang et al., "GPipe: efficient training of giant neural networks using pipeline
parallelism", 2019.
"""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, overload

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec

from mlax import mesh
from mlax.arguments import AnyLayer, Size, instance_of, leading_length, require_ndims
from mlax.combinators import (
    Call, Child, Made, Transform, copy_keys, init_copies, rejoined, require_copies,
    require_equal_shapes, separated, shapes, transform,
)
from mlax.combinators.repeat import Policy, RepeatConfig, in_series
from mlax.errors import expected, message
from mlax.layer import Key, Layer, State
from mlax.layer import C, P, S, V, X
from mlax.statistics import WARNS
from mlax.taps import setting


class PipelineConfig(NamedTuple):
    """Configuration of `pipeline`."""

    layer: Child
    """The layer."""
    n: int
    """Number of copies."""
    microbatches: int
    """Number of parts of the batch."""
    axis_name: str
    """The mesh axis of the stages."""
    unroll: int
    """Number of copies per iteration of the loop of a stage."""
    remat: bool
    """Whether the backward pass recomputes the activations of each copy."""
    policy: Policy | None
    """Which activations to save anyway."""
    ndims: tuple[int, ...]
    """Number of axes of each array of x."""


class Pipeline(Transform[Any, State[Any, PipelineConfig], Any, Any]):
    """The type of `pipeline`: that of `repeat`."""

    @overload
    def __call__(
        self, layer: Layer[P, State[V, C], X, X], n: int, *, microbatches: int,
        axis_name: str = "stage", unroll: int = 1, remat: bool = False,
        policy: Policy | None = None,
    ) -> Layer[P, State[V, PipelineConfig], X, X]: ...
    @overload
    def __call__(
        self, layer: Layer[P, S, X, X], n: int, *, microbatches: int,
        axis_name: str = "stage", unroll: int = 1, remat: bool = False,
        policy: Policy | None = None,
    ) -> Layer[P, State[Any, PipelineConfig], X, X]: ...
    def __call__(self, layer: AnyLayer, n: int, **hparams: Any) -> AnyLayer:
        """Return n copies of the layer in stages."""
        return self.bind(layer, n, **hparams)


def apply(
    call: Call, config: PipelineConfig, params: Any, variables: Any, x: Any
) -> tuple[Any, Any]:
    """Return the output of the last copy: see `mlax.pipeline`."""
    child, n, count, axis_name, unroll, remat, policy, ndims = config
    require_ndims("pipeline", x, ndims, "give a single example a leading axis with x[None]")
    require_copies("pipeline", params, n)
    xs = _microbatches(x, count)
    keys = None
    if child.needs_rng and call.rng is not None:
        keys = jax.vmap(lambda key: copy_keys(key, n))(copy_keys(call.rng, count))
    stages = _stages(axis_name, n, (params, xs))
    loop = RepeatConfig(child, n // (stages or 1), unroll, remat, policy)
    following = [(s, s + 1) for s in range((stages or 1) - 1)]
    steps = count + len(following)
    carries = _changes(call, child, params, variables, keys, xs)
    if carries and call.inference_mode:
        what, got = "a layer whose variables stay fixed in inference", "one that changes them"
        way_out = "decode with mlax.repeat: its params are the same"
        raise ValueError(expected("pipeline", what, got, way_out))

    def stage(params: Any, variables: Any, keys: Any, xs: Any) -> tuple[Any, Any, Any]:
        """Return the outputs for all microbatches, the next variables and the tapped values."""
        index = lax.axis_index(axis_name) if stages else 0

        def step(carry: tuple[Any, Any], inputs: tuple[Any, Any, Any]) -> tuple[Any, Any]:
            (received, before), (i, x, keys) = carry, inputs
            before = before if carries else variables
            x = _where(index == 0, x, received)
            y, after = in_series(call, loop, (params, before, keys), x)
            after, values = separated(after, before)
            sent = lax.ppermute(y, axis_name, following) if stages else y
            works = (i >= 0) & (i < count)
            return (sent, _where(works, after, before) if carries else ()), (y, values)

        # An idle stage computes on a real microbatch: with zeros, its output could become infinite,
        # and its gradient, which is dropped, NaN.
        carry = jax.tree.map(lambda a: a[0], xs), variables if carries else ()
        i = jnp.arange(steps) - index
        if following:
            keys = jax.tree.map(lambda a: a[jnp.clip(i, 0, count - 1)], keys)
        inputs = i, jax.tree.map(lambda a: _extended(a, steps), xs), keys
        carry = mesh.settled(step, carry, inputs, steps)
        (_, after), (ys, values) = lax.scan(step, carry, inputs)
        values = jax.tree.map(lambda a: lax.dynamic_slice_in_dim(a, index, count), values)
        return jax.tree.map(lambda a: a[steps - count :], ys), after, values

    run = stage
    if stages:
        run = _on_stages(stage, axis_name, stages, variables if carries else (), xs)
    ys, after, values = run(params, variables, keys, xs)
    y = jax.tree.map(lambda a: jnp.swapaxes(a, 0, 1).reshape(-1, *a.shape[2:]), ys)
    return y, rejoined(after if carries else variables, values)


def _on_stages(
    stage: Callable[..., Any], axis_name: str, stages: int, variables: Any, xs: Any
) -> Callable[..., Any]:
    """Return a function of whole arrays that runs `stage` on each device along the mesh axis.

    Inside, each stage has its own xs and ys, of which only the ys of the last stage count. The sums
    over stages are left to the compiler: XLA for CPUs aborts at `jax.lax.psum` in bfloat16 here.
    """
    first, second = PartitionSpec(axis_name), PartitionSpec(None, axis_name)

    def on_stage(params: Any, variables: Any, keys: Any, xs: Any) -> tuple[Any, Any, Any]:
        ys, after, values = stage(params, variables, keys, jax.tree.map(lambda a: a[0], xs))
        ys = _where(lax.axis_index(axis_name) == stages - 1, ys, jax.tree.map(jnp.zeros_like, ys))
        return jax.tree.map(lambda a: a[None], ys), after, values

    def run(params: Any, variables: Any, keys: Any, xs: Any) -> tuple[Any, Any, Any]:
        over_stages = jax.shard_map(
            on_stage, in_specs=(first, first, second, first), out_specs=(first, first, second),
            axis_names={axis_name}, check_vma=False,
        )
        xs = jax.tree.map(lambda a: jnp.broadcast_to(a, (stages, *a.shape)), xs)
        ys, after, values = over_stages(params, variables, keys, xs)
        return jax.tree.map(lambda a: jnp.sum(a, 0).astype(a.dtype), ys), after, values

    def elsewhere(a: Any) -> list[Any]:
        """Return the other mesh axes that an array is sharded over."""
        names = [mesh.names_of(() if entry is None else entry) for entry in mesh.spec_of(a)]
        return [tuple(name for name in entry if name != axis_name) for entry in names]

    of_ys = jax.tree.map(lambda a: PartitionSpec(*elsewhere(a)), xs)
    after = jax.tree.map(lambda a: PartitionSpec(axis_name, *elsewhere(a)[1:]), variables)
    return mesh.without_types(run, (of_ys, after, second))


def _where(condition: Any, a: Any, b: Any) -> Any:
    """Return one of two trees."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), a, b)


def _extended(a: jax.Array, length: int) -> jax.Array:
    """Return an array with its last entry repeated."""
    return jnp.concatenate([a, jnp.broadcast_to(a[-1], (length - len(a), *a.shape[1:]))])


def _microbatches(x: Any, count: int) -> Any:
    """Return x with axes (microbatches, examples, ...): example i is in microbatch i % count.

    Each microbatch then has examples of every shard of the batch, and none has to move.
    """
    size = leading_length("pipeline", "x", x, "batch")
    if size % count != 0:
        what = f"a batch that microbatches={count} divides"
        raise ValueError(expected("pipeline", what, f"one of {size} examples"))
    return jax.tree.map(
        lambda a: jnp.swapaxes(a.reshape(size // count, count, *a.shape[1:]), 0, 1), x
    )


def _stages(axis_name: str, n: int, arrays: Any) -> int | None:
    """Return the number of devices along the mesh axis, None where there is no mesh."""
    around = jax.sharding.get_abstract_mesh()
    placements = [mesh.placement(a) for a in jax.tree.leaves(arrays)]
    if around.empty and any(axis_name in mesh.names_of(where.spec[0]) for where in placements):
        what, got = "a mesh that is set", f"none, and arrays sharded over {axis_name!r}"
        raise ValueError(expected("pipeline", what, got, "call it in jax.set_mesh(mesh)"))
    if axis_name in around.manual_axes:
        what, got = f"to map {axis_name!r} itself", "a call inside jax.shard_map over it"
        raise ValueError(expected("pipeline", what, got, "leave it out of axis_names there"))
    if set(around.axis_names) == set(around.manual_axes):
        return None
    if axis_name not in around.axis_names:
        what, got = f"a mesh with an axis {axis_name!r}", f"one of {around.axis_names}"
        way_out = "add one, if only of length 1, or use mlax.repeat: its params are the same"
        raise ValueError(expected("pipeline", what, got, way_out))
    if any(where.varying for where in placements):
        what = "no jax.shard_map around it with check_vma=True"
        way_out = "JAX can't check one in another: pass check_vma=False, or leave the batch to jit"
        raise NotImplementedError(expected("pipeline", what, "one", way_out))
    stages: int = around.shape[axis_name]
    if n % stages:
        wanted = f"a multiple of the {stages} devices along the mesh axis {axis_name!r}"
        raise ValueError(message("pipeline", "n", wanted, n))
    return stages


def _changes(call: Call, child: Child, params: Any, variables: Any, keys: Any, xs: Any) -> bool:
    """Return whether the layer changes its variables; if not, the loop need not carry them."""

    def after(variables: Any, params: Any, x: Any, key: Any) -> Any:
        return separated(call(child, params, variables, x, key)[1], variables)[0]

    if not jax.tree.leaves(variables):
        return False
    key = None if keys is None else keys[0]
    copy = jax.tree.map(
        lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), (variables, params, xs, key)
    )
    with setting(WARNS, False):
        program = jax.make_jaxpr(after)(*copy).jaxpr
    return any(a is not b for a, b in zip(program.outvars, program.invars, strict=False))


@transform(apply, PipelineConfig, Pipeline)
def pipeline(
    rng: Key, x: Any, layer: AnyLayer, n: Size, *,
    microbatches: Size, axis_name: Annotated[str, instance_of(str)] = "stage", unroll: Size = 1,
    remat: bool = False, policy: Policy | None = None,
) -> Made:
    """n copies of a layer in series, run in stages by the devices along a mesh axis.

    Every array of x has a leading batch axis, of which the layer sees a part at a time: it must
    treat each example alone. Put a layer for one example into `mlax.batched`, and that into the
    pipeline; the other way round, the pipeline would split the leading axis of an example. Params,
    variables and results are those of `mlax.repeat(layer, n)`; params of either serve the other.

    Within `jax.set_mesh`, on a mesh that has the axis, each device along it runs the copies that it
    holds, and only activations move. Params and variables are sharded over it, by
    PartitionSpec(axis_name). The other mesh axes are left to the compiler, which adds up the
    gradients of a sharded batch in every step. Without a mesh, one device runs everything.

    Example i is in microbatch i % microbatches. The results are those of `mlax.repeat` called on
    one microbatch after the other, on any number of devices:

    - If there are several, microbatch m gets the key fold_in(rng, m). Dropout masks are the same on
      all meshes, but differ from those of `mlax.repeat` on the whole batch.
    - Variables pass from one to the next: statistics are taken over one microbatch, and running
      ones are updated with each. In inference they must not change: decode with `mlax.repeat`.
    - Intermediate values (`mlax.tap`) have axes (microbatches, copies) in front.

    Args:
        layer: a layer whose output has the shapes and dtypes of its input.
        n: number of copies, a multiple of the number of stages.
        microbatches: number of parts of the batch. With S stages, each stage idles for
            (S - 1) / (microbatches + S - 1) of the time.
        axis_name: the mesh axis of the stages.
        unroll: number of copies per iteration of the loop of a stage, as in `jax.lax.scan`.
        remat: save only the inputs of the copies for the backward pass and recompute the
            activations, see `mlax.remat`. The inputs of all microbatches are saved.
        policy: which activations to save anyway, as in `jax.checkpoint`. A policy implies
            `remat`.

    Raises:
        ValueError: the output of the layer differs from its input, microbatches don't divide the
            batch or stages the copies, the mesh lacks the axis, or variables change in inference.
        NotImplementedError: it is inside `jax.shard_map` with check_vma=True.

    Source: Huang et al., "GPipe: efficient training of giant neural networks using pipeline
    parallelism", 2019.

    >>> import jax, jax.numpy as jnp, mlax
    >>> block = mlax.batched(mlax.residual(mlax.linear(3)))
    >>> init, apply = mlax.pipeline(block, 12, microbatches=4)
    >>> params, state = init(jax.random.key(0), jnp.ones((8, 3)))
    >>> params[0].kernel.shape
    (12, 3, 3)
    """
    jax.eval_shape(lambda x: _microbatches(x, microbatches), shapes(x))
    made = init_copies("pipeline", layer, rng, x, n)
    require_equal_shapes("pipeline", shapes(x), made.output(), "the output of the layer")
    return made
