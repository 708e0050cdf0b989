"""Every public pair and every class of `mlax.nn`, in small cases that the laws are tested on.

A case is a layer, an input, and a module that does the same: of the class that corresponds to
the pair, of `F` or `FRng` for dropout and pooling, or none for the combinators and blocks that
`mlax.nn` lacks. Functions that end up in a state stand at the top level here, so that they can
be pickled.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import mlax
from mlax import functional, nn
from mlax.pair import AxisName, Key, Layer, PairBase

KEY = jax.random.key(3)
"""The key that every layer and every module is made with."""


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Case:
    """A layer, an input, and a module that does the same."""

    name: str
    pair: PairBase[Any, Any, Any, Any]
    hparams: tuple[Any, ...] = ()
    named_hparams: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    x: Any
    """A pytree of NumPy arrays."""
    module: Callable[[Key], mlax.Module] | None = None
    """Makes the module from the key that `init` gets."""
    params: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """For each trained leaf of the module its path, and the path of the same leaf in params."""
    state: Mapping[str, str] = dataclasses.field(default_factory=dict)
    """Likewise for the other leaves, and the state."""
    needs_key: bool = False
    with_pair: PairBase[Any, Any, Any, Any] | None = None
    """A pair that can stand only inside of this one."""
    no_gradient: str = ""
    """Why there is no gradient, if there is none."""
    tolerance: float = 1e-5
    """How far apart results may be, absolutely and relatively, that differ in rounding."""
    over_batch: bool = False
    """Whether it makes use of `batch_axis_name`."""

    @property
    def layer(self) -> Layer[Any, Any, Any, Any]:
        """The layer."""
        return self.pair.bind(*self.hparams, **self.named_hparams)

    @property
    def rng(self) -> Key | None:
        """The key for `apply` in training."""
        return jax.random.key(11) if self.needs_key else None

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
    """Return numbers that are the same for a shape whenever it is asked for."""
    return np.random.default_rng(len(shape)).normal(size=shape).astype(np.float32)


def is_positive(x: jax.Array) -> jax.Array:
    """Return 1 where the sum of x is positive, else 0."""
    return (x.sum() > 0).astype(jnp.int32)


def with_itself(tied: Layer[Any, Any, Any, Any]) -> Layer[Any, Any, Any, Any]:
    """Return a layer, a bias, and the layer transposed."""
    return mlax.series(tied, mlax.bias(-1), mlax.reuse(tied, transposed))


def transposed(params: Any, x: jax.Array) -> jax.Array:
    """Return x times the transposed kernel."""
    y: jax.Array = x @ params.kernel.T
    return y


def half(x: Any) -> Any:
    """Return x / 2."""
    return x / 2


def centred(x: jax.Array, axis_name: AxisName) -> jax.Array:
    """Return x without its mean over the batch."""
    mean: jax.Array = lax.pmean(x, axis_name)
    return x - mean


def exchanged(x: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Return a and b the other way round."""
    return {"a": x["b"], "b": x["a"]}


def noise(x: jax.Array, rng: Key) -> jax.Array:
    """Return x times normal noise."""
    noisy: jax.Array = x * jax.random.normal(rng, x.shape, x.dtype)
    return noisy


def without_noise(x: jax.Array, rng: Key | None) -> jax.Array:
    """Return x."""
    return x


def dropout_half(x: jax.Array, rng: Key) -> jax.Array:
    """Return x with dropout along axis 0."""
    return functional.dropout(x, rng, 0.5, 0)


