"""What checkers know about a composition: cases of `assert_type`, and lines that must be errors.

Nothing here is run. An `ignore` that hides no error is itself one (`warn_unused_ignores`).
"""

from typing import Any, assert_type

import jax
from jax import Array

import mlax
from mlax import Layer, State
from mlax.types import (
    BiasConfig,
    BiasParams,
    DenseParams,
    LinearConfig,
    LinearParams,
    NormParams,
    WiredConfig,
    ZNormConfig,
    ZNormVariables,
)

key = jax.random.key(0)
x = jax.numpy.ones(3)


def one_pair() -> None:
    params, state = mlax.linear.init(key, x, out_features=3)
    assert_type(params, LinearParams)
    assert_type(params.kernel, Array)
    assert_type(state, State[tuple[()], LinearConfig])
    assert_type(state.config.transposed_kernel, bool)
    y, state = mlax.linear.apply(params, state, x, inference_mode=True)
    assert_type(y, Array)
    assert_type(mlax.linear(3), Layer[LinearParams, State[tuple[()], LinearConfig], Array, Array])

    params.kernal  # type: ignore[attr-defined]
    mlax.linear.apply(state, params, x)  # type: ignore[arg-type]
    mlax.linear(out_featurez=3)  # type: ignore[call-arg]
    mlax.linear()  # type: ignore[call-arg]
    mlax.linear("3")  # type: ignore[arg-type]
    mlax.linear.init(key, x)  # type: ignore[call-arg]
    mlax.linear.init(key, x, 3, out_featurez=3)  # type: ignore[call-arg]


def statistics() -> None:
    params, state = mlax.z_norm.init(key, x, "all")
    assert_type(params, tuple[()])
    assert_type(state, State[ZNormVariables, ZNormConfig])
    assert_type(state.variables.mean, Array)
    assert_type(state.config.momentum, float)
    state.variables.average  # type: ignore[attr-defined]


def blocks() -> None:
    params, state = mlax.series(mlax.dense(4), mlax.batch_norm()).init(key, x)
    assert_type(params, tuple[DenseParams, NormParams])
    assert_type(params[0].kernel, Array)
    assert_type(params[0].bias, Array | None)
    assert_type(state.variables[1].mean, Array)


def made_of_others() -> None:
    wider = mlax.conv_transpose(4, filter_shape=3)
    vectors = mlax.series(wider, mlax.depthwise_conv(3), mlax.flatten())
    params, state = vectors.init(key, x)
    assert_type(params[0].kernel, Array)
    assert_type(params[1].kernel, Array)
    assert_type(params[2], tuple[()])
    y, _ = vectors.apply(params, state, x)
    assert_type(y, Array)

    @mlax.composed()
    def widen(x: Array, times: int = 2) -> Layer[LinearParams, Any, Array, Array]:
        return mlax.linear(times * x.shape[-1])

    widened, _ = widen(times=3).init(key, x)
    assert_type(widened, LinearParams)
    widen("three")  # type: ignore[arg-type]


def in_series() -> None:
    init, apply = mlax.series(mlax.linear(4), mlax.z_norm("all"), mlax.bias(-1))
    params, state = init(key, x)
    assert_type(params, tuple[LinearParams, tuple[()], BiasParams])
    assert_type(params[0].kernel, Array)
    assert_type(params[2].bias, Array)
    assert_type(state.variables[1], ZNormVariables)
    assert_type(state.variables[1].mean, Array)
    assert_type(state.config, WiredConfig)
    y, state = apply(params, state, x)
    assert_type(y, Array)
    assert_type(state.variables[1].var, Array)
    known_less: State[Any, Any] = state
    y, known_less = apply(params, known_less, x)
    y, state = apply(params, state, x, rng=key, inference_mode=True, batch_axis_name="batch")

    state.variables[1].average  # type: ignore[attr-defined]
    params[3]  # type: ignore[misc]
    params[0].bias  # type: ignore[attr-defined]
    apply(state, params, x)  # type: ignore[arg-type]
    apply(params, state)  # type: ignore[call-arg]
    mlax.series(mlax.linear(3), 4)  # type: ignore[arg-type]
    mlax.series(mlax.linear)  # type: ignore[arg-type]


def in_parallel() -> None:
    init, apply = mlax.parallel(mlax.linear(4), mlax.embed(10, 3))
    params, state = init(key, (x, x))
    assert_type(state.variables[1], tuple[()])
    assert_type(params[0].kernel, Array)
    assert_type(params[1].embedding, Array)
    y, state = apply(params, state, (x, x))
    assert_type(y, tuple[Array, Array])

    params[2]  # type: ignore[misc]
    apply(params, state, (x, x, x))  # type: ignore[arg-type]
    apply(params, state, x)  # type: ignore[arg-type]


