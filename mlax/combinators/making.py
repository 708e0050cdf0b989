"""How combinators make their children, and find the shapes of outputs without running them.

`init_child` calls `init` of a layer, and returns the `Child` for the config with its params and
variables. Where shapes alone are wanted, as before the parameters of a wiring are made, one trace
serves the layers inside as well, and what is equal is found once.
"""

import contextlib
from collections.abc import Callable, Hashable
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.core import get_opaque_trace_state
from jax.typing import DTypeLike

from mlax.arguments import AnyLayer, described
from mlax.belonging import pair_of
from mlax.combinators.child import (
    Child, ChildKey, Foreign, Made, add_path, apply_child, container_type, kind_of, variables_of,
)
from mlax.layer import Key, State
from mlax.pair import BoundApply, BoundInit
from mlax.statistics import WARNS
from mlax.taps import setting
from mlax.tree import path_of


def init_keys(rng: Key, count: int) -> list[Key]:
    """Return the keys to initialise children with: fold_in(rng, i) for child i."""
    tracing = _TRACING.get()
    if tracing is not None and tracing.abstract:
        return [rng] * count  # only their type matters
    return [jax.random.fold_in(rng, i) for i in range(count)]


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
    types = container_type(params), container_type(variables)
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
