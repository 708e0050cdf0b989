"""What belongs to a layer: checks of params and states against those that its `init` made."""

import typing
from collections.abc import Hashable
from typing import Any

import jax

from mlax import taps
from mlax.arguments import ANOTHER_MODEL, described, hints_of
from mlax.equality import equal, source
from mlax.errors import message
from mlax.layer import State
from mlax.tree import paths

ANOTHER_STATE = (
    "a state belongs to the layer whose init made it: initialise this layer, and carry trained "
    "statistics over with state.with_variables(trained.variables)"
)


_MOST_CHARACTERS = 200


def config_of(owner: str, state: object, wanted: type[Any]) -> Any:
    """Return the config of a state, which must be a state of this layer."""
    if isinstance(state, State) and type(state.config) is wanted:
        return state.config
    got = described(state)
    if isinstance(state, State):
        got = f"the state of {layer_name(state.config)}"
    raise TypeError(message(owner, "state", "what init returned", got, ANOTHER_STATE))


def layer_name(config: Hashable) -> str:
    """Return the name of the layer that this config belongs to."""
    kind = getattr(config, "kind", None)
    if isinstance(kind, str):
        return kind
    name = type(config).__name__.removeprefix("_").removesuffix("Config")
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in name).strip("_")


def require_equal(owner: str, name: str, own: Any, kept: Any) -> None:
    """Require that a hyperparameter in the config of a state equals that of the layer."""
    if not equal(own, kept):
        keywords, others = getattr(own, "keywords", {}), getattr(kept, "keywords", {})
        if isinstance(keywords, dict) and isinstance(others, dict):  # those of partials
            for keyword in [keyword for keyword in keywords if keyword in others]:
                require_equal(owner, f"{name}.{keyword}", keywords[keyword], others[keyword])
        where = f"state.config.{name}" if name else "state.config"
        wanted, got = f"{source(own)}, as in this layer", source(kept)
        if got == source(own):
            got += " with other code, defaults or closures"
        raise ValueError(message(owner, where, wanted, got, ANOTHER_STATE))


def pair_of(owner: str, function: str, spelled: str, result: Any) -> tuple[Any, Any]:
    """Return the result of a function of a layer, which must be a pair."""
    if not isinstance(result, tuple) or len(result) != 2:
        got = f"{len(result)} entries" if isinstance(result, tuple) else described(result)
        way_out = f"return {spelled.split(',')[0]}, ()) if there is no state"
        raise TypeError(message(owner, f"what {function} returns", spelled, got, way_out))
    return result


def require_like(kind: str, before: Any, after: Any) -> None:
    """Require variables of one structure, shapes and dtypes, except for tapped values."""
    if after is before:
        return
    leaves, structure = jax.tree.flatten(before)
    leaves_after, structure_after = jax.tree.flatten(after)
    if structure != structure_after:
        nodes = jax.tree.leaves(after, is_leaf=lambda node: isinstance(node, taps.Tapped))
        if any(isinstance(node, taps.Tapped) for node in nodes):
            return
        wanted = f"of the structure {_spelled(structure)}, as its init made it"
        got, way_out = _spelled(structure_after), "initialise all that apply may set"
    else:
        pairs = zip(leaves, leaves_after, strict=True)
        changed = [(old, new) for old, new in pairs if _type_of(old) not in (None, _type_of(new))]
        if not changed:
            return
        old, new = changed[0]
        wanted, got = f"{described(old)}, as its init made it", described(new)
        way_out = "cast it in apply, or initialise it as it will be"
    raise TypeError(message(kind, "the state that apply returns", wanted, got, way_out))


def require_params_like(owner: str, own: Any, params: Any) -> None:
    """Require params like those of the layer."""
    _require_leaves_like(owner, "params", own, params, ANOTHER_MODEL)


def require_state_like(owner: str, own: Any, state: Any) -> None:
    """Require a state with variables like the layer's; only its config is used."""
    if isinstance(own, State):
        config_of(owner, state, type(own.config))
        own, state = own.variables, state.variables
    _require_leaves_like(owner, "state.variables", own, state, ANOTHER_STATE)


def _require_leaves_like(owner: str, name: str, own: Any, given: Any, way_out: str) -> None:
    if jax.tree.structure(own) != jax.tree.structure(given):
        here, there = paths(own), paths(given)
        missing = [f"none at {path}" for path in here if path not in there]
        more = [f"one at {path}" for path in there if path not in here]
        got = next(iter(missing + more), f"those of the structure {jax.tree.structure(given)}")
        wanted = "of the same structure as those of the layer"
        if not missing and not more:
            wanted = f"those of the structure {jax.tree.structure(own)}"
        raise TypeError(message(owner, name, wanted, got, way_out))
    leaves = jax.tree.leaves(own), jax.tree.leaves(given)
    for path, wanted, got in zip(paths(own), *leaves, strict=True):
        if wanted.shape != got.shape or wanted.dtype != got.dtype:
            error = ValueError if wanted.shape != got.shape else TypeError
            if error is TypeError and name == "params":
                dtype = jax.numpy.dtype(got.dtype).name
                way_out = f"cast them, or use mlax.cast(layer, params_dtype=jnp.{dtype})"
            expects, found = described(wanted), described(got)
            raise error(message(owner, f"{name}.{path}", expects, found, way_out))


def _type_of(leaf: Any) -> Any:
    return (leaf.shape, leaf.dtype) if hasattr(leaf, "dtype") else None


def _spelled(structure: Any) -> str:
    text = str(structure).removeprefix("PyTreeDef(").removesuffix(")")
    return text if len(text) <= _MOST_CHARACTERS else f"{text[:_MOST_CHARACTERS]}..."


def require_params(owner: str, params: Any, wanted: Any, config: Any) -> None:
    """Require params like those that `init` made: None for unused ones, and only for those."""
    fields: tuple[str, ...] = getattr(wanted, "_fields", ())
    if not fields:
        if wanted == tuple[()] and not (isinstance(params, tuple) and not params):
            got = described(params)
            raise TypeError(message(owner, "params", "()", got, ANOTHER_MODEL))
        return
    if not isinstance(params, wanted):
        way_out, got = ANOTHER_MODEL, described(params)
        if isinstance(params, dict) and set(params) <= set(fields):
            way_out = f"convert them with {wanted.__name__}(**params)"
        elif isinstance(params, list | tuple) and len(params) == len(fields):
            way_out = f"convert them with {wanted.__name__}(*params)"
        raise TypeError(message(owner, "params", f"a {wanted.__name__}", got, way_out))
    for name, value in zip(fields, params, strict=True):
        optional = value is None and type(None) in typing.get_args(hints_of(wanted)[name])
        used = getattr(config, f"use_{name}", value is not None or not optional)
        if used and value is None:
            way_out = "merge the parts of partition with combine"
            raise TypeError(message(owner, f"params.{name}", "an array", "None", way_out))
        if not used and value is not None:
            got = described(value)
            raise TypeError(message(owner, f"params.{name}", "None", got, ANOTHER_MODEL))
