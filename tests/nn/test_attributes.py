"""Attributes govern: hyperparameters, parameters set by hand, subclasses, and the key."""

import pickle
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import mlax
from mlax import nn
from mlax.layer import AxisName

UNTYPED: Any = nn
"""For wrong types on purpose."""

KEY = jax.random.key(0)
X = jnp.array([[1.0, -2.0, 3.0], [0.5, 0.0, 1.0]])
SIGNAL = jnp.sin(jnp.arange(10.0)).reshape(5, 2)
ones, zeros = jax.nn.initializers.ones, jax.nn.initializers.zeros


def cumulated(xh: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Return x + h, twice."""
    total = xh[0] + xh[1]
    return total, total


ATTRIBUTES: list[tuple[Callable[[], Any], dict[str, Any]]] = [
    (
        lambda: nn.Linear(KEY, 2, "highest", jnp.float32, True, ones, jnp.bfloat16),
        {"out_features": 2, "precision": "highest", "accum_dtype": jnp.float32,
         "transposed_kernel": True, "kernel_initializer": ones, "dtype": jnp.bfloat16},
    ),
    (
        lambda: nn.Bias(KEY, [0, -1], ones, jnp.bfloat16),
        {"in_features": (0, -1), "bias_initializer": ones, "dtype": jnp.bfloat16},
    ),
    (lambda: nn.Bias(KEY, -1), {"in_features": (-1,)}),
    (
        lambda: UNTYPED.Scaler(KEY, np.array([2, 0]), zeros),
        {"in_features": (2, 0), "scaler_initializer": zeros, "dtype": jnp.float32},
    ),
    (
        lambda: nn.Conv(KEY, 4, [3], 2, "same", None, 1, 2, data_format="channel_first"),
        {"out_channels": 4, "filter_shape": (3,), "strides": 2, "padding": "SAME",
         "input_dilation": None, "filter_dilation": 1, "feature_group_count": 2,
         "batch_group_count": 1, "data_format": "channel_first", "precision": None,
         "accum_dtype": None, "dtype": jnp.float32},
    ),
    (
        lambda: UNTYPED.Embed(KEY, np.int64(5), 3, ones),
        {"vocab_size": 5, "embed_dim": 3, "embed_initializer": ones, "dtype": jnp.float32},
    ),
    (
        lambda: nn.ZNorm(KEY, "all", 1e-3, 0.5),
        {"axis": "all", "epsilon": 1e-3, "momentum": 0.5, "mean_initializer": zeros,
         "variance_initializer": ones, "dtype": jnp.float32},
    ),
    (lambda: nn.F(jnp.sin), {"train_fn": jnp.sin, "infer_fn": None}),
    (lambda: nn.FRng(jnp.add, jnp.sin), {"train_fn": jnp.add, "infer_fn": jnp.sin}),
    (lambda: nn.Recurrent(nn.F(cumulated), True, 2), {"reverse": True, "unroll": 2}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "attributes"), ATTRIBUTES, ids=[type(make()).__name__ for make, _ in ATTRIBUTES]
)
def test_hyperparameters_are_attributes(
    make: Callable[[], Any], attributes: dict[str, Any]
) -> None:
    module = make()
    assert {name: vars(module)[name] for name in attributes} == attributes
    mapped = jax.tree.map(lambda leaf: leaf, module)
    assert {name: getattr(mapped, name) for name in attributes} == attributes


def conv(kernel: Any, **hparams: Any) -> Any:
    """Return the convolution of the signal by `jax.lax`."""
    specs = ("NWC", "OWI", "NWC")
    hparams = {"window_strides": (1,), "padding": "VALID", **hparams}
    return lax.conv_general_dilated(SIGNAL[None], kernel, dimension_numbers=specs, **hparams)[0]


CHANGES: list[tuple[str, Callable[[], Any], Any, str, Any, Callable[[Any], Any]]] = [
    ("train_fn", lambda: nn.F(jnp.sin), X, "train_fn", jnp.cos, lambda _: np.cos(X)),
    ("axis", lambda: nn.ZNorm(KEY, (), epsilon=0.0), X, "epsilon", 3.0, lambda _: np.asarray(X) / 2),
    (
        "strides", lambda: nn.Conv(KEY, 3, 2), SIGNAL, "strides", 2,
        lambda module: conv(module.conv_kernel.data, window_strides=(2,)),
    ),
    (
        "padding", lambda: nn.Conv(KEY, 3, 2), SIGNAL, "padding", [(2, 1)],
        lambda module: conv(module.conv_kernel.data, padding=[(2, 1)]),
    ),
    (
        "filter_dilation", lambda: nn.Conv(KEY, 3, 2), SIGNAL, "filter_dilation", (3,),
        lambda module: conv(module.conv_kernel.data, rhs_dilation=(3,)),
    ),
    (
        "accum_dtype", lambda: nn.Linear(KEY, 2, kernel_initializer=ones), X.astype(jnp.bfloat16),
        "accum_dtype", jnp.float32, lambda _: np.asarray(X) @ np.ones((3, 2), np.float32),
    ),
    (
        "reverse", lambda: nn.Recurrent(nn.F(cumulated)), (jnp.arange(4.0), jnp.zeros(())),
        "reverse", True, lambda _: (np.array([6.0, 6.0, 5.0, 3.0]), np.array(6.0)),
    ),
    ("in_features", lambda: nn.Bias(KEY, (0, -1), ones), X, "in_features", (0, 3), lambda _: X + 1),
]  # fmt: skip


@pytest.mark.parametrize("cls", [nn.Bias, nn.Scaler])
def test_in_features_are_a_tuple(cls: Any) -> None:
    module = cls(KEY, -1)
    assert module.in_features == (-1,)
    for given, kept in ((1, (1,)), ([0, None, np.int64(3)], (0, 0, 3)), (np.arange(2), (0, 1))):
        module.in_features = given
        assert module.in_features == kept


def test_a_function_of_a_loop_takes_effect() -> None:
    call = jax.jit(lambda module: module(X, None)[0])
    module = nn.F(lambda x: x)
    for factor in (1.0, 2.0, 3.0):
        np.testing.assert_array_equal(call(nn.F(lambda x: x * factor)), X * factor)
        module.train_fn = lambda x: x * factor
        np.testing.assert_array_equal(call(module), X * factor)


@pytest.mark.parametrize(
    ("make", "x", "name", "value", "expected"),
    [case[1:] for case in CHANGES],
    ids=[case[0] for case in CHANGES],
)
def test_a_hyperparameter_that_is_set_later_takes_effect(
    make: Callable[[], Any], x: Any, name: str, value: Any, expected: Callable[[Any], Any]
) -> None:
    traces = []

    @jax.jit
    def call(module: Any, x: Any) -> Any:
        traces.append(x)
        return module(x, None, True)

    _, module = make()(x, None, True)
    for _ in range(2):
        call(module, x)
    assert len(traces) == 1
    setattr(module, name, value)
    y, after = call(module, x)
    call(module, x)
    assert len(traces) == 2
    eager, _ = module(x, None, True)
    for result in (y, eager):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), result, expected(module)
        )
    assert getattr(after, name) == getattr(module, name)


def test_momentum_that_is_set_later_takes_effect() -> None:
    _, module = nn.ZNorm(KEY, "all")(X, None)
    module.momentum = 0.0
    _, module = jax.jit(lambda module, x: module(x, None))(module, 10 * X)
    np.testing.assert_allclose(module.moving_mean.data, 10 * np.mean(X), rtol=1e-5)
    assert module.momentum == 0.0


@pytest.mark.parametrize(
    ("make", "x", "name", "value"),
    [
        (lambda: nn.Linear(KEY, 2), X, "out_features", 5),
        (lambda: nn.Linear(KEY, 2, transposed_kernel=True), X, "out_features", 5),
        (lambda: nn.Conv(KEY, 3, 2), SIGNAL, "out_channels", 4),
        (lambda: nn.Conv(KEY, 3, 2), SIGNAL, "filter_shape", (3,)),
        (lambda: nn.Embed(KEY, 5, 3), jnp.array([1]), "vocab_size", 6),
        (lambda: nn.Embed(KEY, 5, 3), jnp.array([1]), "embed_dim", 4),
    ],
)
def test_a_size_that_the_parameter_has_not_raises(
    make: Callable[[], Any], x: Any, name: str, value: Any
) -> None:
    _, module = make()(x, None)
    before = getattr(module, name)
    setattr(module, name, value)
    wanted = "^(Linear|Conv|Embed): expected .*_kernel of shape .*, as its attributes say, got shape"
    with pytest.raises(ValueError, match=wanted):
        module(x, None)
    setattr(module, name, before)
    module(x, None)
    setattr(module, name, value)
    module.initialized = False
    y, module = module(x, None)
    assert getattr(module, name) == value


def test_a_hyperparameter_is_checked_when_it_is_set() -> None:
    linear: Any = nn.Linear(KEY, 2)
    with pytest.raises(TypeError, match="^linear: expected out_features to be a positive integer"):
        linear.out_features = "five"
    assert linear.out_features == 2
    norm: Any = nn.ZNorm(KEY, "all")
    with pytest.raises(ValueError, match="^z_norm: expected momentum to be in"):
        norm.momentum = 2.0


@pytest.mark.parametrize("two", [np.int64(2), np.array(2)], ids=["scalar", "array of no axes"])
def test_integers_of_numpy_serve(two: Any) -> None:
    modules = [
        (UNTYPED.Linear(KEY, two), X),
        (UNTYPED.Bias(KEY, (0, np.int8(-1))), X),
        (UNTYPED.Scaler(KEY, np.array([0, 3])), X),
        (UNTYPED.Embed(KEY, two, two), jnp.array([1, 0])),
        (UNTYPED.Conv(KEY, two, two, two, two, two, two), SIGNAL),
        (UNTYPED.Conv(KEY, two, np.array([2]), np.array([1]), np.array([[1, 2]])), SIGNAL),
        (UNTYPED.Conv(KEY, two, (two,), (two,), ((two, two),), (two,), (two,), two), SIGNAL),
        (UNTYPED.ZNorm(KEY, np.array([0, -1]), np.float32(1e-3), np.float64(0.5)), X),
        (UNTYPED.MaxPool(two, np.array([1])), SIGNAL),
        (UNTYPED.Recurrent(nn.F(cumulated), unroll=two), (X, jnp.zeros(3))),
    ]
    for module, x in modules:
        _, module = module(x, None)
        statics = [value for value in vars(module).values() if not hasattr(value, "data")]
        for value in jax.tree.leaves([v for v in statics if isinstance(v, int | float | tuple)]):
            assert type(value) in (bool, int, float)
        jax.jit(lambda module, x: module(x, None))(module, x)


# Parameters set by hand


def test_parameters_set_by_hand_need_no_setup() -> None:
    linear = nn.Linear(KEY, 2)
    linear.linear_kernel.data = jnp.full((3, 2), 2.0)
    linear.initialized = True
    np.testing.assert_allclose(linear(X, None)[0], np.asarray(X) @ np.full((3, 2), 2.0))

    bias = nn.Bias(KEY, (0, 3))
    bias.bias_kernel.data = jnp.array([1.0, 2.0, 3.0])
    bias.initialized = True
    np.testing.assert_allclose(bias.apply(X, None)[0], np.asarray(X) + [1, 2, 3])

    conv_layer = nn.Conv(KEY, 1, 2)
    conv_layer.conv_kernel.data = jnp.ones((1, 2, 2))
    conv_layer.initialized = True
    sums = np.asarray(SIGNAL).sum(1, keepdims=True)
    np.testing.assert_allclose(conv_layer(SIGNAL, None)[0], sums[:-1] + sums[1:], rtol=1e-5)

    embed = nn.Embed(KEY, 2, 2)
    embed.embed_kernel.data = jnp.eye(2)
    embed.initialized = True
    np.testing.assert_array_equal(embed(jnp.array([1, 0]), None)[0], [[0, 1], [1, 0]])

    norm = nn.ZNorm(KEY, (0,), epsilon=0.0)
    norm.moving_mean.data, norm.moving_var.data = jnp.ones(3), jnp.full(3, 4.0)
    norm.initialized = True
    np.testing.assert_allclose(norm(X, None, True)[0], (np.asarray(X) - 1) / 2)
    np.testing.assert_allclose(norm(X, None)[0], [[1, -1, 1], [-1, 1, -1]], rtol=1e-5)


# Subclasses


def test_a_subclass_may_override_setup_alone() -> None:
    class Constant(nn.Linear):
        def setup(self, x: jax.Array) -> None:
            self.linear_kernel.data = jnp.full((x.shape[-1], self.out_features), 2.0)

    y, module = jax.jit(lambda module, x: module(x, None))(Constant(KEY, 2), X)
    np.testing.assert_allclose(y, 2 * np.asarray(X).sum(1, keepdims=True).repeat(2, 1))

    class Noisy(nn.Embed):
        def setup(self, x: jax.Array) -> None:
            super().setup(x)
            assert self.rng is not None
            shape = self.embed_kernel.data.shape
            self.embed_kernel.data += jax.random.normal(self.rng, shape)

    assert Noisy(KEY, 5, 3)(jnp.array([1]), None)[0].shape == (1, 3)


def test_a_subclass_may_override_forward_alone() -> None:
    class Scaled(nn.Linear):
        def forward(
            self, x: jax.Array, rng: None = None, inference_mode: bool = False,
            batch_axis_name: AxisName = (),
        ) -> jax.Array:
            first: jax.Array = self.linear_kernel.data[0]
            return super().forward(x) / self.out_features + first

    y, module = Scaled(KEY, 2)(X, None)
    kernel = np.asarray(module.linear_kernel.data)
    np.testing.assert_allclose(y, np.asarray(X) @ kernel / 2 + kernel[0], rtol=1e-5)

    class Shifted(nn.ZNorm):
        def forward(
            self, x: jax.Array, rng: None = None, inference_mode: bool = False,
            batch_axis_name: AxisName = (),
        ) -> jax.Array:
            self.moving_mean.data = self.moving_mean.data + 1
            return x * self.epsilon

    y, norm = Shifted(KEY, "all", 0.5)(X, None)
    np.testing.assert_allclose(y, X / 2)
    assert norm.moving_mean.data == 1


# The key


def series(key: Any) -> nn.Series:
    """Return a model that is not set up."""
    return nn.Series([nn.Linear(key, 2), nn.Bias(key, (0, -1)), nn.ZNorm(key, (0,))])


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey], ids=["typed", "raw"])
def test_modules_that_differ_in_their_keys_have_equal_structures(make_key: Any) -> None:
    one, two = (series(make_key(i))(X, None)[1] for i in range(2))
    assert jax.tree.structure(one) == jax.tree.structure(two)
    mean = jax.tree.map(lambda a, b: (a + b) / 2, one, two)
    kernels = [np.asarray(m.layers.data[0].linear_kernel.data) for m in (one, two, mean)]
    assert not np.allclose(kernels[0], kernels[1])
    np.testing.assert_allclose(kernels[2], (kernels[0] + kernels[1]) / 2)
    fresh = [jax.tree.structure(series(make_key(i))) for i in range(2)]
    assert fresh[0] != fresh[1]


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey], ids=["typed", "raw"])
def test_an_ensemble_is_made_by_vmap(make_key: Any) -> None:
    keys = jax.random.split(make_key(0), 3)
    members = jax.vmap(lambda key: series(key)(X, None)[1])(keys)
    ys, _ = jax.vmap(lambda module: module(X, None, True))(members)
    for i in range(3):
        expected, _ = series(keys[i])(X, None)[1](X, None, True)
        np.testing.assert_allclose(ys[i], expected, rtol=1e-5)
    assert jax.tree.structure(pickle.loads(pickle.dumps(members))) == jax.tree.structure(members)


def test_no_tracer_is_left_after_a_jitted_setup() -> None:
    made = jax.jit(lambda key: series(key)(X, None)[1])(KEY)
    called = jax.jit(lambda module: module(X, None)[1])(series(KEY))
    for module in (made, called):
        assert jax.tree.structure(module) == jax.tree.structure(series(KEY)(X, None)[1])
        for layer in module.layers.data:
            assert not any(isinstance(value, jax.core.Tracer) for value in vars(layer).values())
        pickle.dumps(module)


def test_a_module_that_is_not_set_up_does_not_leave_a_traced_function() -> None:
    made = jax.vmap(lambda key: nn.Linear(key, 3))(jax.random.split(KEY, 2))
    with pytest.raises(TypeError, match="^Linear: expected rng .*; call the module in the function"):
        made(X, None)


def test_a_key_of_ones_own_still_counts() -> None:
    class Keyed(nn.Series):
        def __init__(self, key: Any) -> None:
            super().__init__([nn.F(jnp.sin)])
            self.own_key = key

    one, two = (Keyed(jax.random.key(i))(X, None)[1] for i in range(2))
    assert jax.tree.structure(one) != jax.tree.structure(two)
    assert jax.tree.map(lambda leaf: leaf, two).own_key == jax.random.key(1)


def test_a_subclass_with_a_forward_of_its_own_keeps_its_key() -> None:
    class Noisy(nn.Linear):
        def forward(
            self, x: jax.Array, rng: None = None, inference_mode: bool = False,
            batch_axis_name: AxisName = (),
        ) -> jax.Array:
            assert self.rng is not None
            return super().forward(x) + jax.random.normal(self.rng, (self.out_features,))

    y, module = Noisy(KEY, 2)(X, None)
    trained, rest = module.partition()
    for other in (module, trained.combine(rest)):
        again, _ = jax.jit(lambda module: module(X, None))(other)
        np.testing.assert_allclose(again, y, rtol=1e-5)
    assert jax.tree.structure(Noisy(jax.random.key(1), 2)(X, None)[1]) != jax.tree.structure(module)


class Net(nn.Series):
    """A user's model, which keeps its key, and whatever else it is given."""

    def __init__(self, rng: Any, sizes: Any) -> None:
        super().__init__([nn.Linear(rng, 2)])
        self.rng = rng
        self.sizes = sizes


@pytest.mark.parametrize("sizes", [(1, 2), [1, 2], np.arange(2)], ids=["tuple", "list", "array"])
def test_a_traced_key_of_ones_own_is_gone_with_its_function(sizes: Any) -> None:
    keys = jax.random.split(KEY, 3)

    def make(key: Any) -> Any:
        return Net(key, sizes)(X, None)[1]

    for module in (jax.vmap(make)(keys), jax.jit(make)(keys[0])):
        assert "key of a function" in repr(module.rng)
        assert jax.tree.structure(pickle.loads(pickle.dumps(module))) == jax.tree.structure(module)
        jax.tree.map(jnp.add, module, module)
        y, after = jax.jit(jax.vmap(lambda module: module(X, None)))(jax.vmap(make)(keys))
        assert jax.tree.structure(after) == jax.tree.structure(module)
    shapes = jax.eval_shape(make, KEY)
    assert jax.tree.structure(shapes) == jax.tree.structure(module)
    made, _ = jax.jit(lambda key: make(key).partition())(KEY)
    assert made.rng == module.rng
    assert make(KEY).rng is KEY


def test_a_traced_key_of_ones_own_can_not_be_used_in_silence() -> None:
    class Noisy(nn.Linear):
        def forward(self, x: jax.Array, *_: Any) -> jax.Array:
            return x + jax.random.normal(self.rng, x.shape)  # type: ignore[arg-type]  # set below

    module = jax.jit(lambda key: Noisy(key, 2)(X, None)[1])(KEY)
    with pytest.raises(TypeError, match="KeyOfEndedTrace") as caught:
        module(X, None)
    assert any("set its key again" in note for note in caught.value.__notes__)
    module.rng = KEY
    module(X, None)


def test_a_key_that_is_gone_is_asked_for() -> None:
    _, module = jax.jit(lambda module: module(X, None))(nn.Linear(KEY, 2))
    module.initialized = False
    uses: list[Callable[[], Any]] = [lambda: module(X, None), lambda: module.setup(X)]
    for use in uses:
        with pytest.raises(TypeError, match="^Linear: expected rng .* got None: .*; set the attr"):
            use()
    module.rng = jax.random.key(1)
    expected, _ = nn.Linear(jax.random.key(1), 2)(X, None)
    np.testing.assert_array_equal(module(X, None)[0], expected)


# Wrong constructions


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (lambda: UNTYPED.Series(nn.F(jnp.sin), nn.F(jnp.cos)), r"^Series: too many .*; pass one list"),
        (lambda: UNTYPED.ParallelRng(nn.F(jnp.sin)), "^ParallelRng: expected layers .*; pass one list"),
        (lambda: UNTYPED.Linear(3), r"^Linear: missing .*'out_features'; expected Linear\(rng, .* a key"),
        (lambda: UNTYPED.Linear(3, 4), "^Linear: expected rng to be one PRNG key, got 3; make one with"),
        (lambda: UNTYPED.Conv(KEY, 3), "^Conv: missing .*'filter_shape'"),
        (lambda: UNTYPED.Linear(KEY, 3, bias=True), "^Linear: got an unexpected keyword .*'bias'"),
        (lambda: UNTYPED.Dropout(KEY, 0.5), "^dropout: expected rate to be a number in"),
    ],
)
def test_a_wrong_construction_is_told_the_way_out(make: Callable[[], Any], wanted: str) -> None:
    with pytest.raises(TypeError, match=wanted):
        make()


def test_apply_of_a_module_that_is_not_set_up_is_told_the_way_out() -> None:
    for module in (nn.Linear(KEY, 2), nn.ZNorm(KEY, 0)):
        with pytest.raises(TypeError, match="expected an initialized module, .*; call it once"):
            module.apply(X, None)


def test_a_wrong_layer_is_told_the_way_out() -> None:
    for wrong, way_out in (
        (mlax.dense(3), r"make it a module with mlax.as_module\(dense\(3\), rng\)"),
        (jnp.sin, r"make it a module with nn.F\(sin\)"),
        (nn.Linear, r"make an instance, as in Linear\(...\)"),
    ):
        layers: Any = [wrong]
        with pytest.raises(TypeError, match=f"^Series: expected layers to be modules, .*{way_out}"):
            nn.Series(layers)
