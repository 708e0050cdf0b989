"""How far each layer is from the exact result, in each floating dtype.

`LIMITS` holds the largest error that each layer may have, in units of the last place. The exact
result is that of NumPy in `np.longdouble`, of the very x, params and variables that the layer gets,
which are all numbers of the dtype. The unit of y[i] is the distance between neighbouring numbers
of the dtype of y around y[i], or around the root mean square of y if y[i] is smaller, since a sum
that nearly cancels can't be closer than its terms are. So 0.5 is a result that is rounded once.

The limits are twice what was measured with several versions of JAX, for sums in other orders,
and 0.51 for what is rounded once.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.typing import DTypeLike

import mlax
from mlax import functional
from mlax.arguments import AnyLayer
from mlax.combinators import Combinator
from mlax.layers.z_norm import ZNormVariables

from ..laws.registry import pairs
from . import oracle
from .oracle import Array

KEY = jax.random.key(0)
DTYPES = ("float16", "bfloat16", "float32", "float64")

# Row: layer. Columns: float16, bfloat16, float32, float64.
# fmt: off
LIMITS: dict[str, tuple[float, float, float, float]] = {
    "linear": (0.51, 0.51, 8.5, 5.0),
    "linear, transposed": (0.51, 0.51, 5.8, 4.8),
    "dense": (2.2, 1.6, 8.0, 6.3),
    "attention": (2.1, 1.8, 7.0, 10.0),
    "functional.chunked_attention": (0.9, 1.1, 3.1, 2.6),
    "position_embedding": (0.51, 0.51, 0.51, 0.51),
    "bias": (0.51, 0.51, 0.51, 0.51),
    "scaler": (0.51, 0.51, 0.51, 0.51),
    "add": (0.51, 0.51, 0.51, 0.51),
    "multiply": (0.51, 0.51, 0.51, 0.51),
    "concatenate": (0.0, 0.0, 0.0, 0.0),
    "conv": (0.51, 0.51, 5.5, 6.7),
    "conv, in groups": (0.51, 0.51, 6.2, 4.9),
    "conv_transpose": (0.51, 0.51, 4.7, 5.1),
    "depthwise_conv": (0.51, 0.51, 3.5, 4.1),
    "separable_conv": (1.8, 2.1, 3.7, 4.1),
    "embed": (0.0, 0.0, 0.0, 0.0),
    "max_pool": (0.0, 0.0, 0.0, 0.0),
    "avg_pool": (0.51, 0.51, 2.4, 2.5),
    "sum_pool": (0.51, 0.51, 2.2, 2.8),
    "pool": (3.2, 2.2, 2.3, 2.3),
    "global_avg_pool": (0.51, 0.51, 1.7, 9.0),
    "adaptive_avg_pool": (0.51, 0.51, 2.3, 1.8),
    "z_norm": (0.51, 0.51, 3.6, 4.1),
    "z_norm, far from zero": (0.51, 1.5, 4.3, 3.3),
    "z_norm, statistics": (1.6, 1.5, 1.7, 1.4),
    "z_norm, inference": (0.51, 0.51, 3.4, 3.4),
    "batch_norm": (0.51, 0.51, 3.6, 3.6),
    "batch_norm, far from zero": (0.55, 0.51, 4.6, 3.4),
    "batch_norm, statistics": (2.0, 2.6, 2.1, 1.3),
    "batch_norm, inference": (0.51, 0.51, 4.7, 4.9),
    "layer_norm": (0.51, 0.51, 3.5, 7.6),
    "layer_norm, far from zero": (0.51, 0.51, 6.3, 4.9),
    "rms_norm": (0.51, 0.51, 3.3, 3.2),
    "group_norm": (0.51, 0.51, 5.0, 2.0),
    "group_norm, far from zero": (0.51, 0.51, 3.9, 2.4),
    "instance_norm": (0.51, 0.51, 3.6, 2.7),
    "rnn_cell": (1.3, 1.8, 10.8, 9.0),
    "lstm_cell": (2.3, 5.0, 8.8, 6.7),
    "gru_cell": (2.5, 2.9, 5.2, 11.6),
    "lru_cell": (2.0, 1.8, 5.2, 5.7),
    "lru": (3.2, 2.2, 4.9, 5.1),
    "selective_ssm_cell": (1.4, 3.1, 4.5, 5.4),
    "selective_ssm": (2.4, 2.1, 7.2, 6.1),
    "min_gru_cell": (1.4, 2.1, 6.6, 3.3),
    "min_gru": (1.9, 1.7, 8.0, 7.4),
    "functional.linear_recurrence": (0.51, 0.51, 1.1, 1.2),
    "dropout": (2.9, 1.5, 1.8, 1.7),
    "functional.z_norm": (0.51, 0.51, 4.0, 4.0),
    "functional.dot_product_attention_logits": (2.1, 1.1, 2.8, 5.7),
    "functional.apply_attention_weights": (0.51, 0.51, 3.8, 2.2),
}
# fmt: on

NOT_NUMERIC = {
    "as_layer": "the module is the user's",
    "f": "the function is the user's",
    "f_rng": "the function is the user's",
    "flatten": "it moves numbers",
    "from_linen": "the module is the user's",
    "from_stax": "the layer is the user's",
    "mamba_block": "its layers have rows",
    "mlp": "its layers have rows",
    "parameter": "it returns its params",
    "relative_bias": "it returns its params",
    "transformer_block": "its layers have rows",
}


class Case(NamedTuple):
    """A layer, an input, and the same thing in NumPy."""

    layer: AnyLayer | Callable[[DTypeLike], AnyLayer]
    """The layer, or a function of the dtype."""
    x: Any
    """A pytree of NumPy arrays."""
    exact: Callable[[Any, Any, Any], Any]
    """Maps params, variables and x to y and the next variables."""
    inference_mode: bool = False
    """The mode."""
    result: int = 0
    """Which result is measured: 0 for y, 1 for the next variables."""


def normal(*shape: int) -> Array:
    """Return numbers of both signs that need all digits of float64."""
    return np.random.default_rng(len(shape)).normal(size=shape)


def of(layer: Any, x: Any, exact: Callable[[Any, Any], Any]) -> Case:
    """Return the case of a layer without variables."""
    return Case(layer, x, lambda params, variables, x: (exact(params, x), variables))


def affine(params: Any, y: Array, axes: tuple[int, ...]) -> Array:
    """Return y * scale + bias; both span these axes."""
    scaled: Array = y * oracle.along(params.scale, axes, y.ndim)
    if params.bias is None:
        return scaled
    biased: Array = scaled + oracle.along(params.bias, axes, y.ndim)
    return biased


def running(variables: Any, x: Array, axes: tuple[int, ...]) -> ZNormVariables:
    """Return the next running statistics, with momentum 0.9."""
    momentum = x.dtype.type(0.9)
    new = [moment.squeeze(axes) for moment in oracle.moments(x, axes)]
    pairs_of_old_and_new = zip(variables, new, strict=True)
    return ZNormVariables(*(momentum * a + (1 - momentum) * b for a, b in pairs_of_old_and_new))


def z_normed(params: Any, variables: Any, x: Array) -> Any:
    """Return z_norm over the first two axes in training."""
    return oracle.standardized(x, (0, 1), 1e-5), running(variables, x, (0, 1))


def batch_normed(params: Any, variables: Any, x: Array) -> Any:
    """Return batch_norm in training."""
    y, after = z_normed(params, variables, x)
    return affine(params, y, (2,)), after


def normed_by_running(params: Any, variables: Any, x: Array) -> Any:
    """Return z_norm in inference."""
    epsilon = x.dtype.type(1e-5)
    return (x - variables.mean) / np.sqrt(variables.var + epsilon), variables


def batch_normed_by_running(params: Any, variables: Any, x: Array) -> Any:
    """Return batch_norm in inference."""
    y, after = normed_by_running(params, variables, x)
    return affine(params, y, (2,)), after


def kept(rate: float, x: Array) -> Array:
    """Return what dropout of the last axis with `KEY` makes of x."""
    mask = np.asarray(jax.random.bernoulli(KEY, 1 - rate, x.shape[-1:]))
    dropped: Array = np.where(mask, x / x.dtype.type(1 - rate), 0)
    return dropped


def attention_logits(xs: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Return the logits of (query, key)."""
    return functional.dot_product_attention_logits(*xs)


