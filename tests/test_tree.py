"""Tests of the tree tools: paths, masks, parts, counts, on trees of all kinds and modules."""

import fnmatch
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import nn

KEY = jax.random.key(0)
X = jnp.array([1.0, -2.0, 0.5])


class Pair(NamedTuple):
    """A named tuple."""

    kernel: Any
    bias: Any


TREE: dict[str, Any] = {
    "stem": Pair(jnp.ones((2, 3)), jnp.zeros(3)),
    "blocks": (Pair(jnp.ones((3, 3)), None), [jnp.full((), 7.0)]),
    "head": {"kernel": jnp.ones((3, 1), jnp.bfloat16)},
}
PATHS = ["stem.kernel", "stem.bias", "blocks.0.kernel", "blocks.1.0", "head.kernel"]
LEAVES = [*PATHS[2:], *PATHS[:2]]
"""The paths in the order of `jax.tree.leaves`: dict entries by name."""


def network() -> Any:
    """Return an initialised module."""
    _, module = nn.Series(
        [nn.Linear(KEY, 4), nn.Bias(KEY, -1), nn.ZNorm(KEY, "all"), nn.Linear(KEY, 2)]
    )(X, None)
    return module


def test_paths() -> None:
    assert mlax.paths(TREE) == PATHS
    assert mlax.paths(jnp.ones(2)) == [""]
    assert mlax.paths(()) == []
    assert mlax.paths({1: 2.0, 0: 3.0}) == ["1", "0"]
    model = mlax.series(
        body=mlax.repeat(mlax.residual(mlax.linear(3)), 2), head=mlax.series(mlax.bias(-1))
    )
    params, _ = model.init(KEY, X)
    assert mlax.paths(params) == ["body.0.kernel", "head.0.bias"]


def test_no_two_leaves_have_one_path() -> None:
    model = mlax.series(**{"a.b": mlax.linear(3), "a": mlax.series(b=mlax.linear(2))})
    params, _ = model.init(KEY, X)
    assert mlax.paths(params) == ["'a.b'.kernel", "a.b.kernel"]
    assert jax.tree.leaves(mlax.mask(params, "a.b.*")) == [True, False]
    assert jax.tree.leaves(mlax.mask(params, "'a.b'.*")) == [False, True]
    tricky = {"a": {"b": 1}, "a.b": 2, "'a.b'": 3, 0: 4, "0": 5, "": 6, "x y": [7]}
    assert len(set(mlax.paths(tricky))) == 7


def test_paths_are_in_the_order_written() -> None:
    model = mlax.series(stem=mlax.dense(3), body=mlax.series(z=mlax.linear(2), a=mlax.bias(-1)))
    params, state = model.init(KEY, X)
    wanted = ["stem.kernel", "stem.bias", "body.z.kernel", "body.a.bias"]
    assert mlax.paths(params) == wanted


def test_several_patterns() -> None:
    for patterns in (["stem.*", "head.kernel"], ("stem.*", "head.kernel")):
        selected = mlax.mask(TREE, patterns)
        assert jax.tree.leaves(selected) == [False, False, True, True, True]
    chosen, others = mlax.partition(TREE, ["*.kernel", "stem.bias"])
    assert mlax.paths(others) == ["blocks.1.0"]
    assert len(jax.tree.leaves(chosen)) == 4
    with pytest.raises(ValueError, match="^mask: expected 'haed.*' to match a path"):
        mlax.mask(TREE, ["stem.*", "haed.*"])
    wrong: Any
    for wrong in (3, ["stem.*", 3], None, []):  # wrong types on purpose
        with pytest.raises(TypeError, match="^mask: expected where to be a pattern, a list of"):
            mlax.mask(TREE, wrong)


def test_an_error_lists_a_screenful_of_paths_and_the_way_out() -> None:
    params, _ = mlax.series(*[mlax.dense(2)] * 50).init(KEY, X)
    with pytest.raises(ValueError, match=r"\.\.\. \(100 paths\)") as error:
        mlax.mask(params, "blocks.*")
    assert len(str(error.value)) < 500
    with pytest.raises(ValueError, match=r"'6' to match .*; '6\.\*' matches everything below it"):
        mlax.mask(params, "6")
    assert sum(jax.tree.leaves(mlax.mask(params, "6.*"))) == 2
    assert "6.*" in str(mlax.mask.__doc__)


def test_paths_of_a_module_and_of_a_state() -> None:
    assert [path for path in mlax.paths(network()) if "linear" in path] == [
        "layers.data.0.linear_kernel.data",
        "layers.data.3.linear_kernel.data",
    ]
    _, state = mlax.series(norm=mlax.z_norm(0)).init(KEY, X)
    assert mlax.paths(state) == ["variables.norm.mean", "variables.norm.var"]