def eight_layers() -> None:
    layer = mlax.linear(3)
    last = mlax.z_norm("all")
    init, _ = mlax.series(layer, layer, layer, layer, layer, layer, layer, last)
    params, state = init(key, x)
    assert_type(params[6].kernel, Array)
    assert_type(state.variables[7].mean, Array)
    init, _ = mlax.parallel(layer, layer, layer, layer, layer, layer, layer, last)
    params, state = init(key, (x, x, x, x, x, x, x, x))
    assert_type(params[6].kernel, Array)
    assert_type(state.variables[7].mean, Array)
    init, _ = mlax.branch(layer, layer, layer, layer, layer, layer, layer, last)
    params, state = init(key, x)
    assert_type(params[6].kernel, Array)
    assert_type(state.variables[7].mean, Array)


def more_layers() -> None:
    layer = mlax.linear(3)
    nine = mlax.series(layer, layer, layer, layer, layer, layer, layer, layer, layer)
    params, _ = nine.init(key, x)
    assert_type(params, Any)
    layers = [layer] * 3
    params, _ = mlax.series(*layers).init(key, x)
    assert_type(params, Any)
    declared: Layer[Any, Any, Array, Array] = nine
    declared.init(key, x)


def block(width: int) -> Layer[Any, Any, Array, Array]:
    return mlax.residual(mlax.series(mlax.linear(width), mlax.f(jax.nn.relu)))


def lists_of_layers_that_hold_an_any() -> Layer[Any, Any, Array, Array]:
    blocks = [block(width) for width in (1, 2)]
    mlax.batched(mlax.series(*blocks))
    mlax.batched(mlax.parallel(*blocks))
    mlax.batched(mlax.branch(*blocks))
    mlax.batched(mlax.series(mlax.flatten(), *blocks, mlax.linear(3)))
    mlax.repeat(mlax.series(*[mlax.residual(mlax.flatten()) for _ in blocks]), 3)
    return mlax.series(*blocks)


def nested() -> None:
    block = mlax.series(mlax.linear(3), mlax.bias(-1))
    init, _ = mlax.series(block, mlax.f(jax.nn.relu), mlax.series(), block)
    params, _ = init(key, x)
    assert_type(params[0][1].bias, Array)
    assert_type(params[3][0].kernel, Array)

    normalised = mlax.residual(mlax.series(mlax.linear(3), mlax.z_norm("all")))
    _, state = mlax.series(block, normalised).init(key, x)
    assert_type(state.variables[1][0][1].mean, Array)


def foreign_states() -> None:
    """A state that is not a `State` has unknown variables, but does not hide its neighbours."""
    counter: Layer[tuple[()], Array, Array, Array]
    counter = mlax.Layer(_counter_init, _counter_apply)
    params, state = mlax.series(counter, mlax.linear(3), mlax.z_norm("all")).init(key, x)
    assert_type(params[1].kernel, Array)
    assert_type(state.variables[0], Any)
    assert_type(state.variables[2].mean, Array)

    unknown: Layer[Any, Any, Any, Any] = counter
    _, partly_known = mlax.series(unknown, mlax.z_norm("all")).init(key, x)
    assert_type(partly_known.variables[1].mean, Array)


def misfits() -> None:
    cell: Layer[tuple[()], State[tuple[()], BiasConfig], tuple[Array, Array], tuple[Array, Array]]
    cell = Layer(_cell_init, _cell_apply)
    loop = mlax.recurrent(cell, reverse=True)
    assert_type(loop.apply((), loop.init(key, (x, x))[1], (x, x))[0], tuple[Array, Array])

    mlax.series(mlax.linear(3), loop)  # type: ignore[misc]
    mlax.series(loop, mlax.linear(3))  # type: ignore[misc]
    mlax.recurrent(mlax.linear(3))  # type: ignore[arg-type]


def _cell_init(rng: mlax.Key, x: Any) -> tuple[tuple[()], State[tuple[()], BiasConfig]]:
    raise NotImplementedError


def _cell_apply(
    params: tuple[()],
    state: State[tuple[()], BiasConfig],
    x: tuple[Array, Array],
    rng: mlax.Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: mlax.AxisName = (),
) -> tuple[tuple[Array, Array], State[tuple[()], BiasConfig]]:
    raise NotImplementedError


def _counter_init(rng: mlax.Key, x: Any) -> tuple[tuple[()], Array]:
    raise NotImplementedError


def _counter_apply(
    params: tuple[()],
    state: Array,
    x: Array,
    rng: mlax.Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: mlax.AxisName = (),
) -> tuple[Array, Array]:
    raise NotImplementedError
