"""Tests of `owners_of`: which layer an array belongs to, and how many copies of it there are."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import mlax
from mlax.combinators.owners import owner_of, owners_of
from mlax.outline import abstract_model

EXPERTS = mlax.moe(mlax.repeat(mlax.dense(8), 2), 3, 1)
MODEL = mlax.batched(mlax.series(**{
    "stem": mlax.dense(8),
    "a.b": mlax.repeat(mlax.residual(mlax.repeat(mlax.dense(8), 4)), 2),
    "attend": mlax.ensemble(mlax.attention(2), 5),
    "add": mlax.f(lambda x: x[0]),
    "moe": EXPERTS,
}))


@pytest.mark.parametrize(
    ("path", "owner", "kind", "copies"),
    [
        ("stem.kernel", "stem", "dense", 0),
        ("'a.b'.0.kernel", "'a.b'.0", "dense", 2),
        ("attend.query.kernel", "attend", "attention", 1),
        ("moe.router.kernel", "moe", "moe", 0),
        ("moe.experts.kernel", "moe.experts", "dense", 2),
    ],
)
def test_owners(path: str, owner: str, kind: str, copies: int) -> None:
    model = abstract_model("test", MODEL, jax.ShapeDtypeStruct((7, 4, 8), jnp.float32))
    shapes: dict[str, Any] = dict(
        zip(mlax.paths(model.params), jax.tree.leaves(model.params), strict=True)
    )
    found = owner_of(owners_of(model.child), path)
    assert ".".join(found.path) == owner and found.chain[-1].kind == kind
    assert found.config is found.chain[-1].config
    assert found.copies == copies == shapes[path].ndim - 2
