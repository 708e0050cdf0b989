"""Layers with any hyperparameters agree with NumPy, and with `jax.lax` where it says "SAME"."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import assume, given
from hypothesis import strategies as st
from jax import lax

import mlax
from mlax.arguments import AnyLayer

from . import oracle
from .oracle import Array, Padding

KEY = jax.random.key(0)


def numbers(*shape: int) -> Array:
    """Return float32 numbers of both signs."""
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


def filled(tree: Any) -> Any:
    """Return a tree of positive numbers of these shapes, such as scales and variances."""
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda a: rng.uniform(0.5, 1.5, a.shape).astype(a.dtype), tree)


def run(
    layer: AnyLayer, x: Any, inference_mode: bool = False
) -> tuple[Any, Any, Any, Any]:
    """Return the params and variables, as NumPy arrays, and y and the next variables."""
    params, state = filled(jax.eval_shape(layer.init, KEY, x))
    apply = jax.jit(layer.apply, static_argnames="inference_mode")
    y, after = apply(params, state, x, inference_mode=inference_mode)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    return params, state.variables, y, after.variables


def assert_close(got: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    """Require arrays of equal shapes whose numbers differ only by rounding."""
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, tolerance, tolerance)


def float64(*arrays: Any) -> Any:
    """Return an array, or a tuple of them, in float64."""
    wide = tuple(np.asarray(a, np.float64) for a in arrays)
    return wide[0] if len(wide) == 1 else wide


# Windows: strides, paddings and dilations.


class Windows(NamedTuple):
    """The lengths of the spatial axes and the windows over them, as passed to the layers."""

    lengths: tuple[int, ...]
    window: int | tuple[int, ...]
    strides: int | tuple[int, ...]
    padding: Padding
    input_dilation: int | tuple[int, ...] | None
    window_dilation: int | tuple[int, ...] | None

    def each(self, value: int | tuple[int, ...] | None) -> tuple[int, ...]:
        """Return one number for each spatial axis."""
        number = 1 if value is None else value
        return number if isinstance(number, tuple) else (number,) * len(self.lengths)

    @property
    def written_out(self) -> tuple[tuple[int, ...], Padding, tuple[int, ...], tuple[int, ...]]:
        """Strides, padding and dilations, as the oracle takes them."""
        padding = self.padding.upper() if isinstance(self.padding, str) else self.padding
        input_dilation, window_dilation = (
            self.each(dilation) for dilation in (self.input_dilation, self.window_dilation)
        )
        return self.each(self.strides), padding, input_dilation, window_dilation

    def fit(self) -> bool:
        """Return whether there is at least one window."""
        strides, padding, input_dilation, window_dilation = self.written_out
        lengths = oracle.spans(self.lengths, input_dilation)
        sizes = oracle.spans(self.each(self.window), window_dilation)
        pads = oracle.pads_of(padding, lengths, sizes, strides)
        axes = zip(lengths, sizes, pads, strict=True)
        return all(length + sum(sides) >= size for length, size, sides in axes)


def one_or_each(numbers: st.SearchStrategy[int], rank: int) -> Any:
    """Return an integer, or one for each axis."""
    return numbers | st.tuples(*[numbers] * rank)


@st.composite
def windows(draw: st.DrawFn, names: Sequence[str], dilated_names: Sequence[str]) -> Windows:
    """Return windows of which at least one fits; `dilated_names` go with any input_dilation."""
    rank = draw(st.integers(1, 2))
    lengths = draw(st.tuples(*[st.integers(1, 6)] * rank))
    dilations = st.none() | one_or_each(st.integers(1, 3), rank)
    input_dilation = draw(dilations)
    sides = st.integers(-1, 3)
    pads = one_or_each(sides, rank) | st.tuples(*[st.tuples(sides, sides)] * rank)
    named = st.sampled_from(dilated_names if input_dilation else names)
    drawn = Windows(
        lengths, draw(one_or_each(st.integers(1, 3), rank)),
        draw(one_or_each(st.integers(1, 3), rank)), draw(named | pads), input_dilation,
        draw(dilations),
    )
    assume(drawn.fit())
    return drawn


ALL_NAMES = ("VALID", "SAME", "SAME_LOWER", "same")


@st.composite
def formats(draw: st.DrawFn, rank: int) -> tuple[Any, int]:
    """Return a data format and the index of its channel axis."""
    channel = draw(st.integers(0, rank))
    names = ["HWD"[:channel] + "C" + "HWD"[channel:rank]]
    names += {rank: ["channel_last"], 0: ["channel_first"]}.get(channel, [])
    return draw(st.sampled_from(names)), channel


@st.composite
def conv_formats(draw: st.DrawFn, rank: int) -> tuple[Any, str, str, str]:
    """Return a data format, and the specs that it stands for."""
    spatial = "HWD"[:rank]
    last = ("channel_last", spatial + "C", f"O{spatial}I", spatial + "C")
    first = ("channel_first", "C" + spatial, f"OI{spatial}", "C" + spatial)
    x, kernel, y = (
        "".join(draw(st.permutations(spatial + letters))) for letters in ("C", "OI", "C")
    )
    drawn: tuple[Any, str, str, str] = draw(
        st.sampled_from([last, first, ((x, kernel, y), x, kernel, y)])
    )
    return drawn


def transposed(array: Array, spec: str, wanted: str) -> Array:
    """Return the array with the axes of `spec` in the order of `wanted`."""
    return array.transpose([spec.index(letter) for letter in wanted])


class Convolution(NamedTuple):
    """Windows with the layout and the groups of a convolution."""

    windows: Windows
    data_format: Any
    specs: tuple[str, str, str]
    groups: int
    ins: int
    outs: int

    @property
    def plain(self) -> tuple[str, str, str]:
        """The specs of the oracle; spatial axes are in the order of the kernel."""
        spatial = "".join(letter for letter in self.specs[1] if letter not in "OI")
        return spatial + "C", f"O{spatial}I", spatial + "C"

    def check(self, layer: AnyLayer, wanted: Callable[[Array, Array], Array]) -> None:
        """Require a layer with one kernel to give what `wanted(x, kernel)` gives."""
        x = numbers(*self.windows.lengths, self.groups * self.ins)
        params, _, y, _ = run(layer, transposed(x, self.plain[0], self.specs[0]))
        kernel = transposed(params.kernel, self.specs[1], self.plain[1])
        assert_close(y, transposed(wanted(*float64(x, kernel)), self.plain[2], self.specs[2]))


@st.composite
def convolutions(
    draw: st.DrawFn, names: Sequence[str], dilated_names: Sequence[str] = ("VALID",)
) -> Convolution:
    """Return the hyperparameters of a convolution."""
    drawn = draw(windows(names, dilated_names))
    data_format, *specs = draw(conv_formats(len(drawn.lengths)))
    groups, ins, outs = (draw(st.integers(1, 3)) for _ in range(3))
    return Convolution(drawn, data_format, (specs[0], specs[1], specs[2]), groups, ins, outs)


@given(convolutions(ALL_NAMES))
def test_conv(drawn: Convolution) -> None:
    w = drawn.windows
    layer = mlax.conv(
        drawn.groups * drawn.outs, w.window, w.strides, w.padding, w.input_dilation,
        w.window_dilation, drawn.groups, data_format=drawn.data_format,
    )
    drawn.check(layer, lambda x, kernel: oracle.conv(x, kernel, *w.written_out, drawn.groups))


@given(convolutions(ALL_NAMES))
def test_depthwise_conv(drawn: Convolution) -> None:
    drawn = drawn._replace(ins=1, windows=drawn.windows._replace(input_dilation=None))
    w = drawn.windows
    assume(w.fit())
    layer = mlax.depthwise_conv(
        w.window, channel_multiplier=drawn.outs, strides=w.strides, padding=w.padding,
        filter_dilation=w.window_dilation, data_format=drawn.data_format,
    )
    drawn.check(layer, lambda x, kernel: oracle.conv(x, kernel, *w.written_out, drawn.groups))


@given(convolutions(("VALID", "SAME", "valid"), ("VALID", "SAME")))
def test_conv_transpose(drawn: Convolution) -> None:
    w = drawn.windows._replace(input_dilation=drawn.windows.strides, strides=1)
    drawn = drawn._replace(windows=w, groups=1)
    explicit = not isinstance(w.padding, str)
    assume(w.fit() or not explicit)
    steps, dilation = w.each(w.input_dilation), w.each(w.window_dilation)

    def wanted(x: Array, kernel: Array) -> Array:
        if explicit:
            return oracle.conv(x, kernel, *w.written_out)
        if w.padding == "SAME":
            spatial = "012"[: x.ndim - 1]
            specs = f"N{spatial}C", f"O{spatial}I", f"N{spatial}C"
            narrow = jnp.float32(x)[None], jnp.float32(kernel)
            y = lax.conv_transpose(*narrow, steps, "SAME", dilation, specs)
            return np.asarray(y[0])
        return oracle.conv_transpose(x, kernel, steps, dilation)

    layer = mlax.conv_transpose(
        drawn.outs, filter_shape=w.window, strides=w.input_dilation or 1, padding=w.padding,
        filter_dilation=w.window_dilation, data_format=drawn.data_format,
    )
    drawn.check(layer, wanted)


@given(windows(ALL_NAMES, ("VALID",)), st.integers(1, 2), st.integers(1, 2))
def test_separable_conv(w: Windows, multiplier: int, outs: int) -> None:
    w = w._replace(input_dilation=None)
    assume(w.fit())
    layer = mlax.separable_conv(
        outs, filter_shape=w.window, channel_multiplier=multiplier, strides=w.strides,
        padding=w.padding, filter_dilation=w.window_dilation,
    )
    x = numbers(*w.lengths, 2)
    params, _, y, _ = run(layer, x)
    depthwise, pointwise = float64(params["depthwise"].kernel, params["pointwise"].kernel)
    hidden = oracle.conv(float64(x), depthwise, *w.written_out, 2)
    assert_close(y, hidden @ pointwise.reshape(outs, -1).T)


POOLS: dict[str, tuple[Any, float, Callable[..., Array]]] = {
    "max_pool": (mlax.max_pool, -np.inf, np.max),
    "avg_pool": (mlax.avg_pool, 0.0, np.mean),
    "sum_pool": (mlax.sum_pool, 0.0, np.sum),
    "pool": (lambda *hparams: mlax.pool(1.0, lax.mul, *hparams), 1.0, np.prod),
}


@given(windows(ALL_NAMES, ("VALID",)), st.data(), st.sampled_from(sorted(POOLS)))
def test_pools(w: Windows, data: st.DataObject, name: str) -> None:
    rank = len(w.lengths)
    data_format, channel = data.draw(formats(rank))
    pool, fill, reduce = POOLS[name]
    hparams = w.window, w.strides, w.padding, w.input_dilation, w.window_dilation, data_format
    x = numbers(*w.lengths, 2)
    _, _, y, _ = run(pool(*hparams), np.moveaxis(x, -1, channel))
    seen = oracle.windows(float64(x), w.each(w.window), *w.written_out, fill)
    wanted = reduce(seen, axis=tuple(range(rank, 2 * rank)))
    assert_close(y, np.moveaxis(wanted, -1, channel))


@given(st.data(), st.integers(1, 3))
def test_pools_to_a_fixed_shape(data: st.DataObject, rank: int) -> None:
    lengths = data.draw(st.tuples(*[st.integers(1, 5)] * rank))
    counts = data.draw(one_or_each(st.integers(1, 4), rank))
    data_format, channel = data.draw(formats(rank))
    x = numbers(*lengths, 2)
    placed = np.moveaxis(x, -1, channel)
    _, _, y, _ = run(mlax.adaptive_avg_pool(counts, data_format=data_format), placed)
    each = counts if isinstance(counts, tuple) else (counts,) * rank
    assert_close(y, np.moveaxis(oracle.adaptive_avg_pool(float64(x), each), -1, channel))
    _, _, y, _ = run(mlax.global_avg_pool(data_format=data_format), placed)
    assert_close(y, x.mean(tuple(range(rank))))


# Normalisations.

SHAPES = st.lists(st.integers(2, 4), min_size=1, max_size=3).map(tuple)
EPSILONS = st.sampled_from([1e-5, 1e-3, 1.0])


@st.composite
def normalized_axes(draw: st.DrawFn, ndim: int) -> tuple[Any, tuple[int, ...]]:
    """Return axes as they are passed, and counted from the front."""
    axes = draw(st.lists(st.integers(0, ndim - 1), min_size=1, max_size=ndim, unique=True))
    chosen = tuple(axis - ndim * draw(st.booleans()) for axis in axes)
    spelled: list[tuple[Any, list[int]]] = [(chosen, axes), ("all", list(range(ndim)))]
    if len(axes) == 1:
        spelled.append((chosen[0], axes))
    if ndim > 1:
        spelled.append(("channel_last", list(range(ndim - 1))))
        spelled.append(("channel_first", list(range(1, ndim))))
    passed, plain = draw(st.sampled_from(spelled))
    return passed, tuple(sorted(plain))


def affine(params: Any, y: Array, axes: tuple[int, ...]) -> Array:
    """Return y * scale + bias for those that there are; both span these axes."""
    if params.scale is not None:
        y = y * oracle.along(params.scale, axes, y.ndim)
    return y if params.bias is None else y + oracle.along(params.bias, axes, y.ndim)


@given(SHAPES, st.data(), EPSILONS, st.booleans(), st.booleans())
def test_layer_norm_and_rms_norm(
    shape: tuple[int, ...], data: st.DataObject, epsilon: float, scale: bool, bias: bool
) -> None:
    axis, axes = data.draw(normalized_axes(len(shape)))
    x = numbers(*shape)
    layer = mlax.layer_norm(axis=axis, epsilon=epsilon, use_scale=scale, use_bias=bias)
    params, _, y, _ = run(layer, x)
    wanted = oracle.standardized(float64(x), axes, epsilon)
    assert_close(y, affine(params, wanted, axes), 1e-4)
    params, _, y, _ = run(mlax.rms_norm(axis=axis, epsilon=epsilon, use_scale=scale), x)
    assert_close(y, affine(params, oracle.rms_norm(float64(x), axes, epsilon), axes), 1e-4)


@given(SHAPES, st.data(), EPSILONS, st.booleans(), st.booleans())
def test_group_norm_and_instance_norm(
    lengths: tuple[int, ...], data: st.DataObject, epsilon: float, scale: bool, bias: bool
) -> None:
    rank = len(lengths)
    data_format, channel = data.draw(formats(rank))
    groups = data.draw(st.integers(1, 3))
    x = numbers(*lengths, 2 * groups)
    placed = np.moveaxis(x, -1, channel)
    hparams: dict[str, Any] = {"use_scale": scale, "use_bias": bias, "data_format": data_format}
    params, _, y, _ = run(mlax.group_norm(groups, epsilon=epsilon, **hparams), placed)
    wanted = affine(params, oracle.group_norm(float64(x), groups, epsilon), (rank,))
    assert_close(y, np.moveaxis(wanted, -1, channel), 1e-4)
    params, _, y, _ = run(mlax.instance_norm(epsilon=epsilon, **hparams), placed)
    wanted = oracle.standardized(float64(x), tuple(range(rank)), epsilon)
    assert_close(y, np.moveaxis(affine(params, wanted, (rank,)), -1, channel), 1e-4)


def next_statistics(variables: Any, x: Array, axes: tuple[int, ...], momentum: float) -> Any:
    """Return the running mean and variance after a step of training."""
    new = [moment.squeeze(axes) for moment in oracle.moments(x, axes)]
    pairs = zip(variables, new, strict=True)
    return [momentum * old + (1 - momentum) * one for old, one in pairs]


MOMENTA = st.sampled_from([0.0, 0.5, 0.99, 1.0])


@given(SHAPES, st.data(), EPSILONS, MOMENTA, st.booleans())
def test_z_norm(
    shape: tuple[int, ...], data: st.DataObject, epsilon: float, momentum: float, inference: bool
) -> None:
    axis, axes = data.draw(normalized_axes(len(shape)))
    x = numbers(*shape)
    _, variables, y, after = run(mlax.z_norm(axis, epsilon, momentum), x, inference)
    if inference:
        mean, var = (np.expand_dims(value, axes) for value in variables)
        wanted, then = (x - mean) / np.sqrt(var + epsilon), variables
    else:
        wanted = oracle.standardized(float64(x), axes, epsilon)
        then = next_statistics(variables, float64(x), axes, momentum)
    assert_close(y, wanted, 1e-4)
    assert_close(after, then)


@given(
    st.lists(st.integers(1, 3), max_size=2), st.data(), st.integers(2, 4), EPSILONS, MOMENTA,
    st.booleans(), st.booleans(),
)
def test_batch_norm_of_a_batch(
    lengths: list[int], data: st.DataObject, batch: int, epsilon: float, momentum: float,
    scale: bool, bias: bool,
) -> None:
    rank = len(lengths)
    data_format, channel = data.draw(formats(rank))
    layer = mlax.batched(
        mlax.batch_norm(
            epsilon=epsilon, momentum=momentum, use_scale=scale, use_bias=bias,
            data_format=data_format,
        )
    )
    x = numbers(batch, *lengths, 2)
    params, variables, y, after = run(layer, np.moveaxis(x, -1, channel + 1))
    axes = tuple(range(rank + 1))
    wanted = affine(params, oracle.standardized(float64(x), axes, epsilon), (rank + 1,))
    assert_close(y, np.moveaxis(wanted, -1, channel + 1), 1e-4)
    assert_close(after, next_statistics(variables, float64(x), axes, momentum))


# Products, terms, rows and cells.

LEADING = st.lists(st.integers(1, 3), max_size=2).map(tuple)
SIZES = st.integers(1, 4)


@given(LEADING, SIZES, SIZES, st.booleans(), st.booleans())
def test_linear_and_dense(
    leading: tuple[int, ...], ins: int, outs: int, transposed_kernel: bool, bias: bool
) -> None:
    x = numbers(*leading, ins)
    params, _, y, _ = run(mlax.linear(outs, transposed_kernel=transposed_kernel), x)
    kernel = params.kernel.T if transposed_kernel else params.kernel
    assert_close(y, np.einsum("...i,io->...o", *float64(x, kernel)))
    params, _, y, _ = run(mlax.dense(outs, use_bias=bias), x)
    wanted = np.einsum("...i,io->...o", *float64(x, params.kernel))
    assert_close(y, wanted + params.bias if bias else wanted)


@given(SHAPES, st.data())
def test_bias_and_scaler(shape: tuple[int, ...], data: st.DataObject) -> None:
    x = numbers(*shape)
    kinds = data.draw(st.tuples(*[st.sampled_from("absent shared each".split()) for _ in shape]))
    features: list[int | None] = []
    for kind, length in zip(kinds, shape, strict=True):
        spelled: dict[str, list[int | None]] = {
            "absent": [0, None], "shared": [1], "each": [-1, length],
        }
        entries = spelled[kind]
        features.append(data.draw(st.sampled_from(entries)))
    in_features = features[0] if len(shape) == 1 and features[0] is not None else features

    def expanded(parameter: Array) -> Array:
        present = [axis for axis, kind in enumerate(kinds) if kind != "absent"]
        wanted = tuple(shape[axis] if kinds[axis] == "each" else 1 for axis in present)
        assert parameter.shape == wanted
        return oracle.along(parameter, present, len(shape))

    params, _, y, _ = run(mlax.bias(in_features), x)
    assert_close(y, x + expanded(params.bias))
    params, _, y, _ = run(mlax.scaler(in_features), x)
    assert_close(y, x * expanded(params.scale))


INTEGERS = st.sampled_from([np.int8, np.uint8, np.int32, np.uint32])


@given(LEADING, SIZES, SIZES, st.data(), INTEGERS)
def test_embed(
    leading: tuple[int, ...], rows: int, features: int, data: st.DataObject, dtype: Any
) -> None:
    info = np.iinfo(dtype)
    index = st.integers(-2 * rows, 2 * rows) | st.sampled_from([info.min, info.max])
    fitting = index.filter(lambda i: info.min <= i <= info.max)
    count = int(np.prod(leading))
    indices = data.draw(st.lists(fitting, min_size=count, max_size=count))
    params, _, y, _ = run(mlax.embed(rows, features), np.reshape(np.array(indices, dtype), leading))
    missing = np.full(features, np.nan, np.float32)
    wanted = [params.embedding[i] if -rows <= i < rows else missing for i in indices]
    assert_close(y, np.reshape(wanted, (*leading, features)))


class Cell(NamedTuple):
    """A cell and its number of carries."""

    pair: Any  # three pairs of different types
    step: Callable[..., Any]
    carries: int


CELLS = {
    "rnn_cell": Cell(mlax.rnn_cell, oracle.rnn_cell, 1),
    "lstm_cell": Cell(mlax.lstm_cell, oracle.lstm_cell, 2),
    "gru_cell": Cell(mlax.gru_cell, oracle.gru_cell, 1),
}


@given(
    st.sampled_from(sorted(CELLS)), st.integers(1, 4), LEADING, SIZES, SIZES, st.booleans(),
    st.integers(1, 3),
)
def test_cells_over_time(
    name: str, time: int, leading: tuple[int, ...], ins: int, features: int, reverse: bool,
    unroll: int,
) -> None:
    pair, step, carries = CELLS[name]
    xs = numbers(time, *leading, ins)
    carry = tuple(numbers(*leading, features) / (i + 1) for i in range(carries))
    layer = mlax.recurrent(pair(features), reverse, unroll)
    params, _, (ys, after), _ = run(layer, (xs, carry if carries > 1 else carry[0]))
    outputs: list[Any] = [None] * time
    steps = range(time)
    for t in reversed(steps) if reverse else steps:
        result = step(float64(xs[t]), *carry, *params)
        carry = result if isinstance(result, tuple) else (result,)
        outputs[t] = carry[0]
    assert_close(ys, np.stack(outputs))
    assert_close(after, carry if carries > 1 else carry[0])
