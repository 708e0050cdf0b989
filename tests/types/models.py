"""What a strictly typed program writes about its own models: see `tests/types/composition.py`.

All types of models are written with names from `mlax.types`.
"""

from typing import Any, NamedTuple, assert_type

import jax
from jax import Array
from jax.typing import DTypeLike

import mlax
from mlax import types
from mlax.combinators import Around, Call, Made, transform
from mlax.types import (
    BatchedConfig,
    BatchNormConfig,
    DenseConfig,
    DenseParams,
    DictState,
    Layer,
    LinearConfig,
    LinearParams,
    NormParams,
    RepeatConfig,
    Shaped,
    State,
    Sublayers,
    TupleState,
    Variables,
    WiredConfig,
    ZNormVariables,
)

key = jax.random.key(0)
x = jax.numpy.ones(3)

# The types of models.

BlockParams = tuple[DenseParams, NormParams]
BlockVariables = Variables[
    tuple[State[tuple[()], DenseConfig], State[ZNormVariables, BatchNormConfig]]
]
BlockState = State[BlockVariables, WiredConfig]
Vectors = Layer[dict[str, Any], DictState, Array, Array]


def spelled() -> None:
    block = mlax.series(mlax.dense(4), mlax.batch_norm())
    assert_type(block, Layer[BlockParams, BlockState, Array, Array])
    same: Layer[
        BlockParams,
        TupleState[tuple[State[tuple[()], DenseConfig], State[ZNormVariables, BatchNormConfig]]],
        Array,
        Array,
    ] = block
    assert_type(same.init(key, x)[1].variables[1], ZNormVariables)

    batch = mlax.batched(block)
    assert_type(batch, Layer[BlockParams, State[BlockVariables, BatchedConfig], Array, Array])
    deep = mlax.repeat(block, 12, unroll=2)
    assert_type(deep, Layer[BlockParams, State[BlockVariables, RepeatConfig], Array, Array])
    assert_type(deep.init(key, x)[1].config.unroll, int)

    @mlax.block(block=block, head=mlax.linear(3))
    def model(sub: Sublayers, x: Array) -> Array:
        y: Array = sub.head(sub.block(x))
        return y

    assert_type(model, Vectors)


def blocks_of_a_function() -> None:
    @mlax.block(embed=mlax.embed(50, 8), body=mlax.dense(8))
    def masked(sub: Sublayers, inputs: tuple[Array, Array]) -> dict[str, Array]:
        tokens, mask = inputs
        y: Array = sub["body"](sub.embed(tokens)) * mask
        return {"logits": y @ sub.embed.params.embedding.T}

    assert_type(masked, Layer[dict[str, Any], DictState, tuple[Array, Array], dict[str, Array]])
    params, state = masked.init(key, (x, x))
    assert_type(params, dict[str, Any])
    y, state = masked.apply(params, state, (x, x))
    assert_type(y, dict[str, Array])

    tied = mlax.block(a=mlax.linear(3))(lambda sub, x: sub.a(sub.a(x)))
    assert_type(tied, Layer[dict[str, Any], DictState, Any, Any])
    mlax.series(mlax.dense(3), tied, mlax.dense(3))

    masked.apply(params, state, x)  # type: ignore[arg-type]
    masked.apply(params, state, (x, x))[0] + 1  # type: ignore[operator]
    mlax.block(body=jax.nn.relu)  # type: ignore[arg-type]
    mlax.block(mlax.dense(8))  # type: ignore[call-arg]
    mlax.series(mlax.dense(4), masked)  # type: ignore[misc]


# User-defined layers.


class GainConfig(NamedTuple):
    power: int


class GainParams(NamedTuple):
    gain: Array


def init(rng: mlax.Key, x: Shaped) -> tuple[GainParams, State[tuple[()], GainConfig]]:
    raise NotImplementedError


def apply_with_a_key(
    params: GainParams,
    state: State[tuple[()], GainConfig],
    x: Array,
    rng: mlax.Key,
    inference_mode: bool = False,
    batch_axis_name: mlax.AxisName = (),
) -> tuple[Array, State[tuple[()], GainConfig]]:
    raise NotImplementedError


def apply_with_a_key_or_none(
    params: GainParams,
    state: State[tuple[()], GainConfig],
    x: Array,
    rng: mlax.Key | None,
    inference_mode: bool = False,
    batch_axis_name: mlax.AxisName = (),
) -> tuple[Array, State[tuple[()], GainConfig]]:
    raise NotImplementedError


