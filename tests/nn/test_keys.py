"""`split_keys`: keys by name."""

import pickle
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import nn

UNTYPED: Any = nn


def data(key: Any) -> Any:
    """Return the numbers of a key, typed or raw."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(key) if typed else key).tolist()


@pytest.mark.parametrize("make_key", [jax.random.key, jax.random.PRNGKey], ids=["typed", "raw"])
@pytest.mark.parametrize("names", ["a b c", "a, b,c", " a\n b c ", ("a", "b", "c"), list("abc")])
def test_key_i_is_folded_in(make_key: Any, names: Any) -> None:
    rng = make_key(3)
    keys = nn.split_keys(rng, names)
    expected = [jax.random.fold_in(rng, i) for i in range(3)]
    assert [data(keys.a), data(keys.b), data(keys.c)] == list(map(data, expected))
    a, b, c = keys
    assert list(map(data, (a, b, c))) == list(map(data, expected))
    assert a.dtype == rng.dtype


def test_a_name_at_the_end_changes_no_other_key() -> None:
    rng = jax.random.key(0)
    assert nn.split_keys(rng, "a b").b == nn.split_keys(rng, "a b c").b


def test_they_are_a_pytree() -> None:
    rngs = jax.random.split(jax.random.key(0), 2)
    keys = jax.jit(jax.vmap(lambda rng: nn.split_keys(rng, "a b")))(rngs)
    assert data(keys.b) == [data(jax.random.fold_in(rng, 1)) for rng in rngs]
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(keys)]
    assert paths == [".a", ".b"]
    raw = nn.split_keys(jax.random.PRNGKey(0), "a b")
    assert data(pickle.loads(pickle.dumps(raw)).b) == data(raw.b)


def test_they_make_the_parameters_of_a_series_of_layers() -> None:
    rng, x = jax.random.key(0), jnp.ones(3)
    first, second = nn.split_keys(rng, "first second")
    _, model = nn.Series([nn.Dense(first, 4), nn.Dense(second, 2)])(x, None)
    params, _ = mlax.series(mlax.dense(4), mlax.dense(2)).init(rng, x)
    for a, b in zip(jax.tree.leaves(model), jax.tree.leaves(params), strict=True):
        np.testing.assert_array_equal(a, b)


def test_an_unknown_name_raises() -> None:
    keys = nn.split_keys(jax.random.key(0), "stem head")
    with pytest.raises(AttributeError, match="^split_keys: expected one of stem, head, got .*'hed"):
        print(keys.hed)
    assert not hasattr(keys, "body")
    assert repr(keys) == "Keys(stem, head)"


@pytest.mark.parametrize(
    ("names", "error", "wanted"),
    [
        ("a b a", ValueError, "distinct, got 'a' twice"),
        ("", ValueError, "at least one name, got ''"),
        ([], ValueError, r"at least one name, got \[\]"),
        ("a b-c", ValueError, "identifiers, got 'b-c'"),
        (["a b"], ValueError, "identifiers, got 'a b'"),
        ("a class", ValueError, "identifiers, got 'class'"),
        (3, TypeError, "a string of names or a sequence of strings, got 3"),
        (["a", 3], TypeError, "a string of names or a sequence of strings, got a list"),
        ({"a", "b"}, TypeError, "a string of names or a sequence of strings, got a set"),
    ],
)
def test_wrong_names(names: Any, error: type[Exception], wanted: str) -> None:
    text = f'^split_keys: expected names to be {wanted}; as in split_keys.rng, "stem body head".'
    with pytest.raises(error, match=text):
        nn.split_keys(jax.random.key(0), names)


def test_the_key_must_be_one() -> None:
    for wrong in (3, jax.random.split(jax.random.key(0))):
        with pytest.raises(TypeError, match="^split_keys: expected rng to be one PRNG key"):
            UNTYPED.split_keys(wrong, "a b")
