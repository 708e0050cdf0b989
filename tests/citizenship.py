"""The table of layers and features of JAX: `python -m tests.citizenship [NAME...]`.

The rows are the layers of the registry, one case of each, or all cases whose names contain one of
the arguments; the columns are the checks of `mlax.testing.FEATURES`. A cell is empty where the layer works, "-" where
the feature does not apply, and the letter of a reason where JAX itself can't do it; the reasons
stand below the table. "!" is a failure. tests/test_citizenship.py tests each cell and each reason.
"""

import re
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import export, lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import tests.conftest  # noqa: F401 -- eight devices, before the registry makes an array
from mlax.testing import FEATURES
from tests.laws.registry import CASES, Case


def explicit_mesh() -> Any:
    """Return a mesh of explicit axes."""
    return jax.make_mesh((4, 2), ("data", "model"), (AxisType.Explicit,) * 2)


def sharded(*axes: str | None) -> jax.Array:
    """Return an array of shape (8, 2) on an explicit mesh."""
    x = jnp.ones((8, 2))
    array: jax.Array = jax.device_put(x, NamedSharding(explicit_mesh(), PartitionSpec(*axes)))
    return array


def reduced(x: jax.Array) -> jax.Array:
    """Return x without its mean over the mapped axis."""
    centred: jax.Array = jax.vmap(lambda x: x - lax.pmean(x, "b"), axis_name="b")(x)
    return centred


def mean_under_checked_shard_map() -> None:
    """Reduce over a mapped axis inside `shard_map`."""
    mesh = jax.make_mesh((8,), ("data",), (AxisType.Auto,))
    over_data = PartitionSpec("data")
    jax.shard_map(reduced, mesh=mesh, in_specs=over_data, out_specs=over_data)(jnp.ones((8, 2)))


def mean_of_symbolic_batch() -> None:
    """Reduce over a mapped axis of symbolic size."""
    (size,) = export.symbolic_shape("size")
    export.export(jax.jit(reduced))(jax.ShapeDtypeStruct((size, 2), jnp.float32))


def mean_over_explicit_axis() -> None:
    """Reduce over a mapped axis that is sharded."""
    with jax.set_mesh(explicit_mesh()):
        jax.jit(reduced)(sharded("data"))


def three_features_on_two_devices() -> None:
    """Place an array of odd length on an even number of devices."""
    with jax.set_mesh(explicit_mesh()):
        jax.sharding.reshard(jnp.ones((8, 3)), PartitionSpec("data", "model"))


def switch_of_sharded_features() -> None:
    """Choose between arrays whose features are sharded."""
    with jax.set_mesh(explicit_mesh()):
        branches = [jnp.sin, jnp.cos]
        choose = jax.vmap(lambda x: lax.switch((x.sum() > 0).astype(int), branches, x))
        jax.jit(choose)(sharded("data", "model"))


def flattened_features() -> None:
    """Merge an axis with the sharded one after it."""
    with jax.set_mesh(explicit_mesh()):
        jax.jit(lambda x: x.reshape(16))(sharded(None, "model"))


def joined_features() -> None:
    """Concatenate a sharded array with one that is not."""
    with jax.set_mesh(explicit_mesh()):
        jax.jit(lambda x: jnp.concatenate([x, jnp.zeros((8, 2))], 1))(sharded("data", "model"))


def symbolic_unrolling() -> None:
    """Unroll a loop of symbolic length."""
    (size,) = export.symbolic_shape("size")
    total = jax.jit(lambda xs: lax.scan(lambda h, x: (h + x, None), 0.0, xs, unroll=2)[0])
    export.export(total)(jax.ShapeDtypeStruct((size,), jnp.float32))


def keys_in_mapped_switch() -> None:
    """Draw in one branch of a mapped `switch`."""
    def draw(i: jax.Array, key: jax.Array) -> jax.Array:
        drawn: jax.Array = lax.switch(i, [jax.random.normal, lambda key: jnp.zeros(())], key)
        return drawn

    with jax.debug_key_reuse(True):
        jax.jit(jax.vmap(draw))(jnp.arange(2), jax.random.split(jax.random.key(0)))


def mapped_shard_map() -> None:
    """Map `shard_map` over examples that lie on another axis of its mesh."""
    mesh = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Auto,) * 2)
    over_model = PartitionSpec("model")
    sine = jax.shard_map(
        jnp.sin, mesh=mesh, in_specs=over_model, out_specs=over_model, axis_names={"model"}
    )
    jax.jit(jax.vmap(sine, spmd_axis_name="data"))(jnp.ones((8, 2)))


def keys_in_mapped_loops() -> None:
    """Draw in a loop in a loop, mapped over keys."""
    def draw(x: jax.Array, key: jax.Array) -> tuple[jax.Array, None]:
        return x + jax.random.normal(key), None

    def outer(x: jax.Array, keys: jax.Array) -> tuple[jax.Array, None]:
        return lax.scan(draw, x, keys)[0], None

    def drawn(key: jax.Array) -> jax.Array:
        total: jax.Array = lax.scan(outer, jnp.zeros(()), jax.random.split(key, (2, 3)))[0]
        return total

    with jax.debug_key_reuse(True):
        jax.jit(jax.vmap(drawn))(jax.random.split(jax.random.key(0)))


