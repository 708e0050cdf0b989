"""The documented interface: paths, bases, and names, order and defaults of all arguments."""

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import pytest

import mlax
from mlax.nn.base import OverPair, PairModule, PairModuleRng
from mlax.nn.child import Composite

REQUIRED = inspect.Parameter.empty


class AnInitializer:
    """Stands for a default that the documentation shows as a function without a name."""

    def __eq__(self, other: object) -> bool:
        """Return whether other is a function."""
        return callable(other) and other is not REQUIRED

    def __hash__(self) -> int:
        """Return the hash of the class."""
        return hash(AnInitializer)


VARIANCE_SCALING = AnInitializer()
ZEROS = jax.nn.initializers.zeros
ONES = jax.nn.initializers.ones

WINDOW: dict[str, Any] = {
    "window_shape": REQUIRED,
    "strides": 1,
    "padding": "VALID",
    "input_dilation": None,
    "window_dilation": None,
    "data_format": "channel_last",
}

CLASSES: dict[str, dict[str, Any]] = {
    "mlax.nn.bias.Bias": {
        "rng": REQUIRED,
        "in_features": REQUIRED,
        "bias_initializer": ZEROS,
        "dtype": jnp.float32,
    },
    "mlax.nn.conv.Conv": {
        "rng": REQUIRED,
        "out_channels": REQUIRED,
        "filter_shape": REQUIRED,
        "strides": 1,
        "padding": "VALID",
        "input_dilation": None,
        "filter_dilation": None,
        "feature_group_count": 1,
        "batch_group_count": 1,
        "data_format": "channel_last",
        "precision": None,
        "accum_dtype": None,
        "kernel_initializer": VARIANCE_SCALING,
        "dtype": jnp.float32,
    },
    "mlax.nn.embed.Embed": {
        "rng": REQUIRED,
        "vocab_size": REQUIRED,
        "embed_dim": REQUIRED,
        "embed_initializer": VARIANCE_SCALING,
        "dtype": jnp.float32,
    },
    "mlax.nn.f.F": {"train_fn": REQUIRED, "infer_fn": None},
    "mlax.nn.f.FRng": {"train_fn": REQUIRED, "infer_fn": None},
    "mlax.nn.linear.Linear": {
        "rng": REQUIRED,
        "out_features": REQUIRED,
        "precision": None,
        "accum_dtype": None,
        "transposed_kernel": False,
        "kernel_initializer": VARIANCE_SCALING,
        "dtype": jnp.float32,
    },
    "mlax.nn.parallel.Parallel": {"layers": REQUIRED},
    "mlax.nn.parallel.ParallelRng": {"layers": REQUIRED},
    "mlax.nn.recurrent.Recurrent": {"cell": REQUIRED, "reverse": False, "unroll": 1},
    "mlax.nn.recurrent.RecurrentRng": {"cell": REQUIRED, "reverse": False, "unroll": 1},
    "mlax.nn.scaler.Scaler": {
        "rng": REQUIRED,
        "in_features": REQUIRED,
        "scaler_initializer": ONES,
        "dtype": jnp.float32,
    },
    "mlax.nn.series.Series": {"layers": REQUIRED},
    "mlax.nn.series.SeriesRng": {"layers": REQUIRED},
    "mlax.nn.z_norm.ZNorm": {
        "rng": REQUIRED,
        "axis": REQUIRED,
        "epsilon": 1e-05,
        "momentum": 0.9,
        "mean_initializer": ZEROS,
        "variance_initializer": ONES,
        "dtype": jnp.float32,
    },
}

NEEDING_A_KEY = ("FRng", "ParallelRng", "RecurrentRng", "SeriesRng")

FUNCTIONS: dict[str, dict[str, Any]] = {
    "apply_attention_weights": {"attention_weights": REQUIRED, "value": REQUIRED},
    "avg_pool": {"x": REQUIRED, **WINDOW},
    "dot_product_attention_logits": {"query": REQUIRED, "key": REQUIRED},
    "dropout": {"x": REQUIRED, "rng": REQUIRED, "rate": REQUIRED, "axis": REQUIRED},
    "identity": {"xs": REQUIRED},
    "max_pool": {"x": REQUIRED, **WINDOW},
    "pool": {"x": REQUIRED, "init_value": REQUIRED, "reduce_fn": REQUIRED, **WINDOW},
    "sum_pool": {"x": REQUIRED, **WINDOW},
    "z_norm": {"x": REQUIRED, "axis": REQUIRED, "batch_axis_name": (), "epsilon": 1e-05},
}

PAIRS: dict[str, dict[str, Any]] = {
    "bias": CLASSES["mlax.nn.bias.Bias"],
    "conv": CLASSES["mlax.nn.conv.Conv"],
    "embed": CLASSES["mlax.nn.embed.Embed"],
    "f": CLASSES["mlax.nn.f.F"],
    "f_rng": CLASSES["mlax.nn.f.FRng"],
    "linear": CLASSES["mlax.nn.linear.Linear"],
    "recurrent": CLASSES["mlax.nn.recurrent.Recurrent"],
    "scaler": CLASSES["mlax.nn.scaler.Scaler"],
    "z_norm": CLASSES["mlax.nn.z_norm.ZNorm"],
    "parallel": CLASSES["mlax.nn.parallel.Parallel"],
    "series": CLASSES["mlax.nn.series.Series"],
    **{name: FUNCTIONS[name] for name in ("avg_pool", "dropout", "max_pool", "pool", "sum_pool")},
}
"""The class or function that a pair corresponds to, whose arguments it has without rng and x."""


