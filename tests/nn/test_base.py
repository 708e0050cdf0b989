"""What the classes over a pair have in common: hyperparameters and parameters as attributes."""

import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlax import nn
from mlax.nn.base import PairModule, PairModuleRng

KEY = jax.random.key(0)
X = jnp.array([[1.0, -2.0, 3.0, 5.0], [0.5, 0.0, 1.0, -4.0], [2.0, 3.0, -1.0, 0.0]])
ones, normal = jax.nn.initializers.ones, jax.random.normal

PUBLIC: list[Any] = [getattr(nn, name) for name in nn.__all__]
CLASSES: list[Any] = [
    cls
    for cls in PUBLIC
    if isinstance(cls, type) and issubclass(cls, PairModule | PairModuleRng)
]
of_each = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


@of_each
def test_the_constructor_has_the_hyperparameters_of_the_pair(cls: Any) -> None:
    parameters = list(inspect.signature(cls).parameters.values())
    if cls._params[1] or cls._variables[1]:
        assert parameters.pop(0).name == "rng"
    of_pair = cls._pair.__signature__.parameters.values()
    assert [(p.name, p.kind, p.default) for p in parameters] == [
        (p.name, p.kind, p.default)
        for p in of_pair
        if not hasattr(cls, p.name)  # then it is set by hand, or fixed
    ]


@of_each
def test_the_config_of_the_pair_is_made_of_hyperparameters(cls: Any) -> None:
    assert set(cls._pair.config._fields) <= {*cls._pair.__signature__.parameters, "ndim"}


ATTRIBUTES: list[tuple[Any, dict[str, Any]]] = [
    (
        nn.Dense(KEY, 3, use_bias=False, kernel_initializer=normal, dtype=jnp.bfloat16),
        {"features": 3, "use_bias": False, "kernel_initializer": normal, "dtype": jnp.bfloat16},
    ),
    (
        nn.Attention(KEY, 4, 2, causal=True, window=3, fused=True, softcap=2, dtype=jnp.bfloat16),
        {"num_heads": 4, "num_kv_heads": 2, "head_dim": None, "causal": True, "window": 3,
         "fused": True, "softcap": 2, "dropout_rate": 0.0, "dtype": jnp.bfloat16},
    ),
    (nn.AttentionRng(KEY, 2, dropout_rate=0.5), {"num_heads": 2, "dropout_rate": 0.5}),
    (nn.Dropout(0.5, [0, 1]), {"rate": 0.5, "axis": (0, 1)}),
    (
        nn.BatchNorm(KEY, epsilon=1e-3, momentum=0.5, use_scale=False, data_format="CW"),
        {"epsilon": 1e-3, "momentum": 0.5, "use_scale": False, "use_bias": True,
         "data_format": "CW", "dtype": jnp.float32},
    ),
    (
        nn.LayerNorm(KEY, axis=(0, 1), use_bias=False, scaler_initializer=normal),
        {"axis": (0, 1), "epsilon": 1e-5, "use_scale": True, "use_bias": False,
         "scaler_initializer": normal},
    ),
    (nn.RMSNorm(KEY, axis="all", use_scale=False), {"axis": "all", "use_scale": False}),
    (nn.GroupNorm(KEY, 2, bias_initializer=ones), {"groups": 2, "bias_initializer": ones}),
    (nn.InstanceNorm(KEY, data_format="HWC"), {"data_format": "HWC", "epsilon": 1e-5}),
    (
        nn.MaxPool(2, [1, 2], "same", 1, (2,), "CW"),
        {"window_shape": 2, "strides": (1, 2), "padding": "SAME", "input_dilation": 1,
         "window_dilation": (2,), "data_format": "CW"},
    ),
    (nn.AvgPool((2, 3)), {"window_shape": (2, 3), "strides": 1, "padding": "VALID"}),
    (nn.SumPool(2, padding=1), {"window_shape": 2, "padding": 1, "input_dilation": None}),
    (nn.RNNCell(KEY, 3, activation=jnp.sin), {"features": 3, "activation": jnp.sin}),
    (nn.LSTMCell(KEY, 3, forget_bias=2.0), {"features": 3, "forget_bias": 2.0}),
    (nn.GRUCell(KEY, 3, recurrent_initializer=normal), {"recurrent_initializer": normal}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("module", "attributes"), ATTRIBUTES, ids=[type(module).__name__ for module, _ in ATTRIBUTES]
)
def test_hyperparameters_are_attributes(module: Any, attributes: dict[str, Any]) -> None:
    mapped = jax.tree.map(lambda leaf: leaf, module)
    for same in (module, mapped):
        assert {name: vars(same)[name] for name in attributes} == attributes


def grouped(groups: int) -> Any:
    """Return X normalised in groups of channels."""
    parts = np.asarray(X).reshape(3, groups, -1)
    centred = parts - parts.mean((0, 2), keepdims=True)
    return (centred / parts.std((0, 2), keepdims=True)).reshape(3, 4)


CHANGES: list[tuple[Callable[[], Any], Any, str, Any, Callable[[Any], Any]]] = [
    (
        lambda: nn.Dense(KEY, 2, bias_initializer=ones), X, "use_bias", False,
        lambda dense: np.asarray(X) @ np.asarray(dense.kernel.data),
    ),
    (lambda: nn.Dropout(0.5, 0), X, "rate", 0.0, lambda _: X),
    (
        lambda: nn.BatchNorm(KEY, use_bias=False), X, "epsilon", 3.0,
        lambda _: (np.asarray(X) - np.mean(X, 0)) / np.sqrt(np.var(X, 0) + 3.0),
    ),
    (lambda: nn.GroupNorm(KEY, 2, epsilon=0.0), X, "groups", 1, lambda _: grouped(1)),
    (lambda: nn.MaxPool(2), X, "window_shape", 3, lambda _: np.max(X, 0, keepdims=True)),
    (
        lambda: nn.SumPool(3), X, "padding", "SAME",
        lambda _: np.stack([np.sum(X[:2], 0), np.sum(X, 0), np.sum(X[1:], 0)]),
    ),
    (
        lambda: nn.RNNCell(KEY, 4, recurrent_initializer=jax.nn.initializers.zeros), (X[0], X[0]),
        "activation", jnp.square,
        lambda cell: (np.square(np.asarray(X[0]) @ np.asarray(cell.kernel.data)),) * 2,
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "x", "name", "value", "expected"), CHANGES, ids=[case[2] for case in CHANGES]
)
def test_a_hyperparameter_that_is_set_later_takes_effect(
    make: Callable[[], Any], x: Any, name: str, value: Any, expected: Callable[[Any], Any]
) -> None:
    traces = []

    @jax.jit
    def step(module: Any, x: Any) -> Any:
        traces.append(x)
        return module(x, KEY)

    _, module = make()(x, KEY)
    for _ in range(2):
        _, module = step(module, x)
    assert len(traces) == 1
    setattr(module, name, value)
    y, after = step(module, x)
    assert len(traces) == 2
    assert getattr(after, name) == value
    for result in (y, module(x, KEY)[0]):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
            result, expected(module),
        )  # fmt: skip
