"""What every combinator does with its children, each rule in one place.

- state: a combinator's `State` is one pytree node. The configs of the children and their
  `apply` stand in its config as `Child`, their variables in its variables; a child's own
  state exists only while its functions run.
- keys: `init_keys` and `apply_keys`.
- errors: whatever a child raises gets a note with its path, as "in series[3] > linear".
"""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple, TypeAlias

import jax

from mlax import arguments
from mlax.pair import AxisName, Key, Layer, State, needs_rng

AnyLayer: TypeAlias = Layer[Any, Any, Any, Any]


class Child(NamedTuple):
    """What stays of a layer in the config of the combinator that holds it."""

    path: str
    """Where it stands, as "series[3] > linear"."""
    apply: Callable[..., tuple[Any, Any]]
    """Its function."""
    needs_rng: bool
    """Whether it needs a key in training."""
    config: Hashable
    """The config of its state, or `Foreign`."""


class Foreign:
    """Stands for the config of a layer whose state is not a `State`: all of it is variables."""


ChildrenState: TypeAlias = State[tuple[Any, ...], tuple[Child, ...]]
"""The state of a combinator of several layers: the variables of each, `()` if there are none."""


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


def any_needs_rng(*layers: AnyLayer) -> bool:
    """Return whether one of the layers needs a key."""
    return any(needs_rng(layer.apply) for layer in layers)


def init_child(place: str, layer: AnyLayer, rng: Key, x: Any) -> tuple[Any, Any, Child]:
    """Return the parameters and variables of a new child, and what its parent keeps of it."""
    name = getattr(layer.init, "__name__", type(layer.init).__name__)
    path = f"{place} > {name}"
    try:
        params, state = layer.init(rng, x)
        variables, config = _parts(state)
        hash(config)
    except Exception as error:
        add_path(error, place, path)
        raise
    return params, variables, Child(path, layer.apply, needs_rng(layer.apply), config)


def apply_child(
    child: Child,
    params: Any,
    variables: Any,
    x: Any,
    rng: Key | None,
    inference_mode: bool,
    batch_axis_name: AxisName,
) -> tuple[Any, Any]:
    """Return the output of a child and its next variables."""
    state = variables if child.config is Foreign else State(variables, child.config)
    place, _, _ = child.path.partition(" > ")
    try:
        with jax.named_scope(place):
            y, state = child.apply(params, state, x, rng, inference_mode, batch_axis_name)
    except Exception as error:
        add_path(error, place, child.path)
        raise
    return y, _parts(state)[0]


def output_shape(child: Child, params: Any, variables: Any, x: Any, rng: Key) -> Any:
    """Return the shapes and dtypes of what a child makes of `x` in training, without running it."""

    def output(params: Any, variables: Any, x: Any, rng: Key) -> Any:
        return apply_child(child, params, variables, x, rng, False, ())[0]

    return jax.eval_shape(output, params, variables, x, rng)


def require_layers(owner: str, name: str, layers: Any) -> None:
    """Require layers, and say what to do with a pair that has no hyperparameters yet."""
    for layer in layers:
        require_layer(owner, name, layer)


def require_layer(owner: str, name: str, layer: Any) -> None:
    """Require a layer."""
    if not isinstance(layer, Layer):
        way_out = "call a pair, as mlax.linear(3), or put two functions into mlax.Layer"
        raise TypeError(arguments.message(owner, name, "made of layers", repr(layer), way_out))


def joined_state(
    variables: Sequence[Any], children: Sequence[Child]
) -> ChildrenState:
    """Return the one `State` of several children: no variables at all are `()`, which is cheap."""
    stateless = all(type(v) is tuple and not v for v in variables)
    return State(() if stateless else tuple(variables), tuple(children))


def split_variables(
    owner: str, params: Sequence[Any], state: ChildrenState
) -> tuple[Any, ...]:
    """Return the variables of each child, and require parameters and variables for each."""
    count = len(state.config)
    variables = state.variables or ((),) * count
    for name, entries in (("params", params), ("state.variables", variables)):
        if len(entries) != count:
            wanted = f"a tuple with {count} entries, one for each layer"
            raise ValueError(arguments.message(owner, name, wanted, f"{len(entries)} entries"))
    return variables


def add_path(error: BaseException, place: str, path: str) -> None:
    """Note on `error` where in the model it came from, or put `place` before what is noted."""
    notes: list[str] = getattr(error, "__notes__", [])
    for i, note in enumerate(notes):
        if isinstance(note, _PathNote):
            notes[i] = _PathNote(f"in {place} > {note.removeprefix('in ')}")
            return
    error.add_note(_PathNote(f"in {path}"))


class _PathNote(str):
    """A note that holds a path."""


def _parts(state: Any) -> tuple[Any, Hashable]:
    if isinstance(state, State):
        return state.variables, state.config
    return state, Foreign