def defaults(function: Any) -> dict[str, Any]:
    """Return the arguments of a function in order, with their defaults."""
    parameters = inspect.signature(function).parameters.values()
    return {parameter.name: parameter.default for parameter in parameters}


def assert_arguments(function: Any, expected: Mapping[str, Any]) -> None:
    """Require these arguments, in this order, with these defaults."""
    assert list(defaults(function).items()) == list(expected.items())


def find(path: str) -> tuple[Any, Any]:
    """Return the module and the object at a path."""
    module_path, _, name = path.rpartition(".")
    module = importlib.import_module(module_path)
    return module, getattr(module, name)


@pytest.mark.parametrize("path", CLASSES)
def test_class(path: str) -> None:
    module, cls = find(path)
    assert cls.__module__ == module.__name__
    assert cls.__qualname__ == path.rpartition(".")[2]
    (base,) = cls.__bases__
    if base.__name__.startswith("_"):  # shared by a class and its twin that needs a key
        assert base.__module__ == module.__name__
        (base,) = base.__bases__
    assert base in (Composite, OverPair, PairModule, PairModuleRng)
    assert issubclass(cls, mlax.Module)
    assert getattr(mlax.nn, cls.__name__) is cls
    assert_arguments(cls, CLASSES[path])
    for parameter in inspect.signature(cls).parameters.values():
        assert parameter.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD


@pytest.mark.parametrize("path", CLASSES)
def test_forward_and_setup(path: str) -> None:
    _, cls = find(path)
    x = "xh" if "Recurrent" in path else "x"
    assert_arguments(cls.setup, {"self": REQUIRED, x: REQUIRED})
    assert_arguments(
        cls.forward,
        {
            "self": REQUIRED,
            x: REQUIRED,
            "rng": REQUIRED if cls.__name__ in NEEDING_A_KEY else None,
            "inference_mode": False,
            "batch_axis_name": (),
        },
    )


@pytest.mark.parametrize("path", CLASSES)
@pytest.mark.parametrize("method", ["__call__", "apply"])
def test_calls(path: str, method: str) -> None:
    _, cls = find(path)
    assert_arguments(
        getattr(cls, method),
        {
            "self": REQUIRED,
            "x": REQUIRED,
            "rng": REQUIRED,
            "inference_mode": False,
            "batch_axis_name": (),
        },
    )


@pytest.mark.parametrize("name", FUNCTIONS)
def test_function(name: str) -> None:
    _, function = find(f"mlax.nn.functional.{name}")
    assert_arguments(function, FUNCTIONS[name])
    assert getattr(mlax.functional, name) is function


def test_identity_takes_any_number_of_arguments() -> None:
    (parameter,) = inspect.signature(mlax.nn.functional.identity).parameters.values()
    assert parameter.kind is inspect.Parameter.VAR_POSITIONAL


@pytest.mark.parametrize("name", PAIRS)
def test_pair(name: str) -> None:
    pair = getattr(mlax, name)
    hparams = {key: value for key, value in PAIRS[name].items() if key not in ("rng", "x")}
    if "layers" in hparams:
        found = defaults(pair)
        assert found.pop("layers") is REQUIRED
        assert "rng" not in found
    else:
        if name in ("linear", "conv", "embed"):
            hparams["out_sharding"] = None  # the only one that is not documented
        assert_arguments(pair, hparams)
        assert_arguments(pair.init, {"rng": REQUIRED, "x": REQUIRED, **hparams})
    assert_arguments(
        pair.apply,
        {
            "params": REQUIRED,
            "state": REQUIRED,
            "x": REQUIRED,
            "rng": None,
            "inference_mode": False,
            "batch_axis_name": (),
        },
    )


@pytest.mark.parametrize(
    ("method", "expected"),
    {
        "filter": {"f": mlax.is_trainable_param, "inverse": False},
        "partition": {"f": mlax.is_trainable_param},
        "filter_with_path": {"f": REQUIRED, "inverse": False},
        "partition_with_path": {"f": REQUIRED},
        "combine": {"others": REQUIRED},
        "setup": {"x": REQUIRED},
    }.items(),
)
def test_method_of_module(method: str, expected: dict[str, Any]) -> None:
    assert_arguments(getattr(mlax.Module, method), {"self": REQUIRED, **expected})


def test_parameter() -> None:
    assert_arguments(mlax.Parameter, {"trainable": REQUIRED, "data": None})


@pytest.mark.parametrize(
    "name",
    ["Module", "Parameter", "is_leaf_param", "is_non_trainable_param", "is_trainable_param"],
)
def test_object_base(name: str) -> None:
    _, found = find(f"mlax.module.{name}")
    assert found.__module__ == "mlax.module"
    assert getattr(mlax, name) is found


def test_initializers_scale_the_variance() -> None:
    """Defaults known only as variance_scaling take the arguments of such an initializer."""
    for path, name in (
        ("mlax.nn.linear.Linear", "kernel_initializer"),
        ("mlax.nn.conv.Conv", "kernel_initializer"),
        ("mlax.nn.embed.Embed", "embed_initializer"),
    ):
        initializer = defaults(find(path)[1])[name]
        value = initializer(jax.random.key(0), (64, 64), jnp.float32)
        assert 0.5 / 64 < jnp.var(value) < 2 / 64
