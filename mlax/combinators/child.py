"""What every combinator does with its children, each rule in one place.

- state: a combinator's `State` is one pytree node. Its config holds the config and `apply` of
  each child as a `Child`, its variables hold those of the children; a child's own state exists
  only while its functions run.
- keys: `apply_keys`, and `init_keys` in mlax/combinators/making.py, where children are made.
- names: each child with a key runs in a `jax.named_scope` of its key and kind, so that the scopes
  of an operation spell a path: "body (repeat)/mlp (mlp)/up (dense)". Whatever a child raises gets
  a note with its path, such as "in series[3] > linear" or "in series > head > linear".

If a combinator of several layers keys them 0, 1, ..., its params and variables are tuples; if it
names them, they are dicts. A combinator of one layer has the params and variables of that layer,
whose key is None.
"""

import contextlib
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mlax import constraints, mesh, taps
from mlax.arguments import ANOTHER_MODEL, AnyLayer, described
from mlax.belonging import ANOTHER_STATE, pair_of, require_like
from mlax.equality import equal, source
from mlax.errors import message
from mlax.layer import AxisName, Key, State
from mlax.pair import BoundApply, bare
from mlax.tree import spelled_key

ChildKey: TypeAlias = int | str | None


class Child(NamedTuple):
    """A layer in the config of the combinator that holds it."""

    key: ChildKey
    """Its child index or name, None for an only child."""
    kind: str
    """The name of its pair."""
    apply: Callable[..., tuple[Any, Any]]
    """Its function."""
    needs_rng: bool
    """Whether it needs a key in training."""
    config: Hashable
    """The config of its state, or `Foreign`."""
    params_type: type | None
    """The type of its parameters, None if they are a leaf, `Nothing` if there are none."""
    variables_type: type | None
    """The type of its variables, None if they are a leaf, `Nothing` if there are none."""

    def __repr__(self) -> str:
        """Return its key and kind, and its own children."""
        name = self.kind if self.key is None else f"{self.key}: {self.kind}"
        return name if self.config is Foreign else f"{name} {source(self.config)}"

    def state(self, variables: Any) -> Any:
        """Return its state with these variables."""
        return variables if self.config is Foreign else State(variables, self.config)

    def adopted(self, owner: str, layer: AnyLayer) -> "Child":
        """Return the child with the `apply` of `layer`, which must be the same layer."""
        if not equal(bare(self.apply), bare(layer.apply)):
            where = f"the state of {place(owner, self.key)}"
            wanted, got = f"that of {kind_of(layer)}", f"that of {self.kind}"
            raise TypeError(message(owner, where, wanted, got, ANOTHER_STATE))
        return self._replace(apply=layer.apply)


class Made(NamedTuple):
    """A new child, or several, with their params and variables in one tree."""

    params: Any
    """The parameters."""
    variables: Any
    """The variables."""
    child: Any
    """The `Child`, or a tuple of them. (Typed as Any: the caller knows which.)"""
    output: Callable[[], Any]
    """Returns the shapes and dtypes of its output in training, without running it."""


class Foreign:
    """Placeholder for the config of a layer whose state is not a `State`: it is all variables."""


class Nothing:
    """Placeholder for the type of parameters or variables that are `()`."""


def children_of(config: Any) -> list[Child]:
    """Return the layers in the config of a combinator, or in a part of one."""
    if isinstance(config, Child):
        return [config]
    entries = config if isinstance(config, tuple) else ()
    return [child for entry in entries for child in children_of(entry)]


def only_child_of(config: Any) -> Child | None:
    """Return the only layer inside a layer, which shares its path and params, or None.

    Such a layer has no key.
    """
    children = children_of(config)
    return children[0] if len(children) == 1 and children[0].key is None else None


def layers_by_path(
    child: Child, path: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], tuple[Child, ...]]]:
    """Yield the layers in a layer by path, each with the only children inside it."""
    chain: tuple[Child, ...] = (child,)
    while (inner := only_child_of(chain[-1].config)) is not None:
        chain += (inner,)
    yield path, chain
    for one in children_of(chain[-1].config):
        assert one.key is not None  # only children have no key
        yield from layers_by_path(one, (*path, spelled_key(one.key)))


def viewed(child: Child, params: Any, variables: Any) -> Any:
    """Return the parameters of a layer as a block reads them."""
    view = getattr(child.config, "view", None)
    if view is None:
        return params
    return viewed(*view(params, variables))


def variables_of(state: Any) -> Any:
    """Return the variables of a state: all of it, if it is foreign."""
    return state.variables if isinstance(state, State) else state


def kind_of(layer: AnyLayer) -> str:
    """Return the name of the pair of a layer, or of its `init`."""
    return str(getattr(layer.init, "__name__", type(layer.init).__name__))


def place(owner: str, key: ChildKey) -> str:
    """Return the place of a child: "series[3]", "series > head", or "repeat"."""
    if key is None:
        return owner
    return f"{owner}[{key}]" if isinstance(key, int) else f"{owner} > {key}"