def test_map_with_path() -> None:
    named = mlax.map_with_path(lambda path, leaf: (path, leaf.size), TREE)
    assert named["stem"] == Pair(("stem.kernel", 6), ("stem.bias", 3))
    assert named["blocks"] == (Pair(("blocks.0.kernel", 9), None), [("blocks.1.0", 1)])
    summed = mlax.map_with_path(
        lambda path, *leaves: sum(leaves) * len(path), {"a": 1, "bc": 2}, {"a": 10, "bc": 20}
    )
    assert summed == {"a": 11, "bc": 44}
    with pytest.raises(ValueError, match="c"):
        mlax.map_with_path(lambda path, *leaves: 0, {"a": 1}, {"c": 1})


@pytest.mark.parametrize(
    "pattern", ["*.kernel", "stem.*", "stem.?ias", "blocks.[01]*", "*", "head.kernel", "*k*"]
)
def test_masks_by_pattern(pattern: str) -> None:
    selected = mlax.mask(TREE, pattern)
    assert jax.tree.structure(selected) == jax.tree.structure(TREE)
    assert jax.tree.leaves(selected) == [fnmatch.fnmatchcase(path, pattern) for path in LEAVES]


def test_masks_by_predicate() -> None:
    matrices = mlax.mask(TREE, lambda path, leaf: leaf.ndim == 2 and "blocks" not in path)
    assert jax.tree.leaves(matrices) == [False, False, True, True, False]
    assert all(type(leaf) is bool for leaf in jax.tree.leaves(matrices))
    nothing = mlax.mask(TREE, lambda path, leaf: False)
    assert jax.tree.leaves(nothing) == [False] * 5


@pytest.mark.parametrize("function", [mlax.mask, mlax.partition])
def test_a_pattern_that_matches_nothing_raises(function: Any) -> None:
    with pytest.raises(ValueError, match=r"'stem.gain' .* stem.kernel, stem.bias, bl") as error:
        function(TREE, "stem.gain")
    assert str(error.value).startswith(f"{function.__name__}: expected")
    with pytest.raises(ValueError, match="Stem"):
        function(TREE, "Stem.*")


def test_partition_and_combine() -> None:
    chosen, others = mlax.partition(TREE, "*.kernel")
    assert mlax.paths(chosen) == ["blocks.0.kernel", "head.kernel", "stem.kernel"]
    assert mlax.paths(others) == ["blocks.1.0", "stem.bias"]
    assert chosen["stem"].bias is None
    assert chosen["stem"].kernel is TREE["stem"].kernel
    for combined in (mlax.combine(chosen, others), mlax.combine(others, chosen)):
        assert jax.tree.structure(combined) == jax.tree.structure(TREE)
        for leaf, expected in zip(jax.tree.leaves(combined), jax.tree.leaves(TREE), strict=True):
            assert leaf is expected
    a, rest = mlax.partition(TREE, "stem.*")
    b, c = mlax.partition(rest, "head.*")
    assert mlax.paths(mlax.combine(a, b, c)) == LEAVES
    assert mlax.combine({"a": 1}, {"a": 2}) == {"a": 1}
    assert mlax.combine({"a": None}, {"a": None}) == {"a": None}
    with pytest.raises(ValueError, match="."):
        mlax.combine({"a": None}, {"b": 1})


def test_gradients_of_a_part_alone() -> None:
    model = mlax.series(stem=mlax.linear(3), head=mlax.linear(2))
    params, state = model.init(KEY, X)
    head, frozen = mlax.partition(params, "head.*")

    def loss(head: Any) -> jax.Array:
        return jnp.sum(model.apply(mlax.combine(head, frozen), state, X)[0])

    grads = jax.jit(jax.grad(loss))(head)
    assert mlax.paths(grads) == ["head.kernel"]
    hidden = np.asarray(X) @ np.asarray(params["stem"].kernel)
    np.testing.assert_allclose(grads["head"].kernel, np.stack([hidden, hidden], 1), rtol=1e-5)


def test_count_and_nbytes() -> None:
    assert mlax.count(TREE) == 6 + 3 + 9 + 1 + 3
    assert mlax.nbytes(TREE) == 4 * (6 + 3 + 9 + 1) + 2 * 3
    assert mlax.count(()) == mlax.nbytes(()) == 0
    mixed = {"a": np.ones((2, 2)), "b": jax.ShapeDtypeStruct((5,), jnp.int8), "c": np.float32(1)}
    assert (mlax.count(mixed), mlax.nbytes(mixed)) == (10, 4 * 8 + 5 + 4)
    module = network()
    assert mlax.count(module.filter()) == 3 * 4 + 4 + 4 * 2
    shapes = jax.eval_shape(lambda: mlax.linear(1000).init(KEY, jnp.ones(2000))[0])
    assert (mlax.count(shapes), mlax.nbytes(shapes)) == (2_000_000, 8_000_000)


