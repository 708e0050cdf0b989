"""`split_keys`: a key for each part of a model, by name."""

import keyword
from collections.abc import Iterator, Sequence
from typing import Any

import jax
from jax.tree_util import GetAttrKey

from mlax.arguments import described, is_sequence, require_key
from mlax.combinators import init_keys
from mlax.errors import expected, message
from mlax.layer import Key


class Keys:
    """Keys as attributes, which also unpack in order: see `split_keys`. A pytree."""

    def __init__(self, keys: dict[str, Key]) -> None:
        """Hold the keys under their names."""
        vars(self).update(keys)

    def __getattr__(self, name: str) -> Key:
        """Raise an error with the names that exist."""
        what, got = f"one of {', '.join(vars(self))}", f"the name {name!r}"
        way_out = "give each key its name in split_keys(rng, names)"
        raise AttributeError(expected("split_keys", what, got, way_out))

    def __iter__(self) -> Iterator[Key]:
        """Yield the keys in the order of their names."""
        return iter(vars(self).values())

    def __repr__(self) -> str:
        return f"Keys({', '.join(vars(self))})"


def split_keys(rng: Key, names: str | Sequence[str]) -> Keys:
    """Return a key for each name: as an attribute, or unpacked in order.

    Key i is fold_in(rng, i), so that another name at the end changes no other key. These are the
    keys that `mlax.series` gives its layers in `init`, if every layer has a name.

    Args:
        rng: PRNG key.
        names: distinct identifiers, separated by spaces or commas in one string, or a sequence.

    Raises:
        TypeError: `rng` is not one key, or `names` is neither a string nor a sequence of them.
        ValueError: there is no name, a name occurs twice, or one is not an identifier.
        AttributeError: a key is read under a name that was not given.

    >>> import jax
    >>> from mlax import nn
    >>> keys = nn.split_keys(jax.random.key(0), "hidden head")
    >>> model = nn.Series([nn.Dense(keys.hidden, 8), nn.F(jax.nn.relu), nn.Dense(keys.head, 2)])
    >>> hidden, head = nn.split_keys(jax.random.key(0), "hidden head")
    >>> bool(head == keys.head)
    True
    """
    require_key("split_keys", rng)
    listed: Any = names.replace(",", " ").split() if isinstance(names, str) else names
    way_out = 'as in split_keys(rng, "stem body head")'
    if not is_sequence(listed) or not all(isinstance(name, str) for name in listed):
        wanted = "a string of names or a sequence of strings"
        raise TypeError(message("split_keys", "names", wanted, described(names), way_out))
    if not listed:
        raise ValueError(message("split_keys", "names", "at least one name", repr(names), way_out))
    for name in listed:
        if not name.isidentifier() or keyword.iskeyword(name):
            raise ValueError(message("split_keys", "names", "identifiers", repr(name), way_out))
        if list(listed).count(name) > 1:
            got = f"{name!r} twice"
            raise ValueError(message("split_keys", "names", "distinct", got, way_out))
    return Keys(dict(zip(listed, init_keys(rng, len(listed)), strict=True)))


def _flatten(keys: Keys) -> tuple[Any, tuple[str, ...]]:
    return [(GetAttrKey(name), key) for name, key in vars(keys).items()], tuple(vars(keys))


jax.tree_util.register_pytree_with_keys(
    Keys, _flatten, lambda names, keys: Keys(dict(zip(names, keys, strict=True)))
)
