"""Every public layer and every class of `mlax.nn`, as small cases to test the laws on.

A case is a layer, an input, and a module that does the same: of the class that corresponds to
the layer, of `F` for `pool`, or None if `mlax.nn` has no such class.
Functions that end up in a state are at the top level here, so that they can be pickled.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import mlax
from mlax import functional, nn, positions
from mlax.arguments import AnyLayer
from mlax.belonging import require_params
from mlax.combinators import Call, Child, Made, init_only_child, transform
from mlax.layer import AxisName, Key, Layer, State
from mlax.pair import PairBase
from mlax.testing import Example, spy

KEY = jax.random.key(3)
"""The key that every layer and every module is made with."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Case:
    """A layer, an input, and a module that does the same."""

    name: str
    layer: AnyLayer
    x: Any
    """A pytree of NumPy arrays."""
    made_by: str = ""
    """The public function that made the layer, where it is no pair."""
    module: Callable[[Key], mlax.Module] | None = None
    """Makes the module from the key that `init` gets."""
    params: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """For each trained leaf of the module its path, and the path of the same leaf in params."""
    state: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Likewise for the other leaves, and the state."""
    skip: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """The laws that it can't obey, by name, and why."""
    tolerance: float = 1e-5
    """How far apart results may be, absolutely and relatively, that differ in rounding."""
    over_batch: bool = False
    """Whether it makes use of `batch_axis_name`."""
    of_layers: bool = False
    """Whether it is made of other layers, which may have indices instead of names."""

    @property
    def pair(self) -> PairBase[Any, Any, Any, Any] | None:
        """The pair of the layer, if it has one."""
        pair: PairBase[Any, Any, Any, Any] | None = getattr(self.layer.init, "pair", None)
        return pair

    @functools.cached_property
    def example(self) -> Example:
        """The layer with its input."""
        return Example(self.layer, self.input(), KEY, self.tolerance)

    @property
    def rng(self) -> Key | None:
        """The key for `apply` in training."""
        return self.example.key_in_training

    def input(self, dtype: Any = jnp.float32) -> Any:
        """Return x with its floating leaves in `dtype`."""
        return jax.tree.map(
            lambda leaf: jnp.asarray(leaf, dtype if leaf.dtype.kind == "f" else leaf.dtype), self.x
        )

    def batch(self) -> Any:
        """Return x and two permutations of it, stacked, as NumPy arrays."""
        return jax.tree.map(lambda leaf: np.stack([leaf, np.flip(leaf), np.roll(leaf, 1)]), self.x)

    def __repr__(self) -> str:
        """Return the name."""
        return self.name