def apply_without(
    params: GainParams, state: State[tuple[()], GainConfig], x: Array
) -> tuple[Array, State[tuple[()], GainConfig]]:
    raise NotImplementedError


Gain = Layer[GainParams, State[tuple[()], GainConfig], Array, Array]


def layers_that_need_a_key() -> None:
    noise = mlax.Layer(init, apply_with_a_key)
    assert_type(noise, Gain)
    assert_type(mlax.Layer(init, apply_with_a_key_or_none), Gain)
    assert_type(mlax.Layer(init, apply_with_a_key, needs_rng=True).needs_rng, bool)
    params, state = mlax.series(noise, mlax.dropout(0.5, -1)).init(key, x)
    assert_type(params[0].gain, Array)
    noise.apply(params[0], State((), GainConfig(1)), x, inference_mode=True)

    mlax.Layer(init, apply_without)  # type: ignore[arg-type]
    mlax.Layer(init)  # type: ignore[call-overload]
    mlax.Layer(mlax.linear(3).init, apply_with_a_key)  # type: ignore[arg-type]

    @mlax.layer(apply_with_a_key)
    def scaled_noise(
        rng: mlax.Key, x: Shaped, power: types.Size = 1, *, dtype: types.DType = "float32"
    ) -> tuple[GainParams, State[tuple[()], GainConfig]]:
        raise NotImplementedError

    assert_type(scaled_noise(2, dtype="float16"), Gain)
    scaled_noise("2")  # type: ignore[arg-type]
    scaled_noise(2, "float16")  # type: ignore[call-arg]
    mlax.layer(apply_without)  # type: ignore[arg-type]


def compute(params: GainParams, config: GainConfig, x: Array) -> Array:
    return params.gain**config.power * x


@mlax.stateless(compute, GainConfig)
def gain(rng: mlax.Key, x: Shaped, power: types.Size = 1, dtype: DTypeLike = "f4") -> GainParams:
    raise NotImplementedError


def layers_without_state() -> None:
    assert_type(gain(3), Gain)
    assert_type(gain.init(key, x, power=2)[0], GainParams)
    assert_type(gain.init(key, jax.ShapeDtypeStruct((3,), "float32"))[0].gain, Array)
    gain(powr=3)  # type: ignore[call-arg]
    mlax.stateless(compute, NormParams)  # type: ignore[arg-type]


def read_shape(x: Shaped) -> int:
    return x.shape[-1]


def shapes(x: Array) -> None:
    read_shape(x)
    read_shape(jax.ShapeDtypeStruct((3,), "float32"))
    read_shape(3)  # type: ignore[arg-type]


# Combinators keep the types of their layer.


def variables_survive() -> None:
    block = mlax.series(mlax.dense(4), mlax.batch_norm())
    for layer in (mlax.batched(block), mlax.remat(block), mlax.frozen(block)):
        params, state = layer.init(key, x)
        assert_type(params, BlockParams)
        assert_type(state.variables, BlockVariables)
    assert_type(mlax.batched(block, state_axis=0).init(key, x)[1].variables[1].mean, Array)
    assert_type(mlax.repeat(block, 3).init(key, x)[1].variables[1].mean, Array)
    staged = mlax.pipeline(block, 3, microbatches=2)
    assert_type(staged.init(key, x)[1].variables[1].mean, Array)
    assert_type(mlax.ensemble(block, 3).init(key, x)[1].variables[1].mean, Array)
    assert_type(mlax.moe(mlax.dense(2), 3).init(key, x)[0].experts.kernel, Array)
    assert_type(mlax.cast(block, compute_dtype="bf16").init(key, x)[1].variables[1].mean, Array)
    assert_type(mlax.stochastic_depth(block, 0.1).init(key, x)[1].variables[1].mean, Array)
    nested = mlax.batched(mlax.series(mlax.remat(block), mlax.z_norm("all")))
    _, inside = nested.init(key, x)
    assert_type(inside.variables[0][1].mean, Array)
    assert_type(inside.variables[1].mean, Array)
    assert_type(inside.config.state_axis, int | None)

    assert_type(
        mlax.depthwise_conv(3),
        Layer[types.ConvParams, State[tuple[()], types.ComposedConfig], Array, Array],
    )

    @mlax.composed()
    def wider(x: Shaped) -> Layer[BlockParams, BlockState, Array, Array]:
        return mlax.series(mlax.dense(2 * x.shape[-1]), mlax.batch_norm())

    assert_type(wider().init(key, x)[1].variables[1].mean, Array)

    unknown: Layer[Any, Any, Array, Array] = block
    init, apply = mlax.batched(unknown)
    y, _ = apply(*init(key, x), x)
    assert_type(y, Array)
    foreign: Layer[tuple[()], Array, Array, Array] = mlax.Layer(_foreign_init, _foreign_apply)
    assert_type(mlax.batched(foreign), Layer[tuple[()], State[Any, BatchedConfig], Array, Array])
    assert_type(mlax.repeat(foreign, 2).init(key, x)[1].config, RepeatConfig)


