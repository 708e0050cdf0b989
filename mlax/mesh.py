"""What layers must know about the mesh: which shard they run on, and how arrays are sharded.

A layer runs on arrays that are sharded over a mesh in one of two ways. Inside `jax.shard_map`, each
shard runs it on its part, and the mesh axes are among the batch axes. Under `jax.jit`, it runs on
whole arrays, and on a mesh of `jax.sharding.AxisType.Explicit` axes the type of every array has its
sharding: operations on arrays that are sharded differently are errors there.
"""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.core import Tracer
from jax.errors import InconclusiveDimensionOperation
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mlax.errors import expected, message
from mlax.layer import AxisName, Key

T = TypeVar("T")

# Batch axes.


def names_of(batch_axis_name: AxisName) -> tuple[Hashable, ...]:
    """Return the names of the batch axes as a tuple."""
    return batch_axis_name if isinstance(batch_axis_name, tuple) else (batch_axis_name,)


def shard_axes(batch_axis_name: AxisName) -> tuple[Hashable, ...]:
    """Return the batch axes that are axes of a mesh inside `jax.shard_map`, not of `jax.vmap`."""
    manual = jax.sharding.get_abstract_mesh().manual_axes
    return tuple(name for name in names_of(batch_axis_name) if name in manual)


def mapped_mean(
    owner: str, value: jax.Array, axes: tuple[int, ...], names: Sequence[Hashable]
) -> jax.Array:
    """Return the mean over axes of an array and over axes of `jax.vmap`."""
    total = lax.reduce_sum(value, axes)
    count: Any = math.prod(value.shape[axis] for axis in axes)
    with reducing(owner):
        for name in names:
            count *= lax.axis_size(name)
            if AxisType.Explicit in jax.sharding.get_abstract_mesh().axis_types:
                # `psum` fails if the mapped axis is sharded over explicit mesh axes. Gathered as
                # the last axis, so that the sharding of the others, which JAX keeps, still fits.
                total = jnp.sum(lax.all_gather(total, name, axis=total.ndim), -1)
            else:
                total = lax.psum(total, name)
    mean: jax.Array = total / count
    return mean


def batch_mean(owner: str, value: jax.Array, batch_axis_name: AxisName) -> jax.Array:
    """Return the mean over the batch axes, of `jax.vmap` and of `jax.shard_map`."""
    axes = shard_axes(batch_axis_name)
    mapped = [name for name in names_of(batch_axis_name) if name not in axes]
    mean: jax.Array = lax.pmean(mapped_mean(owner, value, (), mapped), axes)
    return mean


@contextlib.contextmanager
def reducing(owner: str) -> Iterator[None]:
    """Explain where JAX can't reduce over a batch axis."""
    try:
        yield
    except InconclusiveDimensionOperation as error:
        what, got = "a batch of known size to take statistics of in training", "a symbolic one"
        way_out = "export inference, or training for one batch size"
        raise NotImplementedError(expected(owner, what, got, way_out)) from error
    except (AssertionError, ValueError) as error:
        mesh = jax.sharding.get_abstract_mesh()
        if mesh.manual_axes and (not str(error) or "varying" in str(error)):
            what = "no reduction over an axis of jax.vmap inside jax.shard_map"
            way_out = (
                "JAX cannot check it: pass check_vma=False to jax.shard_map, and take "
                "jax.lax.pmean of the gradients, not of the loss"
            )
            raise NotImplementedError(expected(owner, what, "check_vma=True", way_out)) from error
        on_types = AxisType.Explicit in mesh.axis_types
        if on_types and (isinstance(error, AssertionError) or "harding" in str(error)):
            what = "no collective over an axis of jax.vmap that is sharded over explicit mesh axes"
            way_out = "take the mean with mlax.functional.batch_mean"
            raise NotImplementedError(expected(owner, what, "one", way_out)) from error
        raise


# Keys.

EXAMPLES_HAVE_KEYS: ContextVar[bool] = ContextVar("examples_have_keys", default=False)
"""Whether each example of the whole batch has a key, as inside `mlax.batched`."""


def key_of_shard(rng: Key, batch_axis_name: AxisName) -> Key:
    """Return a key that no other shard has: fold_in(rng, index of the shard).

    Inside `mlax.batched`, it is `rng`: there every example of the whole batch has a key already.
    """
    axes = _axes_with_one_key(batch_axis_name)
    return jax.random.fold_in(rng, lax.axis_index(axes)) if axes else rng


