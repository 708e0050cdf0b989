"""What every combinator does with its children, each rule in one place.

- state: a combinator's `State` is one pytree node. Its config holds the config and `apply` of
  each child as a `Child`, its variables hold those of the children; a child's own state exists
  only while its functions run.
- keys: `init_keys` and `apply_keys`.
- names: each child with a key runs in a `jax.named_scope` of its key and kind, so that the scopes
  of an operation spell a path: "body (repeat)/mlp (mlp)/up (dense)". Whatever a child raises gets
  a note with its path, such as "in series[3] > linear" or "in series > head > linear".

If a combinator of several layers keys them 0, 1, ..., its params and variables are tuples; if it
names them, they are dicts. A combinator of one layer has the params and variables of that layer,
whose key is None.
"""

import contextlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import get_opaque_trace_state
from jax.typing import DTypeLike

from mlax import constraints, mesh, taps
from mlax.arguments import ANOTHER_MODEL, AnyLayer, described
from mlax.equality import equal, source
from mlax.errors import message
from mlax.layer import AxisName, Key, State
from mlax.pair import ANOTHER_STATE, BoundApply, BoundInit, bare, pair_of, require_like
from mlax.statistics import WARNS
from mlax.taps import setting
from mlax.tree import path_of

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


def init_keys(rng: Key, count: int) -> list[Key]:
    """Return the keys to initialise children with: fold_in(rng, i) for child i."""
    tracing = _TRACING.get()
    if tracing is not None and tracing.abstract:
        return [rng] * count  # only their type matters
    return [jax.random.fold_in(rng, i) for i in range(count)]


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


# Making children.


def init_child(owner: str, key: ChildKey, layer: AnyLayer, rng: Key, x: Any) -> Made:
    """Return the parameters and variables of a new child, its config and its output shape.

    Args:
        owner: name of the combinator, for errors.
        key: index or name of the child, None for an only child.
        layer: any layer.
        rng: the child's own key, see `init_keys`.
        x: its input, or the shapes and dtypes of it.
    """
    kind = kind_of(layer)
    tracing = _TRACING.get()
    known = tracing.known.get(_signature(layer, x)) if tracing and tracing.abstract else None
    if known is not None:
        params, variables = _shared_placeholders((known.params, known.variables))
        return Made(params, variables, known.child._replace(key=key), known.output)
    output: Callable[[], Any] | None = None
    try:
        init: Any = layer.init
        make = getattr(init.pair, "make_with_output", None) if isinstance(init, BoundInit) else None
        if make is not None:
            params, state, output = make(rng, x, init.hparams)
        else:
            params, state = pair_of(kind, "init", "(params, state)", init(rng, x))
        variables = variables_of(state)
        config = state.config if isinstance(state, State) else Foreign
        hash(config)
    except Exception as error:
        add_path(error, owner, key, kind)
        raise
    types = _container_type(params), _container_type(variables)
    apply = layer.apply.bare if isinstance(layer.apply, BoundApply) else layer.apply
    child = Child(key, kind, apply, layer.needs_rng, config, *types)
    if output is None:
        made = Made(
            params, variables, child,
            lambda: _output_of_leaf(owner, layer, child, params, variables, x, rng),
        )
    else:
        made = Made(params, variables, child, _with_path(output, owner, key, kind))
    if tracing and tracing.abstract:
        y = made.output()
        tracing.known[_signature(layer, x)] = made._replace(
            params=shapes(params), variables=shapes(variables), output=lambda: y
        )
    return made


def _output_of_leaf(
    owner: str, layer: AnyLayer, child: Child, params: Any, variables: Any, x: Any, rng: Key
) -> Any:
    """Return the shapes of an output, found only once for equal layers with equal inputs."""
    tracing = _TRACING.get()
    if tracing is None:
        return output_shapes(owner, child, params, variables, x, rng)
    signature = _signature(layer, x), _types((params, variables, rng))
    if signature not in tracing.outputs:
        tracing.outputs[signature] = output_shapes(owner, child, params, variables, x, rng)
    return tracing.outputs[signature]


