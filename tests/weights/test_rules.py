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
from tests.weights.parity import bits, wrongs

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


def random(layer: mlax.Layer[Any, Any, Any, Any], x: Any) -> tuple[Any, Any]:
    """Return random params, and the state, of a layer."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), x)
    made: tuple[Any, Any] = jax.tree.map(lambda s: rng.normal(size=s.shape).astype(s.dtype), shapes)
    return made


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


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
def test_there_and_back_is_the_same_bits(dtype: Any) -> None:
    given = tensors(dtype)
    found = revert(convert(given, TABLE, like()), TABLE)
    assert set(found) == set(given)
    for name, array in given.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_more_than_ten_layers_are_in_the_order_of_numbers() -> None:
    layer = mlax.repeat(mlax.bias(-1), 12)
    shapes = jax.eval_shape(layer.init, jax.random.key(0), jnp.ones(1))
    given = {f"h.{i}.b": np.array([float(i)]) for i in reversed(range(12))}
    params, _ = convert(given, [Rule("h.{layer}.b", "bias")], shapes)
    np.testing.assert_array_equal(params.bias[:, 0], np.arange(12))


def test_axes_of_length_one_come_and_go() -> None:
    layer = mlax.parameter((1, 2, 3))
    shapes = jax.eval_shape(layer.init, jax.random.key(0), None)
    given = {"token": np.arange(6.0).reshape(3, 2, 1, 1)}
    table = [Rule("token", "value", "ba11->1ab")]
    made = convert(given, table, shapes)
    np.testing.assert_array_equal(made[0].value[0], given["token"][:, :, 0, 0].T)
    np.testing.assert_array_equal(revert(made, table)["token"], given["token"], strict=True)


def test_equal_tensors_may_share_a_place() -> None:
    table = [*torch_linear("head", "head"), Rule("tied", "head.kernel", "oi->io"), *TABLE]
    given = tensors()
    made = convert({**given, "tied": given["head.weight"].copy()}, table, like())
    assert set(revert(made, table)) == set(given)
    text = "tied for head.kernel, which differs from another there; .* the file not"
    with pytest.raises(ValueError, match=text):
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
    assert wrongs(caught.value) == {
        "no tensor for head.kernel", "no tensor for body.bias[1]", "no place for other",
        "no place for layers.3.fc.bias, as body.bias has 3 copies",
        "no place for layers.x.fc.bias", "norm.bias of shape (5,) for norm.bias of shape (4,)",
        "layers.0.fc.weight of shape (16,) for body.kernel of shape (3, 4, 4) by oi->io",
    }


def test_a_leaf_is_whole_or_in_parts() -> None:
    table = [Rule("all", "body.bias"), *TABLE]
    with pytest.raises(ValueError, match="several tensors for body.bias"):
        convert({**tensors(), "all": np.ones((3, 4))}, table, like())


@pytest.mark.parametrize(
    ("table", "text"),
    [
        (TABLE[1:], "no rule for body.kernel"),
        ((Rule("w", "body.kernel", "oi->io"), *TABLE),
         "body.kernel of shape (3, 4, 4) for w by oi"),
        ((Rule("b", "body.bias"), Rule("b", "norm.bias"), *TABLE),
         "norm.bias for b, which another leaf has taken"),
    ],
)  # fmt: skip
def test_what_has_no_rule_does_not_go_back(table: Table, text: str) -> None:
    made = convert(tensors(), TABLE, like())
    with pytest.raises(ValueError, match=re.escape(text)):
        revert(made, table)


def test_params_and_state_have_paths_of_their_own() -> None:
    with pytest.raises(ValueError, match="convert: expected paths .* got two of 'a'"):
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
    table = [Rule("ab", "both", "oi->io", True), *SPLIT]
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
         {"tied for a, which differs from another there", "no tensor for b"}),
    ],
)  # fmt: skip
def test_one_error_lists_the_parts_that_are_wrong(
    given: Any, table: Table, texts: set[str]
) -> None:
    with pytest.raises(ValueError) as caught:
        convert(given, table, LIKE)
    assert wrongs(caught.value) == texts


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
         "parts float64[2, 2], float64[2, 1] for ab, which must be alike"),
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
        (Rule("w", "kernel", "oi->oj"), "the same letters on both sides"),
        (Rule("w", "kernel", "oi"), "the same letters on both sides"),
        (Rule("w", "kernel", "oo->oo"), "each once"),
        (Rule("w", "kernel", "oi -> io"), "the same letters on both sides"),
        (Rule("w", "{layer}.kernel"), "one whose braces on the right are on the left as well"),
        (Rule("{a}.{a}", "kernel"), "each text in braces once"),
        (Rule("{}.w", "kernel"), "as in {layer}"),
        (Rule("{i}.b + {j}.b", "bias"), "a sum of names with the same texts"),
        (Rule("w.*", "kernel"), "None on a side if there is a star"),
        (Rule(None, None), "one with a name or a path"),
        (Rule("w", "kernel", 3), "made of strings"),  # type: ignore[arg-type]  # on purpose
    ],
)
def test_rules_that_can_not_be_read_are_told(rule: Rule, match: str) -> None:
    made = ({"kernel": np.ones((3, 2)), "bias": np.ones(2)}, ())
    for owner, call in (("convert", lambda table: convert({}, table, made)),
                        ("revert", lambda table: revert(made, table))):
        with pytest.raises(ValueError, match=rf"^{owner}: expected table\[0\] to be .*{match}"):
            call([rule])


@pytest.mark.parametrize(
    ("table", "match"),
    [
        ((rule for rule in TABLE), "table to be a list or tuple of Rule, got a generator"),
        (TABLE[0], "table to be a list or tuple of Rule, got a Rule"),
        ([TABLE], r"table\[0\] to be a Rule, got a tuple; put one table into another with a star"),
        ([("w", "kernel")], r"table\[0\] to be a Rule, got a tuple"),
        (tensors, "table to be a list or tuple of Rule, got the function"),
    ],
)
def test_what_is_no_table_is_told(table: Any, match: str) -> None:
    with pytest.raises(TypeError, match=f"convert: expected {match}"):
        convert(tensors(), table, like())
    if table is not TABLE[0] and not isinstance(table, list | tuple):
        with pytest.raises(TypeError, match="revert: expected table"):
            revert(convert(tensors(), TABLE, like()), table)


def test_what_is_no_params_and_state_is_told() -> None:
    params, _ = convert(tensors(), TABLE, like())
    wrong: Any  # on purpose
    for wrong in (params, MODEL, None):
        with pytest.raises(TypeError, match=r"like to be \(params, state\), as layer.init"):
            convert(tensors(), TABLE, wrong)
        with pytest.raises(TypeError, match=r"made to be \(params, state\), as layer.init"):
            revert(wrong, TABLE)
    with pytest.raises(TypeError, match="body.kernel to be an array, got only its shape"):
        revert(like(), TABLE)


# Two counts, as in a stack of mixtures of experts.


@functools.cache
def mixtral() -> tuple[Any, Any]:
    """Return params and state of a stack of mixtures of experts."""
    block = mlax.block(
        norm=mlax.rms_norm(), moe=mlax.moe(mlax.mlp(6, jax.nn.silu, gated=True, use_bias=False), 3)
    )(lambda sub, x: x + sub.moe(sub.norm(x)).y)
    return random(mlax.series(body=mlax.repeat(block, 2)), jnp.ones((5, 4)))


_LAYER = "layers.{layer}"
MIXTRAL = [
    Rule(f"{_LAYER}.norm.weight", "body.norm.scale"),
    Rule(f"{_LAYER}.gate.weight", "body.moe.router.kernel", "oi->io"),
    *torch_linear(f"{_LAYER}.experts.{{expert}}.w1", "body.moe.experts.gate"),
    *torch_linear(f"{_LAYER}.experts.{{expert}}.w3", "body.moe.experts.up"),
    *torch_linear(f"{_LAYER}.experts.{{expert}}.w2", "body.moe.experts.down"),
]


def test_two_texts_in_braces_count_along_two_axes() -> None:
    made = mixtral()
    given = revert(made, MIXTRAL)
    assert len(given) == 2 * (2 + 3 * 3)
    experts = made[0]["body"]["moe"].experts
    for layer, expert in np.ndindex(2, 3):
        name, down = f"layers.{layer}.experts.{expert}", experts["down"].kernel[layer, expert]
        np.testing.assert_array_equal(given[f"{name}.w2.weight"], down.T)
        assert given[f"{name}.w1.weight"].shape == (6, 4)
    shapes = jax.eval_shape(lambda: made)
    assert bits(convert(dict(reversed(given.items())), MIXTRAL, shapes)) == bits(made)


def test_parts_and_sums_count_along_two_axes() -> None:
    table = [Rule(f"{{i}}.{{j}}.{name} + {{i}}.{{j}}.{name}2", f"w[{k} of 2]", "oi->io")
             for k, name in enumerate("pq")]
    leaf = np.random.default_rng(0).normal(size=(2, 3, 4, 10))
    given = revert(({"w": leaf}, ()), table)
    assert given["1.2.q"].shape == (5, 4) and len(given) == 2 * 3 * 4
    np.testing.assert_array_equal(given["1.2.q"], leaf[1, 2, :, 5:].T)
    assert bits(convert(given, table, ({"w": leaf}, ()))) == bits(leaf)


def test_each_missing_index_of_two_is_told() -> None:
    given = revert(mixtral(), MIXTRAL)
    del given["layers.1.experts.2.w1.weight"]
    given["layers.0.experts.3.w3.weight"] = given["layers.2.experts.0.w2.weight"] = np.ones((4, 6))
    ours = "body.moe.experts"
    with pytest.raises(ValueError, match="config of the model must have as many") as caught:
        convert(given, MIXTRAL, mixtral())
    assert wrongs(caught.value) == {
        f"no tensor for {ours}.gate.kernel[1, 2]",
        f"no place for layers.0.experts.3.w3.weight, as {ours}.up.kernel has 2 x 3 copies",
        f"no place for layers.2.experts.0.w2.weight, as {ours}.down.kernel has 2 x 3 copies",
    }
    table = [Rule("{i}.{j}.{k}.w", "body.norm.scale"), *MIXTRAL]
    text = re.escape("body.norm.scale of shape (2, 4) for {i}.{j}.{k}.w")
    with pytest.raises(ValueError, match=text):
        revert(mixtral(), table)
    with pytest.raises(ValueError, match="as body.norm.scale has 2 x 4 copies"):
        convert({"0.0.0.w": 1.0}, table, mixtral())


def test_what_differs_in_numbers_alone_is_counted() -> None:
    given = tensors() | {f"layers.{i}.fc.bias": np.ones(4, np.float32) for i in range(3, 30)}
    with pytest.raises(ValueError) as caught:
        convert(given, TABLE, like())
    assert wrongs(caught.value) == {
        "no place for layers.3.fc.bias, as body.bias has 3 copies",
        "26 more such",
    }


@pytest.mark.parametrize("number", ["01", "\N{ARABIC-INDIC DIGIT ONE}", "+1", "-1"])
def test_an_index_is_written_in_one_way(number: str) -> None:
    given = tensors()
    given[f"layers.{number}.fc.bias"] = given.pop("layers.1.fc.bias")
    with pytest.raises(ValueError) as caught:
        convert(given, TABLE, like())
    assert wrongs(caught.value) == {
        f"no place for layers.{number}.fc.bias", "no tensor for body.bias[1]"
    }


# What only one side has.


def test_leaves_stay_as_they_are_in_like() -> None:
    made = random(MODEL, jnp.ones((5, 4)))
    given = {name: tensor for name, tensor in tensors().items() if not name.startswith("norm")}
    with pytest.raises(ValueError, match=r"no tensor for norm.scale; .*Rule\(None, path\) keeps"):
        convert(given, TABLE, made)
    table = [Rule(None, "norm.*"), *TABLE]
    params, state = convert(given, table, made)
    assert params["norm"].scale is made[0]["norm"].scale
    assert state.variables["norm"].var is made[1].variables["norm"].var
    np.testing.assert_array_equal(params["head"].kernel, given["head.weight"].T)
    assert revert((params, state), table).keys() == tensors().keys()
    without = [rule for rule in table if not str(rule.theirs).startswith("norm")]
    assert revert((params, state), without).keys() == given.keys()

    params, _ = convert(tensors(), table, made)  # where there are tensors, they count
    np.testing.assert_array_equal(params["norm"].scale, tensors()["norm.weight"])
    with pytest.raises(ValueError, match="only the shape of norm.var in like, where its value"):
        convert(given, table, like())
    with pytest.raises(ValueError, match="no tensor for head.kernel"):
        convert({}, table, made)
    del given["layers.1.fc.bias"]
    with pytest.raises(ValueError, match=r"no tensor for body.bias\[1\]"):  # not a part of it
        convert(given, [Rule(None, "*"), *TABLE], made)


def test_tensors_are_left_out() -> None:
    given = {**tensors(), "cls.predictions.bias": np.ones(3)}
    with pytest.raises(ValueError, match=r"ctions.bias; Rule\(name, None\) leaves tensors out"):
        convert(given, TABLE, like())
    made = convert(given, [Rule("cls.*", None), *TABLE], like())
    assert bits(made) == bits(convert(tensors(), TABLE, like()))


def test_a_rule_for_nothing_is_an_error_unless_it_is_optional() -> None:
    typo = Rule("nothere", "head.kernl", "oi->io")
    with pytest.raises(ValueError, match=re.escape(
        "got nothing on either side for Rule('nothere', 'head.kernl', 'oi->io'); optional=True lets"
    )):
        convert(tensors(), [*TABLE, typo], like())
    wanted = bits(convert(tensors(), TABLE, like()))
    for table in ([typo._replace(optional=True)], mlax.weights.optional([typo])):
        assert bits(convert(tensors(), [*TABLE, *table], like())) == wanted


def test_a_table_is_put_under_something_larger() -> None:
    inner = [*SPLIT, Rule("p + q", "sum"), Rule("mask", None), Rule(None, "kept.*")]
    table = mlax.weights.under("their.model", "our.0", inner)
    assert [rule[:2] for rule in table] == [
        ("their.model.ab[0 of 2]", "our.0.a"), ("their.model.ab[1 of 2]", "our.0.b"),
        ("their.model.p + their.model.q", "our.0.sum"), ("their.model.mask", None),
        (None, "our.0.kept.*"),
    ]
    assert mlax.weights.under("", "", inner) == tuple(inner)
    bert = mlax.models.bert(mlax.models.BertConfig(9, 4, 2, 4, 1, 1, 4))
    alone = random(bert, jnp.array([1, 2]))
    mine = mlax.block(bert=bert, head=mlax.dense(2))(lambda sub, x: sub.head(sub.bert(x).pooled))
    made = random(mine, jnp.array([1, 2]))
    given = revert(alone, mlax.models.BERT_HUGGINGFACE)
    table = mlax.weights.under("", "bert", mlax.models.BERT_HUGGINGFACE)
    params, _ = convert(given, [*table, Rule(None, "head.*")], made)
    assert bits(params["bert"]) == bits(alone[0]) and bits(params["head"]) == bits(made[0]["head"])


def test_leaves_may_be_python_numbers() -> None:
    table = [Rule("a", "a"), Rule(None, "b")]
    made = convert({"a": np.float32(1.5)}, table, ({"a": 0.0}, {"b": 3}))
    assert bits(made) == bits((np.float32(1.5), np.asarray(3)))


# Dtypes, and arrays of others.


@pytest.mark.parametrize("dtype", [np.int32, np.int8, bool, np.complex64, "U3", object])
def test_floats_are_made_of_floats(dtype: Any) -> None:
    given = tensors() | {"head.weight": np.zeros((2, 4), dtype)}
    text = re.escape(f"head.weight of dtype {np.dtype(dtype)} for head.kernel of dtype float32")
    with pytest.raises(ValueError, match=text):
        convert(given, TABLE, like())


@pytest.mark.parametrize(("of_leaf", "fits", "does_not"), [
    (np.int32, [np.int8, np.int64, np.uint8], [bool, np.float32]),
    (bool, [bool], [np.int8, np.float16]),
    (np.complex64, [np.complex128], [np.float32]),
    (ml_dtypes.bfloat16, [np.float64, ml_dtypes.float8_e4m3fn], [np.int8]),
])  # fmt: skip
def test_a_dtype_may_be_another_of_its_kind(of_leaf: Any, fits: Any, does_not: Any) -> None:
    like = ({"a": np.zeros(2, of_leaf)}, ())
    for dtype in fits:
        assert convert({"a": np.zeros(2, dtype)}, [Rule("a", "a")], like)[0]["a"].dtype == dtype
    for dtype in does_not:
        with pytest.raises(ValueError, match=f"for a of dtype {np.dtype(of_leaf)}"):
            convert({"a": np.zeros(2, dtype)}, [Rule("a", "a")], like)


def test_one_name_twice_and_a_mask_are_errors() -> None:
    given = {**tensors(), "head": {"weight": np.zeros((2, 4))}}
    with pytest.raises(ValueError, match="got the name head.weight twice"):
        convert(given, TABLE, like())
    masked: Any = np.ma.array(tensors()["head.weight"], mask=np.eye(2, 4, dtype=bool))
    with pytest.raises(TypeError, match="head.weight to be an array, got a masked one; pass"):
        convert({**tensors(), "head.weight": masked}, TABLE, like())


def test_what_numpy_does_not_take_is_named() -> None:
    with pytest.raises(ValueError) as caught:
        convert({**tensors(), "head.weight": [[1.0], [1.0, 2.0]]}, TABLE, like())
    assert caught.value.__notes__ == ["convert: in the tensor head.weight"]