def normal(*shape: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return numbers that are always the same for the same shape."""
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def is_positive(x: jax.Array) -> jax.Array:
    """Return 1 if the sum of x is positive, else 0."""
    return (x.sum() > 0).astype(jnp.int32)


def half(x: Any) -> Any:
    """Return x / 2."""
    return x / 2


def centred(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """Return x without its mean over the batch."""
    mean: jax.Array = lax.pmean(x, axis_name)
    return x - mean


def exchanged(x: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Return a and b swapped."""
    return {"a": x["b"], "b": x["a"]}


def noise(x: jax.Array, rng: Key) -> jax.Array:
    """Return x times normal noise."""
    noisy: jax.Array = x * jax.random.normal(rng, x.shape, x.dtype)
    return noisy


def without_noise(x: jax.Array, rng: Key | None) -> jax.Array:
    """Return x."""
    return x


def joined(xh: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Return input and carry as one vector."""
    return jnp.concatenate(xh)


def stax_init(rng: Key, shape: tuple[int, ...]) -> tuple[tuple[int, ...], dict[str, jax.Array]]:
    """Return the output shape and the params of a layer of stax."""
    return (*shape[:-1], 2), {"kernel": jax.random.normal(rng, (shape[-1], 2))}


def stax_apply(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """Return the output of that layer."""
    return x @ params["kernel"].astype(x.dtype)


class Meter(NamedTuple):
    """A module as linen has them: a gain, and a count of the calls in training."""

    start: float

    def lazy_init(self, rngs: dict[str, Key], x: Any) -> dict[str, Any]:
        """Return the collections."""
        gain = jax.random.normal(rngs["params"], x.shape[-1:])
        return {"params": {"gain": gain}, "counts": {"calls": jnp.full((), self.start, jnp.float32)}}

    def apply(
        self, variables: dict[str, Any], x: jax.Array, rngs: dict[str, Key],
        mutable: Sequence[str] = (),
    ) -> Any:
        """Return the output, and the collections that may change."""
        y = x * variables["params"]["gain"][None].astype(x.dtype)
        calls = variables["counts"]["calls"] + 1
        return (y, {"counts": {"calls": calls}}) if mutable else y


def zeros_of_three(x: Any) -> jax.Array:
    """Return a carry for cells of three features."""
    return jnp.zeros(3, x.dtype)


def doubled(h: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Return tanh h as output and as carry."""
    return jnp.tanh(h), jnp.tanh(h)


def gate_init(rng: Key, x: Any) -> tuple[dict[str, jax.Array], jax.Array]:
    """Make the gain and a counter."""
    return {"gain": jax.random.normal(rng, x.shape)}, jnp.zeros((), jnp.int32)


def gate_apply(
    params: dict[str, jax.Array],
    state: jax.Array,
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, jax.Array]:
    """Return gain * x, and count the calls in training."""
    y = params["gain"].astype(x.dtype) * x
    return y, state if inference_mode else state + 1


GATE = Layer(gate_init, gate_apply)
"""A user's own pair, whose state is no `mlax.State`."""


class GainParams(NamedTuple):
    """Parameters of `gain`."""

    gain: jax.Array
    """A factor for each number of x."""


class GainConfig(NamedTuple):
    """Configuration of `gain`."""

    power: int
    """The exponent of the factors."""


def gain_apply(params: GainParams, config: GainConfig, x: jax.Array) -> jax.Array:
    """Return gain**power * x."""
    return params.gain.astype(x.dtype) ** config.power * x


@mlax.stateless(gain_apply, GainConfig)
def gain(rng: Key, x: jax.Array, power: int = 1) -> GainParams:
    """A user's own stateless layer."""
    return GainParams(jax.random.normal(rng, x.shape))


class CountedGainConfig(NamedTuple):
    """Configuration of `counted_gain`."""

    rate: float
    """The growth of the factors with each call."""


def counted_gain_apply(
    params: GainParams,
    state: State[jax.Array, CountedGainConfig],
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, State[jax.Array, CountedGainConfig]]:
    """Return gain * x, and count the calls in training."""
    require_params("counted_gain", params, GainParams, state.config)
    steps = state.variables
    growth = state.config.rate * steps.astype(params.gain.dtype)
    y = (params.gain + growth).astype(x.dtype) * x
    return y, State(steps if inference_mode else steps + 1, state.config)


@mlax.layer(counted_gain_apply, config=CountedGainConfig)
def counted_gain(
    rng: Key, x: jax.Array, rate: float
) -> tuple[GainParams, State[jax.Array, CountedGainConfig]]:
    """A user's own layer with a state."""
    steps = jnp.zeros((), jnp.int32)
    return GainParams(jax.random.normal(rng, x.shape)), State(steps, CountedGainConfig(rate))


@mlax.combinator
def alternate(x: Any, a: mlax.Sublayer, b: mlax.Sublayer, n: int) -> Any:
    """A user's own combinator."""
    for _ in range(n):
        x = b(a(x))
    return x


class RecomputeConfig(NamedTuple):
    """Configuration of `recompute`."""

    layer: Child
    """The layer."""


def recompute_apply(
    call: Call, config: RecomputeConfig, params: Any, variables: Any, x: Any
) -> tuple[Any, Any]:
    """Return the output of the layer."""

    def run(params: Any, variables: Any, x: Any, rng: Key | None) -> tuple[Any, Any]:
        return call(config.layer, params, variables, x, rng)

    recomputed: tuple[Any, Any] = jax.checkpoint(run)(params, variables, x, call.rng)
    return recomputed


@transform(recompute_apply, RecomputeConfig)
def recompute(rng: Key, x: Any, layer: AnyLayer) -> Made:
    """The example combinator of the author's kit."""
    return init_only_child("recompute", layer, rng, x)


@mlax.composed()
def widened(x: jax.Array, times: int) -> AnyLayer:
    """A layer that depends on the shape of x."""
    return mlax.linear(times * x.shape[-1])


@mlax.composed(needs_rng=True)
def spies_for_each(x: jax.Array) -> AnyLayer:
    """One spy for each number in x."""
    layers: AnyLayer = mlax.series(*[spy() for _ in range(x.shape[0])])
    return layers


@mlax.block(
    norm=mlax.layer_norm(),
    drop=mlax.dropout(0.5, 0),
    body=mlax.series(mlax.dense(4), mlax.z_norm((0,))),
    position=mlax.parameter((3, 4), jax.random.normal),
)
def encoder(sub: Any, inputs: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Layers of each kind, wired by a function."""
    x, mask = inputs
    y = sub.body(sub.drop(sub.norm(x) + sub.position().astype(x.dtype)))
    return x + jnp.where(mask[:, None], y, 0), mask


@mlax.block(embed=mlax.embed(5, 3), body=mlax.dense(3))
def tied(sub: Any, tokens: jax.Array) -> jax.Array:
    """A language model whose last layer shares the weights of the first."""
    x = sub.body(sub.body(sub.embed(tokens)))
    logits: jax.Array = x @ sub.embed.params.embedding.T
    return logits


@mlax.block(a=spy(), b=spy(), c=spy())
def called_twice(sub: Any, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Spies, one of which is called twice."""
    return sub.a(sub.b(x)), sub.c(sub.b(x))


def parts(key: Key, count: int) -> list[Key]:
    """Return the keys that a combinator gives its children in init."""
    return [jax.random.fold_in(key, i) for i in range(count)]


def perceptron(key: Key) -> nn.Series:
    """Return two linear layers with biases as a module."""
    k = parts(key, 5)
    return nn.Series(
        [
            nn.Linear(k[0], 4),
            nn.Bias(k[1], -1, jax.random.normal),
            nn.F(jax.nn.relu),
            nn.Linear(k[3], 2),
            nn.Bias(k[4], -1),
        ]
    )


def noisy_net(key: Key) -> nn.SeriesRng:
    """Return a module with running statistics and two layers that need a key."""
    k = parts(key, 5)
    return nn.SeriesRng(
        [
            nn.Linear(k[0], 4),
            nn.Dropout(0.5, 0),
            nn.ZNorm(k[2], (0,)),
            nn.FRng(noise, without_noise),
            nn.Scaler(k[4], -1),
        ]
    )


PROJECTIONS = {
    f".{name}.data.{leaf}": f".{name}.{leaf}"
    for name in ("query", "key", "value", "output") for leaf in ("kernel", "bias")
}


def cell(key: Key) -> nn.Series:
    """Return a recurrent cell as a module."""
    return nn.Series([nn.F(joined), nn.Linear(parts(key, 3)[1], 3), nn.F(doubled)])


def noisy_cell(key: Key) -> nn.SeriesRng:
    """Return a recurrent cell with running statistics and dropout as a module."""
    k = parts(key, 5)
    return nn.SeriesRng(
        [
            nn.F(joined),
            nn.Linear(k[1], 3),
            nn.ZNorm(k[2], "all"),
            nn.Dropout(0.5, 0),
            nn.F(doubled),
        ]
    )


CELL = mlax.series(mlax.f(joined), mlax.linear(3), mlax.f(doubled))
NOISY_CELL = mlax.series(
    mlax.f(joined), mlax.linear(3), mlax.z_norm("all"), mlax.dropout(0.5, 0), mlax.f(doubled)
)
CELL_PARAMS = {
    ".kernel.data": ".kernel",
    ".recurrent_kernel.data": ".recurrent_kernel",
    ".bias.data": ".bias",
}
SCALE_AND_BIAS = {".scale.data": ".scale", ".bias.data": ".bias"}
STATISTICS = {".moving_mean.data": ".variables.mean", ".moving_var.data": ".variables.var"}


CASES = (
    Case(
        name="linear",
        layer=mlax.linear(3),
        x=normal(4),
        module=lambda key: nn.Linear(key, 3),
        params={".linear_kernel.data": ".kernel"},
    ),
    Case(
        name="linear-transposed",
        layer=mlax.linear(3, ("highest", "default"), None, True, jax.random.normal),
        x=normal(2, 4),
        module=lambda key: nn.Linear(key, 3, ("highest", "default"), None, True, jax.random.normal),
        params={".linear_kernel.data": ".kernel"},
    ),
    Case(
        name="linear-bfloat16",
        layer=mlax.linear(2, accum_dtype=jnp.float32, dtype=jnp.bfloat16),
        x=normal(2, 1, 3),
        module=lambda key: nn.Linear(key, 2, accum_dtype=jnp.float32, dtype=jnp.bfloat16),
        params={".linear_kernel.data": ".kernel"},
        skip={
            "gradients": "the result is in float32, accum_dtype, too coarse for finite differences"
        },
    ),
    Case(
        name="bias",
        layer=mlax.bias(-1, jax.random.normal),
        x=normal(3),
        module=lambda key: nn.Bias(key, -1, jax.random.normal),
        params={".bias_kernel.data": ".bias"},
    ),
    Case(
        name="bias-of-some-axes",
        layer=mlax.bias((0, 1, 3), jax.random.normal, jnp.bfloat16),
        x=normal(2, 2, 3),
        module=lambda key: nn.Bias(key, (0, 1, 3), jax.random.normal, jnp.bfloat16),
        params={".bias_kernel.data": ".bias"},
    ),
    Case(
        name="scaler",
        layer=mlax.scaler((-1, 0), jax.random.normal),
        x=normal(2, 3),
        module=lambda key: nn.Scaler(key, (-1, 0), jax.random.normal),
        params={".scaler_kernel.data": ".scale"},
    ),
    Case(
        name="conv",
        layer=mlax.conv(3, 2),
        x=normal(4, 4, 2),
        module=lambda key: nn.Conv(key, 3, 2),
        params={".conv_kernel.data": ".kernel"},
    ),
    Case(
        name="conv-channel-first",
        layer=mlax.conv(4, (3,), 2, ((1, 2),), None, 2, 2, data_format="channel_first"),
        x=normal(2, 6),
        module=lambda key: nn.Conv(
            key, 4, (3,), 2, ((1, 2),), None, 2, 2, data_format="channel_first"
        ),
        params={".conv_kernel.data": ".kernel"},
    ),
    Case(
        name="conv-specs",
        layer=mlax.conv(
            2,
            (2, 1),
            1,
            "SAME",
            None,
            (1, 2),
            data_format=("HCW", "IHWO", "CWH"),
            precision="highest",
        ),
        x=normal(3, 2, 2),
        module=lambda key: nn.Conv(
            key,
            2,
            (2, 1),
            1,
            "SAME",
            None,
            (1, 2),
            data_format=("HCW", "IHWO", "CWH"),
            precision="highest",
        ),
        params={".conv_kernel.data": ".kernel"},
    ),
    Case(
        name="embed",
        layer=mlax.embed(5, 2),
        x=np.array([[0, 4, 2], [2, 1, 3]], np.int32),
        module=lambda key: nn.Embed(key, 5, 2),
        params={".embed_kernel.data": ".embedding"},
    ),
    Case(
        name="z_norm",
        layer=mlax.z_norm("channel_last"),
        x=normal(3, 2, 2),
        module=lambda key: nn.ZNorm(key, "channel_last"),
        state=STATISTICS,
        over_batch=True,
    ),
    Case(
        name="z_norm-of-the-batch",
        layer=mlax.z_norm((), 1e-3, 0.5, jax.random.normal, jax.random.uniform),
        x=normal(3),
        module=lambda key: nn.ZNorm(key, (), 1e-3, 0.5, jax.random.normal, jax.random.uniform),
        state=STATISTICS,
        over_batch=True,
    ),
    Case(
        name="z_norm-bfloat16",
        layer=mlax.z_norm((1, -3), dtype=jnp.bfloat16),
        x=normal(2, 3, 2),
        module=lambda key: nn.ZNorm(key, (1, -3), dtype=jnp.bfloat16),
        state=STATISTICS,
        over_batch=True,
    ),
    Case(
        name="f",
        layer=mlax.f(jax.nn.relu),
        x=normal(2, 3),
        module=lambda key: nn.F(jax.nn.relu),
    ),
    Case(
        name="f-of-a-dict",
        layer=mlax.f(exchanged, half_of_a := functools.partial(jax.tree.map, half)),
        x={"a": normal(2), "b": normal(3)},
        module=lambda key: nn.F(exchanged, half_of_a),
    ),
    Case(
        name="f-of-a-partial",
        layer=mlax.f(leaky := functools.partial(jax.nn.leaky_relu, negative_slope=0.2)),
        x=normal(3),
        module=lambda key: nn.F(leaky),
    ),
    Case(
        name="f-with-axis-name",
        layer=mlax.f(centred, half),
        x=normal(3),
        module=lambda key: nn.F(centred, half),
        over_batch=True,
    ),
    Case(
        name="f_rng",
        layer=mlax.f_rng(noise, without_noise),
        x=normal(2, 3),
        module=lambda key: nn.FRng(noise, without_noise),
    ),
    Case(
        name="dropout",
        layer=mlax.dropout(0.5, 0),
        x=normal(6),
        module=lambda key: nn.Dropout(0.5, 0),
    ),
    Case(
        name="max_pool",
        layer=mlax.max_pool(2, 2),
        x=normal(4, 4, 2),
        module=lambda key: nn.MaxPool(2, 2),
    ),
    Case(
        name="max_pool-of-integers",
        layer=mlax.max_pool((2,), padding=1, data_format="CW"),
        x=np.arange(10, dtype=np.int32).reshape(2, 5) % 7 - 3,
        module=lambda key: nn.MaxPool(2, padding=(1,), data_format="channel_first"),
    ),
    Case(
        name="avg_pool",
        layer=mlax.avg_pool((2, 1), (1, 2), "SAME"),
        x=normal(3, 3, 1),
        module=lambda key: nn.AvgPool((2, 1), (1, 2), "SAME"),
    ),
    Case(
        name="sum_pool",
        layer=mlax.sum_pool(2, 1, ((1, 0),), 2, 2),
        x=normal(4, 2),
        module=lambda key: nn.SumPool(2, 1, ((1, 0),), 2, 2),
    ),
    Case(
        name="pool",
        layer=mlax.pool(jnp.inf, lax.min, 2),
        x=normal(3, 2),
        module=lambda key: nn.F(
            functools.partial(
                functional.pool, init_value=jnp.inf, reduce_fn=lax.min, window_shape=2
            )
        ),
    ),
    Case(
        name="series",
        layer=mlax.series(
            mlax.linear(4),
            mlax.bias(-1, jax.random.normal),
            mlax.f(jax.nn.relu),
            mlax.linear(2),
            mlax.bias(-1),
        ),
        x=normal(3),
        module=perceptron,
        params={
            ".layers.data[0].linear_kernel.data": "[0].kernel",
            ".layers.data[1].bias_kernel.data": "[1].bias",
            ".layers.data[3].linear_kernel.data": "[3].kernel",
            ".layers.data[4].bias_kernel.data": "[4].bias",
        },
        of_layers=True,
    ),
    Case(
        name="series-of-none",
        layer=mlax.series(),
        x=normal(3),
        module=lambda key: nn.Series([]),
    ),
    Case(
        name="series-with-keys",
        layer=mlax.series(
            mlax.linear(4),
            mlax.dropout(0.5, 0),
            mlax.z_norm((0,)),
            mlax.f_rng(noise, without_noise),
            mlax.scaler(-1),
        ),
        x=normal(2, 3)[0],
        module=noisy_net,
        params={
            ".layers.data[0].linear_kernel.data": "[0].kernel",
            ".layers.data[4].scaler_kernel.data": "[4].scale",
        },
        state={
            ".layers.data[2].moving_mean.data": ".variables[2].mean",
            ".layers.data[2].moving_var.data": ".variables[2].var",
        },
        over_batch=True,
        of_layers=True,
    ),
    Case(
        name="series-nested",
        layer=mlax.series(
            mlax.series(mlax.linear(3), mlax.z_norm("all")),
            mlax.series(mlax.bias(-1), mlax.dropout(0.5, 0)),
        ),
        x=normal(2),
        module=lambda key: nn.SeriesRng(
            [
                nn.Series(
                    [
                        nn.Linear(parts(parts(key, 2)[0], 2)[0], 3),
                        nn.ZNorm(parts(parts(key, 2)[0], 2)[1], "all"),
                    ]
                ),
                nn.SeriesRng([nn.Bias(parts(parts(key, 2)[1], 2)[0], -1), nn.Dropout(0.5, 0)]),
            ]
        ),
        params={
            ".layers.data[0].layers.data[0].linear_kernel.data": "[0][0].kernel",
            ".layers.data[1].layers.data[0].bias_kernel.data": "[1][0].bias",
        },
        state={
            ".layers.data[0].layers.data[1].moving_mean.data": ".variables[0][1].mean",
            ".layers.data[0].layers.data[1].moving_var.data": ".variables[0][1].var",
        },
        of_layers=True,
        over_batch=True,
    ),
    Case(
        name="series-of-foreign-pairs",
        layer=mlax.series(GATE, mlax.as_layer(nn.Linear(jax.random.key(5), 2))),
        x=normal(3),
        module=lambda key: nn.Series(
            [mlax.as_module(GATE, parts(key, 2)[0]), nn.Linear(jax.random.key(5), 2)]
        ),
        params={
            ".layers.data[0].params.data['gain']": "[0]['gain']",
            ".layers.data[1].linear_kernel.data": "[1].linear_kernel.data",
        },
        state={".layers.data[0].state.data": ".variables[0]"},
        of_layers=True,
    ),
    Case(
        name="parallel",
        layer=mlax.parallel(mlax.linear(2), mlax.f(half), mlax.z_norm("all")),
        x=(normal(3), normal(2), normal(2, 2)),
        module=lambda key: nn.Parallel(
            [nn.Linear(parts(key, 3)[0], 2), nn.F(half), nn.ZNorm(parts(key, 3)[2], "all")]
        ),
        params={".layers.data[0].linear_kernel.data": "[0].kernel"},
        state={
            ".layers.data[2].moving_mean.data": ".variables[2].mean",
            ".layers.data[2].moving_var.data": ".variables[2].var",
        },
        of_layers=True,
        over_batch=True,
    ),
    Case(
        name="parallel-with-keys",
        layer=mlax.parallel(mlax.f_rng(noise, without_noise), mlax.bias(-1), mlax.dropout(0.5, 0)),
        x=(normal(3), normal(2), normal(4)),
        module=lambda key: nn.ParallelRng(
            [nn.FRng(noise, without_noise), nn.Bias(parts(key, 3)[1], -1), nn.Dropout(0.5, 0)]
        ),
        params={".layers.data[1].bias_kernel.data": "[1].bias"},
        of_layers=True,
    ),
    Case(
        name="recurrent",
        layer=mlax.recurrent(CELL, False, 2),
        x=(normal(3, 2), normal(3)),
        module=lambda key: nn.Recurrent(cell(parts(key, 1)[0]), False, 2),
        params={".cell.layers.data[1].linear_kernel.data": "[1].kernel"},
        of_layers=True,
    ),
    Case(
        name="recurrent-reverse-with-keys",
        layer=mlax.recurrent(NOISY_CELL, True),
        x=(normal(3, 2), normal(3)),
        module=lambda key: nn.RecurrentRng(noisy_cell(parts(key, 1)[0]), True),
        params={".cell.layers.data[1].linear_kernel.data": "[1].kernel"},
        state={
            ".cell.layers.data[2].moving_mean.data": ".variables[2].mean",
            ".cell.layers.data[2].moving_var.data": ".variables[2].var",
        },
        over_batch=True,
        of_layers=True,
    ),
    Case(name="from_stax", layer=mlax.from_stax((stax_init, stax_apply)), x=normal(2, 3)),
    Case(
        name="from_linen",
        layer=mlax.from_linen(Meter(0.0), mutable="counts"),
        x=normal(2, 3),
    ),
    Case(
        name="as_layer",
        layer=mlax.as_layer(perceptron(KEY)),
        x=normal(3),
        module=perceptron,
        params={
            path: path
            for path in (
                ".layers.data[0].linear_kernel.data",
                ".layers.data[1].bias_kernel.data",
                ".layers.data[3].linear_kernel.data",
                ".layers.data[4].bias_kernel.data",
            )
        },
        of_layers=True,
    ),
    Case(
        name="as_layer-with-keys",
        layer=mlax.as_layer(noisy_net(KEY)),
        x=normal(3),
        module=noisy_net,
        params={
            path: path
            for path in (
                ".layers.data[0].linear_kernel.data",
                ".layers.data[4].scaler_kernel.data",
            )
        },
        state={
            path: path
            for path in (
                ".layers.data[2].moving_mean.data",
                ".layers.data[2].moving_var.data",
            )
        },
        of_layers=True,
        over_batch=True,
    ),
    Case(
        name="series-of-names",
        layer=mlax.series(first=mlax.linear(2), second=mlax.z_norm("all")),
        x=normal(3),
        over_batch=True,
    ),
    Case(
        name="series-of-spies",
        layer=mlax.series(spy(), mlax.linear(2), mlax.series(inner=spy(), last=spy())),
        x=normal(3),
        over_batch=True,
        of_layers=True,
    ),
    Case(
        name="parallel-of-spies",
        layer=mlax.parallel(spy(), spy()),
        x=(normal(3), normal(2)),
        over_batch=True,
        of_layers=True,
    ),
    Case(
        name="branch",
        layer=mlax.branch(left=mlax.linear(2), right=mlax.dropout(0.5, 0)),
        x=normal(6),
    ),
    Case(
        name="branch-of-spies",
        layer=mlax.branch(spy(), spy()),
        x=normal(3),
        over_batch=True,
        of_layers=True,
    ),
    Case(name="add", layer=mlax.add(), x=(normal(3), normal(3), normal(3))),
    Case(name="multiply", layer=mlax.multiply(), x={"a": normal(3), "b": normal(3)}),
    Case(name="concatenate", layer=mlax.concatenate(0), x={"a": normal(1, 2), "b": normal(2, 2)}),
    Case(name="parameter", layer=mlax.parameter((2, 3), jax.random.normal), x=normal(2)),
    Case(
        name="residual",
        layer=mlax.residual(mlax.series(mlax.linear(3), mlax.z_norm("all"))),
        x=normal(3),
        module=lambda key: nn.Residual(
            nn.Series(
                [
                    nn.Linear(parts(parts(key, 1)[0], 2)[0], 3),
                    nn.ZNorm(parts(parts(key, 1)[0], 2)[1], "all"),
                ]
            )
        ),
        params={".layer.layers.data[0].linear_kernel.data": "[0][0].kernel"},
        state={
            ".layer.layers.data[1].moving_mean.data": ".variables[0][1].mean",
            ".layer.layers.data[1].moving_var.data": ".variables[0][1].var",
        },
        over_batch=True,
        of_layers=True,
    ),
    Case(
        name="residual-with-keys",
        layer=mlax.residual(
            mlax.series(mlax.linear(4), mlax.f_rng(noise, without_noise)),
            mlax.series(mlax.linear(4), mlax.dropout(0.5, 0)),
        ),
        x=normal(3),
        module=lambda key: nn.ResidualRng(
            nn.SeriesRng(
                [nn.Linear(parts(parts(key, 2)[0], 2)[0], 4), nn.FRng(noise, without_noise)]
            ),
            nn.SeriesRng([nn.Linear(parts(parts(key, 2)[1], 2)[0], 4), nn.Dropout(0.5, 0)]),
        ),
        params={
            ".layer.layers.data[0].linear_kernel.data": "[0][0].kernel",
            ".shortcut.layers.data[0].linear_kernel.data": "[1][0].kernel",
        },
        of_layers=True,
    ),
    Case(
        name="residual-of-spies",
        layer=mlax.residual(spy(), spy(), at="a"),
        x={"a": normal(3), "b": normal(2)},
        over_batch=True,
        of_layers=True,
    ),
    Case(
        name="repeat",
        layer=mlax.repeat(
            mlax.residual(mlax.series(mlax.linear(3), mlax.z_norm("all"))),
            3,
            unroll=2,
            remat=True,
        ),
        x=normal(3),
        over_batch=True,
        of_layers=True,
    ),
    Case(name="repeat-of-spies", layer=mlax.repeat(spy(), 3), x=normal(3), over_batch=True),
    Case(
        name="pipeline",
        layer=mlax.pipeline(
            mlax.residual(mlax.series(mlax.linear(2), mlax.dropout(0.5, (0, 1)))), 6,
            microbatches=2, axis_name="model", remat=True,
        ),
        x=normal(4, 2),
        of_layers=True,
    ),
    Case(
        name="pipeline-of-norms",
        layer=mlax.pipeline(
            mlax.batched(mlax.series(mlax.linear(2), mlax.z_norm("all"))), 6,
            microbatches=3, axis_name="model",
        ),
        x=normal(6, 2),
        over_batch=True,
        of_layers=True,
    ),
    Case(
        name="pipeline-of-spies",
        layer=mlax.pipeline(spy(), 6, microbatches=2, axis_name="model"),
        x=normal(2, 3),
        over_batch=True,
    ),
    Case(
        name="remat",
        layer=mlax.remat(
            mlax.series(mlax.linear(3), mlax.f_rng(noise, without_noise)),
            policy=jax.checkpoint_policies.dots_saveable,
        ),
        x=normal(2),
        of_layers=True,
    ),
    Case(name="remat-of-spies", layer=mlax.remat(spy()), x=normal(3), over_batch=True),
    Case(
        name="switch",
        layer=mlax.switch(
            is_positive,
            mlax.series(mlax.linear(3), mlax.z_norm("all")),
            mlax.bias(-1, jax.random.normal),
        ),
        x=normal(3),
        skip={"batch_axis": "each example changes the variables of its own layer"},
        of_layers=True,
    ),
    Case(
        name="switch-of-spies",
        layer=mlax.switch(is_positive, spy(), mlax.series(spy(), spy())),
        x=normal(3),
        over_batch=True,
        of_layers=True,
    ),
    Case(
        name="ensemble",
        layer=mlax.ensemble(
            mlax.series(mlax.linear(4), mlax.dropout(0.5, 0), mlax.z_norm("all")), 2
        ),
        x=normal(3),
        over_batch=True,
        of_layers=True,
    ),
    Case(name="ensemble-of-spies", layer=mlax.ensemble(spy(), 3), x=normal(3), over_batch=True),
    Case(
        name="batched",
        layer=mlax.batched(mlax.series(mlax.linear(2), mlax.z_norm(()))),
        x=normal(4, 3),
        over_batch=True,
        of_layers=True,
    ),
    Case(
        name="batched-apart",
        layer=mlax.batched(mlax.z_norm("all"), state_axis=0),
        x=normal(2, 3),
        over_batch=True,
    ),
    Case(name="batched-of-spies", layer=mlax.batched(spy()), x=normal(3, 2), over_batch=True),
    Case(
        name="cast",
        layer=mlax.cast(
            mlax.series(mlax.linear(3), mlax.z_norm("all")),
            params_dtype=jnp.bfloat16,
            compute_dtype=jnp.bfloat16,
            output_dtype=jnp.float32,
        ),
        x=normal(2),
        tolerance=2e-2,
        skip={"gradients": "it computes in bfloat16, too coarse for finite differences"},
        over_batch=True,
        of_layers=True,
    ),
    Case(
        name="cast-of-spies",
        layer=mlax.cast(spy(), params_dtype=jnp.float32),
        x=normal(3),
        over_batch=True,
    ),
    Case(
        name="frozen",
        layer=mlax.frozen(mlax.series(mlax.linear(3), mlax.dropout(0.5, 0), mlax.z_norm("all"))),
        x=normal(2),
        skip={"gradients": "those of the params are zero"},
        of_layers=True,
    ),
    Case(
        name="frozen-spies",
        layer=mlax.frozen(mlax.series(spy(), spy())),
        x=normal(2),
        skip={"gradients": "those of the params are zero"},
        of_layers=True,
    ),
    Case(
        name="tap",
        layer=mlax.tap(mlax.series(stem=mlax.linear(3), norm=mlax.z_norm("all")), "stem"),
        x=normal(2),
        made_by="tap",
        over_batch=True,
    ),
    Case(
        name="tap-of-spies",
        layer=mlax.tap(mlax.repeat(mlax.series(spy(), mlax.series(spy(), spy())), 2)),
        x=normal(2),
        made_by="tap",
        over_batch=True,
        of_layers=True,
    ),
    Case(
        name="stochastic_depth",
        layer=mlax.stochastic_depth(
            mlax.series(mlax.linear(3), mlax.f_rng(noise, without_noise)), 0.5
        ),
        x=normal(3),
        of_layers=True,
    ),
    Case(
        name="stochastic_depth-of-spies",
        layer=mlax.stochastic_depth(spy(), 0.1),
        x=normal(3),
        over_batch=True,
    ),
    Case(
        name="recurrent-of-spies",
        layer=mlax.recurrent(spy()),
        x=(normal(3, 2), normal(2)),
        over_batch=True,
    ),
    Case(
        name="bidirectional",
        layer=mlax.bidirectional(mlax.rnn_cell(2), mlax.gru_cell(2), unroll=2),
        x=(normal(3, 2), (normal(2), normal(2))),
        made_by="bidirectional",
    ),
    Case(
        name="bidirectional-of-spies",
        layer=mlax.bidirectional(spy(), spy()),
        x=(normal(3, 2), (normal(2), normal(2))),
        made_by="bidirectional",
        over_batch=True,
    ),
    Case(
        name="as_layer-of-spies",
        layer=mlax.as_layer(mlax.as_module(mlax.series(spy(), spy()), KEY)),
        x=normal(3),
        over_batch=True,
        of_layers=True,
    ),
    Case(
        name="as_layer-of-a-function",
        layer=mlax.ensemble(mlax.as_layer(perceptron), 2),
        x=normal(3),
        of_layers=True,
    ),
    Case(
        name="block",
        layer=encoder,
        x=(normal(3, 4), np.array([True, False, True])),
        made_by="block",
        over_batch=True,
        of_layers=True,
    ),
    Case(
        name="block-with-shared-layers",
        layer=tied,
        x=np.array([0, 4, 2], np.int32),
        made_by="block",
    ),
    Case(
        name="block-of-spies",
        layer=called_twice,
        x=normal(2),
        made_by="block",
        over_batch=True,
    ),
    Case(
        name="combinator",
        layer=alternate(mlax.dense(3), mlax.series(mlax.bias(-1), mlax.z_norm("all")), 2),
        x=normal(3),
        made_by="combinator",
        over_batch=True,
        of_layers=True,
    ),
    Case(
        name="combinator-of-spies",
        layer=alternate(spy(), b=spy(), n=2),
        x=normal(3),
        made_by="combinator",
        over_batch=True,
    ),
    Case(name="transform-of-spies", layer=recompute(spy()), x=normal(3), over_batch=True),
    Case(name="composed", layer=widened(times=2), x=normal(3), made_by="composed"),
    Case(
        name="composed-of-spies",
        layer=spies_for_each(),
        x=normal(3),
        made_by="composed",
        over_batch=True,
        of_layers=True,
    ),
    Case(name="stateless", layer=gain(power=3), x=normal(3), made_by="stateless"),
    Case(name="layer", layer=counted_gain(rate=0.5), x=normal(3), made_by="layer"),
    Case(name="foreign", layer=GATE, x=normal(3)),
    Case(
        name="rnn_cell",
        layer=mlax.rnn_cell(3),
        x=(normal(2), normal(3)),
        module=lambda key: nn.RNNCell(key, 3),
        params=CELL_PARAMS,
    ),
    Case(
        name="gru_cell",
        layer=mlax.gru_cell(3),
        x=(normal(2), normal(3)),
        module=lambda key: nn.GRUCell(key, 3),
        params={**CELL_PARAMS, ".recurrent_bias.data": ".recurrent_bias"},
    ),
    Case(
        name="lstm_cell",
        layer=mlax.lstm_cell(3, forget_bias=0.5),
        x=(normal(2), (normal(3), normal(3))),
        module=lambda key: nn.LSTMCell(key, 3, forget_bias=0.5),
        params=CELL_PARAMS,
    ),
    Case(
        name="dense",
        layer=mlax.dense(3, bias_initializer=jax.random.normal),
        x=normal(2, 2),
        module=lambda key: nn.Dense(key, 3, bias_initializer=jax.random.normal),
        params={".kernel.data": ".kernel", ".bias.data": ".bias"},
    ),
    Case(
        name="dense-without-bias",
        layer=mlax.dense(2, use_bias=False, dtype=jnp.bfloat16),
        x=normal(3),
        module=lambda key: nn.Dense(key, 2, use_bias=False, dtype=jnp.bfloat16),
        params={".kernel.data": ".kernel"},
    ),
    Case(
        name="conv_transpose",
        layer=mlax.conv_transpose(2, filter_shape=2, strides=2, padding="SAME"),
        x=normal(2, 2, 2),
    ),
    Case(
        name="depthwise_conv",
        layer=mlax.depthwise_conv(2, channel_multiplier=2),
        x=normal(4, 2),
    ),
    Case(name="separable_conv", layer=mlax.separable_conv(3, filter_shape=2), x=normal(4, 2)),
    Case(
        name="batch_norm",
        layer=mlax.batch_norm(),
        x=normal(3, 2),
        module=lambda key: nn.BatchNorm(key),
        params=SCALE_AND_BIAS,
        state=STATISTICS,
        over_batch=True,
    ),
    Case(
        name="layer_norm",
        layer=mlax.layer_norm(
            axis="all", scaler_initializer=jax.random.normal, bias_initializer=jax.random.normal
        ),
        x=normal(2, 3),
        module=lambda key: nn.LayerNorm(
            key,
            axis="all",
            scaler_initializer=jax.random.normal,
            bias_initializer=jax.random.normal,
        ),
        params=SCALE_AND_BIAS,
    ),
    Case(
        name="group_norm",
        layer=mlax.group_norm(2, use_scale=False),
        x=normal(3, 4),
        module=lambda key: nn.GroupNorm(key, 2, use_scale=False),
        params={".bias.data": ".bias"},
    ),
    Case(
        name="instance_norm",
        layer=mlax.instance_norm(data_format="channel_first"),
        x=normal(4, 2),
        module=lambda key: nn.InstanceNorm(key, data_format="channel_first"),
        params=SCALE_AND_BIAS,
    ),
    Case(
        name="rms_norm",
        layer=mlax.rms_norm(),
        x=normal(2, 3),
        module=lambda key: nn.RMSNorm(key),
        params={".scale.data": ".scale"},
    ),
    Case(
        name="carried",
        layer=mlax.carried(mlax.recurrent(mlax.gru_cell(3)), zeros_of_three),
        x=normal(3, 2),
    ),
    Case(
        name="carried-of-spies", layer=mlax.carried(spy(), half), x=normal(3), over_batch=True
    ),
    Case(name="lru_cell", layer=mlax.lru_cell(3), x=(normal(2), (normal(3), normal(3)[::-1]))),
    Case(name="lru", layer=mlax.lru(3), x=(normal(4, 2), (normal(3), normal(3)[::-1]))),
    Case(
        name="selective_ssm_cell",
        layer=mlax.selective_ssm_cell(3),
        x=(normal(4, 2), normal(4, 2, 3)),
    ),
    Case(
        name="selective_ssm",
        layer=mlax.selective_ssm(3, delta_rank=2),
        x=(normal(4, 2), normal(2, 3)),
    ),
    Case(name="min_gru_cell", layer=mlax.min_gru_cell(3), x=(normal(2), normal(3))),
    Case(name="min_gru", layer=mlax.min_gru(3), x=(normal(4, 2), normal(3))),
    Case(name="mamba_block", layer=mlax.mamba_block(3, state_features=2), x=normal(4, 2)),
    Case(name="carried-from-zeros", layer=mlax.carried(mlax.lru(3)), x=normal(4, 2)),
    Case(
        name="recurrent-from-zeros",
        layer=mlax.recurrent(mlax.lstm_cell(2)),
        x=(normal(3, 2), None),
    ),
    Case(
        name="depthwise_conv-causal",
        layer=mlax.depthwise_conv(3, padding="CAUSAL", filter_dilation=2),
        x=normal(5, 2),
    ),
    Case(
        name="attention", layer=mlax.attention(2), module=lambda key: nn.Attention(key, 2),
        params=PROJECTIONS, x=normal(3, 4),
    ),
    Case(
        name="attention-grouped",
        layer=mlax.attention(
            4, 2, causal=True, window=3, rotary=positions.rotary, fused=True, qk_norm=True,
            bias_initializer=jax.random.normal,
        ),
        module=lambda key: nn.Attention(
            key, 4, 2, causal=True, window=3, rotary=positions.rotary, fused=True, qk_norm=True,
            bias_initializer=jax.random.normal,
        ),
        params={
            ".query_key_value.data.kernel": ".fused.kernel",
            ".query_key_value.data.bias": ".fused.bias",
            ".query_norm.data.scale": ".query_norm.scale",
            ".key_norm.data.scale": ".key_norm.scale",
            ".output.data.kernel": ".output.kernel", ".output.data.bias": ".output.bias",
        },
        x=normal(4, 8),
    ),
    Case(
        name="attention-cross",
        layer=mlax.attention(2, 1, head_dim=3, softcap=5.0, use_bias=False),
        x=mlax.AttentionInputs(normal(2, 4), normal(3, 6), np.tri(2, 3, 1, dtype=bool)),
    ),
    Case(
        name="attention-dropout",
        layer=mlax.attention(2, dropout_rate=0.5, causal=True),
        module=lambda key: nn.AttentionRng(key, 2, dropout_rate=0.5, causal=True),
        params=PROJECTIONS,
        x=mlax.AttentionInputs(normal(3, 4), positions=np.array([-1, 0, 1], np.int32)),
    ),
    Case(
        name="attention-in-chunks",
        layer=mlax.attention(1, causal=True, implementation=functional.chunked_attention),
        x=normal(3, 4),
    ),
    Case(name="position_embedding", layer=mlax.position_embedding(5), x=normal(3, 2)),
    Case(
        name="lora",
        layer=mlax.lora(mlax.series(spy(), mlax.dense(2)), "1.kernel", 1, alpha=3),
        x=normal(3, 4),
        of_layers=True,
        over_batch=True,
    ),
    Case(
        name="quantized",
        layer=mlax.quantized(mlax.series(spy(), mlax.dense(2)), "1.kernel"),
        x=normal(3, 4),
        of_layers=True,
        over_batch=True,
    ),
    Case(
        name="replaced",
        layer=mlax.replaced(mlax.series(spy(), mlax.dense(2)), "1", mlax.linear(3)),
        made_by="replaced",
        x=normal(3, 4),
        of_layers=True,
        over_batch=True,
    ),
    Case(
        name="relative_bias",
        layer=mlax.relative_bias(2, num_buckets=4, max_distance=3),
        x=(np.array([4, 0, 2], np.int32), np.array([[1, 9]], np.int32)),
    ),
    Case(name="mlp", layer=mlax.mlp(3, jnp.tanh, gated=True), x=normal(2, 4)),
    Case(
        name="transformer_block",
        layer=mlax.transformer_block(
            mlax.attention(2), mlax.mlp(3), dropout_rate=0.5, layer_scale=0.1
        ),
        x=normal(3, 4),
    ),
    Case(
        name="moe",
        layer=mlax.moe(mlax.series(dense=mlax.dense(3), drop=mlax.dropout(0.5, (0, 1))), 3),
        x=normal(5, 4),
        over_batch=True,
    ),
    Case(
        name="moe-einsum",
        layer=mlax.moe(mlax.mlp(3, jnp.tanh), 2, 1, dispatch="einsum", capacity_factor=0.8),
        x=mlax.MoeInputs(normal(2, 3, 4), np.tri(2, 3, 1, dtype=bool)),
        over_batch=True,
    ),
    Case(
        name="moe-without-drops",
        layer=mlax.moe(mlax.dense(2), 3, 2, capacity_factor=None, normalize=False),
        x=normal(4),
        over_batch=True,
    ),
    Case(name="moe-of-spies", layer=mlax.moe(spy(), 3), x=normal(5, 4), over_batch=True),
    Case(name="flatten", layer=mlax.flatten(), x=normal(2, 2, 2)),
    Case(name="global_avg_pool", layer=mlax.global_avg_pool(), x=normal(2, 3, 2)),
    Case(name="adaptive_avg_pool", layer=mlax.adaptive_avg_pool(2), x=normal(3, 2)),
)


def pairs() -> dict[str, PairBase[Any, Any, Any, Any]]:
    """Return the public pairs by name."""
    return {name: value for name, value in _public().items() if isinstance(value, PairBase)}


def functions() -> set[str]:
    """Return the names of the public functions that make layers."""
    return {name for name, value in _public().items() if inspect.isfunction(value)} - {
        "as_module",
        "beam_search",
        "combine",
        "count",
        "diagram",
        "export",
        "flops",
        "freeze",
        "generate",
        "init_lora",
        "init_quantized",
        "init_state",
        "is_leaf_param",
        "is_non_trainable_param",
        "is_trainable_param",
        "load",
        "map_with_path",
        "mask",
        "merge_lora",
        "merge_quantized",
        "nbytes",
        "needs_rng",
        "partition",
        "paths",
        "save",
        "summary",
        "to_stax",
    }


def classes() -> set[type[mlax.Module]]:
    """Return the public classes of `mlax.nn`."""
    public = [getattr(nn, name) for name in nn.__all__]
    return {value for value in public if isinstance(value, type) and issubclass(value, mlax.Module)}


def _public() -> dict[str, Any]:
    return {name: getattr(mlax, name) for name in mlax.__all__}