def _foreign_init(rng: mlax.Key, x: Any) -> tuple[tuple[()], Array]:
    raise NotImplementedError


def _foreign_apply(
    params: tuple[()],
    state: Array,
    x: Array,
    rng: mlax.Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: mlax.AxisName = (),
) -> tuple[Array, Array]:
    raise NotImplementedError


class OftenConfig(NamedTuple):
    layer: types.Child
    times: int


def apply_often(
    call: Call, config: OftenConfig, params: Any, variables: Any, x: Any
) -> tuple[Any, Any]:
    raise NotImplementedError


@transform(apply_often, OftenConfig, Around)
def often(rng: mlax.Key, x: Any, layer: types.AnyLayer, *, times: types.Size = 2) -> Made:
    raise NotImplementedError


@mlax.combinator
def alternate(x: Any, a: types.Sublayer, b: types.Sublayer, n: types.Size = 2) -> Any:
    for _ in range(n):
        x = b(a(x))
    return x


def combinators_of_ones_own() -> None:
    block = mlax.series(mlax.dense(4), mlax.batch_norm())
    model = often(block, times=3)
    assert_type(model, Layer[BlockParams, State[BlockVariables, OftenConfig], Array, Array])
    assert_type(model.init(key, x)[1].config.times, int)
    assert_type(alternate(block, mlax.dense(4)), types.AnyLayer)
    often(block, 3)  # type: ignore[call-overload]
    often(block, times="3")  # type: ignore[call-overload]
    often(jax.nn.relu)  # type: ignore[call-overload]


def states_of_other_models() -> None:
    model = mlax.batched(mlax.series(mlax.linear(4), mlax.batch_norm()))
    other = mlax.batched(mlax.series(mlax.linear(4), mlax.bias(-1)))
    params, _ = model.init(key, x)
    _, state = other.init(key, x)
    model.apply(params, state, x)  # type: ignore[arg-type]
    model.apply(params, mlax.linear(4).init(key, x)[1], x)  # type: ignore[arg-type]


def layers_with_names() -> None:
    both = mlax.series(stem=mlax.dense(4), head=mlax.linear(3))
    assert_type(both, Vectors)
    assert_type(mlax.series(a=mlax.depthwise_conv(3), b=mlax.conv(4, 1)), Vectors)
    assert_type(mlax.separable_conv(4, filter_shape=3).init(key, x)[0], dict[str, Any])
    assert_type(mlax.series(body=both, norm=mlax.batch_norm(), gated=mlax.residual(both)), Vectors)
    assert_type(
        mlax.branch(a=mlax.dense(4), b=both),
        Layer[dict[str, Any], DictState, Array, dict[str, Array]],
    )
    assert_type(
        mlax.parallel(a=mlax.dense(4), b=both),
        Layer[dict[str, Any], DictState, dict[str, Array], dict[str, Array]],
    )
    joined = mlax.series(sides=mlax.branch(a=both, b=both), join=mlax.concatenate(), head=both)
    assert_type(joined, Layer[dict[str, Any], DictState, Any, Any])
    init, apply = mlax.series(a=both, b=mlax.f(jax.nn.relu), c=mlax.flatten())
    apply(*init(key, x), x)

    def declared() -> Vectors:
        return mlax.series(a=both, b=mlax.f(jax.nn.relu), c=mlax.attention(2))

    def declared_sides() -> Layer[dict[str, Any], DictState, Array, dict[str, Array]]:
        return mlax.branch(a=both, b=mlax.f(jax.nn.relu))

    def less_known() -> Layer[Any, Any, Array, Array]:
        return mlax.series(a=both, b=mlax.f(jax.nn.relu))

    mlax.batched(declared())
    init, apply = mlax.series(a=mlax.concatenate(), b=mlax.f(jax.nn.relu), c=mlax.flatten())
    apply(*init(key, x), (x, x))

    both.apply(both.init(key, x)[0], both.init(key, x)[1], (x, x))  # type: ignore[arg-type]
    mlax.series(mlax.dense(4), both, mlax.recurrent(mlax.gru_cell(3)))  # type: ignore[misc]
    mlax.series(stem=mlax.dense)  # type: ignore[arg-type]


