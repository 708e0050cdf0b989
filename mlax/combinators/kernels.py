"""Kernels as matrices: which axis of an array holds the outputs of a layer, and which its copies.

    kernel  (copies..., own axes...), of which one holds outputs and the others inputs
    matrix  (copies..., inputs, outputs)
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlax.arguments import AnyLayer, described
from mlax.belonging import layer_name
from mlax.combinators import Child, from_file, only_child_of
from mlax.combinators.owners import STACKED, owner_of, owners_of
from mlax.errors import expected, message
from mlax.layer import State
from mlax.layers.conv import ConvConfig, kernel_axes


class Kernel(NamedTuple):
    """An array that a layer multiplies x with."""

    shape: tuple[int, ...]
    """Its shape."""
    copies: int
    """The number of leading axes that hold copies of the layer."""
    output: int
    """The axis that holds outputs."""

    @property
    def inputs(self) -> tuple[int, ...]:
        """The axes that hold inputs."""
        return tuple(i for i in range(self.copies, len(self.shape)) if i != self.output)

    @property
    def matrix(self) -> tuple[int, ...]:
        """The shape (copies..., inputs, outputs)."""
        inputs = math.prod(self.shape[i] for i in self.inputs)
        return *self.shape[: self.copies], inputs, self.shape[self.output]

    def of_matrix(self, matrix: jax.Array) -> jax.Array:
        """Return a matrix in the layout of the kernel."""
        inputs = (self.shape[i] for i in self.inputs)
        split = matrix.reshape(*self.shape[: self.copies], *inputs, self.shape[self.output])
        return jnp.moveaxis(split, -1, self.output)


def kernels_of(owner: str, child: Child, copies: int = 0) -> Callable[[str, Any], Kernel]:
    """Return a function from the path and the array of a kernel in a layer to its `Kernel`.

    Args:
        owner: name of the caller, for errors.
        child: the layer.
        copies: the number of leading axes of all its arrays that hold copies of it.

    Raises:
        ValueError: the array is not a matrix in each copy, and its layout is unknown.
    """
    owners = owners_of(child)

    def kernel(path: str, leaf: Any) -> Kernel:
        layer = owner_of(owners, path)
        first, ndim = copies + layer.copies, len(leaf.shape)
        is_kernel = path == ".".join((*layer.path, "kernel"))
        if is_kernel and isinstance(layer.config, ConvConfig):
            output, _ = kernel_axes(layer.config.data_format, ndim - first)
            return Kernel(leaf.shape, first, first + output)
        if ndim != first + 2:
            axes = ", ".join(["copies"] * first + ["inputs", "outputs"])
            what, got = f"where to select leaves ({axes})", f"{path} of shape {leaf.shape}"
            way_out = "leave it out: of other leaves, only kernels of mlax.conv have a known layout"
            raise ValueError(expected(owner, what, got, way_out))
        is_transposed = is_kernel and getattr(layer.config, "transposed_kernel", False)
        return Kernel(leaf.shape, first, ndim - 2 if is_transposed else ndim - 1)

    return kernel


class Within(NamedTuple):
    """What `within` finds."""

    config: Any
    """The config of the combinator."""
    copies: int
    """The number of leading axes of its arrays that hold copies of it."""
    plain: Child
    """The whole layer, with the combinator replaced by the layer inside it."""


def within(
    owner: str, kind: str, state: Any, config: type[Any], variables: type[Any],
    layer: AnyLayer | None = None,
) -> Within:
    """Return the combinator with a config and variables of these types that a state is of.

    There may be combinators of one layer around it. If there is none, the error is about the state
    or, where the layer that made the state is given, about that.
    """
    if isinstance(state, State) and isinstance(state.variables, variables):
        whole = Child(None, "", lambda *_: ((), ()), False, state.config, None, None)
        found = _within(whole, config)
        if found is not None:
            return found
    if layer is not None:
        raise TypeError(message(owner, "layer", f"one made by {kind}", described(layer)))
    got = f"that of {layer_name(state.config)}" if isinstance(state, State) else described(state)
    way_out = f"put {kind} around the whole model, or take the state of that layer out of this one"
    raise TypeError(message(owner, "state", f"that of {kind}", got, way_out))


def _within(child: Child, kind: type[Any]) -> Within | None:
    config: Any = child.config
    if isinstance(config, kind):
        return Within(config, 0, config.layer._replace(key=child.key))
    inner = only_child_of(config)
    found = None if inner is None else _within(inner, kind)
    if found is None:
        return None
    fields = config._asdict().items()
    plain = child._replace(
        config=config._replace(**{n: found.plain for n, v in fields if v is inner}),
        params_type=found.plain.params_type, variables_type=found.plain.variables_type,
    )
    return Within(found.config, found.copies + isinstance(config, STACKED), plain)


def require_containers(owner: str, params: Any, like: Any, kind: type[Any]) -> None:
    """Require the containers of other params, with arrays, instances of `kind` or None in them."""

    def structure(tree: Any) -> Any:
        return jax.tree.structure(tree, is_leaf=lambda n: n is None or isinstance(n, kind))

    if structure(params) != structure(like):
        wanted = "of the same structure as those of the layer"
        raise TypeError(message(owner, "params", wanted, described(params), from_file(params)))
