"""`as_layer` and `as_module`: from modules to pairs and back."""

import copy
import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import AxisName, Key, Module, Parameter, nn

X = jnp.array([1.0, -2.0, 3.0])
KEY = jax.random.key(0)


class Noisy(Module):
    """A user's module: y = gain * x + noise, with a running sum kept in a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes = [3]
        self.gain = Parameter(trainable=True)
        self.stats = Parameter(trainable=False)

    def setup(self, x: jax.Array) -> None:
        self.gain.data = {"gain": jnp.arange(1.0, 1 + x.size)}
        self.stats.data = {"sum": jnp.zeros(x.shape)}

    def forward(
        self, x: jax.Array, rng: Key, inference_mode: bool = False, batch_axis_name: AxisName = ()
    ) -> jax.Array:
        y: jax.Array = self.gain.data["gain"] * x
        if inference_mode:
            return y
        self.stats.data["sum"] = self.stats.data["sum"] + x
        return y + jax.random.normal(rng, x.shape)


def counted_init(rng: Key, x: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Make a factor and a counter."""
    return jax.random.normal(rng, x.shape), {"calls": jnp.zeros((), jnp.int32)}


def counted_apply(
    params: jax.Array,
    state: dict[str, jax.Array],
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Multiply, and count the calls in training."""
    return params * x, state if inference_mode else {"calls": state["calls"] + 1}


COUNTED = mlax.Layer(counted_init, counted_apply)


def paths(tree: Any) -> list[str]:
    """Return the paths of the leaves."""
    return [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)]


def assert_equal(a: Any, b: Any) -> None:
    """Require bitwise equal leaves."""
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert left.dtype == right.dtype
        np.testing.assert_array_equal(left, right)


# as_layer


def test_params_are_what_is_trained() -> None:
    params, state = mlax.as_layer(Noisy()).init(KEY, X)
    assert type(params) is type(state) is Noisy
    assert paths(params) == [".gain.data['gain']"]
    assert paths(state) == [".stats.data['sum']"]


def test_a_users_module_is_a_layer() -> None:
    init, apply = mlax.as_layer(Noisy())
    params, state = init(KEY, X)
    y, state = apply(params, state, X, KEY)
    np.testing.assert_allclose(
        y, np.array([1, -4, 9]) + jax.random.normal(KEY, (3,)), rtol=1e-6
    )
    np.testing.assert_array_equal(state.stats.data["sum"], X)
    y, after = apply(params, state, X, None, True)
    np.testing.assert_array_equal(y, [1, -4, 9])
    assert_equal(after, state)


def test_params_and_state_are_not_changed_in_place() -> None:
    init, apply = mlax.as_layer(Noisy())
    params, state = init(KEY, X)
    leaves = jax.tree.leaves((params, state))
    for inference_mode in (False, True):
        apply(params, state, X, KEY, inference_mode)
        after = jax.tree.leaves((params, state))
        assert all(a is b for a, b in zip(leaves, after, strict=True))
    _, first = apply(params, state, X, KEY)
    _, second = apply(params, state, X, KEY)
    assert_equal(first, second)


@pytest.mark.parametrize("is_set_up", [False, True])
def test_the_module_itself_is_not_changed(is_set_up: bool) -> None:
    module = nn.SeriesRng([Noisy(), nn.ZNorm(KEY, "all")])
    if is_set_up:
        _, module = module(X, KEY)
    nodes = [module, module.layers, *module.layers.data]
    leaves, treedef = jax.tree.flatten(module)
    init, apply = mlax.as_layer(module)
    params, state = init(KEY, X)
    apply(params, state, X, KEY)
    assert jax.tree.structure(module) == treedef
    assert all(a is b for a, b in zip(jax.tree.leaves(module), leaves, strict=True))
    again = [module, module.layers, *module.layers.data]
    assert all(a is b for a, b in zip(again, nodes, strict=True))


def test_a_module_that_is_set_up_keeps_its_parameters() -> None:
    _, module = nn.Linear(KEY, 2)(X, None)
    module.linear_kernel.data = jnp.ones((3, 2))
    params, _ = mlax.as_layer(module).init(jax.random.key(1), X)
    np.testing.assert_array_equal(params.linear_kernel.data, np.ones((3, 2)))


def test_the_module_makes_parameters_of_its_own_key() -> None:
    layer = mlax.as_layer(nn.Linear(KEY, 2))
    params, _ = layer.init(jax.random.key(1), X)
    expected, _ = mlax.linear(2).init(KEY, X)
    np.testing.assert_array_equal(params.linear_kernel.data, expected.kernel)


def test_setting_up_is_not_training() -> None:
    _, state = mlax.as_layer(nn.ZNorm(KEY, "all")).init(KEY, X)
    np.testing.assert_array_equal(state.moving_mean.data, 0)
    np.testing.assert_array_equal(state.moving_var.data, 1)


def test_only_shapes_are_read() -> None:
    shape = jax.ShapeDtypeStruct(X.shape, X.dtype)
    layer = mlax.as_layer(Noisy())
    assert_equal(layer.init(KEY, shape), layer.init(KEY, X))
    shapes = jax.eval_shape(layer.init, KEY, shape)
    assert jax.tree.structure(shapes) == jax.tree.structure(layer.init(KEY, X))


def test_a_key_is_needed_if_the_module_needs_one() -> None:
    assert mlax.needs_rng(mlax.as_layer(Noisy()).apply)
    assert mlax.needs_rng(mlax.as_layer(nn.SeriesRng([])).apply)
    assert not mlax.needs_rng(mlax.as_layer(nn.Linear(KEY, 1)).apply)
    assert not mlax.needs_rng(mlax.as_layer(nn.Series([Noisy()])).apply)


def test_modules_and_pairs_in_one_series() -> None:
    layer = mlax.series(
        mlax.linear(3),
        mlax.as_layer(nn.Bias(KEY, -1, jax.random.normal)),
        mlax.as_layer(Noisy()),
        mlax.dropout(0.5, 0),
        mlax.as_layer(nn.ZNorm(KEY, "all")),
    )
    params, state = layer.init(KEY, X)
    rng = jax.random.key(9)
    y, after = jax.jit(layer.apply)(params, state, X, rng)

    z = X @ params[0].kernel + params[1].bias_kernel.data
    summed = z
    z = z * jnp.arange(1.0, 4) + jax.random.normal(jax.random.fold_in(rng, 0), (3,))
    z = z * jax.random.bernoulli(jax.random.fold_in(rng, 1), 0.5, (3,)) / 0.5
    np.testing.assert_allclose(y, (z - z.mean()) / np.sqrt(z.var() + 1e-5), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after.variables[2].stats.data["sum"], summed, rtol=1e-5)
    np.testing.assert_allclose(after.variables[4].moving_mean.data, 0.1 * z.mean(), rtol=1e-4)
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_gradients_of_a_module_in_a_series() -> None:
    layer = mlax.series(mlax.as_layer(nn.Scaler(KEY, -1)), mlax.f(jnp.sum))
    params, state = layer.init(KEY, X)
    grads = jax.grad(lambda params: layer.apply(params, state, X)[0])(params)
    np.testing.assert_array_equal(grads[0].scaler_kernel.data, X)


def test_statistics_over_a_batch() -> None:
    layer = mlax.as_layer(nn.ZNorm(KEY, ()))
    params, state = layer.init(KEY, X)
    batch = jnp.stack([X, 3 * X])
    y, after = jax.vmap(layer.apply, (None, None, 0, None, None, None), (0, None), axis_name="N")(
        params, state, batch, None, False, "N"
    )
    np.testing.assert_allclose(y, jnp.stack([-jnp.sign(X), jnp.sign(X)]), rtol=1e-4)
    np.testing.assert_allclose(after.moving_mean.data, 0.2 * X, rtol=1e-5)


# as_module


def test_a_users_pair_is_a_module() -> None:
    module = mlax.as_module(COUNTED, KEY)
    assert not module.initialized
    y, module = module(X, None)
    np.testing.assert_array_equal(y, X * jax.random.normal(KEY, (3,)))
    assert paths(module.filter()) == [".params.data"]
    assert paths(module.filter(inverse=True)) == [".state.data['calls']"]
    _, module = module(X, None)
    assert module.state.data["calls"] == 2
    _, module = module(X, None, True)
    assert module.state.data["calls"] == 2


def test_the_module_needs_a_key_if_the_layer_does() -> None:
    def own_apply(
        params: Any,
        state: Any,
        x: Any,
        rng: Any,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> tuple[Any, Any]:
        return (x if inference_mode else x + jax.random.uniform(rng)), state

    needing: Any = own_apply  # typed layers have a default for rng
    for layer in (mlax.dropout(0.5, 0), mlax.Layer(lambda rng, x: ((), ()), needing)):
        assert mlax.needs_rng(mlax.as_module(layer, KEY).forward)
    assert not mlax.needs_rng(mlax.as_module(mlax.linear(1), KEY).forward)
    assert not mlax.needs_rng(mlax.as_module(COUNTED, KEY).forward)

    rng = jax.random.key(4)
    module = nn.SeriesRng(
        [mlax.as_module(COUNTED, KEY), mlax.as_module(mlax.dropout(0.5, 0), KEY)]
    )
    y, _ = module(X, rng)
    mask = jax.random.bernoulli(rng, 0.5, (3,))
    np.testing.assert_allclose(y, X * jax.random.normal(KEY, (3,)) * mask / 0.5, rtol=1e-6)


def test_equal_arguments_give_equal_structures() -> None:
    def make() -> Any:
        return mlax.as_module(mlax.series(mlax.linear(2), COUNTED), jax.random.key(7))(X, None)[1]

    module = make()
    treedef = jax.tree.structure(module)
    for other in (
        make(),
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        jax.tree.map(lambda leaf: leaf, module),
    ):
        assert jax.tree.structure(other) == treedef


def test_the_module_trains() -> None:
    _, module = mlax.as_module(mlax.series(mlax.scaler(-1), mlax.f(jnp.sum)), KEY)(X, None)
    trained, rest = module.partition()
    grads = jax.grad(lambda trained: trained.combine(rest)(X, None)[0])(trained)
    np.testing.assert_array_equal(grads.params.data[0].scale, X)


# There and back


@pytest.mark.parametrize(
    "layer", [mlax.linear(2), COUNTED, mlax.z_norm("all")], ids=["linear", "own", "z_norm"]
)
def test_pair_to_module_to_pair(layer: Any) -> None:
    params, state = layer.init(KEY, X)
    y, after = layer.apply(params, state, X)
    back = mlax.as_layer(mlax.as_module(layer, KEY))
    params_back, state_back = back.init(jax.random.key(1), X)
    y_back, after_back = back.apply(params_back, state_back, X)
    assert_equal((y_back, params_back, state_back, after_back), (y, params, state, after))


def test_module_to_pair_to_module() -> None:
    def make() -> nn.SeriesRng:
        return nn.SeriesRng([nn.Linear(KEY, 3), Noisy(), nn.ZNorm(KEY, "all")])

    rng = jax.random.key(2)
    y, module = make()(X, rng)
    y_back, back = mlax.as_module(mlax.as_layer(make()), jax.random.key(1))(X, rng)
    assert_equal(y_back, y)
    assert_equal(back.filter(), module.filter())
    assert_equal(back.filter(inverse=True), module.filter(inverse=True))
    y, module = module(X, None, True)
    y_back, back = back(X, None, True)
    assert_equal(y_back, y)


def test_there_and_back_makes_equal_structures() -> None:
    def make() -> Any:
        layer = mlax.as_layer(nn.Linear(jax.random.key(7), 2))
        return mlax.as_module(layer, jax.random.key(8))(X, None)[1]

    module = make()
    assert jax.tree.structure(pickle.loads(pickle.dumps(module))) == jax.tree.structure(module)
    assert jax.tree.structure(make()) == jax.tree.structure(module)


# Wrong arguments


@pytest.mark.parametrize(
    ("value", "got"),
    [
        (mlax.linear, "<pair linear>"),
        (mlax.linear(2), "a Layer"),
        (nn.Linear, "the class Linear"),
        (None, "None"),
        (3, "3"),
    ],
    ids=["pair", "layer", "class", "none", "number"],
)
def test_only_modules_become_layers(value: Any, got: str) -> None:
    wanted = f"^as_layer: expected module to be a module or a function of a key, got {got}"
    with pytest.raises(TypeError, match=wanted):
        mlax.as_layer(value)


@pytest.mark.parametrize("around", [mlax.repeat, mlax.ensemble])
def test_copies_of_a_module_raise(around: Any) -> None:
    layer = mlax.as_layer(nn.Linear(KEY, 3))
    wanted = "^as_layer: .*a function of a key.*lambda rng: nn.Linear"
    with pytest.raises(ValueError, match=wanted) as error:
        around(mlax.series(layer), 2).init(KEY, jnp.ones(3))
    assert f"in {around.__name__} > series[0] > as_layer" in error.value.__notes__


def test_a_function_of_a_key_makes_copies_of_their_own() -> None:
    x = jnp.array([1.0, -2.0, 0.5])
    layer = mlax.as_layer(lambda rng: nn.Linear(rng, 3))
    assert not layer.needs_rng
    assert mlax.as_layer(lambda rng: nn.SeriesRng([nn.FRng(lambda x, rng: x)])).needs_rng
    members = mlax.ensemble(layer, 2)
    params, state = members.init(KEY, x)
    y, _ = jax.jit(members.apply)(params, state, x)
    for i in range(2):
        module = nn.Linear(jax.random.fold_in(KEY, i), 3)
        expected, _ = module(x, None)
        np.testing.assert_allclose(y[i], expected, rtol=1e-6)
    assert not np.allclose(y[0], y[1])
    deep = mlax.repeat(layer, 2)
    params, deep_state = deep.init(KEY, x)
    y, after = deep.apply(params, deep_state, x)
    wanted = x
    for i in range(2):
        wanted, _ = nn.Linear(jax.random.fold_in(KEY, i), 3)(wanted, None)
    np.testing.assert_allclose(y, wanted, rtol=1e-5)
    assert jax.tree.structure(after) == jax.tree.structure(deep_state)


def test_a_function_of_a_key_makes_a_module() -> None:
    wrong: Any = lambda rng: jnp.ones(2)  # wrong types on purpose
    with pytest.raises(TypeError, match="^as_layer: expected the result .* a module, got an array"):
        mlax.as_layer(wrong)


@pytest.mark.parametrize(
    "value",
    [mlax.linear, nn.Linear(KEY, 2), (counted_init, counted_apply), None, jnp.sin, 3],
    ids=["pair", "module", "tuple", "none", "function", "number"],
)
def test_only_layers_become_modules(value: Any) -> None:
    with pytest.raises(TypeError, match="as_module: expected layer to be"):
        mlax.as_module(value, KEY)


def test_errors_name_the_layer() -> None:
    module = nn.Series([mlax.as_module(mlax.series(mlax.linear(2), mlax.conv(1, 1)), KEY)])
    with pytest.raises(ValueError, match="conv: expected x with at least 2 axes") as caught:
        module(X, None)
    assert caught.value.__notes__ == ["in Series[0] > series[1] > conv"]

    layer = mlax.series(mlax.as_layer(nn.Series([nn.F(jnp.sin), nn.Conv(KEY, 1, 1)])))
    with pytest.raises(ValueError, match="conv: expected x with at least 2 axes") as caught:
        layer.init(KEY, X)
    assert caught.value.__notes__ == ["in series[0] > Series[1] > Conv"]


def test_a_missing_key_is_named() -> None:
    _, module = mlax.as_module(mlax.dropout(0.5, 0), KEY)(X, KEY)
    with pytest.raises(ValueError, match="dropout: expected rng to be"):
        module(X, None)


def test_the_state_of_a_module_with_other_attributes_raises() -> None:
    def norm(epsilon: float) -> Any:
        return mlax.as_layer(lambda rng: nn.ZNorm(rng, (), epsilon=epsilon))

    params, state = norm(1e-5).init(KEY, X)
    norm(1e-5).apply(params, state, X, None, True)
    with pytest.raises(ValueError, match=r"^as_layer: expected state.config.ZNorm.epsilon to be 10.0, as in this layer"):
        norm(10.0).apply(params, state, X, None, True)
    other = mlax.as_layer(lambda rng: nn.Series([nn.F(jnp.sin)]))
    with pytest.raises(TypeError, match="^as_layer: expected state to be a Series.*, got a ZNorm"):
        other.apply(params, state, X)