# Wrong programs.


def wrong_inputs() -> None:
    join = mlax.concatenate()
    params, state = join.init(key, (x, x))
    join.apply(params, state, (x, x))
    join.apply(params, state, [x, x])
    join.apply(params, state, {"a": x})
    join.apply(params, state, x)  # type: ignore[arg-type]
    mlax.add.apply((), mlax.add().init(key, (x, x))[1], x)  # type: ignore[arg-type]
    mlax.series(mlax.branch(mlax.dense(4), mlax.dense(4)), mlax.add())
    mlax.series(mlax.branch(mlax.dense(4), mlax.dense(4)), mlax.multiply(), mlax.dense(3))
    mlax.series(mlax.dense(4), mlax.concatenate())  # type: ignore[misc]
    mlax.series(mlax.dense(4), mlax.add())  # type: ignore[misc]


def wrong_words() -> None:
    mlax.conv(3, 2, data_format="channel_first")
    mlax.conv(3, 2, data_format=("HWC", "HWIO", "HWC"))
    mlax.max_pool(2, data_format="HWC")
    mlax.batch_norm(data_format="CHW")
    mlax.layer_norm(axis="channel_last")
    mlax.z_norm((0, 1))
    mlax.conv(3, 2, data_format="channels_first")  # type: ignore[arg-type]
    mlax.conv(3, 2, data_format="HWC")  # type: ignore[arg-type]
    mlax.max_pool(2, data_format="channels_last")  # type: ignore[arg-type]
    mlax.max_pool(2, data_format="NHWC")  # type: ignore[arg-type]
    mlax.batch_norm(data_format="last")  # type: ignore[arg-type]
    mlax.layer_norm(axis="last")  # type: ignore[arg-type]
    mlax.z_norm("channel")  # type: ignore[arg-type]
    mlax.depthwise_conv(3, data_format="last")  # type: ignore[arg-type]
    mlax.separable_conv(3, filter_shape=3, data_format="last")  # type: ignore[arg-type]
    mlax.global_avg_pool(data_format="last")  # type: ignore[arg-type]
    mlax.group_norm(2, data_format="last")  # type: ignore[arg-type]
    mlax.rms_norm(axis="last")  # type: ignore[arg-type]
    mlax.dropout(0.1, "last")  # type: ignore[arg-type]
    mlax.batched(mlax.linear(3), state_axis=1)  # type: ignore[call-overload]
    mlax.batched(mlax.linear(3), "batch")  # type: ignore[call-overload]
    mlax.batched([mlax.linear(3)])  # type: ignore[call-overload]
    mlax.remat(jax.nn.relu)  # type: ignore[call-overload]


def branches(index: Any) -> None:
    layer = mlax.dense(4)
    loop = mlax.recurrent(mlax.gru_cell(3))
    same = mlax.switch(index, layer, mlax.linear(4), mlax.series(layer, layer))
    assert_type(same, Layer[tuple[Any, ...], State[Any, types.SwitchConfig], Array, Array])
    init, apply = mlax.switch(index, mlax.f(jax.nn.relu), mlax.f(jax.nn.tanh))
    y, _ = apply(*init(key, x), x)
    pair = mlax.branch(layer, layer)
    pairs = mlax.switch(index, pair, mlax.series(layer, pair))
    assert_type(pairs.apply(*pairs.init(key, x), x)[0], tuple[Array, Array])
    mlax.switch(index, layer, mlax.f(jax.nn.relu))

    mlax.switch(index, layer, pair)  # type: ignore[misc]
    mlax.switch(index, pair, layer)  # type: ignore[misc]
    mlax.switch(index, layer, loop)  # type: ignore[misc]
    mlax.switch(layer, layer)  # type: ignore[arg-type]
    mlax.switch(index, jax.nn.relu)  # type: ignore[arg-type]


