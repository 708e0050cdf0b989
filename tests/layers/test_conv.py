"""Tests of `mlax.conv` against a plain loop in NumPy and `jax.lax.conv_general_dilated`."""

from collections.abc import Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest
from jax import lax
from jax.typing import DTypeLike

import mlax
from mlax import nn

Floats = npt.NDArray[np.float64]
Format = Literal["channel_last", "channel_first"] | tuple[str, str, str]

KEY = jax.random.key(0)
IMAGE = jax.ShapeDtypeStruct((6, 5, 4), jnp.float32)


def drawn(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
    """Initialize without a compilation."""
    return jnp.asarray(np.random.default_rng(1).normal(size=shape), dtype)


def dilated(x: Floats, dilation: Sequence[int]) -> Floats:
    """Return x with zeros between neighbours along the first axes."""
    lengths = [(n - 1) * d + 1 for n, d in zip(x.shape, dilation, strict=False)]
    spread = np.zeros((*lengths, *x.shape[len(lengths) :]))
    spread[tuple(slice(None, None, d) for d in dilation)] = x
    return spread


def convolution(
    x: Floats,
    kernel: Floats,
    strides: Sequence[int],
    pads: Sequence[tuple[int, int]],
    input_dilation: Sequence[int],
    filter_dilation: Sequence[int],
    groups: int,
) -> Floats:
    """Convolve x (spatial..., in) with a kernel (spatial..., in / groups, out)."""
    x = np.pad(dilated(x, input_dilation), [*pads, (0, 0)])
    kernel = dilated(kernel, filter_dilation)
    window = kernel.shape[:-2]
    lengths = [(n - k) // s + 1 for n, k, s in zip(x.shape, window, strides, strict=False)]
    y = np.zeros((*lengths, kernel.shape[-1]))
    group_inputs, group_outputs = kernel.shape[-2], kernel.shape[-1] // groups
    for place in np.ndindex(*lengths):
        region = tuple(
            slice(i * s, i * s + k) for i, s, k in zip(place, strides, window, strict=True)
        )
        for output in range(kernel.shape[-1]):
            first = output // group_outputs * group_inputs
            seen = x[(*region, slice(first, first + group_inputs))]
            y[(*place, output)] = np.sum(seen * kernel[..., output])
    return y


def same(n: int, window: int, stride: int, dilation: int, lower: bool) -> tuple[int, int]:
    """Return the padding that keeps ceil(n / stride) windows, an odd one after, or before."""
    total = max((-(-n // stride) - 1) * stride + (window - 1) * dilation + 1 - n, 0)
    return ((total + 1) // 2, total // 2) if lower else (total // 2, (total + 1) // 2)


@pytest.mark.parametrize(
    ("hparams", "strides", "pads", "input_dilation", "filter_dilation", "groups"),
    [
        ({}, (1, 1), [(0, 0)] * 2, (1, 1), (1, 1), 1),
        ({"strides": 2, "padding": 1}, (2, 2), [(1, 1)] * 2, (1, 1), (1, 1), 1),
        ({"strides": (2, 1), "padding": (1, 0)}, (2, 1), [(1, 1), (0, 0)], (1, 1), (1, 1), 1),
        (
            {"strides": [1, 3], "padding": [(1, 2), (0, 1)], "feature_group_count": 2},
            (1, 3),
            [(1, 2), (0, 1)],
            (1, 1),
            (1, 1),
            2,
        ),
        (
            {"padding": 0, "input_dilation": 2, "filter_dilation": (1, 2)},
            (1, 1),
            [(0, 0)] * 2,
            (2, 2),
            (1, 2),
            1,
        ),
        (
            {"padding": (2, (0, 3)), "input_dilation": (1, 3), "filter_dilation": 2},
            (1, 1),
            [(2, 2), (0, 3)],
            (1, 3),
            (2, 2),
            1,
        ),
        ({"feature_group_count": 4}, (1, 1), [(0, 0)] * 2, (1, 1), (1, 1), 4),
    ],
)
def test_values(
    hparams: dict[str, Any],  # values of many types
    strides: tuple[int, ...],
    pads: list[tuple[int, int]],
    input_dilation: tuple[int, ...],
    filter_dilation: tuple[int, ...],
    groups: int,
) -> None:
    x = np.random.default_rng(0).normal(size=(6, 5, 4))
    kernel = np.asarray(drawn(KEY, (3, 2, 4 // groups, 8), jnp.float32), np.float64)
    expected = convolution(x, kernel, strides, pads, input_dilation, filter_dilation, groups)
    params, state = mlax.conv.init(
        KEY, jnp.asarray(x), 8, (3, 2), kernel_initializer=drawn, **hparams
    )
    y, _ = mlax.conv.apply(params, state, jnp.asarray(x))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("data_format", "x_axes", "y_axes"),
    [
        ("channel_first", (2, 0, 1), (1, 2, 0)),
        (("HWC", "HWIO", "CHW"), (0, 1, 2), (1, 2, 0)),
        (("HCW", "OHWI", "HWC"), (0, 2, 1), (0, 1, 2)),
    ],
    ids=str,
)
def test_data_formats(
    data_format: Format, x_axes: tuple[int, ...], y_axes: tuple[int, ...]
) -> None:
    x = np.random.default_rng(0).normal(size=(6, 5, 4))
    kernel = np.asarray(drawn(KEY, (3, 2, 2, 8), jnp.float32), np.float64)
    pads = [(1, 2), (0, 1)]
    expected = convolution(x, kernel, (1, 3), pads, (2, 1), (1, 2), 2)
    example = jnp.asarray(x.transpose(x_axes))
    params, state = mlax.conv.init(
        KEY,
        example,
        out_channels=8,
        filter_shape=(3, 2),
        strides=(1, 3),
        padding=pads,
        input_dilation=(2, 1),
        filter_dilation=(1, 2),
        feature_group_count=2,
        data_format=data_format,
        kernel_initializer=drawn,
    )
    y, _ = mlax.conv.apply(params, state, example)
    np.testing.assert_allclose(y.transpose(y_axes), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("padding", ["SAME", "SAME_LOWER", "same", "VALID", "valid"])
def test_named_paddings(padding: str, dilation: int) -> None:
    x = np.random.default_rng(0).normal(size=(6, 5, 1))
    kernel = np.asarray(drawn(KEY, (2, 3, 1, 2), jnp.float32), np.float64)
    pads = [(0, 0)] * 2
    if padding.upper() != "VALID":
        lower = padding == "SAME_LOWER"
        pads = [same(6, 2, 2, dilation, lower), same(5, 3, 1, dilation, lower)]
    expected = convolution(x, kernel, (2, 1), pads, (1, 1), (dilation, dilation), 1)
    params, state = mlax.conv.init(
        KEY,
        jnp.asarray(x),
        2,
        (2, 3),
        (2, 1),
        padding,
        filter_dilation=dilation,
        kernel_initializer=drawn,
    )
    y, _ = mlax.conv.apply(params, state, jnp.asarray(x))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_input_dilation_with_the_default_padding() -> None:
    x = np.random.default_rng(0).normal(size=(4, 3, 1))
    params, state = mlax.conv.init(
        KEY, jnp.asarray(x), 2, 2, input_dilation=2, kernel_initializer=drawn
    )
    y, _ = mlax.conv.apply(params, state, jnp.asarray(x))
    kernel = np.asarray(drawn(KEY, (2, 2, 1, 2), jnp.float32), np.float64)
    expected = convolution(x, kernel, (1, 1), [(0, 0)] * 2, (2, 2), (1, 1), 1)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("strides", "dilation", "groups"), [(1, 1, 1), (2, 1, 1), (1, 3, 2)])
def test_causal_padding(strides: int, dilation: int, groups: int) -> None:
    x = np.random.default_rng(0).normal(size=(7, 2))
    kernel = np.asarray(drawn(KEY, (3, 2 // groups, 4), jnp.float32), np.float64)
    pads = [(2 * dilation, 0)]
    expected = convolution(x, kernel, (strides,), pads, (1,), (dilation,), groups)
    layer = mlax.conv(
        4, 3, strides, "causal", None, dilation, groups, kernel_initializer=drawn
    )
    params, state = layer.init(KEY, jnp.asarray(x))
    y, _ = layer.apply(params, state, jnp.asarray(x))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("padding", "before"), [("VALID", 0), ("CAUSAL", 4), ("SAME", 2), ("SAME_LOWER", 2)]
)
@pytest.mark.parametrize("filter_shape", [3, 2])
def test_what_y_depends_on(padding: str, before: int, filter_shape: int) -> None:
    """As the docstring says, for filter dilation 2 and no stride."""
    layer = mlax.depthwise_conv(filter_shape, padding=padding, filter_dilation=2)
    x = jnp.ones((7, 1))
    params, state = layer.init(KEY, x)
    sees = np.asarray(jax.jacobian(lambda x: layer.apply(params, state, x)[0])(x))[:, 0, :, 0] != 0
    before = before * (filter_shape - 1) // 2
    for t, seen in enumerate(sees):
        window = {t - before + 2 * k for k in range(filter_shape)}
        assert set(np.flatnonzero(seen)) == window & set(range(7))


def test_a_causal_convolution_in_parts() -> None:
    """The last inputs are a carry: `mlax.carried` of a convolution that is given them decodes."""
    @mlax.block(conv=mlax.depthwise_conv(3))
    def remembering(sub: Any, inputs: tuple[jax.Array, jax.Array]) -> Any:
        x = jnp.concatenate([inputs[1], inputs[0]])
        return sub.conv(x), x[-2:]

    x = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4)), jnp.float32)
    decoder = mlax.carried(remembering, lambda x: jnp.zeros((2, 4)), decodes=True)
    params, state = decoder.init(KEY, x)
    parts = []
    for part in (x[:1], x[1:4], x[4:]):
        y, state = decoder.apply(params, state, part, inference_mode=True)
        parts.append(y)
    whole = mlax.depthwise_conv(3, padding="CAUSAL")
    y, _ = whole.apply(params["conv"], whole.init(KEY, x)[1], x)
    np.testing.assert_allclose(jnp.concatenate(parts), y, rtol=1e-5, atol=1e-6)


def test_causal_padding_is_for_one_axis_and_for_convolutions() -> None:
    with pytest.raises(ValueError, match=r"conv: .*2 spatial axes, got 'CAUSAL'; .*\(\(2, 0\), \("):
        mlax.conv(3, 3, padding="CAUSAL", kernel_initializer=drawn).init(KEY, IMAGE)
    with pytest.raises(ValueError, match="conv: expected padding to be one of .*CAUSAL.*'CASUAL'"):
        mlax.conv(3, 3, padding="CASUAL")
    with pytest.raises(ValueError, match="conv: expected padding .*input_dilation.*'CAUSAL'"):
        layer = mlax.conv(3, 2, padding="CAUSAL", input_dilation=2, kernel_initializer=drawn)
        layer.init(KEY, jnp.ones((5, 2)))
    with pytest.raises(ValueError, match="max_pool: expected padding to be one of VALID, SAME, SA"):
        mlax.max_pool(2, padding="CAUSAL")


def test_the_class_takes_causal_padding() -> None:
    x = jnp.ones((5, 2))
    module = nn.Conv(KEY, 4, 3, padding="CAUSAL", kernel_initializer=drawn)
    assert module(x, None)[0].shape == (5, 4)


def test_same_padding_with_input_dilation_raises() -> None:
    init, _ = mlax.conv(3, 2, padding="SAME", input_dilation=2, kernel_initializer=drawn)
    with pytest.raises(ValueError, match="^conv: expected padding .*'SAME'"):
        init(KEY, IMAGE)


@pytest.mark.parametrize(("rank", "filter_shape"), [(1, 2), (1, [2]), (3, 2)])
def test_one_argument_stands_for_every_spatial_axis(
    rank: int, filter_shape: int | list[int]
) -> None:
    x = np.random.default_rng(0).normal(size=(*range(3, 3 + rank), 2))
    params, state = mlax.conv.init(KEY, jnp.asarray(x), 3, filter_shape, kernel_initializer=drawn)
    y, _ = mlax.conv.apply(params, state, jnp.asarray(x))
    kernel = np.asarray(drawn(KEY, (*(2,) * rank, 2, 3), jnp.float32), np.float64)
    ones = (1,) * rank
    expected = convolution(x, kernel, ones, [(0, 0)] * rank, ones, ones, 1)
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("data_format", "x_shape", "kernel_shape", "y_shape"),
    [
        ("channel_last", (6, 5, 4), (8, 3, 2, 2), (4, 4, 8)),
        ("channel_first", (4, 6, 5), (8, 2, 3, 2), (8, 4, 4)),
        (("HWC", "HWIO", "CWH"), (6, 5, 4), (3, 2, 2, 8), (8, 4, 4)),
        (["WCH", "OWIH", "HWC"], (6, 4, 5), (8, 3, 2, 2), (4, 4, 8)),
    ],
)
def test_layouts(
    data_format: Any,  # a list or a tuple
    x_shape: tuple[int, ...],
    kernel_shape: tuple[int, ...],
    y_shape: tuple[int, ...],
) -> None:
    calls: list[tuple[object, ...]] = []

    def initializer(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        calls.append((key, shape, jnp.dtype(dtype)))
        return jnp.zeros(shape, dtype)

    params, state = mlax.conv.init(
        KEY,
        jax.ShapeDtypeStruct(x_shape, jnp.float32),
        8,
        (3, 2),
        feature_group_count=2,
        data_format=data_format,
        kernel_initializer=initializer,
        dtype="float16",
    )
    assert calls == [(KEY, (3, 2, 2, 8), jnp.dtype("float16"))]
    assert params.kernel.shape == kernel_shape
    assert params.kernel.dtype == jnp.dtype("float16")
    y, _ = jax.eval_shape(lambda x: mlax.conv.apply(params, state, x), jnp.ones(x_shape))
    assert y.shape == y_shape


def test_specs_of_three_spatial_axes_against_lax() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 4, 6, 2)), jnp.float32)
    kernel = drawn(KEY, (2, 3, 4, 2, 3), jnp.float32)  # HWDIO
    params, state = mlax.conv.init(
        KEY,
        x,
        3,
        (2, 3, 4),
        strides=(1, 2, 3),
        padding=(0, (1, 2), 1),
        data_format=("HWDC", "HWDOI", "CHWD"),
        kernel_initializer=drawn,
    )
    y, _ = mlax.conv.apply(params, state, x)
    expected = lax.conv_general_dilated(
        x[None],
        kernel,
        (1, 2, 3),
        ((0, 0), (1, 2), (1, 1)),
        dimension_numbers=("NHWDC", "HWDIO", "NCHWD"),
    )[0]
    np.testing.assert_array_equal(params.kernel, np.swapaxes(kernel, 3, 4))
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


def test_arguments_follow_the_axes_of_the_kernel_when_x_orders_them_differently() -> None:
    x = jnp.asarray(np.random.default_rng(0).normal(size=(7, 6, 1)), jnp.float32)
    results = []

    def turnable(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        kernel = drawn(key, (3, 2, *shape[2:]), dtype)
        return kernel if shape[0] == 3 else kernel.swapaxes(0, 1)

    for kernel_spec in ("HWIO", "WHIO"):
        turned = slice(None, None, 1 if kernel_spec == "HWIO" else -1)
        params, state = mlax.conv.init(
            KEY,
            x,
            2,
            (3, 2)[turned],
            (2, 1)[turned],
            ((1, 2), 0)[turned],
            filter_dilation=(1, 2)[turned],
            data_format=("HWC", kernel_spec, "HWC"),
            kernel_initializer=turnable,
        )
        results.append(mlax.conv.apply(params, state, x)[0])
    np.testing.assert_allclose(results[1], results[0], rtol=1e-5, atol=1e-6)


def test_gradients() -> None:
    x = jnp.array([[1.0], [2.0], [4.0], [8.0]])
    params, state = mlax.conv.init(KEY, x, 1, 2, kernel_initializer=jax.nn.initializers.ones)
    weights = jnp.array([[1.0], [10.0], [100.0]])

    def loss(params: Any, x: jax.Array) -> jax.Array:
        return jnp.sum(mlax.conv.apply(params, state, x)[0] * weights)

    by_params, by_x = jax.grad(loss, (0, 1))(params, x)
    np.testing.assert_allclose(by_params.kernel, [[[421], [842]]])
    np.testing.assert_allclose(by_x, [[1], [11], [110], [100]])


@pytest.mark.parametrize(
    ("x_dtype", "dtype"),
    [(jnp.float32, jnp.float16), (jnp.bfloat16, jnp.float32), (jnp.float16, jnp.float16)],
)
def test_kernel_is_cast_to_the_dtype_of_x(x_dtype: DTypeLike, dtype: DTypeLike) -> None:
    x = jnp.array([[1], [0.5], [2]], x_dtype)
    ones = jax.nn.initializers.ones
    params, state = mlax.conv.init(KEY, x, 1, 2, kernel_initializer=ones, dtype=dtype)
    y, _ = mlax.conv.apply(params, state, x)
    assert params.kernel.dtype == dtype
    assert y.dtype == x_dtype
    np.testing.assert_array_equal(np.asarray(y, np.float64), [[1.5], [2.5]])


def test_accum_dtype_is_that_of_the_sums_and_of_the_result() -> None:
    x = jnp.array([[256], [1]], jnp.bfloat16)  # their sum needs more bits than bfloat16 has
    ones = jax.nn.initializers.ones
    params, state = mlax.conv.init(KEY, x, 1, 2, accum_dtype=jnp.float32, kernel_initializer=ones)
    y, _ = mlax.conv.apply(params, state, x)
    np.testing.assert_array_equal(y, np.array([[257]], np.float32), strict=True)


def test_precision_is_that_of_the_products() -> None:
    pair = (lax.Precision.DEFAULT, lax.Precision.HIGHEST)
    params, state = mlax.conv.init(KEY, IMAGE, 1, 2, precision=pair, kernel_initializer=drawn)
    text = jax.jit(mlax.conv.apply).lower(params, state, IMAGE).as_text()
    assert "#stablehlo<precision DEFAULT>, #stablehlo<precision HIGHEST>" in text


def test_default_initializer_gets_the_key_as_it_is() -> None:
    params, _ = mlax.conv.init(KEY, IMAGE, 3, 2)
    expected = jax.nn.initializers.lecun_normal()(KEY, (2, 2, 4, 3), jnp.float32)
    np.testing.assert_array_equal(params.kernel, jnp.moveaxis(expected, -1, 0))


@pytest.mark.parametrize(
    ("name", "value", "plain"),
    [
        ("out_channels", np.int64(3), 3),
        ("filter_shape", np.array([3, 1]), (3, 1)),
        ("filter_shape", np.array(3), 3),
        ("strides", (np.int64(2), np.int64(1)), (2, 1)),
        ("filter_dilation", [np.uint8(2), 1], (2, 1)),
        ("input_dilation", np.array([1, 2], np.uint8), (1, 2)),
        ("feature_group_count", np.array(2), 2),
        ("padding", np.int64(1), 1),
        ("padding", np.array([1, 2]), (1, 2)),
        ("padding", np.array([[1, 0], [0, 1]]), ((1, 0), (0, 1))),
        ("padding", (np.array([1, 0]), np.int64(2)), ((1, 0), 2)),
    ],
)
def test_integers_and_arrays_of_numpy_are_kept_as_plain_ones(
    name: str, value: Any, plain: object
) -> None:
    hparams = dict[str, Any](out_channels=4, filter_shape=2, kernel_initializer=drawn)
    layer = mlax.conv(**hparams | {name: value})
    assert layer == mlax.conv(**hparams | {name: plain})
    module = nn.Conv(KEY, **hparams | {name: value})
    assert repr(getattr(module, name)) == repr(plain)


@pytest.mark.parametrize(
    ("hparams", "error", "text"),
    [
        ({"out_channels": 0}, ValueError, "out_channels to be a positive integer, got 0"),
        ({"out_channels": "8"}, TypeError, "out_channels to be a positive integer, got '8'"),
        ({"filter_shape": (3, 0)}, ValueError, "filter_shape to be a positive integer, got 0"),
        ({"filter_shape": 2.5}, TypeError, "filter_shape to be .*, got 2.5"),
        ({"strides": -1}, ValueError, "strides to be a positive integer, got -1"),
        ({"strides": None}, TypeError, "strides to be a positive integer, got None"),
        ({"padding": "CIRCULAR"}, ValueError, "padding to be one of .*SAME.*, got 'CIRCULAR'"),
        ({"padding": 1.5}, TypeError, "padding to be .*, got 1.5"),
        ({"padding": [(1, 2, 3), 0]}, ValueError, r"padding to be .*, got \[\(1, 2, 3\), 0\]"),
        ({"padding": [(1, "2"), 0]}, TypeError, "padding to be .*, got '2'"),
        ({"input_dilation": 0}, ValueError, "input_dilation to be a positive integer, got 0"),
        ({"input_dilation": "x"}, TypeError, "input_dilation to be .*, got 'x'"),
        ({"filter_dilation": (1, 0)}, ValueError, "filter_dilation to be .*, got 0"),
        ({"filter_dilation": 1.0}, TypeError, "filter_dilation to be .*, got 1.0"),
        ({"feature_group_count": 0}, ValueError, "feature_group_count to be .*, got 0"),
        ({"feature_group_count": 1.0}, TypeError, "feature_group_count to be .*, got 1.0"),
        ({"batch_group_count": 0}, ValueError, "batch_group_count to be .*, got 0"),
        ({"data_format": "NHWC"}, ValueError, "data_format to be .*, got 'NHWC'"),
        ({"data_format": 3}, TypeError, "data_format to be .* three specs without N, .*, got 3"),
        ({"data_format": ("HWC", "HWIO")}, TypeError, r"data_format .* three specs .*, got \("),
        ({"data_format": ("NHWC", "HWIO", "NHWC")}, ValueError, "data_format .*, got .*NHWC"),
        ({"data_format": ("HWC", "HWIO", "HWD")}, ValueError, "data_format .*, got .*HWD"),
        ({"data_format": ("HWC", "HWWO", "HWC")}, ValueError, "data_format .*, got .*HWWO"),
        ({"precision": 3}, TypeError, "precision to be .*, got 3"),
        ({"precision": "exact"}, ValueError, "precision to be .*, got 'exact'"),
        ({"accum_dtype": "float99"}, TypeError, "accum_dtype to be a dtype, got 'float99'"),
        ({"kernel_initializer": []}, TypeError, r"kernel_initializer to be a function, got \[\]"),
        ({"dtype": "float99"}, TypeError, "dtype to be a dtype, got 'float99'"),
    ],
)
def test_wrong_argument_raises(
    hparams: dict[str, Any],  # wrong types on purpose
    error: type[Exception],
    text: str,
) -> None:
    hparams = {"out_channels": 2, "filter_shape": 2} | hparams
    with pytest.raises(error, match=f"^conv: expected {text}"):
        mlax.conv(**hparams)
    with pytest.raises(error, match=f"^conv: expected {text}"):
        mlax.conv.init(KEY, IMAGE, **hparams)


@pytest.mark.parametrize(
    ("hparams", "text"),
    [
        ({"filter_shape": (3,)}, r"filter_shape to be .* 2 of them.*, got \(3,\)"),
        ({"strides": (1, 1, 1)}, r"strides to be .* 2 of them.*, got \(1, 1, 1\)"),
        ({"padding": [1]}, r"padding to be .* 2 integers or pairs.*, got \(1,\)"),
        ({"padding": ((1, 1),)}, r"padding to be .* 2 integers or pairs.*, got \(\(1, 1\),\)"),
        ({"input_dilation": [2]}, r"input_dilation to be .*, got \(2,\)"),
        ({"filter_dilation": ()}, r"filter_dilation to be .*, got \(\)"),
        ({"feature_group_count": 3}, r"feature_group_count to be .*in_channels \(4\), got 3"),
        (
            {"feature_group_count": 4, "out_channels": 6},
            r"feature_group_count to be .*out_channels \(6\), got 4",
        ),
        ({"batch_group_count": 2}, "batch_group_count to be 1, got 2"),
        ({"data_format": ("HWDC", "HWDIO", "HWDC")}, r"data_format to be .*\(6, 5, 4\).*HWDIO"),
    ],
)
def test_argument_that_does_not_fit_raises(
    hparams: dict[str, Any],  # values of many types
    text: str,
) -> None:
    hparams = dict[str, Any](out_channels=4, filter_shape=2, kernel_initializer=drawn) | hparams
    init, _ = mlax.conv(**hparams)
    with pytest.raises(ValueError, match=f"^conv: expected {text}"):
        init(KEY, IMAGE)


def test_initializer_that_returns_another_shape_raises() -> None:
    with pytest.raises(ValueError, match=r"^conv: .*kernel_initializer .*\(2, 2, 4, 3\), got \(\)"):
        mlax.conv.init(KEY, IMAGE, 3, 2, kernel_initializer=lambda key, shape, dtype: jnp.ones(()))


@pytest.mark.parametrize("shape", [(6, 5, 3), (2, 6, 5, 4), (5, 4), ()])
def test_input_of_another_shape_raises(shape: tuple[int, ...]) -> None:
    params, state = mlax.conv.init(KEY, IMAGE, 3, 2, kernel_initializer=drawn)
    got = str(shape).replace("(", r"\(").replace(")", r"\)")
    wanted = f"^conv: expected x with 2 spatial axes and 4 channels.*got shape {got}"
    with pytest.raises(ValueError, match=wanted):
        mlax.conv.apply(params, state, jnp.ones(shape))


@pytest.mark.parametrize(("shape", "got"), [((), r"\(\)"), ((4,), r"\(4,\)")])
def test_input_without_spatial_axes_raises(shape: tuple[int, ...], got: str) -> None:
    with pytest.raises(ValueError, match=f"^conv: expected x with at least 2 axes, got .*{got}"):
        mlax.conv.init(KEY, jax.ShapeDtypeStruct(shape, jnp.float32), 3, 2)


def test_integers_with_a_floating_kernel_raise() -> None:
    integers = jax.ShapeDtypeStruct(IMAGE.shape, jnp.uint8)
    with pytest.raises(TypeError, match="^conv: expected x .* floating dtype.*got uint8"):
        mlax.conv.init(KEY, integers, 3, 2)
    params, state = mlax.conv.init(KEY, IMAGE, 3, 2, kernel_initializer=drawn)
    with pytest.raises(TypeError, match="^conv: expected x .* floating dtype.*got uint8"):
        mlax.conv.apply(params, state, jnp.ones(IMAGE.shape, jnp.uint8))


def test_a_window_that_fits_nowhere_raises() -> None:
    x = jnp.ones((5, 5, 3))
    params, state = mlax.conv.init(KEY, x, 4, 9)
    with pytest.raises(
        ValueError, match=r"^conv: expected a window that fits .*\(5, 5, 3\); pad x"
    ):
        mlax.conv.apply(params, state, x)


def test_nothing_of_nothing() -> None:
    x = jnp.ones((0, 5, 3))
    params, state = mlax.conv.init(KEY, x, 4, 3, padding="SAME")
    assert mlax.conv.apply(params, state, x)[0].shape == (0, 5, 4)
