"""Tests of `convert` and `revert` on small layers; tests/models has those on models."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

import mlax
from mlax.weights import Rule, Table, convert, revert, torch_linear, torch_norm

MODEL = mlax.series(
    body=mlax.repeat(mlax.dense(4), 3), norm=mlax.batch_norm(), head=mlax.dense(2, use_bias=False)
)
TABLE = (
    *torch_linear("layers.{i}.fc", "body"), *torch_norm("norm", "norm"),
    *torch_linear("head", "head"), Rule("layers.{i}.mask", None),
)


@functools.cache
def like() -> Any:
    """Return the shapes of params and state."""
    return jax.eval_shape(MODEL.init, jax.random.key(0), jnp.ones((5, 4)))


def tensors(dtype: Any = np.float32) -> dict[str, Any]:
    """Return weights as torch has them."""
    rng = np.random.default_rng(0)
    shapes: dict[str, tuple[int, ...]] = {"head.weight": (2, 4)}
    for i in range(3):
        shapes |= {f"layers.{i}.fc.weight": (4, 4), f"layers.{i}.fc.bias": (4,)}
    shapes |= {f"norm.{name}": (4,) for name in ("weight", "bias", "running_mean", "running_var")}
    return {name: rng.uniform(1, 2, shape).astype(dtype) for name, shape in shapes.items()}


def test_each_tensor_has_its_place() -> None:
    given = tensors()
    params, state = convert(given, TABLE, like())
    assert jax.tree.structure((params, state)) == jax.tree.structure(like())
    for i in range(3):
        np.testing.assert_array_equal(params["body"].kernel[i], given[f"layers.{i}.fc.weight"].T)
        np.testing.assert_array_equal(params["body"].bias[i], given[f"layers.{i}.fc.bias"])
    np.testing.assert_array_equal(params["norm"].scale, given["norm.weight"])
    np.testing.assert_array_equal(state.variables["norm"].var, given["norm.running_var"])
    x = np.random.default_rng(1).normal(size=(5, 4)).astype(np.float32)
    y, _ = MODEL.apply(params, state, jnp.asarray(x), inference_mode=True)
    for i in range(3):
        x = x @ given[f"layers.{i}.fc.weight"].T + given[f"layers.{i}.fc.bias"]
    x = (x - given["norm.running_mean"]) / np.sqrt(given["norm.running_var"] + 1e-5)
    x = x * given["norm.weight"] + given["norm.bias"]
    np.testing.assert_allclose(y, x @ given["head.weight"].T, 1e-4, 1e-4)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.int8])
def test_there_and_back_is_the_same_bits(dtype: Any) -> None:
    given = tensors(dtype)
    found = revert(convert(given, TABLE, like()), TABLE)
    assert set(found) == set(given)
    for name, array in given.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_more_than_ten_layers_are_in_the_order_of_numbers() -> None:
    layer = mlax.repeat(mlax.bias(-1), 12)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), jnp.ones(1))
    given = {f"h.{i}.b": np.array([i]) for i in reversed(range(12))}
    params, _ = convert(given, [Rule("h.{layer}.b", "bias")], shapes)
    np.testing.assert_array_equal(params.bias[:, 0], np.arange(12))


def test_axes_of_length_one_come_and_go() -> None:
    layer = mlax.parameter((1, 2, 3))
    shapes = jax.eval_shape(layer.init, jax.random.key(0), None)
    given = {"token": np.arange(6).reshape(3, 2, 1, 1)}
    table = [Rule("token", "value", "ba11->1ab")]
    made = convert(given, table, shapes)
    np.testing.assert_array_equal(made[0].value[0], given["token"][:, :, 0, 0].T)
    np.testing.assert_array_equal(revert(made, table)["token"], given["token"], strict=True)


def test_equal_tensors_may_share_a_place() -> None:
    table = [*torch_linear("head", "head"), Rule("tied", "head.kernel", "oi->io"), *TABLE]
    given = tensors()
    made = convert({**given, "tied": given["head.weight"].copy()}, table, like())
    assert set(revert(made, table)) == set(given)
    with pytest.raises(ValueError, match="tied for head.kernel, which another tensor has taken"):
        convert({**given, "tied": given["head.weight"] + 1}, table, like())


def test_what_is_left_out_is_named_in_the_rules() -> None:
    made = convert({**tensors(), "layers.0.mask": np.ones(3)}, TABLE, like())
    assert set(revert(made, TABLE)) == set(tensors())


def test_one_error_lists_all_that_is_wrong() -> None:
    given = tensors()
    del given["head.weight"], given["layers.1.fc.bias"]
    given |= {
        "layers.3.fc.bias": np.ones(4), "layers.x.fc.bias": np.ones(4), "other": np.ones(1),
        "norm.bias": np.ones(5), "layers.0.fc.weight": np.ones(16),
    }
    with pytest.raises(ValueError) as caught:
        convert(given, TABLE, like())
    assert set(str(caught.value).partition(", got ")[2].split("; ")) == {
        "no tensor for head.kernel", "no tensor for body.bias[1]", "no place for other",
        "no place for layers.3.fc.bias", "no place for layers.x.fc.bias",
        "norm.bias of shape (5,) for norm.bias of shape (4,)",
        "layers.0.fc.weight of shape (16,) for body.kernel of shape (3, 4, 4)",
    }


def test_a_leaf_is_whole_or_in_parts() -> None:
    table = [Rule("all", "body.bias"), *TABLE]
    with pytest.raises(ValueError, match="several tensors for body.bias"):
        convert({**tensors(), "all": np.ones((3, 4))}, table, like())


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (TABLE[1:], "no rule for body.kernel"),
        ((Rule("w", "body.kernel", "oi->io"), *TABLE), "body.kernel of shape (3, 4, 4) for w by oi"),
        ((Rule("b", "body.{any}"), *TABLE), "body.bias for b, which another leaf has taken"),
    ],
)
def test_what_has_no_rule_does_not_go_back(table: Table, text: str) -> None:
    made = convert(tensors(), TABLE, like())
    with pytest.raises(ValueError, match=re.escape(text)):
        revert(made, table)


def test_params_and_state_have_paths_of_their_own() -> None:
    with pytest.raises(ValueError, match="weights: expected paths .* got a"):
        convert({}, (), ({"a": np.ones(1)}, {"a": np.ones(1)}))
