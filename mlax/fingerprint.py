"""The hyperparameters of the models in a tree, as text by path.

A `State` carries its hyperparameters, and so does a module. Their text names functions and holds no
addresses, so that two programs can be compared: an epsilon or an activation that changed between
them is found, although the parameters look alike. (A function is known by its name: two lambdas
are alike.)
"""

from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import jax

from mlax.combinators import WiredConfig
from mlax.combinators.child import children_of
from mlax.equality import source
from mlax.layer import State
from mlax.module import Module
from mlax.structure import Node
from mlax.tree import path_of, spelled_key

Fingerprint: TypeAlias = dict[str, dict[str, str]]
"""For the path of each layer its hyperparameters as source code, and under "" its kind.

Layers at one path, such as `repeat` and the layer that it repeats, share an entry: "repeat, dense".
"""

_SAME_NUMBERS = {"initialized", "out_sharding", "policy", "remat", "unroll"}
"""Hyperparameters that do not change a result."""


def fingerprint(tree: Any) -> Fingerprint:
    """Return the hyperparameters of every `State` and module in a tree.

    >>> import jax, jax.numpy as jnp, mlax
    >>> _, state = mlax.dropout(0.1, axis=0).init(jax.random.key(0), jnp.ones(3))
    >>> fingerprint({"state": state})
    {'state': {'': 'DropoutConfig', 'rate': '0.1', 'axis': '0', 'ndim': '1'}}
    """
    found: Fingerprint = {}
    for path, name, value in _of_tree("", tree):
        entries, text = found.setdefault(path, {}), source(value) if name else str(value)
        entries[name] = f"{entries[name]}, {text}" if name in entries else text
    return found


def changes(before: Mapping[str, Mapping[str, str]], now: Fingerprint) -> list[str]:
    """Return what differs in the layers that two fingerprints share, line by line."""
    lines = []
    for path, entries in now.items():
        old = before.get(path, entries)
        names = [name for name in entries if name in old]
        for name in names if entries.get("") == old.get("") else [""]:
            if entries.get(name) != old.get(name):
                where = _joined(path, name) or "the model"
                lines.append(f"{where}: {old.get(name)} when saved, {entries.get(name)} now")
    return lines


_Found: TypeAlias = tuple[str, str, Any]
"""The path of a layer, and the name and value of a hyperparameter; its kind has the name ""."""


def _joined(path: str, name: str) -> str:
    return f"{path}.{name}".strip(".")


def _of_tree(path: str, tree: Any) -> Iterator[_Found]:
    nodes = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda n: isinstance(n, State | Node))
    for inner, node in nodes:
        if isinstance(node, State):
            kind = getattr(node.config, "kind", type(node.config).__name__)
            yield from _of_config(_joined(path, path_of(inner)), kind, node.config)
        elif isinstance(node, Node):
            yield from _of_module(_joined(path, path_of(inner)), node)


def _of_module(path: str, node: Node) -> Iterator[_Found]:
    parts = dict(node._parts())
    if isinstance(node, Module):
        yield path, "", type(node).__name__
        for name, value in node._held().items():
            is_number = isinstance(value, jax.Array) or name.endswith("initializer")
            if name not in parts and name not in _SAME_NUMBERS and not is_number:
                yield path, name, value
    for name, part in parts.items():
        yield from _of_tree(_joined(path, name), part)


def _of_config(path: str, kind: str, config: Any) -> Iterator[_Found]:
    """Yield the hyperparameters of a layer and of those inside it, at the paths of their params."""
    yield path, "", kind
    fields: dict[str, Any] = {"config": config} if config != () else {}
    if isinstance(config, WiredConfig):
        fields = dict(config.hparams)
    elif hasattr(config, "_fields"):
        fields = dict(zip(config._fields, config, strict=True))
    for name, value in fields.items():
        if name not in _SAME_NUMBERS and not children_of(value):
            yield path, name, value
    for child in children_of(config):
        below = path if child.key is None else _joined(path, spelled_key(child.key))
        yield from _of_config(below, child.kind, child.config)
