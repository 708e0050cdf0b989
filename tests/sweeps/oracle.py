"""Layers written out in NumPy, in the dtype of their arguments.

Arrays have their channels last, kernels are (out, window..., in / groups).
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]
Pads: TypeAlias = Sequence[tuple[int, int]]
Padding: TypeAlias = str | int | Sequence[int | tuple[int, int]]


def spans(window: Sequence[int], dilation: Sequence[int]) -> list[int]:
    """Return the lengths of a dilated window."""
    return [(length - 1) * gap + 1 for length, gap in zip(window, dilation, strict=True)]


def pads_of(
    padding: Padding, lengths: Sequence[int], window: Sequence[int], strides: Sequence[int]
) -> Pads:
    """Return the pair (before, after) for each axis, of dilated lengths and windows."""
    if padding == "VALID":
        return [(0, 0) for _ in lengths]
    if isinstance(padding, str):
        pads = []
        for length, span, step in zip(lengths, window, strides, strict=True):
            total = max((-(-length // step) - 1) * step + span - length, 0)
            small, large = total // 2, total - total // 2
            pads.append((large, small) if padding == "SAME_LOWER" else (small, large))
        return pads
    sides = [padding for _ in lengths] if isinstance(padding, int) else padding
    return [(side, side) if isinstance(side, int) else side for side in sides]


def padded(x: Array, pads: Pads, dilation: Sequence[int], fill: float) -> Array:
    """Return x with `fill` between its elements and around them; negative widths crop."""
    lengths = spans(x.shape[:-1], dilation)
    dilated = np.full((*lengths, x.shape[-1]), fill, x.dtype)
    dilated[tuple(slice(None, None, gap) for gap in dilation)] = x
    widths = [(max(before, 0), max(after, 0)) for before, after in pads]
    wide = np.pad(dilated, [*widths, (0, 0)], constant_values=fill)
    return wide[
        tuple(
            slice(max(-before, 0), length - max(-after, 0))
            for (before, after), length in zip(pads, wide.shape, strict=False)
        )
    ]


def windows(
    x: Array, window: Sequence[int], strides: Sequence[int], padding: Padding,
    input_dilation: Sequence[int], window_dilation: Sequence[int], fill: float = 0.0,
) -> Array:
    """Return all windows of x: (count..., window..., channels)."""
    sizes = spans(window, window_dilation)
    pads = pads_of(padding, spans(x.shape[:-1], input_dilation), sizes, strides)
    wide = padded(x, pads, input_dilation, fill)
    axes = list(zip(wide.shape, sizes, strides, strict=False))
    counts = [(length - size) // step + 1 for length, size, step in axes]
    result = np.empty((*counts, *window, x.shape[-1]), x.dtype)
    for place in np.ndindex(*counts):
        starts = [i * step for i, step in zip(place, strides, strict=True)]
        result[place] = wide[
            tuple(
                slice(start, start + size, gap)
                for start, size, gap in zip(starts, sizes, window_dilation, strict=True)
            )
        ]
    return result


def conv(
    x: Array, kernel: Array, strides: Sequence[int], padding: Padding,
    input_dilation: Sequence[int], filter_dilation: Sequence[int], groups: int = 1,
) -> Array:
    """Return the convolution of x with the kernel."""
    rank, window = x.ndim - 1, kernel.shape[1:-1]
    seen = windows(x, window, strides, padding, input_dilation, filter_dilation)
    ins, outs = kernel.shape[-1], kernel.shape[0] // groups
    axes = tuple(range(rank, 2 * rank + 1)), tuple(range(1, rank + 2))
    return np.concatenate(
        [
            np.tensordot(
                seen[..., i * ins : (i + 1) * ins], kernel[i * outs : (i + 1) * outs], axes
            )
            for i in range(groups)
        ],
        -1,
    )


def conv_transpose(
    x: Array, kernel: Array, strides: Sequence[int], filter_dilation: Sequence[int]
) -> Array:
    """Return the transposed convolution, in which every element of x adds a flipped kernel.

    Where strides are longer than the kernel, the last zeros between the elements count too.
    """
    window = kernel.shape[1:-1]
    sizes = spans(window, filter_dilation)
    axes = list(zip(x.shape, sizes, strides, strict=False))
    full = [(length - 1) * step + max(size, step) for length, size, step in axes]
    result = np.zeros((*full, kernel.shape[0]), x.dtype)
    for place in np.ndindex(*x.shape[:-1]):
        for tap in np.ndindex(*window):
            at = tuple(
                i * step + size - 1 - k * gap
                for i, step, size, k, gap in zip(
                    place, strides, sizes, tap, filter_dilation, strict=True
                )
            )
            result[at] += kernel[(slice(None), *tap)] @ x[place]
    return result


def adaptive_avg_pool(x: Array, counts: Sequence[int]) -> Array:
    """Return the means of `counts` windows along each spatial axis."""
    result = np.empty((*counts, x.shape[-1]), x.dtype)
    for place in np.ndindex(*counts):
        bounds = [
            slice(i * length // n, -(-(i + 1) * length // n))
            for i, n, length in zip(place, counts, x.shape, strict=False)
        ]
        result[place] = x[tuple(bounds)].mean(tuple(range(x.ndim - 1)))
    return result


def standardized(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    """Return (x - E[x]) / sqrt(Var[x] + epsilon) over the axes."""
    mean, variance = moments(x, axes)
    scaled: Array = (x - mean) / np.sqrt(variance + x.dtype.type(epsilon))
    return scaled


def moments(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """Return mean and population variance over the axes, which are kept with length 1."""
    mean = np.mean(x, axes, keepdims=True)
    return mean, np.mean(np.square(x - mean), axes, keepdims=True)


def attention(query: Array, key: Array, value: Array) -> Array:
    """Return attention of (length, heads, head_dim), head by head."""
    scale = np.sqrt(query.dtype.type(query.shape[-1]))
    heads = []
    for q, k, v in zip(*(np.moveaxis(a, 1, 0) for a in (query, key, value)), strict=True):
        weights = np.exp(q @ k.T / scale)
        heads.append(weights / weights.sum(-1, keepdims=True) @ v)
    return np.stack(heads, 1)


def rms_norm(x: Array, axes: tuple[int, ...], epsilon: float) -> Array:
    """Return x / sqrt(E[x^2] + epsilon) over the axes."""
    mean_square = np.mean(np.square(x), axes, keepdims=True)
    scaled: Array = x / np.sqrt(mean_square + x.dtype.type(epsilon))
    return scaled


def group_norm(x: Array, groups: int, epsilon: float) -> Array:
    """Return x normalised over each group of channels."""
    parts = np.split(x, groups, -1)
    axes = tuple(range(x.ndim))
    return np.concatenate([standardized(part, axes, epsilon) for part in parts], -1)


def along(parameter: Array, axes: Sequence[int], ndim: int) -> Array:
    """Return a parameter that spans `axes` of an array, with axes of length 1 for the others."""
    return np.expand_dims(parameter, [axis for axis in range(ndim) if axis not in axes])


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x))."""
    result: Array = 1 / (1 + np.exp(-x))
    return result