# Keys.


def apply_keys(rng: Key | None, needs: Sequence[bool]) -> list[Key | None]:
    """Return a key for each child that needs one and None for the others.

    If only one child needs a key it gets `rng` itself; of several, the j-th gets fold_in(rng, j).
    """
    if rng is None or not any(needs):
        return [None] * len(needs)
    if sum(needs) == 1:
        return [rng if need else None for need in needs]
    keys = (jax.random.fold_in(rng, j) for j in range(sum(needs)))
    return [next(keys) if need else None for need in needs]


def copy_keys(rng: Key | None, count: int) -> Key | None:
    """Return the stacked keys for `count` copies of a layer, by the rule of `apply_keys`."""
    if rng is None:
        return None
    if count == 1:
        return rng[None]
    return jax.vmap(lambda i: jax.random.fold_in(rng, i))(jnp.arange(count))


# Running children.


def apply_child(
    owner: str, child: Child, params: Any, variables: Any, x: Any, rng: Key | None = None,
    inference_mode: bool = False, batch_axis_name: AxisName = (),
) -> tuple[Any, Any]:
    """Return the output of a child and its next variables.

    Args:
        owner: name of the combinator, for errors.
        child: the `Child` that `init_child` returned, from the config of the combinator.
        params: the child's own parameters.
        variables: the child's own variables.
        x: its input.
        rng: the child's own key, see `apply_keys`.
        inference_mode: as passed to the combinator.
        batch_axis_name: as passed to the combinator.
    """
    kind = child.kind
    try:
        _require_type(kind, "params", params, child.params_type)
        _require_type(kind, "state.variables", variables, child.variables_type)
        state = child.state(variables)
        call = rng, inference_mode, batch_axis_name
        apply: Any = child.apply
        with _scope(child.key, kind), taps.below(child.key), constraints.below(child.key):
            if isinstance(apply, BoundApply):  # one stack frame fewer: models may be deep
                state = apply.admitted(params, state, x, *call)
                apply = apply.pair.unchecked_apply
            if constraints.are_set() and only_child_of(child.config) is None:
                apply = constraints.gathering(apply)
            result = taps.marked(apply(params, state, x, *call))
            y, state = pair_of(kind, "apply", "(y, state)", result)
            y = constraints.output(y, getattr(child.config, "out_sharding", None))
        if isinstance(state, State) != (child.config is not Foreign):
            got = described(state)
            raise TypeError(message(kind, "the state that apply returns", "a State", got))
        after = variables_of(state)
        require_like(kind, variables, after)
    except Exception as error:
        if rng is None and not child.needs_rng and "a PRNG key in training, got None" in str(error):
            error.add_note(
                f"{kind}: it is declared as a layer that needs no key; declare that it needs one "
                "with mlax.Layer(init, apply, needs_rng=True)"
            )
        mesh.explain(kind, error)
        add_path(error, owner, child.key, kind)
        raise
    return y, taps.recorded(child.key, y, after)


def _scope(key: ChildKey, kind: str) -> contextlib.AbstractContextManager[Any]:
    """Return the named scope of a child: its key and kind, if there is a key."""
    if key is None:
        return contextlib.nullcontext()
    return jax.named_scope(f"{key} ({kind})")


def stacked(shapes: Any, count: int) -> Any:
    """Return the shapes with a leading axis."""
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct((count, *a.shape), a.dtype), shapes)


def require_copies(owner: str, params: Any, count: int) -> None:
    """Require arrays with a leading axis of `count` copies."""
    for leaf in jax.tree.leaves(params):
        if np.shape(leaf)[:1] != (count,):
            wanted = f"stacked on a leading axis of {count}"
            got = f"an array of shape {np.shape(leaf)}"
            raise ValueError(message(owner, "params", wanted, got, ANOTHER_MODEL))


# One state for several children.


def collected(made: Sequence[Made]) -> Made:
    """Return several children as one `Made`, each under its key; its output is a placeholder."""
    children = tuple(one.child for one in made)
    params = packed([child.key for child in children], [one.params for one in made])
    return Made(params, joined(children, [one.variables for one in made]), children, tuple)


def joined(children: Sequence[Child], variables: Sequence[Any]) -> Any:
    """Return the variables of several children as one tree: `()` if there are none at all."""
    if all(type(v) is tuple and not v for v in variables):
        return ()
    return packed([child.key for child in children], variables)


def split(
    owner: str, children: Sequence[Child], params: Any, variables: Any
) -> tuple[list[Any], list[Any]]:
    """Return the params and variables of each child, and require one entry for each."""
    keys = [child.key for child in children]
    each_variables = [()] * len(keys)
    if variables:
        each_variables = by_key(owner, "state.variables", variables, keys, ANOTHER_MODEL)
    return by_key(owner, "params", params, keys, ANOTHER_MODEL), each_variables


