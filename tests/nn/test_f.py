"""`F` and `FRng`: the arguments of their functions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlax import nn
from mlax.layer import AxisName

KEY = jax.random.key(0)


def test_infer_fn_is_train_fn_unless_it_is_given() -> None:
    assert nn.F(jnp.negative)(2, None)[0] == -2
    assert nn.F(jnp.negative)(2, None, True)[0] == -2
    assert nn.F(jnp.negative, jnp.square)(3, None)[0] == -3
    assert nn.F(jnp.negative, jnp.square)(3, None, True)[0] == 9


def test_functions_of_a_key() -> None:
    def train(x: Any, rng: Any) -> Any:
        return x, rng, "train"

    def infer(x: Any, rng: Any) -> Any:
        return x, rng, "infer"

    assert nn.FRng(train)(1, KEY)[0] == (1, KEY, "train")
    assert nn.FRng(train)(1, None, True)[0] == (1, None, "train")
    assert nn.FRng(train, infer)(1, KEY)[0] == (1, KEY, "train")
    assert nn.FRng(train, infer)(1, KEY, True)[0] == (1, KEY, "infer")
    assert nn.FRng(train, infer)(1, None, True)[0] == (1, None, "infer")


def test_axis_name_is_given_to_those_that_take_it() -> None:
    def with_name(x: Any, axis_name: AxisName) -> Any:
        return axis_name

    def with_key_and_name(x: Any, rng: Any, axis_name: AxisName = "unset") -> Any:
        return axis_name

    assert nn.F(with_name)(1, None, False, "N")[0] == "N"
    assert nn.F(with_name)(1, None)[0] == ()
    assert nn.F(jnp.negative, with_name)(1, None, True, ("N", "M"))[0] == ("N", "M")
    assert nn.F(jnp.negative, with_name)(1, None, False, "N")[0] == -1
    assert nn.FRng(with_key_and_name)(1, KEY, False, "N")[0] == "N"


def test_a_mean_over_the_batch() -> None:
    batch = jnp.array([1.0, 2.0, 6.0])
    mean = nn.F(jax.lax.pmean)
    y, _ = jax.vmap(mean.__call__, (0, None, None, None), (0, None), axis_name="N")(
        batch, None, False, "N"
    )
    np.testing.assert_allclose(y, [3, 3, 3])


def test_there_is_nothing_to_train() -> None:
    _, module = nn.F(jnp.negative)(jnp.ones(2), None)
    assert module.initialized
    assert jax.tree.leaves(module) == []
    trained, rest = module.partition()
    assert jax.tree.structure(trained.combine(rest)) == jax.tree.structure(module)


@pytest.mark.parametrize("cls", [nn.F, nn.FRng])
def test_any_pytree_goes_in_and_comes_out(cls: Any) -> None:
    def swapped(x: Any, rng: Any = None) -> Any:
        return {"b": x["a"], "a": x["b"]}

    y, _ = cls(swapped)({"a": 1, "b": [2, 3]}, KEY)
    assert y == {"a": [2, 3], "b": 1}
