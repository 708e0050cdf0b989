"""The names that are public for annotations: they exist at run time, and can be subscripted."""

import functools
import inspect
import pkgutil
from collections.abc import Callable
from types import UnionType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax import Array

import mlax
from mlax import types, typed
from mlax.combinators import Around, Transform, Wired

PARTS = (types.LinearParams, types.State[tuple[()], types.LinearConfig], Array, Array)


@pytest.mark.parametrize(
    ("generic", "arguments"),
    [
        (types.Layer, PARTS),
        (types.Apply, PARTS),
        (types.ApplyWithRng, PARTS),
        (types.Init, PARTS[:2]),
        (types.State, (tuple[()], types.LinearConfig)),
        (types.TupleState, (tuple[types.State[tuple[()], types.LinearConfig]],)),
        (types.Variables, (tuple[types.State[tuple[()], types.LinearConfig]],)),
        (types.Pair, ([int], *PARTS)),
        (types.Plan, PARTS),
        (types.MoeParams, PARTS[:1]),
        (typed.Jitted, ([Array], Array)),
        (Around, ([int], types.BatchedConfig)),
        (Transform, PARTS),
        (Wired, PARTS),
    ],
)
def test_generic_names_can_be_subscripted(generic: Any, arguments: tuple[Any, ...]) -> None:
    first, *rest = arguments
    made = generic[arguments if rest else first]

    def function(x: Any) -> None: ...

    function.__annotations__["x"] = made | None
    assert get_args(get_type_hints(function)["x"])[0] == made


def test_a_jitted_function_is_one() -> None:
    assert isinstance(typed.jit(lambda x: x), typed.Jitted)
    assert not isinstance(len, typed.Jitted)


def test_every_name_of_types_can_be_an_annotation() -> None:
    assert sorted(set(types.__all__)) == types.__all__
    for name in types.__all__:
        value = getattr(types, name)
        assert (value | None) is not None, name


def test_types_has_the_params_variables_and_configs_of_all_layers() -> None:
    found = set()
    for module in pkgutil.walk_packages(mlax.__path__, "mlax."):
        if module.name.startswith(("mlax.layers.", "mlax.combinators.", "mlax.blocks.")):
            for name, value in vars(pkgutil.resolve_name(module.name)).items():
                is_record = inspect.isclass(value) and hasattr(value, "_fields")
                if is_record and name.endswith(("Params", "Variables", "Config")):
                    found.add(name)
    assert {"DenseParams", "BatchedConfig", "ZNormVariables"} < found
    assert found - {"WindowConfig", "_NoConfig"} <= set(types.__all__)


def test_what_init_is_given_is_named_in_the_help() -> None:
    assert "mlax.Shaped" in inspect.getdoc(mlax.Layer)  # type: ignore[operator]  # it has one
    for name in ("linear", "conv", "batch_norm", "z_norm", "embed", "bias"):
        init: Any = getattr(mlax, name).init
        assert get_type_hints(init.__wrapped__)["x"] is mlax.Shaped, name


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check arguments by their annotations, as runtime checkers do."""
    hints, signature = get_type_hints(function), inspect.signature(function)

    @functools.wraps(function)
    def check(*args: Any, **kwargs: Any) -> Any:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            kind = get_origin(hints[name]) or hints[name]
            if isinstance(kind, type) and kind is not UnionType and not isinstance(value, kind):
                raise TypeError(f"{name} is no {kind.__name__}")
        return function(*args, **kwargs)

    return check


class GainParams(NamedTuple):
    gain: Array


@checked
def init_gain(rng: types.Key, x: types.Shaped) -> tuple[GainParams, tuple[()]]:
    return GainParams(jnp.ones(x.shape, x.dtype)), ()


@checked
def apply_gain(
    params: GainParams, state: tuple[()], x: Array, rng: types.Key | None = None,
    inference_mode: bool = False, batch_axis_name: types.AxisName = (),
) -> tuple[Array, tuple[()]]:
    return params.gain * x, state


def test_layers_pass_runtime_checkers() -> None:
    gain = mlax.Layer(init_gain, apply_gain)
    model = mlax.series(gain, mlax.dense(3), mlax.repeat(gain, 2), mlax.batched(gain))
    x = jnp.ones((4, 3))
    for seen in (x, jax.ShapeDtypeStruct(x.shape, x.dtype)):
        params, state = model.init(jax.random.key(0), seen)
        y, _ = jax.jit(model.apply)(params, state, x)
        assert y.shape == (4, 3)
    with pytest.raises(TypeError, match="x is no Shaped"):
        init_gain(jax.random.key(0), 3.0)


def test_protocols_can_be_checked() -> None:
    three: Any = 3
    for protocol, value in (
        (types.Shaped, np.ones(3)), (types.Init, mlax.dense(3).init),
        (types.Apply, mlax.dense(3).apply), (types.ApplyWithRng, mlax.dense(3).apply),
        (types.Optimizer, optax.adam(0.1)), (types.Initializer, jax.nn.initializers.zeros),
    ):
        assert isinstance(value, protocol)
        assert not isinstance(three, protocol)