def by_key(
    owner: str, name: str, container: Any, keys: Sequence[ChildKey], way_out: str = ""
) -> list[Any]:
    """Return the entries of a tuple, or of a dict if the keys are names, one for each key."""
    if keys and isinstance(keys[0], str):
        wanted = f"a dict with the entries {list(keys)}, one for each layer"
        if isinstance(container, dict):
            if set(container) == set(keys):
                return [container[key] for key in keys]
            got = f"the entries {list(container)}"
            raise ValueError(message(owner, name, wanted, got, way_out))
    else:
        wanted = f"a tuple with {len(keys)} entries, one for each layer"
        if isinstance(container, tuple | list):
            if len(container) == len(keys):
                return list(container)
            got = f"{len(container)} entries"
            raise ValueError(message(owner, name, wanted, got, way_out))
    if name == "params" and isinstance(container, list | Mapping):
        way_out = from_file(container)
    raise TypeError(message(owner, name, wanted, described(container), way_out))


def packed(keys: Sequence[ChildKey], values: Sequence[Any]) -> Any:
    """Return the values as a tuple, or as a dict if the keys are names."""
    if keys and isinstance(keys[0], str):
        return dict(zip(keys, values, strict=True))
    return tuple(values)


def container_type(value: Any) -> type | None:
    """Return the type of a container, or None for a leaf of any type."""
    if jax.tree_util.all_leaves([value]):
        return None
    return Nothing if type(value) is tuple and not value else type(value)


def from_file(params: Any) -> str:
    """Return how params whose containers are lists or dicts become those of the layer.

    JAX sorts the entries of a dict by their keys, so that only those of lists are in order.
    """
    if _holds_dicts(params):
        return (
            "if they were read from a file, rebuild them by path: read = {}; mlax.map_with_path("
            "lambda path, a: read.update({path.replace(\"'\", ''): a}), params); "
            "params = mlax.map_with_path(lambda path, _: read[path.replace(\"'\", '')], "
            "layer.init(rng, x)[0])"
        )
    return (
        "if they were read from a file, rebuild them: params = jax.tree.unflatten("
        "jax.tree.structure(layer.init(rng, x)[0]), jax.tree.leaves(params))"
    )


def _holds_dicts(tree: Any) -> bool:
    if isinstance(tree, list | tuple):
        return any(map(_holds_dicts, tree))
    return isinstance(tree, Mapping)


def _require_type(kind: str, name: str, value: Any, wanted: type | None) -> None:
    """Require the type of container that `init` made."""
    if wanted is Nothing:
        if type(value) is not tuple or value:
            got, way_out = described(value), ANOTHER_MODEL
            if type(value) is tuple:
                got = f"{len(value)} entries"
            elif isinstance(value, list | Mapping) and not value:
                way_out = "put () in its place"
            raise TypeError(message(kind, name, "()", got, way_out))
    elif wanted is not None and not isinstance(value, wanted):
        got, way_out = described(value), ANOTHER_MODEL
        if name == "params" and (isinstance(value, list | Mapping) or type(value) is tuple):
            way_out = from_file(value)
        raise TypeError(message(kind, name, f"a {wanted.__name__}", got, way_out))


def require_equal_shapes(
    owner: str, wanted: Any, got: Any, what: str, way_out: str = "",
    error: type[Exception] = ValueError,
) -> None:
    """Require two results with equal structure, shapes and dtypes."""
    pairs = zip(jax.tree.leaves(wanted), jax.tree.leaves(got), strict=False)
    same = all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)
    if jax.tree.structure(wanted) != jax.tree.structure(got) or not same:
        spelled = [jax.tree.map(form, shape) for shape in (wanted, got)]
        raise error(message(owner, what, spelled[0], spelled[1], way_out))


def form(shape: Any) -> str:
    """Return the dtype and the shape of an array, as in "float32[5, 2]"."""
    return f"{shape.dtype.name}{list(shape.shape)}"


# Paths in errors.


def add_path(error: BaseException, owner: str, key: ChildKey, kind: str) -> None:
    """Add a note to `error` with its path in the model, or extend the path already noted.

    A child with a name appears under its name, not its kind: "series > blocks[3] > linear".
    """
    notes: list[str] = getattr(error, "__notes__", [])
    for i, note in enumerate(notes):
        if isinstance(note, _PathNote):
            inner = note.removeprefix("in ")
            inside = inner[len(kind) :]
            if isinstance(key, str) and inner.startswith(kind) and inside.startswith(("[", " > ")):
                notes[i] = _PathNote(f"in {place(owner, key)}{inside}")
            else:
                notes[i] = _PathNote(f"in {place(owner, key)} > {inner}")
            return
    error.add_note(_PathNote(f"in {place(owner, key)} > {kind}"))


def has_path(error: BaseException) -> bool:
    """Return whether the error came out of a child."""
    return any(isinstance(note, _PathNote) for note in getattr(error, "__notes__", []))


class _PathNote(str):
    """A note that holds a path."""
