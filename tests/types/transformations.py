"""What the checkers know about a transformed function: see `tests/types/composition.py`."""

from typing import Any, assert_type

import jax
from jax import Array
from jax.stages import Lowered, Traced

import mlax
from mlax import typed
from mlax.layers.linear import LinearParams
from mlax.typed import Jitted
from mlax.types import BatchedConfig, DictState, State, Variables, ZNormConfig, ZNormVariables


def loss(params: LinearParams, x: Array, scale: float = 1.0) -> Array:
    return (x @ params.kernel).sum() * scale


def loss_and_count(params: LinearParams, x: Array) -> tuple[Array, int]:
    return loss(params, x), 1


def gradients(params: LinearParams, x: Array) -> None:
    value, grads = typed.value_and_grad(loss)(params, x, scale=2.0)
    assert_type(value, Array)
    assert_type(grads, LinearParams)
    (value, count), grads = typed.value_and_grad(loss_and_count, has_aux=True)(params, x)
    assert_type(count, int)
    assert_type(grads, LinearParams)
    assert_type(typed.grad(loss)(params, x), LinearParams)
    assert_type(typed.grad(loss_and_count, has_aux=True)(params, x), tuple[LinearParams, int])
    assert_type(typed.grad(loss, argnums=1)(params, x), Any)
    assert_type(typed.value_and_grad(loss, argnums=(0, 1))(params, x), tuple[Array, Any])

    typed.grad(loss)(x, params)  # type: ignore[arg-type]
    typed.value_and_grad(loss)(params)  # type: ignore[call-arg]
    typed.value_and_grad(loss)(params, x, scales=2.0)  # type: ignore[call-arg]


def jitted(params: LinearParams, x: Array) -> None:
    step = typed.jit(loss, static_argnames=["scale"])
    assert_type(step(params, x, scale=2.0), Array)
    assert_type(step.lower(params, x), Lowered)
    assert_type(step.trace(params, x), Traced)

    @typed.jit
    def plain(params: LinearParams) -> LinearParams:
        return params

    @typed.jit(donate_argnums=0)
    def donating(params: LinearParams) -> LinearParams:
        return params

    assert_type(plain(params), LinearParams)
    assert_type(donating(params), LinearParams)

    step(x, params)  # type: ignore[arg-type]
    step(params, x, scales=2.0)  # type: ignore[call-arg]
    step.lower(params)  # type: ignore[call-arg]
    plain(params).bias  # type: ignore[attr-defined]


def a_whole_step(x: Array) -> None:
    model = mlax.series(mlax.linear(3), mlax.bias(-1))
    params, state = model.init(jax.random.key(0), x)

    def loss(params: Any, x: Array) -> Array:
        return typed.vmap(lambda x: model.apply(params, state, x)[0], axis_name="batch")(x).sum()

    def double(x: Array) -> Array:
        return 2 * x

    assert_type(typed.vmap(double, in_axes=(0,))(x), Array)
    assert_type(typed.checkpoint(double)(x), Array)
    typed.vmap(double)(1)  # type: ignore[arg-type]
    typed.checkpoint(double)()  # type: ignore[call-arg]
    nested: Jitted[[LinearParams, Array], tuple[Array, LinearParams]]
    nested = typed.jit(typed.value_and_grad(lambda p, x: loss((p, p), x)))
    nested.clear_cache()


def a_function_without_an_auxiliary_value(params: LinearParams, x: Array, has_aux: bool) -> None:
    typed.grad(loss, has_aux=True)  # type: ignore[arg-type]
    typed.grad(loss, 1, has_aux=True)  # type: ignore[arg-type]
    typed.value_and_grad(loss, has_aux=True)  # type: ignore[arg-type]
    typed.value_and_grad(loss, argnums=(0, 1), has_aux=True)  # type: ignore[arg-type]
    typed.value_and_grad(loss, has_aux=has_aux)  # type: ignore[arg-type]

    assert_type(typed.grad(loss_and_count, 1, has_aux=True)(params, x), Any)
    _, count = typed.value_and_grad(loss_and_count, 1, has_aux=True)(params, x)
    typed.value_and_grad(loss_and_count, has_aux=has_aux)(params, x)


NormState = State[Variables[tuple[State[ZNormVariables, ZNormConfig]]], BatchedConfig]


def loss_and_state(params: LinearParams, state: NormState, x: Array) -> tuple[Array, NormState]:
    raise NotImplementedError


def loss_of_names(params: dict[str, Any], state: DictState, x: Array) -> Array:
    raise NotImplementedError


def loss_of_any(params: Any, state: Any, x: Any) -> Any:
    raise NotImplementedError


def states_of_models(params: LinearParams, state: NormState, x: Array) -> None:
    """Their configs, and dicts of params, hold an Any: mypy then looks at all overloads."""
    (value, after), grads = typed.value_and_grad(loss_and_state, has_aux=True)(params, state, x)
    assert_type(value, Array)
    assert_type(after, NormState)
    assert_type(grads, LinearParams)
    assert_type(
        typed.grad(loss_and_state, has_aux=True)(params, state, x), tuple[LinearParams, NormState]
    )
    names: dict[str, Any] = {}
    named: DictState = State({}, mlax.series(a=mlax.linear(3)).init(jax.random.key(0), x)[1].config)
    assert_type(typed.grad(loss_of_names)(names, named, x), dict[str, Any])
    assert_type(typed.value_and_grad(loss_of_names)(names, named, x), tuple[Array, dict[str, Any]])
    typed.value_and_grad(loss_of_any)(params, state, x)
    typed.value_and_grad(loss_of_any, has_aux=True)(params, state, x)
