"""The names that are public for annotations: they exist at run time, and can be subscripted."""

import inspect
import pkgutil
from typing import Any, get_args, get_type_hints

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