def _with_path(
    output: Callable[[], Any], owner: str, key: ChildKey, kind: str
) -> Callable[[], Any]:
    """Return the function, with the path of the child added to its errors, as in its `init`."""

    def located() -> Any:
        try:
            return output()
        except Exception as error:
            add_path(error, owner, key, kind)
            raise

    return located


def init_only_child(owner: str, layer: AnyLayer, rng: Key, x: Any) -> Made:
    """Return an only child: the combinator has its params and variables."""
    (key,) = init_keys(rng, 1)
    return init_child(owner, None, layer, key, x)


def init_copies(
    owner: str, layer: AnyLayer, rng: Key, x: Any, count: int, key: ChildKey = None
) -> Made:
    """Return `count` copies of a child with stacked params and variables: a vmapped `init`."""
    made: list[Made] = []

    def init_copy(rng: Key) -> tuple[Any, Any]:
        copy = init_child(owner, key, layer, rng, x)
        shapes_of_copy = copy.output()
        made.append(Made((), (), copy.child, lambda: shapes_of_copy))
        return copy.params, copy.variables

    keys = jax.vmap(lambda i: jax.random.fold_in(rng, i))(jnp.arange(count))
    with setting(_COPIES, True):
        params, variables = jax.vmap(init_copy)(keys)
    return Made(params, variables, made[0].child, made[0].output)


_COPIES: ContextVar[bool] = ContextVar("copies", default=False)


def making_copies() -> bool:
    """Return whether `init` is making several copies of a layer, each with its own key."""
    return _COPIES.get()


def shapes(x: Any) -> Any:
    """Return a pytree with a `jax.ShapeDtypeStruct` for each array."""
    leaves, structure = jax.tree.flatten(x)
    if all(map(_is_plain, leaves)):
        return jax.tree.unflatten(structure, leaves)
    try:
        return jax.eval_shape(lambda x: x, x)
    except TypeError:
        _require_arrays(x)
        raise


