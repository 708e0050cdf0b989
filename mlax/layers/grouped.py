"""The gradient of a convolution in groups with respect to its kernel, where there is a mesh.

XLA multiplies it by the number of devices that hold the same examples, if a batch is sharded over
some axes of a mesh but not over all (jaxlib 0.10 to 0.12, `batch_group_count` in its partitioner;
tests/test_mesh.py shows it). Here it is a sum of products, one for each tap of the window.

A function with such a gradient has no forward-mode derivative.
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


def with_gradient_by_taps(convolve: Convolve, geometry: Geometry) -> Convolve:
    """Return the same function of x and kernel, with a gradient that is right on every mesh."""

    def forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
        return convolve(x, kernel), (x, kernel)

    def backward(
        kept: tuple[jax.Array, jax.Array], by_y: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        x, kernel = kept
        by_x = jax.linear_transpose(lambda x: convolve(x, kernel), x)(by_y)[0]
        by_taps = mesh.without_types(functools.partial(_by_kernel, geometry), kernel)
        return by_x, by_taps(x, kernel, by_y)

    differentiable = jax.custom_vjp(convolve)
    differentiable.defvjp(forward, backward)
    return differentiable


def _by_kernel(
    geometry: Geometry, x: jax.Array, kernel: jax.Array, by_y: jax.Array
) -> jax.Array:
    """Return the gradient with respect to the kernel, one product for each tap of the window."""
    (x_spec, kernel_spec, y_spec), groups = geometry.specs, geometry.groups
    spatial = kernel_spec.replace("O", "").replace("I", "")
    x = x.transpose([x_spec.index(axis) for axis in f"N{spatial}C"]).astype(by_y.dtype)
    by_y = by_y.transpose([y_spec.index(axis) for axis in f"N{spatial}C"])
    window = [kernel.shape[kernel_spec.index(axis)] for axis in spatial]
    gaps = geometry.filter_dilation
    pads = geometry.padding
    if isinstance(pads, str):
        spans = [(length - 1) * gap + 1 for length, gap in zip(window, gaps, strict=True)]
        pads = tuple(lax.padtype_to_pads(x.shape[1:-1], spans, geometry.strides, pads))
    inside = [
        (*pad, gap - 1) for pad, gap in zip(pads, geometry.input_dilation, strict=True)
    ]
    x = lax.pad(x, jnp.zeros((), x.dtype), [(0, 0, 0), *inside, (0, 0, 0)])
    x = x.reshape(*x.shape[:-1], groups, -1)
    by_y = by_y.reshape(*by_y.shape[:-1], groups, -1)
    taps = []
    for tap in itertools.product(*map(range, window)):
        seen = [
            slice(at * gap, at * gap + (length - 1) * stride + 1, stride)
            for at, gap, length, stride in zip(
                tap, gaps, by_y.shape[1:-2], geometry.strides, strict=True
            )
        ]
        product = jnp.einsum(
            "n...gi,n...go->igo", x[:, *seen], by_y, precision=geometry.precision
        )
        taps.append(product.reshape(product.shape[0], -1))
    gradient = jnp.stack(taps).reshape(*window, *taps[0].shape).astype(kernel.dtype)
    return gradient.transpose([f"{spatial}IO".index(axis) for axis in kernel_spec])
