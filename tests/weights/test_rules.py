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
from tests.weights.parity import bits

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


LIKE = ({"a": np.ones((2, 2)), "b": np.ones((2, 2))}, ())
"""Two leaves."""
SPLIT = [Rule("ab[0 of 2]", "a", "oi->io"), Rule("ab[1 of 2]", "b", "oi->io")]
"""One tensor for both of them."""


def test_a_tensor_is_split_among_leaves() -> None:
    given = {"ab": np.arange(8.0).reshape(4, 2)}
    (params, _) = made = convert(given, SPLIT, LIKE)
    np.testing.assert_array_equal(params["a"], [[0, 2], [1, 3]])
    np.testing.assert_array_equal(params["b"], [[4, 6], [5, 7]])
    np.testing.assert_array_equal(revert(made, SPLIT)["ab"], given["ab"], strict=True)


def test_a_leaf_is_joined_from_tensors_in_each_layer_of_a_stack() -> None:
    table = [Rule(f"{{i}}.{gate}", f"w[{j} of 3]", "oi->io") for j, gate in enumerate("rzn")]
    rng = np.random.default_rng(0)
    given = {f"{i}.{gate}": rng.normal(size=(4, 5)) for gate in "nrz" for i in range(2)}
    (params, _) = made = convert(given, table, ({"w": np.ones((2, 5, 12))}, ()))
    for i in range(2):
        wanted = np.concatenate([given[f"{i}.{gate}"].T for gate in "rzn"], 1)
        np.testing.assert_array_equal(params["w"][i], wanted)
    found = revert(made, table)
    assert found.keys() == given.keys()
    for name, array in given.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_the_first_rule_whose_leaf_is_there_decides_about_parts() -> None:
    table = [Rule("ab", "both", "oi->io"), *SPLIT]
    given = {"ab": np.arange(8.0).reshape(4, 2)}
    for like in (LIKE, ({"both": np.ones((2, 4))}, ())):
        found = revert(convert(given, table, like), table)
        np.testing.assert_array_equal(found["ab"], given["ab"], strict=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_a_sum_comes_back_as_itself_and_negative_zeros(dtype: Any) -> None:
    table = [Rule("x + y", "sum")]
    given = {"y": np.array([2, 0.5, -0.0, 0.0]), "x": np.array([1, 2, -0.0, -0.0])}
    given = {name: array.astype(dtype) for name, array in given.items()}
    like = ({"sum": np.ones(4)}, ())
    made = convert(given, table, like)
    assert bits(made) == bits(np.array([3, 2.5, -0.0, 0.0], dtype))
    there = revert(made, table)
    assert bits([there["x"], there["y"]]) == bits([made[0]["sum"], np.full(4, -0.0, dtype)])
    assert bits(convert(there, table, like)) == bits(made)


def test_dicts_of_dicts_have_names_with_dots() -> None:
    given = {"ab": np.ones((4, 2)), "other": {"c.d": {"e": np.ones(3)}}}
    table = [*SPLIT, Rule("other.{path}.d.e", "{path}")]
    made = convert(given, table, ({**LIKE[0], "c": np.zeros(3)}, ()))
    assert revert(made, table).keys() == {"ab", "other.c.d.e"}


@pytest.mark.parametrize(
    ("given", "table", "texts"),
    [
        ({"ab": np.ones((4, 2))}, SPLIT[:1], {"no place for ab[1 of 2]", "no tensor for b"}),
        ({"ab": np.ones((4, 2))}, [SPLIT[1], Rule("c", "a")], {
            "no place for ab[0 of 2]", "no tensor for a"}),
        ({"ab": np.ones((4, 2))}, [SPLIT[0], Rule("ab[1 of 3]", "b")], {
            "no place for ab[1 of 2]", "no tensor for b"}),
        ({"ab": np.ones((3, 2))}, SPLIT, {
            "ab[0 of 2] of shape (3, 2) for a of shape (2, 2)",
            "ab[1 of 2] of shape (3, 2) for b of shape (2, 2)"}),
        ({"ab": np.ones(())}, [Rule("ab[0 of 2]", "a"), Rule("ab[1 of 2]", "b")], {
            "ab[0 of 2] of shape () for a of shape (2, 2)",
            "ab[1 of 2] of shape () for b of shape (2, 2)"}),
        ({"p": np.ones((2, 1)), "b": np.ones((2, 2))},
         [Rule("p", "a[0 of 2]"), Rule("q", "a[1 of 2]"), Rule("b", "b")],
         {"no tensor for a[1 of 2]"}),
        ({"p": np.ones((2, 1)), "b": np.ones((2, 2))},
         [Rule("p", "a[0 of 3]"), Rule("b", "b")],
         {"p of shape (2, 1) for a of shape (2, 2)", "no tensor for a[1 of 3]",
          "no tensor for a[2 of 3]"}),
        ({"p": np.ones((2, 1)), "q": np.ones((2, 1), np.float16), "b": np.ones((2, 2))},
         [Rule("p", "a[0 of 2]"), Rule("q", "a[1 of 2]"), Rule("b", "b")],
         {"dtypes float16, float64 for a"}),
        ({"p": np.ones((2, 2)), "b": np.ones((2, 2))}, [Rule("p + q", "a"), Rule("b", "b")],
         {"no tensor q for a"}),
        ({"p": np.ones((2, 2)), "q": np.ones((2, 2)), "tied": np.ones((2, 2))},
         [Rule("p + q", "a"), Rule("tied", "a")],
         {"tied for a, which another tensor has taken", "no tensor for b"}),
    ],
)  # fmt: skip
def test_one_error_lists_the_parts_that_are_wrong(
    given: Any, table: Table, texts: set[str]
) -> None:
    with pytest.raises(ValueError) as caught:
        convert(given, table, LIKE)
    assert set(str(caught.value).partition(", got ")[2].split("; ")) == texts


@pytest.mark.parametrize(
    ("made", "table", "text"),
    [
        (LIKE, SPLIT[:1], "no rule for b"),
        (({"a": np.ones((2, 2))}, ()), SPLIT, "no leaf for ab[1 of 2]"),
        (LIKE, [Rule("p", "a[0 of 2]"), Rule("b", "b")], "no rule for a[1 of 2]"),
        (LIKE, [*(Rule(f"p{i}", f"a[{i} of 3]") for i in range(3)), Rule("b", "b")],
         "a of shape (2, 2) for p1 by None"),
        (LIKE, [Rule("p[0 of 2]", "a"), Rule("p", "b")], "b for p, which another leaf has taken"),
        (LIKE, [SPLIT[0], Rule("ab[1 of 2]", "b")], "parts float64[2, 2], float64[2, 2] for ab"),
        (({"a": np.ones((2, 2)), "b": np.ones((2, 1))}, ()), SPLIT,
         "parts float64[2, 2], float64[2, 1] for ab, which have to be alike"),
    ],
)  # fmt: skip
def test_parts_that_do_not_make_a_tensor_do_not_go_back(
    made: Any, table: Table, text: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(text)):
        revert(made, table)


def test_a_part_has_a_number_below_their_total() -> None:
    with pytest.raises(ValueError, match=r"below 3, counted from 0, got 'ab\[3 of 3\]'"):
        convert({"ab": np.ones(3)}, [Rule("ab[3 of 3]", "a")], LIKE)


@pytest.mark.parametrize(
    ("rule", "match"),
    [
        (Rule("l.{i}.e.{j}.w", "moe.experts.kernel"), "one text in braces that ours lacks"),
        (Rule("w", "kernel", "oi->oj"), "the same letters on both sides"),
        (Rule("w", "kernel", "oi"), "the same letters on both sides"),
        (Rule("w", "kernel", "oo->oo"), "each once"),
    ],
)
def test_rules_that_can_not_be_read_are_told(rule: Rule, match: str) -> None:
    made = mlax.dense(2).init(jax.random.key(0), jnp.ones(3))
    with pytest.raises(ValueError, match=match):
        convert({}, [rule], made)
    with pytest.raises(ValueError, match=match):
        revert(made, [rule])
