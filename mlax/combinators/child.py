"""What every combinator does with its children, each rule in one place.

- state: a combinator's `State` is one pytree node. The configs of the children and their
  `apply` stand in its config as `Child`, their variables in its variables; a child's own
  state exists only while its functions run.
- keys: `init_keys` and `apply_keys`.
- names: each child runs in a `jax.named_scope`, and whatever it raises gets a note with its
  path in the model, as "in series[3] > linear" or "in series > head > linear".

A combinator of several layers holds them under the keys 0, 1, ... and its params and
variables are tuples, or under names, and they are dicts. A combinator of one layer has the
params and variables of that layer, and the key None.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from mlax import arguments
from mlax.arguments import ANOTHER_MODEL
from mlax.equality import by_parts
from mlax.pair import AxisName, Key, Layer, State, needs_rng

AnyLayer: TypeAlias = Layer[Any, Any, Any, Any]

ChildKey: TypeAlias = int | str | None


@by_parts
class Child(NamedTuple):
    """What stays of a layer in the config of the combinator that holds it."""

    key: ChildKey
    """Its place or name among the children."""
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


ChildrenState: TypeAlias = State[Any, tuple[Child, ...]]
"""The state of a combinator of several layers: the variables of each, `()` if there are none."""

DictState: TypeAlias = State[dict[str, Any], tuple[Child, ...]]
"""That of layers with names."""


class Foreign:
    """Stands for the config of a layer whose state is not a `State`: all of it is variables."""


class Nothing:
    """Stands for the type of parameters or variables that are `()`."""


def init_keys(rng: Key, count: int) -> list[Key]:
    """Return the keys that children are initialised with: fold_in(rng, i) for the i-th."""
    return [jax.random.fold_in(rng, i) for i in range(count)]


def apply_keys(rng: Key | None, needs: Sequence[bool]) -> list[Key | None]:
    """Return a key for each child that needs one and None for the others.

    A single such child gets `rng` itself, of several the j-th gets fold_in(rng, j).
    """
    if rng is None or not any(needs):
        return [None] * len(needs)
    if sum(needs) == 1:
        return [rng if need else None for need in needs]
    keys = (jax.random.fold_in(rng, j) for j in range(sum(needs)))
    return [next(keys) if need else None for need in needs]


def any_needs_rng(*layers: AnyLayer, **named: AnyLayer) -> bool:
    """Return whether one of the layers needs a key."""
    return any(needs_rng(layer.apply) for layer in (*layers, *named.values()))


def keyed(
    owner: str, layers: Sequence[AnyLayer], named: Mapping[str, AnyLayer]
) -> dict[ChildKey, AnyLayer]:
    """Return the layers by key: their names, or their places."""
    if layers and named:
        got = f"{len(layers)} without and {len(named)} with"
        raise TypeError(arguments.message(owner, "layers", "all with names or all without", got))
    by_key: dict[ChildKey, AnyLayer] = {}
    by_key.update(enumerate(layers))
    by_key.update(named)
    return by_key


def copy_keys(rng: Key, count: int) -> Key:
    """Return the stacked keys of `count` copies of a layer: those of that many children."""
    if count == 1:
        return rng[None]
    return jax.vmap(lambda i: jax.random.fold_in(rng, i))(jnp.arange(count))


def init_child(
    owner: str, key: ChildKey, layer: AnyLayer, rng: Key, x: Any
) -> tuple[Any, Any, Child]:
    """Return the parameters and variables of a new child, and what its parent keeps of it."""
    kind = getattr(layer.init, "__name__", type(layer.init).__name__)
    try:
        params, state = layer.init(rng, x)
        variables, config = _parts(state)
        hash(config)
    except Exception as error:
        add_path(error, owner, key, kind)
        raise
    types = _container_type(params), _container_type(variables)
    return params, variables, Child(key, kind, layer.apply, needs_rng(layer.apply), config, *types)


def stacked_children(
    owner: str, layer: AnyLayer, rng: Key, x: Any, count: int
) -> tuple[Any, Any, Child]:
    """Return the params and variables of that many copies, stacked: one vmapped `init`."""
    children = []

    def init_copy(rng: Key) -> tuple[Any, Any]:
        params, variables, child = init_child(owner, None, layer, rng, x)
        children.append(child)
        return params, variables

    keys = jax.vmap(lambda i: jax.random.fold_in(rng, i))(jnp.arange(count))
    params, variables = jax.vmap(init_copy)(keys)
    return params, variables, children[0]


def apply_child(
    owner: str,
    child: Child,
    params: Any,
    variables: Any,
    x: Any,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[Any, Any]:
    """Return the output of a child and its next variables."""
    try:
        _require_type(child.kind, "params", params, child.params_type)
        _require_type(child.kind, "state.variables", variables, child.variables_type)
        state = variables if child.config is Foreign else State(variables, child.config)
        with jax.named_scope(child.key if isinstance(child.key, str) else place(owner, child.key)):
            y, state = child.apply(params, state, x, rng, inference_mode, batch_axis_name)
    except Exception as error:
        add_path(error, owner, child.key, child.kind)
        raise
    return y, _parts(state)[0]


def shapes(x: Any) -> Any:
    """Return a pytree with a `jax.ShapeDtypeStruct` for each array."""
    return jax.eval_shape(lambda x: x, x)


def require_copies(owner: str, params: Any, count: int) -> None:
    """Require arrays with a leading axis of that many copies."""
    for leaf in jax.tree.leaves(params):
        if np.shape(leaf)[:1] != (count,):
            wanted = f"stacked on a leading axis of {count}"
            got = f"an array of shape {np.shape(leaf)}"
            raise ValueError(arguments.message(owner, "params", wanted, got, ANOTHER_MODEL))


def output_shape(owner: str, child: Child, params: Any, variables: Any, x: Any, rng: Key) -> Any:
    """Return the shapes and dtypes of what a child makes of `x` in training, without running it."""

    def output(params: Any, variables: Any, x: Any, rng: Key) -> Any:
        return apply_child(owner, child, params, variables, x, rng)[0]

    return jax.eval_shape(output, params, variables, x, rng)


def collected(children: Sequence[tuple[Any, Any, Child]]) -> tuple[Any, ChildrenState]:
    """Return the params and the state of a combinator, from what `init_child` made."""
    params, variables, kept = zip(*children, strict=True) if children else ((), (), ())
    return packed(kept, params), joined_state(kept, variables)


def joined_state(children: tuple[Child, ...], variables: Sequence[Any]) -> ChildrenState:
    """Return the one `State` of several children: no variables at all are `()`, which is cheap."""
    stateless = all(type(v) is tuple and not v for v in variables)
    return State(() if stateless else packed(children, variables), children)


def split(owner: str, params: Any, state: ChildrenState) -> list[tuple[Child, Any, Any]]:
    """Return each child with its params and its variables, and require that they are there."""
    keys = [child.key for child in arguments.config_of(owner, state, tuple)]
    variables = [()] * len(keys)
    if state.variables:
        variables = entries(owner, "state.variables", state.variables, keys, ANOTHER_MODEL)
    params = entries(owner, "params", params, keys, ANOTHER_MODEL)
    return list(zip(state.config, params, variables, strict=True))


def entries(
    owner: str, name: str, container: Any, keys: Sequence[ChildKey], way_out: str = ""
) -> list[Any]:
    """Return the entries of a tuple, or of a dict if the keys are names, one for each key."""
    if keys and isinstance(keys[0], str):
        wanted = f"a dict with the entries {list(keys)}, one for each layer"
        if isinstance(container, dict):
            if set(container) == set(keys):
                return [container[key] for key in keys]
            got = f"the entries {list(container)}"
            raise ValueError(arguments.message(owner, name, wanted, got, way_out))
    else:
        wanted = f"a tuple with {len(keys)} entries, one for each layer"
        if isinstance(container, tuple | list):
            if len(container) == len(keys):
                return list(container)
            got = f"{len(container)} entries"
            raise ValueError(arguments.message(owner, name, wanted, got, way_out))
    raise TypeError(arguments.message(owner, name, wanted, type(container).__name__, way_out))


def packed(children: Sequence[Child], values: Sequence[Any]) -> Any:
    """Return the values as a tuple, or as a dict if the children have names."""
    if children and isinstance(children[0].key, str):
        return {child.key: value for child, value in zip(children, values, strict=True)}
    return tuple(values)


def _container_type(value: Any) -> type | None:
    """Return the type of a container; leaves of all kinds stand for each other."""
    if jax.tree_util.all_leaves([value]):
        return None
    return Nothing if type(value) is tuple and not value else type(value)


def _require_type(kind: str, name: str, value: Any, wanted: type | None) -> None:
    """Require the container that `init` made."""
    if wanted is Nothing:
        if type(value) is not tuple or value:
            got = f"{len(value)} entries" if type(value) is tuple else type(value).__name__
            raise TypeError(arguments.message(kind, name, "()", got, ANOTHER_MODEL))
    elif wanted is not None and not isinstance(value, wanted):
        got = type(value).__name__
        raise TypeError(arguments.message(kind, name, f"a {wanted.__name__}", got, ANOTHER_MODEL))


def require_equal_shapes(owner: str, wanted: Any, got: Any, what: str, way_out: str = "") -> None:
    """Require two results with equal structure, shapes and dtypes."""
    pairs = zip(jax.tree.leaves(wanted), jax.tree.leaves(got), strict=False)
    same = all(a.shape == b.shape and a.dtype == b.dtype for a, b in pairs)
    if jax.tree.structure(wanted) != jax.tree.structure(got) or not same:
        spelled = [jax.tree.map(_spelled, shape) for shape in (wanted, got)]
        raise ValueError(arguments.message(owner, what, spelled[0], spelled[1], way_out))


def _spelled(shape: jax.ShapeDtypeStruct) -> str:
    return f"{shape.dtype.name}{list(shape.shape)}"


def require_layers(owner: str, name: str, layers: Any) -> None:
    """Require layers, and say what to do with a pair that has no hyperparameters yet."""
    for layer in layers:
        require_layer(owner, name, layer)


def require_named_layers(owner: str, name: str, named: Any) -> None:
    """Require layers under names other than those of the arguments of `init`."""
    for child, layer in named.items():
        require_layer(owner, child, layer)
        if child in ("rng", "x"):
            raise ValueError(f"{owner}: expected another name than {child!r}, an argument of init")


def require_layer(owner: str, name: str, layer: Any) -> None:
    """Require a layer."""
    if not isinstance(layer, Layer):
        way_out = "call a pair, as mlax.linear(3), or put two functions into mlax.Layer"
        raise TypeError(arguments.message(owner, name, "a layer", repr(layer), way_out))


def place(owner: str, key: ChildKey) -> str:
    """Return where a child stands: "series[3]", "series > head", or "repeat"."""
    if key is None:
        return owner
    return f"{owner}[{key}]" if isinstance(key, int) else f"{owner} > {key}"


def add_path(error: BaseException, owner: str, key: ChildKey, kind: str) -> None:
    """Note on `error` where in the model it came from, or complete what is noted already.

    A child that has a name is called by it, not by its kind: "series > blocks[3] > linear".
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


def _parts(state: Any) -> tuple[Any, Hashable]:
    if isinstance(state, State):
        return state.variables, state.config
    return state, Foreign