def test_trees_may_hold_plain_numbers_and_keys() -> None:
    tree = {"rate": 0.5, "steps": 3, "key": KEY}
    assert mlax.paths(tree) == ["rate", "steps", "key"]
    assert mlax.count(tree) == 3
    assert mlax.nbytes({"rate": 0.5, "steps": 3, "on": True}) == 4 + 4 + 1
    assert jax.tree.leaves(mlax.mask(tree, "rate")) == [False, True, False]


def test_modules() -> None:
    module = network()
    kernels = mlax.mask(module, "*linear_kernel*")
    assert type(kernels) is type(module)
    assert sum(jax.tree.leaves(kernels)) == 2
    chosen, others = mlax.partition(module, "*linear_kernel*")
    assert len(jax.tree.leaves(chosen)) == 2
    combined = mlax.combine(chosen, others)
    y, _ = combined(X, None, inference_mode=True)
    expected, _ = module(X, None, inference_mode=True)
    np.testing.assert_array_equal(y, expected)
    doubled = mlax.map_with_path(lambda path, leaf: 2 * leaf if "kernel" in path else leaf, module)
    kernel = module.layers.data[0].linear_kernel.data
    np.testing.assert_array_equal(doubled.layers.data[0].linear_kernel.data, 2 * kernel)
    assert doubled.layers.data[0].linear_kernel.trainable is True


def params_of_a_model() -> Any:
    """Return parameters with names."""
    return mlax.series(stem=mlax.linear(3), head=mlax.linear(2)).init(KEY, X)[0]


@pytest.mark.parametrize(
    ("params", "pattern"),
    [
        (TREE, "*.kernel"),
        (params_of_a_model(), "head.*"),
        (network().filter(), "*3.linear_kernel*"),
    ],
    ids=["tree", "params", "module"],
)
def test_masks_freeze_what_optax_trains(params: Any, pattern: str) -> None:
    optax: Any = pytest.importorskip("optax")  # Any: its stubs only cover what the examples use
    frozen = mlax.mask(params, lambda path, _: not fnmatch.fnmatchcase(path, pattern))
    optimizer = optax.chain(optax.sgd(0.5), optax.masked(optax.set_to_zero(), frozen))
    grads = jax.tree.map(jnp.ones_like, params)
    updates, _ = optimizer.update(grads, optimizer.init(params), params)
    after = optax.apply_updates(params, updates)
    selected = jax.tree.leaves(mlax.mask(params, pattern))
    leaves = zip(jax.tree.leaves(params), jax.tree.leaves(after), selected, strict=True)
    for old, new, trained in leaves:
        expected = old - jnp.asarray(0.5, old.dtype) if trained else old
        np.testing.assert_array_equal(new, expected)


def test_frozen_copies_get_no_gradient() -> None:
    model = mlax.repeat(mlax.residual(mlax.dense(3)), 4)
    x = jnp.ones(3)
    params, state = model.init(jax.random.key(0), x)

    def grads(**kwargs: Any) -> Any:
        def loss(params: Any) -> Any:
            return model.apply(mlax.freeze(params, **kwargs), state, x)[0].sum()

        return jax.grad(loss)(params)

    full, part = jax.grad(lambda p: model.apply(p, state, x)[0].sum())(params), grads(copies=[0, -1])
    for one, other in zip(jax.tree.leaves(part), jax.tree.leaves(full), strict=True):
        assert (one[0] == 0).all() and (one[3] == 0).all()
        np.testing.assert_array_equal(one[1:3], other[1:3])
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads()))
    kernels = grads(where="*.kernel", copies=range(2))
    assert (kernels[0].kernel[:2] == 0).all() and (kernels[0].bias[:2] != 0).any()
    with pytest.raises(ValueError, match=r"0.kernel to have copies \[4\], got shape \(4, 3, 3"):
        grads(where="0.kernel", copies=[4])
    np.testing.assert_array_equal(grads(copies=[])[0].kernel, full[0].kernel)


def test_what_freeze_refuses() -> None:
    params = {"embed": jnp.ones((9, 2)), "body": jnp.ones((3, 2)), "scale": jnp.ones(())}
    for copies in (1, slice(2), [1.0], "01", jnp.ones(2), [None]):
        with pytest.raises(TypeError, match="freeze: expected copies to be indices, such as"):
            mlax.freeze(params, "body", copies=cast(Any, copies))
    with pytest.raises(ValueError, match=r"scale to have copies \[0\], got shape \(\)"):
        mlax.freeze(params, "scale", copies=[0])
    with pytest.raises(ValueError, match=r"one number of copies, got 3 \(body\) and 9 \(embed"):
        mlax.freeze({name: params[name] for name in ("embed", "body")}, copies=[0])
    with pytest.raises(ValueError, match="freeze: expected where to select a leaf, got none"):
        mlax.freeze(params, lambda path, leaf: False)
    with pytest.raises(TypeError, match="a tree of arrays, got a layer; .*mlax.frozen"):
        mlax.freeze(mlax.dense(3))
