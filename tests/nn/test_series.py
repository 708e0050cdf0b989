"""`Series`, `SeriesRng`, `Parallel` and `ParallelRng`: children, keys, and paths in errors."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import Module, nn
from mlax.layer import AxisName, Key

KEY = jax.random.key(0)
X = jnp.array([1.0, -2.0, 3.0])


class Keyed(Module):
    """Records the data of its key."""

    def __init__(self) -> None:
        super().__init__()
        self.got: Any = "nothing"

    def forward(
        self,
        x: Any,
        rng: Key | None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> Any:
        self.got = None if rng is None else jax.random.key_data(rng).tolist()
        return x


class Keyless(Module):
    """Records its arguments, and needs no key."""

    def __init__(self) -> None:
        super().__init__()
        self.got: Any = "nothing"

    def forward(
        self,
        x: Any,
        rng: Key | None = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> Any:
        self.got = (rng, inference_mode, batch_axis_name)
        return x


def data(key: Key) -> Any:
    """Return the data of a key."""
    return jax.random.key_data(key).tolist()


@pytest.mark.parametrize("cls", [nn.Series, nn.SeriesRng, nn.Parallel, nn.ParallelRng])
@pytest.mark.parametrize("container", [list, tuple, iter], ids=["list", "tuple", "generator"])
def test_layers_are_kept_in_a_list(cls: Any, container: Callable[[Any], Any]) -> None:
    layers = [nn.F(jnp.negative), nn.Linear(KEY, 2)]
    module = cls(container(layers))
    assert module.layers.trainable is None
    assert module.layers.data == layers
    assert type(module.layers.data) is list
    assert module.layers.data is not layers
    x = X if "Series" in cls.__name__ else (X, X)
    _, module = module(x, None)
    assert module.initialized
    assert module.layers.data[1].initialized
    path, _ = jax.tree.leaves_with_path(module)[0]
    assert jax.tree_util.keystr(path) == ".layers.data[1].linear_kernel.data"


def test_series_runs_one_after_the_other() -> None:
    y, module = nn.Series([nn.F(jnp.square), nn.F(jnp.sum), nn.F(jnp.negative)])(X, None)
    assert y == -14
    assert nn.Series([])(7, None)[0] == 7


def test_parallel_runs_side_by_side() -> None:
    module = nn.Parallel([nn.F(jnp.square), nn.F(jnp.sum)])
    y, _ = module((X, X), None)
    assert type(y) is list
    np.testing.assert_array_equal(y[0], [1, 4, 9])
    assert y[1] == 2
    y, _ = module((array for array in (2 * X, X)), None)
    np.testing.assert_array_equal(y[0], [4, 16, 36])
    assert nn.Parallel([])((), None)[0] == []


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey])
@pytest.mark.parametrize("cls", [nn.SeriesRng, nn.ParallelRng])
def test_keys(cls: Any, make_key: Callable[[int], Key]) -> None:
    """A single layer that needs a key gets it unchanged; of several, the j-th gets a part of it."""
    rng = make_key(3)

    def got(*layers: Any) -> list[Any]:
        x = X if cls is nn.SeriesRng else [X] * len(layers)
        _, module = cls(layers)(x, rng, False, "N")
        return [layer.got for layer in module.layers.data]

    without = (None, False, "N")
    assert got(Keyless(), Keyed(), Keyless()) == [without, data(rng), without]
    parts = [data(jax.random.fold_in(rng, j)) for j in range(3)]
    assert got(Keyed(), Keyless(), Keyed(), Keyed()) == [parts[0], without, parts[1], parts[2]]
    assert got(Keyless()) == [without]


def test_keys_of_nested_modules() -> None:
    rng = jax.random.key(3)
    inner = nn.SeriesRng([Keyed(), Keyed()])
    _, module = nn.SeriesRng([inner, Keyed(), nn.Series([Keyed()])])(X, rng)
    first, second, plain = module.layers.data
    outer = [jax.random.fold_in(rng, j) for j in range(2)]
    assert [layer.got for layer in first.layers.data] == [
        data(jax.random.fold_in(outer[0], j)) for j in range(2)
    ]
    assert second.got == data(outer[1])
    assert plain.layers.data[0].got is None


def test_inference_needs_no_key() -> None:
    layers = [Keyed(), Keyless(), nn.FRng(lambda x, rng: x + jax.random.uniform(rng), jnp.add)]
    _, module = nn.SeriesRng(layers[:2])(X, None, True, "N")
    assert module.layers.data[0].got is None
    assert module.layers.data[1].got == (None, True, "N")


@pytest.mark.parametrize("cls", [nn.Series, nn.Parallel])
def test_the_plain_ones_pass_no_key(cls: Any) -> None:
    x = X if cls is nn.Series else [X]
    _, module = cls([Keyed()])(x, KEY)
    assert module.layers.data[0].got is None


def test_what_children_change_is_kept() -> None:
    module = nn.Series([nn.ZNorm(KEY, "all", momentum=0.0), nn.F(jnp.sum)])
    _, module = module(X, None)
    np.testing.assert_allclose(module.layers.data[0].moving_mean.data, 2 / 3, rtol=1e-5)
    _, module = module(10 * X, None)
    np.testing.assert_allclose(module.layers.data[0].moving_mean.data, 20 / 3, rtol=1e-5)


def test_layers_may_be_exchanged() -> None:
    _, module = nn.Series([nn.Linear(KEY, 2), nn.F(jnp.negative)])(X, None)
    module.layers.data.append(nn.Linear(KEY, 4))
    y, module = module(X, None)
    assert y.shape == (4,)
    assert len(jax.tree.leaves(module.filter())) == 2


# Errors


@pytest.mark.parametrize("cls", [nn.Series, nn.SeriesRng, nn.Parallel, nn.ParallelRng])
@pytest.mark.parametrize("wrong", [jnp.sin, mlax.linear(2), nn.Linear, None])
def test_layers_must_be_modules(cls: Any, wrong: Any) -> None:
    with pytest.raises(TypeError, match=f"{cls.__name__}: expected layers to be modules"):
        cls([nn.F(jnp.sin), wrong])


@pytest.mark.parametrize("cls", [nn.Series, nn.ParallelRng])
@pytest.mark.parametrize("wrong", [None, 3, nn.F(jnp.sin)], ids=["none", "number", "module"])
def test_layers_must_be_iterable(cls: Any, wrong: Any) -> None:
    with pytest.raises(TypeError, match="layers|iterable"):
        cls(wrong)


@pytest.mark.parametrize("cls", [nn.Parallel, nn.ParallelRng])
def test_parallel_takes_one_entry_for_each_layer(cls: Any) -> None:
    module = cls([nn.F(jnp.sin), nn.F(jnp.cos)])
    for x in ([X], [X, X, X], iter([X]), {"a": X, "b": X}):
        with pytest.raises(ValueError, match=f"{cls.__name__}: expected x to be .*2 entries"):
            module(x, KEY)


def test_errors_in_nested_modules_have_a_path() -> None:
    inner = nn.Series([nn.F(jnp.sin), nn.Conv(KEY, 2, 3)])
    module = nn.SeriesRng([nn.F(jnp.sin), nn.F(lambda x: (x, x)), nn.Parallel([inner, Keyless()])])
    with pytest.raises(ValueError, match="conv: expected x with at least 2 axes") as caught:
        module(X, KEY)
    assert caught.value.__notes__ == ["in SeriesRng[2] > Parallel[0] > Series[1] > Conv"]


def test_a_wrong_width_is_named() -> None:
    _, module = nn.Series([nn.F(jnp.sin), nn.Linear(KEY, 2)])(X, None)
    with pytest.raises(ValueError, match=r"linear: expected x with 3 features.*\(4,\)") as caught:
        module(jnp.ones(4), None)
    assert caught.value.__notes__ == ["in Series[1] > Linear"]


@pytest.mark.parametrize("cls", [nn.SeriesRng, nn.Series])
def test_a_missing_key_is_named(cls: Any) -> None:
    drop = nn.FRng(lambda x, rng: mlax.functional.dropout(x, rng, 0.5, 0))
    module = nn.SeriesRng([nn.F(jnp.sin), cls([drop])])
    with pytest.raises(ValueError, match="expected rng to be a PRNG key") as caught:
        module(X, None)
    path, *advice = caught.value.__notes__
    assert path == f"in SeriesRng[1] > {cls.__name__}[0] > FRng"
    told = ["Series gets no key: SeriesRng, ParallelRng, ResidualRng and RecurrentRng pass keys on"]
    assert advice == (told if cls is nn.Series else [])


def test_an_error_under_jit_has_a_path() -> None:
    module = nn.Series([nn.Linear(KEY, 2), nn.Bias(KEY, (3,))])
    with pytest.raises(ValueError, match="bias: expected in_features") as caught:
        jax.jit(lambda module, x: module(x, None))(module, X)
    assert "in Series[1] > Bias" in caught.value.__notes__


def test_a_failed_first_call_may_be_repeated() -> None:
    module = nn.Series([nn.F(jnp.sin), nn.Linear(KEY, 2)])
    with pytest.raises(ValueError, match="linear"):
        module(jnp.ones(()), None)
    y, module = module(X, None)
    assert y.shape == (2,)