def recurrences() -> None:
    loop, scan = mlax.recurrent(mlax.lstm_cell(3)), mlax.lru(3)
    params, state = loop.init(key, (x, None))
    assert_type(loop.apply(params, state, (x, None))[0], tuple[Array, tuple[Array, Array]])
    assert_type(loop.apply(params, state, (x, (x, x)))[0], tuple[Array, tuple[Array, Array]])
    lru_params, scan_state = scan.init(key, (x, None))
    assert_type(lru_params, types.LruParams)
    assert_type(scan.apply(lru_params, scan_state, (x, None))[0][1], tuple[Array, Array])

    both = mlax.bidirectional(mlax.gru_cell(3), mlax.lstm_cell(3))
    (ys, (h, (_, c))), _ = both.apply(*both.init(key, (x, None)), (x, None))
    both.apply(*both.init(key, (x, None)), (x, (None, (c, c))))
    assert_type(ys, Array)
    assert_type(h, Array)
    assert_type(c, Array)

    loop.apply(params, state, (x, x))  # type: ignore[arg-type]
    both.apply(*both.init(key, (x, None)), (x, (c, c)))  # type: ignore[arg-type]
    scan.apply(lru_params, scan_state, (x, x))  # type: ignore[arg-type]
    mlax.lru(3, implementation="fast")  # type: ignore[arg-type]


def without_carries() -> None:
    """`carried` has the params and variables of its layer, and x and y without the carry."""
    tagger = mlax.series(mlax.embed(9, 3), mlax.carried(mlax.recurrent(mlax.lstm_cell(3))))
    params, state = tagger.init(key, x)
    assert_type(params, tuple[types.EmbedParams, types.CellParams])
    assert_type(tagger.apply(params, state, x)[0], Array)
    assert_type(
        mlax.carried(mlax.lru(3)),
        Layer[types.LruParams, State[tuple[()], types.CarriedConfig], Array, Array],
    )
    counted = mlax.carried(mlax.recurrent(_cell_with_variables()))
    assert_type(counted.init(key, x)[1].variables, ZNormVariables)
    decoder = mlax.carried(mlax.min_gru(3), decodes=True)
    assert_type(decoder.init(key, x)[0], types.MinGruParams)
    assert_type(decoder.init(key, x)[1], State[types.CarriedVariables, types.CarriedConfig])
    both = mlax.carried(mlax.bidirectional(mlax.gru_cell(3), mlax.gru_cell(3)))
    assert_type(both.apply(*both.init(key, x), x)[0], Array)
    unknown: types.AnyLayer = mlax.lru(3)
    mlax.series(mlax.dense(3), mlax.carried(unknown, lambda x: x), mlax.dense(3))

    mlax.carried(mlax.dense(3))  # type: ignore[arg-type]
    mlax.carried(mlax.lru)  # type: ignore[call-overload]
    mlax.series(mlax.lru(3), mlax.carried(mlax.lru(3)))  # type: ignore[misc]


def _cell_with_variables() -> Layer[
    tuple[()], State[ZNormVariables, types.ZNormConfig], tuple[Array, Array], tuple[Array, Array]
]:
    raise NotImplementedError


def changed_weights() -> None:
    """Adapters and 8 bits stand at places that no type can say: params are Any, x and y known."""
    layer = mlax.dense(3)
    tuned, small = mlax.lora(layer, "*.kernel", rank=2, alpha=4), mlax.quantized(layer)
    assert_type(tuned, Layer[Any, State[types.LoraVariables, types.LoraConfig], Array, Array])
    assert_type(
        small, Layer[Any, State[types.QuantizedVariables, types.QuantizedConfig], Array, Array]
    )
    params, state = layer.init(key, x)
    shape = jax.ShapeDtypeStruct((3,), "float32")
    adapters, held = mlax.init_lora(mlax.lora(small, "*", 2), key, shape, params, state)
    assert_type(held.variables, types.LoraVariables)
    assert_type(mlax.init_quantized(small, x, params, state)[1].variables.weights, Any)

    mlax.lora(layer, "*.kernel", "2")  # type: ignore[arg-type]
    mlax.quantized(mlax.dense)  # type: ignore[arg-type]
    mlax.series(tuned, mlax.lru(3))  # type: ignore[misc]