def rnn_cell(x: Array, h: Array, kernel: Array, recurrent_kernel: Array, bias: Array) -> Array:
    """Return the next h of a simple recurrent cell."""
    result: Array = np.tanh(x @ kernel + h @ recurrent_kernel + bias)
    return result


def lstm_cell(
    x: Array, h: Array, c: Array, kernel: Array, recurrent_kernel: Array, bias: Array
) -> tuple[Array, Array]:
    """Return the next h and c of a long short-term memory."""
    i, f, g, o = np.split(x @ kernel + h @ recurrent_kernel + bias, 4, -1)
    c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
    return sigmoid(o) * np.tanh(c), c


def gru_cell(
    x: Array, h: Array, kernel: Array, recurrent_kernel: Array, bias: Array, recurrent_bias: Array
) -> Array:
    """Return the next h of a gated recurrent unit."""
    r_x, z_x, n_x = np.split(x @ kernel + bias, 3, -1)
    r_h, z_h, n_h = np.split(h @ recurrent_kernel, 3, -1)
    r, z = sigmoid(r_x + r_h), sigmoid(z_x + z_h)
    n = np.tanh(n_x + r * (n_h + recurrent_bias))
    result: Array = (1 - z) * n + z * h
    return result


def lru_cell(
    x: Array, real: Array, imag: Array, nu_log: Array, theta_log: Array, gamma_log: Array,
    b_real: Array, b_imag: Array, c_real: Array, c_imag: Array, d: Array,
) -> tuple[Array, tuple[Array, Array]]:
    """Return y and the parts of the next h of a linear recurrent unit, in real numbers."""
    radius, phase = np.exp(-np.exp(nu_log)), np.exp(theta_log)
    cos, sin = radius * np.cos(phase), radius * np.sin(phase)
    gamma = np.exp(gamma_log)
    real, imag = (
        cos * real - sin * imag + gamma * (x @ b_real),
        sin * real + cos * imag + gamma * (x @ b_imag),
    )
    return real @ c_real - imag @ c_imag + d * x, (real, imag)


def selective_ssm_cell(
    x: Array, h: Array, kernel: Array, delta_kernel: Array, delta_bias: Array, a_log: Array,
    d: Array,
) -> tuple[Array, Array]:
    """Return y and the next h of a selective state space model."""
    rank, size = len(delta_kernel), a_log.shape[1]
    low, b, c = np.split(x @ kernel, [rank, rank + size], -1)
    delta = np.log1p(np.exp(low @ delta_kernel + delta_bias))[..., None]
    h = np.exp(-delta * np.exp(a_log)) * h + delta * x[..., None] * b[..., None, :]
    return (h * c[..., None, :]).sum(-1) + d * x, h


def min_gru_cell(x: Array, h: Array, kernel: Array, bias: Array) -> tuple[Array, Array]:
    """Return y and the next h of a minimal gated recurrent unit."""
    z, candidate = np.split(x @ kernel + bias, 2, -1)
    h = (1 - sigmoid(z)) * h + sigmoid(z) * candidate
    return h, h


def over_time(step: Any, xs: Array, h: Any) -> tuple[Array, Any]:
    """Return the y of all steps, and the last h, of step(x, h)."""
    ys = []
    for x in xs:
        y, h = step(x, h)
        ys.append(y)
    return np.stack(ys), h