class Reason(NamedTuple):
    """Why a layer can't do it."""

    letter: str
    """Its letter in the table; "-" if the feature does not apply."""
    pattern: str
    """What the error says, with its notes."""
    text: str
    """The reason, and the way out."""
    plain: Callable[[], Any] | None = None
    """Plain JAX that fails in the same way."""
    told: str = ""
    """What the error of plain JAX says."""


REASONS = [
    Reason(
        "a", "no reduction over an axis of jax.vmap inside jax.shard_map, got check_vma=True",
        "pmean over an axis of vmap inside shard_map can't be checked: check_vma=False",
        mean_under_checked_shard_map, "^\\n-|^$",
    ),
    Reason(
        "b", "a batch of known size to take statistics of in training, got a symbolic one",
        "pmean over an axis of symbolic size: inference works, training needs a size",
        mean_of_symbolic_batch, "Symbolic dimension 'size' used",
    ),
    Reason(
        "c",
        "no collective over an axis of jax.vmap that is sharded over explicit mesh axes"
        "|implies that array axis 0 is partitioned",
        "lax.pmean in the user's function, over a sharded axis of vmap: functional.batch_mean",
        mean_over_explicit_axis, "harding",
    ),
    Reason(
        "d", "not divisible by mesh axes|no axis of x is divided",
        "the axis is not a multiple of the devices", three_features_on_two_devices, "divi",
    ),
    Reason(
        "e", r"select `which`[\s\S]*switch", "vmap of lax.switch over sharded features",
        switch_of_sharded_features, "select `which`",
    ),
    Reason(
        "f", r"This reshape is not supported[\s\S]*flatten",
        "merging an axis with a sharded one behind it: reshard x first",
        flattened_features, "This reshape is not supported",
    ),
    Reason(
        "g", r"All operands should have the same sharding[\s\S]*recurrent",
        "concatenating sharded and unsharded features, in the user's cell: reshard the carry",
        joined_features, "same sharding",
    ),
    Reason(
        "h", "expected unroll to be 1 for length steps",
        "unrolling a loop of symbolic length", symbolic_unrolling, "inconclusive",
    ),
    Reason(
        "i", r"In select_n, argument \d is already consumed",
        "a key in a branch of lax.switch under vmap counts as used twice",
        keys_in_mapped_switch, "is already consumed",
    ),
    Reason(
        "j", "Cannot lower jaxpr with verifier errors[\\s\\S]*sdy.manual_computation",
        "vmap of shard_map with spmd_axis_name: leave it out", mapped_shard_map, "Manual",
    ),
    Reason(
        "k", r"In scan, argument \d is already consumed",
        "keys for a loop in a loop under vmap count as used twice",
        keys_in_mapped_loops, "is already consumed",
    ),
    Reason("-", "x has one axis", "x has one axis"),
    Reason("-", "expected a batch that microbatches", "the axis is cut: export 2*batch examples"),
    Reason(
        "-",
        "to fit (parameters|running statistics)|, as the kernel has, in axis 0|one for each set of variables"
        "|incompatible shapes for broadcasting",
        "the parameters or variables have this axis",
    ),
    Reason(
        "-", "adaptive_avg_pool: expected", "the windows depend on the length",
    ),
]


def one_of_each() -> list[Case]:
    """Return the first case of each public layer."""
    first: dict[Any, Case] = {}
    for case in CASES:
        first.setdefault(case.made_by or case.pair or case.name, case)
    return list(first.values())


def cell(case: Case, feature: str) -> tuple[str, Reason | Exception | None]:
    """Run a check, and return the mark of the cell and why it is not empty."""
    try:
        FEATURES[feature](case.example)
    except Exception as error:
        told = "\n".join([str(error), *getattr(error, "__notes__", [])])
        for reason in REASONS:
            if re.search(reason.pattern, told):
                return reason.letter, reason
        return "!", error
    return "", None


def main(names: list[str]) -> int:
    """Print the table, and return the number of failures."""
    chosen = [case for case in CASES if any(name in case.name for name in names)]
    cases = chosen if names else one_of_each()
    width = max(len(case.name) for case in cases)
    for i, feature in enumerate(FEATURES):
        print(" " * width, *["|"] * i, feature)
    failures: Mapping[str, Exception] = {}
    for case in cases:
        marks = []
        for feature in FEATURES:
            mark, why = cell(case, feature)
            marks.append(mark or ".")
            if isinstance(why, Exception):
                failures = {**failures, f"{case.name}, {feature}": why}
        print(case.name.ljust(width), *marks, flush=True)
    for reason in REASONS:
        print(f"{reason.letter}  {reason.text}")
    for name, error in failures.items():
        print(f"!  {name}: {type(error).__name__}: {error}")
    return len(failures)


if __name__ == "__main__":
    warnings.filterwarnings("ignore", ".*expected more than one element")
    sys.exit(bool(main(sys.argv[1:])))