def first_example(batch_axis_name: AxisName, size: Any) -> Any:
    """Return the index in the whole batch of the first of `size` examples of this shard."""
    axes = _axes_with_one_key(batch_axis_name)
    return size * lax.axis_index(axes) if axes else 0


def _axes_with_one_key(batch_axis_name: AxisName) -> tuple[Hashable, ...]:
    return () if EXAMPLES_HAVE_KEYS.get() else shard_axes(batch_axis_name)


# Shardings.


def names_in(spec: Iterable[Any]) -> list[Any]:
    """Return the mesh axes in a PartitionSpec, or in a part of one."""
    return [name for entry in spec if entry is not None for name in names_of(entry)]


def spec_of(x: Any) -> tuple[Any, ...]:
    """Return the explicit mesh axes that each axis of x is sharded over, None for most."""
    spec = tuple(jax.typeof(x).sharding.spec)
    return (*spec, *[None] * (x.ndim - len(spec)))


def sharded_together(owner: str, tree: Any) -> Any:
    """Return arrays whose leading axes are sharded alike, as `jax.vmap` requires.

    An array whose leading axis is not sharded, such as a carry of zeros, follows the others.
    """
    leaves = jax.tree.leaves(tree)
    sharded = [leaf for leaf in leaves if spec_of(leaf)[0] is not None]
    if not sharded:
        return tree
    axes = spec_of(sharded[0])[0]
    for leaf in sharded:
        if spec_of(leaf)[0] != axes:
            got = " and ".join(repr(entry) for entry in (axes, spec_of(leaf)[0]))
            wanted = "sharded over the same mesh axes for all arrays"
            way_out = "move one of them with jax.sharding.reshard"
            raise ValueError(message(owner, "the leading axis of x", wanted, got, way_out))
    mesh = _mesh_of(sharded[0])
    return jax.tree.map(
        lambda a: a if spec_of(a)[0] == axes else _reshard(a, mesh, (axes, *spec_of(a)[1:])), tree
    )


def _mesh_of(x: Any) -> Any:
    return jax.typeof(x).sharding.mesh if isinstance(x, Tracer) else x.sharding.mesh


def _reshard(x: Any, mesh: Any, spec: tuple[Any, ...]) -> jax.Array:
    moved: jax.Array = jax.sharding.reshard(x, NamedSharding(mesh, PartitionSpec(*spec)))
    return moved


def whole(x: jax.Array) -> jax.Array:
    """Return an array, replicated on its explicit mesh."""
    return _reshard(x, _mesh_of(x), ()) if any(spec_of(x)) else x


def on_mesh_of(x: Any, tree: Any) -> Any:
    """Return arrays on the explicit mesh of x, replicated if they were on none.

    JAX can't transpose a convolution otherwise, nor map a `jax.lax.switch`.
    """
    meshes = [jax.typeof(leaf).sharding.mesh for leaf in jax.tree.leaves(x)[:1]]
    if not any(AxisType.Explicit in mesh.axis_types for mesh in meshes):
        return tree
    mesh = _mesh_of(jax.tree.leaves(x)[0])
    return jax.tree.map(
        lambda a: _reshard(a, mesh, ()) if jax.typeof(a).sharding.mesh.empty else a, tree
    )


@dataclasses.dataclass(frozen=True)
class Placement:
    """How an array is placed."""

    spec: tuple[Any, ...]
    """The explicit mesh axes of each axis."""
    varying: frozenset[Hashable]
    """The axes of `jax.shard_map` over which its value is known to vary."""


def placements(function: Callable[..., Any], *args: Any) -> Any:
    """Return a pytree with the placement of each array that a function returns."""
    found: list[Any] = []

    def observe(*args: Any) -> None:
        found.append(jax.tree.map(placement, function(*args)))

    jax.eval_shape(observe, *args)
    return found[0]


def placement(x: Any) -> Placement:
    """Return how an array is placed."""
    return Placement(spec_of(x), frozenset(jax.typeof(x).manual_axis_type.varying))


def is_placed() -> bool:
    """Return whether arrays of the same shape may differ in type, as they are on a mesh."""
    return not jax.sharding.get_abstract_mesh().empty


