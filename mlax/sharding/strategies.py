"""How arrays are sharded by default: data, fully sharded, tensor and expert parallelism.

A strategy joins names with "+", each of which uses an axis of the mesh:

    data     nothing but x is sharded, over "replica", "data" and "expert"
    fsdp     weights are sharded over "data", and over "model" and "expert" where layers do not
             compute over these, and are gathered where they are used
    tensor   layers compute over "model": heads of attention, hidden features, entries of embeddings
    expert   the experts of `mlax.moe` are split over "expert"

With each of them, the copies in a `mlax.pipeline` are split over the stages.

Of consecutive layers that multiply by kernels, the first is split over its outputs and the second
over its inputs, and so on: one all-reduce for every two products.

Sources: Rajbhandari et al., "ZeRO", 2020, for fsdp; Shoeybi et al., "Megatron-LM", 2019, for
tensor; Lepikhin et al., "GShard", 2020, for expert.
"""

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

from jax.sharding import PartitionSpec

from mlax.combinators.owners import PRODUCTS
from mlax.layers.attention import AttentionConfig
from mlax.layers.conv import ConvConfig, kernel_axes
from mlax.layers.embed import EmbedConfig
from mlax.mesh import names_in
from mlax.sharding.leaves import Leaf

AXES = {"data": "data", "fsdp": "data", "tensor": "model", "expert": "expert"}
"""The mesh axis that a strategy needs."""
BATCH_AXES = ("replica", "data", "expert")
"""The mesh axes that the batch is split over."""


class Specs(NamedTuple):
    """How an array is sharded."""

    stored: PartitionSpec
    """Between steps."""
    used: PartitionSpec
    """While its layer runs, with an entry for each axis."""


def default_specs(
    strategy: Collection[str], leaf: Leaf, batch: PartitionSpec, sizes: Mapping[Any, int]
) -> Specs:
    """Return how a strategy shards an array.

    Args:
        strategy: names of parts of it.
        leaf: the array.
        batch: how the leading axis of x is split.
        sizes: the lengths of the mesh axes.
    """
    entries: list[tuple[Any, ...]] = [()] * len(leaf.shape)
    if "expert" in strategy and leaf.owner.expert_axis is not None:
        _split(entries, leaf, leaf.owner.expert_axis, "expert", sizes)
    if leaf.owner.stage_axis is not None and leaf.owner.stage_axis[1] in sizes:
        _split(entries, leaf, *leaf.owner.stage_axis, sizes)
    if "tensor" in strategy:
        axis = _feature_axis(leaf, sizes["model"])
        if axis is not None:
            _split(entries, leaf, axis, "model", sizes)
    if not leaf.is_weight:
        _split_cache(entries, leaf, batch, sizes)
        return Specs(_spec(entries), _spec(entries))
    used = _spec(entries)
    if "fsdp" in strategy:
        taken = {name for entry in entries for name in entry}
        free = {AXES[part] for part in strategy if part != "data"} - taken
        for name in sorted(free, key=lambda name: (-sizes[name], name)):
            axes = range(leaf.owner.copies, len(leaf.shape))
            for axis in sorted(axes, key=lambda axis: -_length(entries, leaf, axis, sizes)):
                if _split(entries, leaf, axis, name, sizes):
                    break
    return Specs(_spec(entries), used)


def _split(
    entries: list[tuple[Any, ...]], leaf: Leaf, axis: int, name: Any, sizes: Mapping[Any, int]
) -> bool:
    """Split an axis of an array over a mesh axis, if that divides it."""
    divides = _length(entries, leaf, axis, sizes) % sizes[name] == 0
    if divides:
        entries[axis] += (name,)
    return divides


def _length(
    entries: Sequence[tuple[Any, ...]], leaf: Leaf, axis: int, sizes: Mapping[Any, int]
) -> int:
    """Return the length of an axis on a device."""
    return leaf.shape[axis] // math.prod(sizes[name] for name in entries[axis])


def _spec(entries: Sequence[tuple[Any, ...]]) -> PartitionSpec:
    return PartitionSpec(*((e[0] if len(e) == 1 else e or None) for e in entries))


def _feature_axis(leaf: Leaf, size: int) -> int | None:
    """Return the axis of an array over which its layer computes in parts, None if it does not."""
    config, ndim, last = leaf.owner.config, len(leaf.shape), leaf.name[-1:]
    if isinstance(config, AttentionConfig):
        return _head_axis(config, leaf, size)
    if isinstance(config, EmbedConfig):
        return ndim - 2 if leaf.shape[-2] % size == 0 else ndim - 1
    if not isinstance(config, PRODUCTS) or not leaf.is_weight:
        return None
    key = leaf.owner.path[-1] if leaf.owner.path else ""
    by_inputs = key in _BY_INPUTS or (key not in _BY_OUTPUTS and leaf.owner.order % 2 == 1)
    if last == ("bias",):
        return None if by_inputs else ndim - 1
    if isinstance(config, ConvConfig):
        outputs, inputs = kernel_axes(config.data_format, ndim - leaf.owner.copies)
        return leaf.owner.copies + (inputs if by_inputs else outputs)
    return ndim - 2 if by_inputs is not getattr(config, "transposed_kernel", False) else ndim - 1


_BY_OUTPUTS, _BY_INPUTS = ("up", "gate", "head"), ("down",)
"""Keys of layers that tell how they are split."""


def _head_axis(config: AttentionConfig, leaf: Leaf, size: int) -> int | None:
    """Return the axis of an array of `attention` that holds heads, if they can be split."""
    kv_heads = config.num_kv_heads or config.num_heads
    ndim, projection, kind = len(leaf.shape), leaf.name[0], leaf.name[-1]
    if not leaf.is_weight:
        is_cache = projection in ("key", "value")
        return ndim - 3 if is_cache and kv_heads % size == 0 else None
    heads = config.num_heads if projection in ("query", "output") else kv_heads
    if heads % size or kind not in ("kernel", "bias") or (projection, kind) == ("output", "bias"):
        return None
    return ndim - 2 if projection == "output" else ndim - 1


def _split_cache(
    entries: list[tuple[Any, ...]], leaf: Leaf, batch: PartitionSpec, sizes: Mapping[Any, int]
) -> None:
    """Split a cache of attention along the batch, the first of its leading axes."""
    axes = {"key": 3, "value": 3, "positions": 1}.get(leaf.name[0] if leaf.name else "")
    if isinstance(leaf.owner.config, AttentionConfig) and axes is not None:
        if len(leaf.shape) > leaf.owner.copies + axes:
            for name in names_in(batch[:1]):
                _split(entries, leaf, leaf.owner.copies, name, sizes)