def _require_arrays(tree: Any) -> None:
    """Require leaves that JAX has a type for."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        try:
            jax.typeof(leaf)
        except TypeError:
            place = f" at {path_of(path)}" if path else ""
            wanted, got = "arrays, or their shapes and dtypes", f"{described(leaf)}{place}"
            raise TypeError(f"expected {wanted}, got {got}") from None


def _is_plain(leaf: Any) -> bool:
    """Return whether `jax.eval_shape` would return this shape unchanged."""
    if type(leaf) is not jax.ShapeDtypeStruct or leaf.sharding is not None:
        return False
    return bool(leaf.dtype == jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True))


def output_shapes(owner: str, child: Child, params: Any, variables: Any, x: Any, rng: Key) -> Any:
    """Return the shapes and dtypes of the output of a child in training, without running it."""
    dtype = _COMPUTE_DTYPE.get()

    def output(params: Any, variables: Any, x: Any, rng: Key) -> Any:
        y = apply_child(owner, child, cast_floating(params, dtype), variables, x, rng)[0]
        try:
            _require_arrays(y)
        except TypeError as error:
            add_path(error, owner, child.key, child.kind)
            raise
        return y

    with setting(WARNS, False):
        return jax.eval_shape(output, params, variables, x, rng)


_COMPUTE_DTYPE: ContextVar[DTypeLike | None] = ContextVar("compute_dtype", default=None)


def computing_in(dtype: DTypeLike | None) -> contextlib.AbstractContextManager[None]:
    """Make `init` compute output shapes with cast parameters, as `apply` will."""
    return setting(_COMPUTE_DTYPE, dtype or _COMPUTE_DTYPE.get())


def cast_floating(tree: Any, dtype: DTypeLike | None) -> Any:
    """Return the tree with its floating arrays cast to `dtype`; None leaves it unchanged."""
    if dtype is None:
        return tree
    return jax.tree.map(
        lambda a: jnp.asarray(a, dtype) if jnp.issubdtype(jnp.result_type(a), jnp.floating) else a,
        tree,
    )


# Children that are called while a function is traced, as in `mlax.block`.


class _Tracing(NamedTuple):
    """The results of abstract evaluation in one run of `init`, so that nothing is done twice."""

    known: dict[Hashable, Made]
    """Children by layer and input."""
    outputs: dict[Hashable, Any]
    """Shapes of the outputs of layers that are not combinators, by layer, input, params, ..."""
    abstract: bool
    """Whether a trace that keeps only shapes is under way."""
    placeholders: dict[Hashable, tuple[Any, jax.Array]]
    """The placeholders of the trace by type, each with the JAX context that it belongs to."""


_TRACING: ContextVar[_Tracing | None] = ContextVar("tracing", default=None)


def one_tracing() -> contextlib.AbstractContextManager[None]:
    """Share the results of `abstract_child` until the outermost `init` ends."""
    return setting(_TRACING, _TRACING.get() or _Tracing({}, {}, False, {}))


def abstract_child(owner: str, key: ChildKey, layer: AnyLayer, rng: Any, x: Any) -> Made:
    """Return what `init_child` would return, as shapes and dtypes."""
    tracing = _TRACING.get()
    assert tracing is not None, "abstract_child must be called within one_tracing"
    signature = _signature(layer, x)
    if signature not in tracing.known:
        children: list[Child] = []

        def trace(rng: Key, x: Any) -> tuple[Any, Any, Any]:
            inner = tracing._replace(abstract=True, placeholders={})
            with setting(_TRACING, inner), setting(WARNS, False):
                made = init_child(owner, key, layer, rng, x)
                children.append(made.child)
                return made.params, made.variables, made.output()

        params, variables, y = jax.eval_shape(trace, rng, x)
        tracing.known[signature] = Made(params, variables, children[0], lambda: y)
    known = tracing.known[signature]
    return known._replace(child=known.child._replace(key=key))


def remembered(layer: AnyLayer, x: Any, made: Made, y: Any) -> Made:
    """Return a child as shapes and dtypes, and keep it for a trace that keeps only shapes."""
    tracing = _TRACING.get()
    assert tracing is not None, "remembered must be called within one_tracing"
    params, variables, y = shapes((made.params, made.variables, y))
    shaped = Made(params, variables, made.child, lambda: y)
    tracing.known.setdefault(_signature(layer, x), shaped)
    return shaped


def is_traced(x: Any) -> bool:
    """Return whether placeholders for x may join the trace under way, which keeps only shapes.

    Sharing one trace between all levels lets models be nested more deeply.
    """
    tracing = _TRACING.get()
    if tracing is None or not tracing.abstract:
        return False
    return all(leaf.sharding is None for leaf in jax.tree.leaves(shapes(x)))


def _signature(layer: AnyLayer, x: Any) -> Hashable:
    dtype = _COMPUTE_DTYPE.get()
    return layer, _types(shapes(x)), None if dtype is None else jnp.dtype(dtype)


def _types(tree: Any) -> Hashable:
    """Return the structure of a tree and the types of its arrays."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, tuple(map(_type, leaves))


def _type(leaf: Any) -> Hashable:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return leaf.shape, leaf.dtype, leaf.weak_type, leaf.sharding
    described: Hashable = jax.typeof(leaf)
    return described


def placeholders(tree: Any) -> Any:
    """Return arrays with the shapes and dtypes of a tree, for a trace that reads no values."""
    return jax.tree.map(_placeholder, tree)


def _shared_placeholders(tree: Any) -> Any:
    """Return placeholders, one array for each type: models have many arrays of one type."""
    tracing, state = _TRACING.get(), get_opaque_trace_state()
    assert tracing is not None, "_shared_placeholders must be called within one_tracing"

    def placeholder(shape: Any) -> jax.Array:
        known = tracing.placeholders.get(_type(shape))
        if known is None or known[0] != state:
            known = tracing.placeholders[_type(shape)] = state, _placeholder(shape)
        return known[1]

    return jax.tree.map(placeholder, tree)


def _placeholder(shape: Any) -> jax.Array:
    if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
        key: Key = lax.full(shape.shape, 0, shape.dtype)
        return key
    if getattr(shape, "weak_type", False):
        return jnp.broadcast_to(jnp.asarray(shape.dtype.type(0).item()), shape.shape)
    zeros: jax.Array = lax.broadcast(np.zeros((), shape.dtype), shape.shape)
    return zeros


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


def _container_type(value: Any) -> type | None:
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