def merged(first: Placement, *others: Placement) -> Placement:
    """Return a placement that all can be brought to: that of those that are sharded or vary."""
    spec, varying = first.spec, first.varying
    for other in others:
        spec = tuple(b if a is None else a for a, b in zip(spec, other.spec, strict=True))
        varying |= other.varying
    return Placement(spec, varying)


def placed(x: Any, where: Placement) -> Any:
    """Return x, moved to a placement."""
    own = placement(x)
    if own.spec != where.spec:
        x = _reshard(x, jax.sharding.get_abstract_mesh(), where.spec)
    missing = tuple(where.varying - own.varying)
    return lax.pcast(x, missing, to="varying") if missing else x


def settled(step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, length: int) -> Any:
    """Return the carry of `jax.lax.scan(step, carry, xs)`, placed as a step returns it.

    The loop requires that, and a carry of zeros usually has no placement.
    """
    if not is_placed() or length == 0:
        return carry
    after = placements(
        lambda carry, xs: step(carry, jax.tree.map(lambda a: a[0], xs))[0], carry, xs
    )

    def place(x: Any, after: Placement) -> Any:
        return placed(x, Placement(after.spec, after.varying | placement(x).varying))

    return jax.tree.map(place, carry, after)


def require_one_sharded(owner: str, of_x: Any, of_kernel: Any) -> None:
    """Require that x or the kernel is whole along the axis that is summed over."""
    if of_x is not None and of_kernel is not None:
        wanted = "given, as both x and the kernel are sharded along the features of x"
        way_out = (
            "it says where the sums go: jax.sharding.PartitionSpec() for every shard, or the mesh "
            "axes of y"
        )
        raise ValueError(message(owner, "out_sharding", wanted, "None", way_out))


def placed_together(*arrays: jax.Array) -> list[jax.Array]:
    """Return arrays with one placement, as `jnp.concatenate` requires."""
    if not is_placed():
        return list(arrays)
    where = merged(*map(placement, arrays))
    return [placed(array, where) for array in arrays]


def placed_alike(branches: list[Callable[..., Any]], *args: Any) -> list[Callable[..., Any]]:
    """Return functions that place their results in the same way, as `jax.lax.switch` requires."""
    if not is_placed():
        return branches
    where = jax.tree.map(merged, *(placements(branch, *args) for branch in branches))
    return [
        lambda *args, branch=branch: jax.tree.map(placed, branch(*args), where)
        for branch in branches
    ]


def output_sharding(out_sharding: PartitionSpec | None) -> PartitionSpec | None:
    """Return the sharding of an output for JAX: None where no mesh has explicit axes."""
    mesh = jax.sharding.get_abstract_mesh()
    return out_sharding if AxisType.Explicit in mesh.axis_types else None


def explain(owner: str, error: Exception) -> None:
    """Add to a sharding error of JAX which layer it came from, and the way out."""
    is_type = type(error).__name__ in ("ShardingTypeError", "DuplicateSpecError")
    if not is_type and not ("found in mesh" in str(error) or "Sharding spec" in str(error)):
        return
    way_out = "move x or the parameters with jax.sharding.reshard, or change out_sharding"
    if not any(way_out in note for note in getattr(error, "__notes__", [])):
        what = "arrays sharded so that JAX can use them here"
        error.add_note(expected(owner, what, "those above", way_out))


def may_be_sharded() -> bool:
    """Return whether the compiler may split operations over devices: not inside `shard_map`."""
    mesh = jax.sharding.get_abstract_mesh()
    manual = not mesh.empty and set(mesh.manual_axes) == set(mesh.axis_names)
    return jax.device_count() > 1 and not manual


def without_types(function: Callable[..., T], like: Any) -> Callable[..., T]:
    """Return a function in which the compiler chooses shardings; the result is sharded like `like`.

    On explicit mesh axes, operations that would need to move an array are errors otherwise. `like`
    is an array, or a PartitionSpec, for each array or each part of the result.
    """
    if AxisType.Explicit not in jax.sharding.get_abstract_mesh().axis_types:
        return function
    specs = jax.tree.map(
        lambda a: a if isinstance(a, PartitionSpec) else PartitionSpec(*spec_of(a)), like,
        is_leaf=lambda a: isinstance(a, PartitionSpec),
    )
    automatic: Any = jax.sharding.auto_axes(function, out_sharding=specs)

    def run(*args: Any) -> T:
        result: T = automatic(*args)
        return result

    return run