def experts() -> None:
    layer = mlax.moe(mlax.mlp(8), 4)
    params, state = layer.init(key, x)
    assert_type(params, types.MoeParams[dict[str, Any]])
    routed, state = layer.apply(params, state, types.MoeInputs(x, x > 0))
    assert_type(routed.y + routed.balance_loss, Array)
    mlax.series(mlax.dense(3), layer, mlax.f(lambda routed: routed.y), mlax.dense(3))

    mlax.moe(mlax.lru(3), 4)  # type: ignore[arg-type]
    mlax.moe(mlax.dense(3), 4, dispatch="sort")  # type: ignore[arg-type]
    mlax.series(mlax.lru(3), layer)  # type: ignore[misc]
    mlax.series(layer, mlax.dense(3))  # type: ignore[misc]


def layers_around_arrays() -> None:
    """`residual` adds arrays, unless it is told which; copies in series take what they return."""
    layer, scan, pair = mlax.dense(3), mlax.lru(3), mlax.branch(mlax.dense(3), mlax.dense(3))
    assert_type(mlax.residual(layer, mlax.linear(3)).init(key, x)[0][1], LinearParams)
    assert_type(mlax.residual(mlax.attention(2)).init(key, x)[0][0], types.AttentionParams)
    mlax.series(mlax.residual(mlax.f(jax.nn.relu)), layer)
    mlax.residual(scan, at=0)
    mlax.pipeline(layer, 3, microbatches=2, axis_name="layers")

    mlax.residual(scan)  # type: ignore[arg-type]
    mlax.residual(layer, scan)  # type: ignore[arg-type]
    mlax.residual(layer, at=0.5)  # type: ignore[call-overload]
    mlax.repeat(pair, 3)  # type: ignore[misc]
    mlax.pipeline(pair, 3, microbatches=2)  # type: ignore[misc]
    mlax.pipeline(layer, 3)  # type: ignore[call-overload]


def towers(widths: list[int]) -> Layer[Any, Any, Array, Array]:
    """A list of layers of several types is declared to hold any."""
    layers: list[types.AnyLayer] = []
    for width in widths:
        layers += [mlax.dense(width), mlax.f(jax.nn.relu), mlax.batch_norm()]
    return mlax.series(*layers, mlax.dense(3))


def masks(params: LinearParams) -> None:
    """A mask has bools as leaves, not arrays; its structure is known to no type."""
    assert_type(mlax.mask(params, "kernel"), types.Mask)
    named: dict[str, Any] = {"head": params}
    assert_type(mlax.mask((named, params), ["0.*"]), types.Mask)
    assert_type(mlax.mask(named, "*"), types.Mask)
    jax.tree.map(lambda selected: not selected, mlax.mask(named, "*"))
    assert_type(mlax.mask(mlax.nn.Linear(key, 3), "*"), Any)

    def unfrozen(params: LinearParams) -> types.Mask:
        return mlax.mask(params, "*.kernel")

    layer = mlax.linear(3)
    layer.apply(mlax.mask(params, "*"), layer.init(key, x)[1], x)  # type: ignore[arg-type]
    mlax.mask(params, "*").kernel  # type: ignore[union-attr]
    assert_type(mlax.partition(params, "kernel"), tuple[LinearParams, LinearParams])


def trees_by_path(params: LinearParams) -> None:
    """What is made of arrays has the type of the params only if it is arrays again."""
    assert_type(mlax.map_with_path(lambda path, leaf: 2 * leaf, params), LinearParams)
    named: dict[str, Any] = {"head": params}
    assert_type(mlax.map_with_path(lambda path, a, b: a + b, named, named), dict[str, Any])
    assert_type(mlax.map_with_path(lambda path, leaf: f"{path}: {leaf.shape}", params), Any)
    assert_type(mlax.freeze(params, "*.kernel"), LinearParams)


def functions_as_layers() -> None:
    """An `f` fits anywhere, unless its input and output types are annotated."""

    def swap(x: tuple[Array, Array]) -> tuple[Array, Array]:
        return x[1], x[0]

    layer = mlax.dense(4)
    mlax.series(layer, mlax.f(lambda x: x + 1), layer)
    mlax.series(layer, mlax.f(jax.nn.relu), layer)
    mlax.series(mlax.branch(layer, layer), mlax.f(swap), mlax.add())

    annotated: Layer[tuple[()], Any, tuple[Array, Array], tuple[Array, Array]] = mlax.f(swap)
    mlax.series(mlax.branch(layer, layer), annotated, mlax.add())
    mlax.series(mlax.branch(layer, layer), annotated, layer)  # type: ignore[misc]


def configs() -> None:
    state = mlax.linear(3).init(key, x)[1]
    assert_type(state.config, LinearConfig)