def joined(xh: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Return input and carry as one vector."""
    return jnp.concatenate(xh)


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


def dropout_module() -> nn.FRng:
    """Return dropout as scripts write it."""
    return nn.FRng(dropout_half, without_noise)


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
            dropout_module(),
            nn.ZNorm(k[2], (0,)),
            nn.FRng(noise, without_noise),
            nn.Scaler(k[4], -1),
        ]
    )


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
            dropout_module(),
            nn.F(doubled),
        ]
    )


CELL = mlax.series(mlax.f(joined), mlax.linear(3), mlax.f(doubled))
NOISY_CELL = mlax.series(
    mlax.f(joined), mlax.linear(3), mlax.z_norm("all"), mlax.dropout(0.5, 0), mlax.f(doubled)
)
STATISTICS = {".moving_mean.data": ".variables.mean", ".moving_var.data": ".variables.var"}


CASES = (
    Case(
        name="linear",
        pair=mlax.linear,
        hparams=(3,),
        x=normal(4),
        module=lambda key: nn.Linear(key, 3),
        params={".linear_kernel.data": ".kernel"},
    ),
    Case(
        name="linear-transposed",
        pair=mlax.linear,
        hparams=(3, ("highest", "default"), None, True, jax.random.normal),
        x=normal(2, 4),
        module=lambda key: nn.Linear(
            key, 3, ("highest", "default"), None, True, jax.random.normal
        ),
        params={".linear_kernel.data": ".kernel"},
    ),
    Case(
        name="linear-bfloat16",
        pair=mlax.linear,
        hparams=(2,),
        named_hparams={"accum_dtype": jnp.float32, "dtype": jnp.bfloat16},
        x=normal(2, 1, 3),
        module=lambda key: nn.Linear(key, 2, accum_dtype=jnp.float32, dtype=jnp.bfloat16),
        params={".linear_kernel.data": ".kernel"},
        no_gradient="the result is in float32, accum_dtype, too coarse for finite differences",
    ),
    Case(
        name="bias",
        pair=mlax.bias,
        hparams=(-1, jax.random.normal),
        x=normal(3),
        module=lambda key: nn.Bias(key, -1, jax.random.normal),
        params={".bias_kernel.data": ".bias"},
    ),
    Case(
        name="bias-of-some-axes",
        pair=mlax.bias,
        hparams=((0, 1, 3), jax.random.normal, jnp.bfloat16),
        x=normal(2, 2, 3),
        module=lambda key: nn.Bias(key, (0, 1, 3), jax.random.normal, jnp.bfloat16),
        params={".bias_kernel.data": ".bias"},
    ),
    Case(
        name="scaler",
        pair=mlax.scaler,
        hparams=((-1, 0), jax.random.normal),
        x=normal(2, 3),
        module=lambda key: nn.Scaler(key, (-1, 0), jax.random.normal),
        params={".scaler_kernel.data": ".scale"},
    ),
    Case(
        name="conv",
        pair=mlax.conv,
        hparams=(3, 2),
        x=normal(4, 4, 2),
        module=lambda key: nn.Conv(key, 3, 2),
        params={".conv_kernel.data": ".kernel"},
    ),
    Case(
        name="conv-channel-first",
        pair=mlax.conv,
        hparams=(4, (3,), 2, ((1, 2),), None, 2, 2),
        named_hparams={"data_format": "channel_first"},
        x=normal(2, 6),
        module=lambda key: nn.Conv(
            key, 4, (3,), 2, ((1, 2),), None, 2, 2, data_format="channel_first"
        ),
        params={".conv_kernel.data": ".kernel"},
    ),
    Case(
        name="conv-specs",
        pair=mlax.conv,
        hparams=(2, (2, 1), 1, "SAME", None, (1, 2)),
        named_hparams={"data_format": ("HCW", "IHWO", "CWH"), "precision": "highest"},
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
        pair=mlax.embed,
        hparams=(5, 2),
        x=np.array([[0, 4, 2], [2, 1, 3]], np.int32),
        module=lambda key: nn.Embed(key, 5, 2),
        params={".embed_kernel.data": ".embedding"},
    ),
    Case(
        name="z_norm",
        pair=mlax.z_norm,
        hparams=("channel_last",),
        x=normal(3, 2, 2),
        module=lambda key: nn.ZNorm(key, "channel_last"),
        state=STATISTICS,
    ),
    Case(
        name="z_norm-of-the-batch",
        pair=mlax.z_norm,
        hparams=((), 1e-3, 0.5, jax.random.normal, jax.random.uniform),
        x=normal(3),
        module=lambda key: nn.ZNorm(key, (), 1e-3, 0.5, jax.random.normal, jax.random.uniform),
        state=STATISTICS,
        over_batch=True,
    ),
    Case(
        name="z_norm-bfloat16",
        pair=mlax.z_norm,
        hparams=((1, -3),),
        named_hparams={"dtype": jnp.bfloat16},
        x=normal(2, 3, 2),
        module=lambda key: nn.ZNorm(key, (1, -3), dtype=jnp.bfloat16),
        state=STATISTICS,
    ),
    Case(
        name="f",
        pair=mlax.f,
        hparams=(jax.nn.relu,),
        x=normal(2, 3),
        module=lambda key: nn.F(jax.nn.relu),
    ),
    Case(
        name="f-of-a-dict",
        pair=mlax.f,
        hparams=(exchanged, half_of_a := functools.partial(jax.tree.map, half)),
        x={"a": normal(2), "b": normal(3)},
        module=lambda key: nn.F(exchanged, half_of_a),
    ),
    Case(
        name="f-of-a-partial",
        pair=mlax.f,
        hparams=(leaky := functools.partial(jax.nn.leaky_relu, negative_slope=0.2),),
        x=normal(3),
        module=lambda key: nn.F(leaky),
    ),
    Case(
        name="f-with-axis-name",
        pair=mlax.f,
        hparams=(centred, half),
        x=normal(3),
        module=lambda key: nn.F(centred, half),
        over_batch=True,
    ),
    Case(
        name="f_rng",
        pair=mlax.f_rng,
        hparams=(noise, without_noise),
        x=normal(2, 3),
        module=lambda key: nn.FRng(noise, without_noise),
        needs_key=True,
    ),
    Case(
        name="dropout",
        pair=mlax.dropout,
        hparams=(0.5, 0),
        x=normal(6),
        module=lambda key: dropout_module(),
        needs_key=True,
    ),
    Case(
        name="max_pool",
        pair=mlax.max_pool,
        hparams=(2, 2),
        x=normal(4, 4, 2),
        module=lambda key: nn.F(functools.partial(functional.max_pool, window_shape=2, strides=2)),
    ),
    Case(
        name="max_pool-of-integers",
        pair=mlax.max_pool,
        hparams=((2,),),
        named_hparams={"padding": 1, "data_format": "CW"},
        x=np.arange(10, dtype=np.int32).reshape(2, 5) % 7 - 3,
        no_gradient="no number in it is floating",
        module=lambda key: nn.F(
            functools.partial(
                functional.max_pool, window_shape=2, padding=(1,), data_format="channel_first"
            )
        ),
    ),
    Case(
        name="avg_pool",
        pair=mlax.avg_pool,
        hparams=((2, 1), (1, 2), "SAME"),
        x=normal(3, 3, 1),
        module=lambda key: nn.F(
            functools.partial(
                functional.avg_pool, window_shape=(2, 1), strides=(1, 2), padding="SAME"
            )
        ),
    ),
    Case(
        name="sum_pool",
        pair=mlax.sum_pool,
        hparams=(2, 1, ((1, 0),), 2, 2),
        x=normal(4, 2),
        module=lambda key: nn.F(
            functools.partial(
                functional.sum_pool,
                window_shape=2,
                padding=((1, 0),),
                input_dilation=2,
                window_dilation=2,
            )
        ),
    ),
    Case(
        name="pool",
        pair=mlax.pool,
        hparams=(jnp.inf, lax.min, 2),
        x=normal(3, 2),
        module=lambda key: nn.F(
            functools.partial(
                functional.pool, init_value=jnp.inf, reduce_fn=lax.min, window_shape=2
            )
        ),
    ),
    Case(
        name="series",
        pair=mlax.series,
        hparams=(
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
    ),
    Case(
        name="series-of-none",
        pair=mlax.series,
        x=normal(3),
        module=lambda key: nn.Series([]),
    ),
    Case(
        name="series-with-keys",
        pair=mlax.series,
        hparams=(
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
        needs_key=True,
        over_batch=True,
    ),
    Case(
        name="series-nested",
        pair=mlax.series,
        hparams=(
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
                nn.SeriesRng([nn.Bias(parts(parts(key, 2)[1], 2)[0], -1), dropout_module()]),
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
        needs_key=True,
    ),
    Case(
        name="series-of-foreign-pairs",
        pair=mlax.series,
        hparams=(GATE, mlax.as_layer(nn.Linear(jax.random.key(5), 2))),
        x=normal(3),
        module=lambda key: nn.Series(
            [mlax.as_module(GATE, parts(key, 2)[0]), nn.Linear(jax.random.key(5), 2)]
        ),
        params={
            ".layers.data[0].params.data['gain']": "[0]['gain']",
            ".layers.data[1].linear_kernel.data": "[1].linear_kernel.data",
        },
        state={".layers.data[0].state.data": ".variables[0]"},
    ),
    Case(
        name="parallel",
        pair=mlax.parallel,
        hparams=(mlax.linear(2), mlax.f(half), mlax.z_norm("all")),
        x=(normal(3), normal(2), normal(2, 2)),
        module=lambda key: nn.Parallel(
            [nn.Linear(parts(key, 3)[0], 2), nn.F(half), nn.ZNorm(parts(key, 3)[2], "all")]
        ),
        params={".layers.data[0].linear_kernel.data": "[0].kernel"},
        state={
            ".layers.data[2].moving_mean.data": ".variables[2].mean",
            ".layers.data[2].moving_var.data": ".variables[2].var",
        },
    ),
    Case(
        name="parallel-with-keys",
        pair=mlax.parallel,
        hparams=(mlax.f_rng(noise, without_noise), mlax.bias(-1), mlax.dropout(0.5, 0)),
        x=(normal(3), normal(2), normal(4)),
        module=lambda key: nn.ParallelRng(
            [nn.FRng(noise, without_noise), nn.Bias(parts(key, 3)[1], -1), dropout_module()]
        ),
        params={".layers.data[1].bias_kernel.data": "[1].bias"},
        needs_key=True,
    ),
    Case(
        name="recurrent",
        pair=mlax.recurrent,
        hparams=(CELL, False, 2),
        x=(normal(3, 2), normal(3)),
        module=lambda key: nn.Recurrent(cell(parts(key, 1)[0]), False, 2),
        params={".cell.layers.data[1].linear_kernel.data": "[1].kernel"},
    ),
    Case(
        name="recurrent-reverse-with-keys",
        pair=mlax.recurrent,
        hparams=(NOISY_CELL, True),
        x=(normal(3, 2), normal(3)),
        module=lambda key: nn.RecurrentRng(noisy_cell(parts(key, 1)[0]), True),
        params={".cell.layers.data[1].linear_kernel.data": "[1].kernel"},
        state={
            ".cell.layers.data[2].moving_mean.data": ".variables[2].mean",
            ".cell.layers.data[2].moving_var.data": ".variables[2].var",
        },
        needs_key=True,
        over_batch=True,
    ),
    Case(
        name="as_layer",
        pair=mlax.as_layer,
        hparams=(perceptron(KEY),),
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
    ),
    Case(
        name="as_layer-with-keys",
        pair=mlax.as_layer,
        hparams=(noisy_net(KEY),),
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
        needs_key=True,
    ),
    Case(
        name="series-of-names",
        pair=mlax.series,
        named_hparams={"first": mlax.linear(2), "second": mlax.z_norm("all")},
        x=normal(3),
    ),
    Case(
        name="branch",
        pair=mlax.branch,
        named_hparams={"left": mlax.linear(2), "right": mlax.dropout(0.5, 0)},
        x=normal(6),
        needs_key=True,
    ),
    Case(name="add", pair=mlax.add, x=(normal(3), normal(3), normal(3))),
    Case(
        name="concatenate",
        pair=mlax.concatenate,
        hparams=(0,),
        x={"a": normal(1, 2), "b": normal(2, 2)},
    ),
    Case(
        name="residual",
        pair=mlax.residual,
        hparams=(mlax.series(mlax.linear(4), mlax.f_rng(noise, without_noise)), mlax.linear(4)),
        x=normal(3),
        needs_key=True,
    ),
    Case(
        name="repeat",
        pair=mlax.repeat,
        hparams=(mlax.residual(mlax.series(mlax.linear(3), mlax.z_norm("all"))), 3, 2, True),
        x=normal(3),
    ),
    Case(
        name="remat",
        pair=mlax.remat,
        hparams=(
            mlax.series(mlax.linear(3), mlax.f_rng(noise, without_noise)),
            jax.checkpoint_policies.dots_saveable,
        ),
        x=normal(2),
        needs_key=True,
    ),
    Case(
        name="switch",
        pair=mlax.switch,
        hparams=(
            is_positive,
            mlax.series(mlax.linear(3), mlax.z_norm("all")),
            mlax.bias(-1, jax.random.normal),
        ),
        x=normal(3),
    ),
    Case(
        name="ensemble",
        pair=mlax.ensemble,
        hparams=(mlax.series(mlax.linear(4), mlax.dropout(0.5, 0), mlax.z_norm("all")), 2),
        x=normal(3),
        needs_key=True,
    ),
    Case(
        name="shared",
        pair=mlax.shared,
        hparams=(mlax.linear(2), with_itself),
        with_pair=mlax.reuse,
        x=normal(3),
    ),
    Case(
        name="batched",
        pair=mlax.batched,
        hparams=(mlax.series(mlax.linear(2), mlax.z_norm(())),),
        x=normal(4, 3),
    ),
    Case(
        name="cast",
        pair=mlax.cast,
        hparams=(mlax.series(mlax.linear(3), mlax.z_norm("all")),),
        named_hparams={
            "params_dtype": jnp.bfloat16,
            "compute_dtype": jnp.bfloat16,
            "output_dtype": jnp.float32,
        },
        x=normal(2),
        tolerance=2e-2,
        no_gradient="it computes in bfloat16, too coarse for finite differences",
    ),
    Case(
        name="stochastic_depth",
        pair=mlax.stochastic_depth,
        hparams=(mlax.series(mlax.linear(3), mlax.f_rng(noise, without_noise)), 0.5),
        x=normal(3),
        needs_key=True,
    ),
    Case(
        name="bidirectional",
        pair=mlax.bidirectional,
        hparams=(mlax.rnn_cell(2), mlax.gru_cell(2), 2),
        x=(normal(3, 2), (normal(2), normal(2))),
    ),
    Case(name="rnn_cell", pair=mlax.rnn_cell, hparams=(3,), x=(normal(2), normal(3))),
    Case(name="gru_cell", pair=mlax.gru_cell, hparams=(3,), x=(normal(2), normal(3))),
    Case(
        name="lstm_cell",
        pair=mlax.lstm_cell,
        hparams=(3, 0.5),
        x=(normal(2), (normal(3), normal(3))),
    ),
    Case(name="dense", pair=mlax.dense, hparams=(3,), x=normal(2, 2)),
    Case(
        name="conv_transpose",
        pair=mlax.conv_transpose,
        hparams=(2, 2, 2, "SAME"),
        x=normal(2, 2, 2),
    ),
    Case(name="depthwise_conv", pair=mlax.depthwise_conv, hparams=(2, 2), x=normal(4, 2)),
    Case(name="separable_conv", pair=mlax.separable_conv, hparams=(3, 2), x=normal(4, 2)),
    Case(name="batch_norm", pair=mlax.batch_norm, x=normal(3, 2)),
    Case(name="layer_norm", pair=mlax.layer_norm, hparams=("all",), x=normal(2, 3)),
    Case(name="group_norm", pair=mlax.group_norm, hparams=(2,), x=normal(3, 4)),
    Case(name="instance_norm", pair=mlax.instance_norm, x=normal(4, 2)),
    Case(name="rms_norm", pair=mlax.rms_norm, x=normal(2, 3)),
    Case(name="flatten", pair=mlax.flatten, x=normal(2, 2, 2)),
    Case(name="global_avg_pool", pair=mlax.global_avg_pool, x=normal(2, 3, 2)),
    Case(name="adaptive_avg_pool", pair=mlax.adaptive_avg_pool, hparams=(2,), x=normal(3, 2)),
)


def pairs() -> dict[str, PairBase[Any, Any, Any, Any]]:
    """Return the public pairs by name."""
    public = {name: getattr(mlax, name) for name in mlax.__all__}
    return {name: value for name, value in public.items() if isinstance(value, PairBase)}


def classes() -> set[type[mlax.Module]]:
    """Return the public classes of `mlax.nn`."""
    public = [getattr(nn, name) for name in nn.__all__]
    return {value for value in public if isinstance(value, type) and issubclass(value, mlax.Module)}
