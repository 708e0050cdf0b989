"""Comparing a layer with a module of another library, both with the weights of the module."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from mlax import Layer
from mlax.weights import Table, convert, revert
from mlax.weights.rules import WAYS_OUT
from tests.oracle import KEY


def bits(tree: Any) -> list[tuple[str, bytes]]:
    """Return dtypes and bytes, which tell -0.0 from 0.0."""
    return [(leaf.dtype.name, np.asarray(leaf).tobytes()) for leaf in jax.tree.leaves(tree)]


def wrongs(error: object) -> set[str]:
    """Return what an error of `convert` lists, without the ways out."""
    return set(str(error).partition(", got ")[2].split("; ")) - set(WAYS_OUT.values())


def random(shape: tuple[int, ...], seed: int) -> Any:
    """Return numbers other than a scale of 1 and a bias of 0, which are positive for a variance."""
    rng = np.random.default_rng(seed)
    numbers = rng.uniform(0.5, 1.5, shape) * (rng.choice([-1, 1], shape) if len(shape) > 1 else 1)
    return numbers.astype(np.float32)


def require_parity(
    layer: Layer[Any, Any, Any, Any], x: Any, tensors: Mapping[str, Any], table: Table,
    run: Callable[[Mapping[str, Any]], Any], *, left_out: tuple[str, ...] = (), adds: bool = False,
) -> None:
    """Require equal outputs after `convert`, and equal bits after `revert`.

    Args:
        layer: the layer under test.
        x: its input.
        tensors: the weights of the module, by name.
        table: the table under test.
        run: takes tensors by name and returns the output of the module with them.
        left_out: names of tensors without a place.
        adds: whether the table adds biases, which don't come back with the same bits.
    """
    like = jax.eval_shape(layer.init, KEY, x)
    made = convert(tensors, table, like)
    assert jax.tree.structure(made) == jax.tree.structure(like)
    params, state = made
    apply = jax.jit(lambda *made: layer.apply(made[0], made[1], made[2], None, True)[0])
    y = apply(params, state, x)
    found = revert(made, table)
    assert found.keys() == tensors.keys() - set(left_out)
    for name in found:
        assert adds and "bias" in name or bits(found[name]) == bits(tensors[name])
    assert bits(convert(found, table, like)) == bits(made)
    for theirs in (run(tensors), run(found)) if adds else (run(tensors),):
        for a, b in zip(jax.tree.leaves(y), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
