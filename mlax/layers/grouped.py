"""The derivative of a convolution in groups with respect to its kernel, where there is a mesh.

XLA multiplies the gradient by the number of devices that hold the same examples, if a batch is
sharded over some axes of a mesh but not over all (jaxlib 0.10 to 0.12, `batch_group_count` in its
partitioner; tests/test_mesh.py shows it). Here the derivative is a sum of products, one for each
tap of the window, and the gradient is its transpose.
"""

import functools
import itertools
from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from mlax import mesh


class Geometry(NamedTuple):
    """What a convolution does, apart from its sums."""

    specs: tuple[str, str, str]
    """The axes of x, kernel and y, one letter for each."""
    groups: int
    """Number of groups of channels."""
    strides: tuple[int, ...]
    """Distance between windows."""
    padding: str | tuple[tuple[int, int], ...]
    """Name of the padding, or its widths."""
    input_dilation: tuple[int, ...]
    """Distance between neighbours of x."""
    filter_dilation: tuple[int, ...]
    """Distance between neighbours of the kernel."""
    precision: lax.PrecisionLike
    """Precision of the products."""


Convolve: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]
"""A function of x and the kernel."""


def with_derivative_by_taps(convolve: Convolve, geometry: Geometry) -> Convolve:
    """Return the same function of x and kernel, with a derivative that is right on every mesh."""
    differentiable = jax.custom_jvp(convolve)

    @differentiable.defjvp
    def derivative(
        at: tuple[jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        (x, kernel), (x_dot, kernel_dot) = at, tangents
        y = differentiable(x, kernel)
        by_x = mesh.without_types(convolve, y)(x_dot, kernel)
        taps = mesh.without_types(functools.partial(_by_taps, geometry), y)
        return y, by_x + taps(x.astype(y.dtype), kernel_dot.astype(y.dtype))

    return differentiable


def _by_taps(geometry: Geometry, x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Return x convolved with the kernel, as a sum of products, one for each tap."""
    (x_spec, kernel_spec, y_spec), groups = geometry.specs, geometry.groups
    spatial = kernel_spec.replace("O", "").replace("I", "")
    x = x.transpose([x_spec.index(axis) for axis in f"N{spatial}C"])
    kernel = kernel.transpose([kernel_spec.index(axis) for axis in f"{spatial}IO"])
    window = kernel.shape[:-2]
    gaps = geometry.filter_dilation
    spans = [(length - 1) * gap + 1 for length, gap in zip(window, gaps, strict=True)]
    pads = geometry.padding
    if isinstance(pads, str):
        pads = tuple(lax.padtype_to_pads(x.shape[1:-1], spans, geometry.strides, pads))
    inside = [(*pad, gap - 1) for pad, gap in zip(pads, geometry.input_dilation, strict=True)]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *inside, (0, 0, 0)])
    counts = [
        (length - span) // stride + 1
        for length, span, stride in zip(x.shape[1:-1], spans, geometry.strides, strict=True)
    ]
    x = x.reshape(*x.shape[:-1], groups, -1)
    kernel = kernel.reshape(*kernel.shape[:-1], groups, -1)
    y: jax.Array | float = 0.0
    for tap in itertools.product(*map(range, window)):
        seen = [
            slice(at * gap, at * gap + (count - 1) * stride + 1, stride)
            for at, gap, count, stride in zip(tap, gaps, counts, geometry.strides, strict=True)
        ]
        y += jnp.einsum(
            "n...gi,igo->n...go", x[:, *seen], kernel[tap], precision=geometry.precision
        )
    y = jnp.reshape(y, (*x.shape[:1], *counts, -1))
    return y.transpose([f"N{spatial}C".index(axis) for axis in y_spec])