def attended(xs: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Return the values of (weights, value), weighted."""
    return functional.apply_attention_weights(*xs)


def chunked(xs: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
    """Return attention of (query, key, value), two by two."""
    return functional.chunked_attention(*xs, chunk_length=2)


def recurred(xs: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Return the linear recurrence of (decay, x)."""
    return functional.linear_recurrence(*xs)


def attention_of_two_heads(params: Any, x: Array) -> Array:
    """Return self-attention with two heads."""
    parts = params.query, params.key, params.value
    heads = [(x @ p.kernel + p.bias).reshape(len(x), 2, -1) for p in parts]
    y: Array = oracle.attention(*heads).reshape(x.shape) @ params.output.kernel + params.output.bias
    return y


def functional_z_norm(x: jax.Array) -> jax.Array:
    """Return x normalised over the last axis."""
    return functional.z_norm(x, -1)


def pooled(x: Array, fill: float = 0.0) -> Array:
    """Return the windows of length 3 and stride 2 as one axis before the channels."""
    seen = oracle.windows(x, (3, 3), (2, 2), ((1, 1), (1, 1)), (1, 1), (1, 1), fill)
    return seen.reshape(*seen.shape[:2], 9, -1)


IMAGE = normal(7, 6, 4)
ROWS = normal(3, 64)
SHIFTED = normal(6, 5, 4) + 1000
CARRY = normal(2, 8) / 2
PAIR = {"a": normal(3, 5), "b": normal(5, 3).T}
WINDOW: dict[str, Any] = {"window_shape": 3, "strides": 2, "padding": 1}

CASES = {
    "linear": of(mlax.linear(8), ROWS, lambda p, x: x @ p.kernel),
    "linear, transposed": of(
        mlax.linear(8, transposed_kernel=True), ROWS, lambda p, x: x @ p.kernel.T
    ),
    "dense": of(mlax.dense(8), ROWS, lambda p, x: x @ p.kernel + p.bias),
    "attention": of(mlax.attention(2), ROWS, attention_of_two_heads),
    "functional.chunked_attention": of(
        mlax.f(chunked), (normal(6, 2, 4), normal(5, 2, 4), normal(5, 2, 4)),
        lambda p, xs: oracle.attention(*xs),
    ),
    "position_embedding": of(mlax.position_embedding(8), ROWS, lambda p, x: x + p.embedding[:3]),
    "bias": of(mlax.bias((0, -1)), ROWS, lambda p, x: x + p.bias),
    "scaler": of(mlax.scaler((0, -1)), ROWS, lambda p, x: x * p.scale),
    "add": of(mlax.add(), PAIR, lambda p, x: x["a"] + x["b"]),
    "multiply": of(mlax.multiply(), PAIR, lambda p, x: x["a"] * x["b"]),
    "concatenate": of(mlax.concatenate(), PAIR, lambda p, x: np.hstack([x["a"], x["b"]])),
    "conv": of(
        mlax.conv(3, 3, 2, "SAME"),
        IMAGE,
        lambda p, x: oracle.conv(x, p.kernel, (2, 2), "SAME", (1, 1), (1, 1)),
    ),
    "conv, in groups": of(
        mlax.conv(4, 3, feature_group_count=2, filter_dilation=2, padding=2),
        IMAGE,
        lambda p, x: oracle.conv(x, p.kernel, (1, 1), 2, (1, 1), (2, 2), 2),
    ),
    "conv_transpose": of(
        mlax.conv_transpose(3, filter_shape=3, strides=2),
        IMAGE,
        lambda p, x: oracle.conv_transpose(x, p.kernel, (2, 2), (1, 1)),
    ),
    "depthwise_conv": of(
        mlax.depthwise_conv(3, channel_multiplier=2),
        IMAGE,
        lambda p, x: oracle.conv(x, p.kernel, (1, 1), "VALID", (1, 1), (1, 1), 4),
    ),
    "separable_conv": of(
        mlax.separable_conv(3, filter_shape=3),
        IMAGE,
        lambda p, x: (
            oracle.conv(x, p["depthwise"].kernel, (1, 1), "VALID", (1, 1), (1, 1), 4)
            @ p["pointwise"].kernel[:, 0, 0].T
        ),
    ),
    "embed": of(
        lambda dtype: mlax.embed(5, 8, dtype=dtype),
        np.array([[0, 4], [2, 2]]),
        lambda p, x: p.embedding[x],
    ),
    "max_pool": of(mlax.max_pool(**WINDOW), IMAGE, lambda p, x: pooled(x, -np.inf).max(2)),
    "avg_pool": of(mlax.avg_pool(**WINDOW), IMAGE, lambda p, x: pooled(x).mean(2)),
    "sum_pool": of(mlax.sum_pool(**WINDOW), IMAGE, lambda p, x: pooled(x).sum(2)),
    "pool": of(mlax.pool(1.0, lax.mul, **WINDOW), IMAGE, lambda p, x: pooled(x, 1.0).prod(2)),
    "global_avg_pool": of(mlax.global_avg_pool(), IMAGE, lambda p, x: x.mean((0, 1))),
    "adaptive_avg_pool": of(
        mlax.adaptive_avg_pool((2, 4)), IMAGE, lambda p, x: oracle.adaptive_avg_pool(x, (2, 4))
    ),
    "z_norm": Case(mlax.z_norm((0, 1)), IMAGE, z_normed),
    "z_norm, far from zero": Case(mlax.z_norm((0, 1)), SHIFTED, z_normed),
    "z_norm, statistics": Case(mlax.z_norm((0, 1)), SHIFTED, z_normed, result=1),
    "z_norm, inference": Case(mlax.z_norm((0, 1)), IMAGE, normed_by_running, True),
    "batch_norm": Case(mlax.batch_norm(), IMAGE, batch_normed),
    "batch_norm, far from zero": Case(mlax.batch_norm(), SHIFTED, batch_normed),
    "batch_norm, statistics": Case(mlax.batch_norm(), SHIFTED, batch_normed, result=1),
    "batch_norm, inference": Case(mlax.batch_norm(), IMAGE, batch_normed_by_running, True),
    "layer_norm": of(
        mlax.layer_norm(),
        ROWS,
        lambda p, x: affine(p, oracle.standardized(x, (1,), 1e-5), (1,)),
    ),
    "layer_norm, far from zero": of(
        mlax.layer_norm(axis="all"),
        SHIFTED,
        lambda p, x: affine(p, oracle.standardized(x, (0, 1, 2), 1e-5), (0, 1, 2)),
    ),
    "rms_norm": of(
        mlax.rms_norm(), ROWS, lambda p, x: affine(p, oracle.rms_norm(x, (1,), 1e-6), (1,))
    ),
    "group_norm": of(
        mlax.group_norm(2), IMAGE, lambda p, x: affine(p, oracle.group_norm(x, 2, 1e-5), (2,))
    ),
    "group_norm, far from zero": of(
        mlax.group_norm(2), SHIFTED, lambda p, x: affine(p, oracle.group_norm(x, 2, 1e-5), (2,))
    ),
    "instance_norm": of(
        mlax.instance_norm(),
        IMAGE,
        lambda p, x: affine(p, oracle.standardized(x, (0, 1), 1e-5), (2,)),
    ),
    "rnn_cell": of(
        mlax.rnn_cell(8),
        (ROWS[:2, :16], CARRY),
        lambda p, x: (y := oracle.rnn_cell(*x, *p), y),
    ),
    "lstm_cell": of(
        mlax.lstm_cell(8),
        (ROWS[:2, :16], (CARRY, CARRY[::-1])),
        lambda p, x: ((new := oracle.lstm_cell(x[0], *x[1], *p))[0], new),
    ),
    "gru_cell": of(
        mlax.gru_cell(8),
        (ROWS[:2, :16], CARRY),
        lambda p, x: (y := oracle.gru_cell(*x, *p), y),
    ),
    "lru_cell": of(
        mlax.lru_cell(6),
        (ROWS[:2, :16], (CARRY[:, :6], CARRY[::-1, :6])),
        lambda p, x: oracle.lru_cell(x[0], *x[1], *p),
    ),
    "lru": of(
        mlax.lru(6),
        (ROWS[:, :16], (CARRY[0, :6], CARRY[1, :6])),
        lambda p, x: oracle.over_time(lambda x, h: oracle.lru_cell(x, *h, *p), *x),
    ),
    "selective_ssm_cell": of(
        mlax.selective_ssm_cell(4),
        (ROWS[:2, :6], normal(2, 6, 4)),
        lambda p, x: oracle.selective_ssm_cell(*x, *p),
    ),
    "selective_ssm": of(
        mlax.selective_ssm(4),
        (ROWS[:, :6], normal(6, 4)),
        lambda p, x: oracle.over_time(lambda x, h: oracle.selective_ssm_cell(x, h, *p), *x),
    ),
    "min_gru_cell": of(
        mlax.min_gru_cell(8),
        (ROWS[:2, :16], CARRY),
        lambda p, x: oracle.min_gru_cell(*x, *p),
    ),
    "min_gru": of(
        mlax.min_gru(8),
        (ROWS[:, :16], CARRY[0]),
        lambda p, x: oracle.over_time(lambda x, h: oracle.min_gru_cell(x, h, *p), *x),
    ),
    "functional.linear_recurrence": of(
        mlax.f(recurred),
        (ROWS / 4, ROWS[::-1]),
        lambda p, x: oracle.over_time(
            lambda terms, h: (terms[0] * h + terms[1],) * 2, np.stack(x, 1), 0 * x[1][0]
        )[0],
    ),
    "dropout": of(mlax.dropout(0.3, -1), ROWS, lambda p, x: kept(0.3, x)),
    "functional.z_norm": of(
        mlax.f(functional_z_norm), ROWS, lambda p, x: oracle.standardized(x, (1,), 1e-5)
    ),
    "functional.dot_product_attention_logits": of(
        mlax.f(attention_logits),
        (ROWS[:2, :48], ROWS[::-1, 16:]),
        lambda p, x: x[0] @ x[1].T / np.sqrt(x[0].dtype.type(48)),
    ),
    "functional.apply_attention_weights": of(
        mlax.f(attended), (ROWS[:2, :48], ROWS.T[:48]), lambda p, x: x[0] @ x[1]
    ),
}


def cast(tree: Any, dtype: DTypeLike) -> Any:
    """Return the tree with its floating leaves in another dtype."""
    return jax.tree.map(
        lambda leaf: jnp.asarray(leaf, dtype if leaf.dtype.kind == "f" else leaf.dtype), tree
    )


def wide(tree: Any) -> Any:
    """Return the floating leaves of a tree in the widest dtype of NumPy."""
    return jax.tree.map(
        lambda leaf: (
            np.asarray(leaf, np.float64).astype(np.longdouble)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
            else np.asarray(leaf)
        ),
        tree,
    )


def filled(tree: Any, dtype: DTypeLike) -> Any:
    """Return a tree of positive numbers of `dtype`, in dtypes that are at least as wide."""
    rng = np.random.default_rng(1)
    return jax.tree.map(
        lambda leaf: jnp.asarray(rng.uniform(0.1, 1.5, leaf.shape), dtype).astype(
            jnp.promote_types(leaf.dtype, dtype)
        ),
        tree,
    )


def error_of(got: jax.Array, exact: Array) -> float:
    """Return the largest error in units of the last place, as defined above."""
    typical = np.sqrt(np.mean(np.square(exact)))
    size = np.maximum(np.abs(exact), typical)
    unit = np.exp2(np.floor(np.log2(size))) * float(jnp.finfo(got.dtype).eps)
    return float(np.max(np.abs(wide(got) - exact) / unit))


def measured(case: Case, dtype: DTypeLike) -> float:
    """Return the largest error of a result, in units of the dtype that it has."""
    with jax.enable_x64(True):
        x = cast(case.x, dtype)
        layer = case.layer if isinstance(case.layer, mlax.Layer) else case.layer(dtype)
        params, state = filled(jax.eval_shape(layer.init, KEY, x), dtype)
        key = KEY if layer.needs_rng else None
        run = jax.jit(layer.apply, static_argnames="inference_mode")
        y, after = run(params, state, x, key, inference_mode=case.inference_mode)
        exact = case.exact(wide(params), wide(state.variables), wide(x))[case.result]
    assert {leaf.dtype for leaf in jax.tree.leaves(y)} == {jnp.dtype(dtype)}
    got = (y, after.variables)[case.result]
    assert jax.tree.structure(got) == jax.tree.structure(exact)
    pairs_of_leaves = zip(jax.tree.leaves(got), jax.tree.leaves(exact), strict=True)
    return max(error_of(a, b) for a, b in pairs_of_leaves)


@pytest.mark.parametrize("name", CASES)
def test_error(name: str) -> None:
    errors = [measured(CASES[name], dtype) for dtype in DTYPES]
    limits = LIMITS[name]
    assert all(error <= limit for error, limit in zip(errors, limits, strict=True)), errors


def test_every_numeric_layer_has_a_row() -> None:
    public = {name for name, pair in pairs().items() if not isinstance(pair, Combinator)}
    functions = set(functional.__all__) - {"batch_mean", "identity"}
    wanted = public - set(NOT_NUMERIC)
    wanted |= {f"functional.{name}" for name in functions if name not in public}
    wanted.add("functional.z_norm")  # without running statistics
    assert LIMITS.keys() == CASES.keys() >= wanted
