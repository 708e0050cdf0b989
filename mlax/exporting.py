"""Shipping a model: its inference as a program that runs without mlax, by `jax.export`.

The program is StableHLO, for any batch size and length, for several platforms. The weights are
constants inside it, or arguments beside it; variables that inference changes, such as caches,
are arguments and results. Both are dicts of arrays by path, as `mlax.save` names them:

    weights inside              program.call(x) -> y
    weights beside              program.call(x, weights=weights) -> y
    a model that decodes        program.call(x, state=state) -> (y, state)

Whoever reads the program has JAX, but none of our classes: in x and y, a named tuple such as
`mlax.AttentionInputs` becomes a dict of its fields.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.errors import InconclusiveDimensionOperation
from jax.experimental import checkify
from jax.export import Exported
from jax.extend.core import Jaxpr

from mlax.arguments import described, is_sequence, read_layer, read_literal
from mlax.belonging import require_like
from mlax.checkpoint.leaves import named
from mlax.combinators.child import form, kind_of
from mlax.combinators.making import shapes as shapes_of
from mlax.errors import expected, message
from mlax.layer import Layer, P, S
from mlax.pair import require_input
from mlax.tree import nbytes, path_of


class Artifact(NamedTuple):
    """What `export` returns: (program, weights, state)."""

    program: Exported
    """The program: `serialize()` writes it, `jax.export.deserialize` reads it, `call` runs it."""
    weights: dict[str, Any]
    """The arrays by path that `call` takes as weights; none if they are inside."""
    state: dict[str, Any]
    """The first arrays by path that `call` takes as state; none if inference changes none."""


def export(
    layer: Layer[P, S, Any, Any], params: P, state: S, x: Any, shapes: Any = None, *,
    constraints: Sequence[str] = (), platforms: Sequence[str] | None = None,
    weights: Literal["inside", "beside"] = "inside",
) -> Artifact:
    """Return inference as a program that can be written to a file and run without mlax.

    `program.call(x)` returns y. If the weights are beside, it takes them as `weights=`. If
    inference changes variables, such as caches, it takes them as `state=` and returns (y, state).
    Arrays in x and y are those of `apply`, in tuples, lists and dicts. Containers of other classes,
    such as named tuples, become dicts of their fields, without those that are None, and keys of
    dicts that are not strings become strings. Checks by `jax.experimental.checkify` are left out:
    a full cache gives NaN.

    Args:
        layer: any layer, with a batch axis if the program is to have one: see `mlax.batched`.
        params: its params; if they are beside, their shapes and dtypes will do.
        state: its state. Where a length in its shapes is symbolic, because it follows one of x, the
            program takes any length.
        x: an input of `apply`, or its shapes and dtypes.
        shapes: which lengths in x are symbolic, and so left to the call, as in
            `jax.export.symbolic_args_specs`: "batch, length, _" for three axes, where "_" stands
            for the length in x, and "batch, ..." for any number; or a tree of these like x, or
            like what `call` takes as x. None stands for the shape in x.
        constraints: what the program may assume of symbolic lengths, such as "length <= 1024".
        platforms: where the program runs: "cpu", "cuda", "rocm", "tpu", one or several; None for
            the platform of this process.
        weights: whether params and variables that never change are constants in the program,
            or "beside" it as an argument. A program holds less than 2 GiB, and XLA is slow to
            compile hundreds of megabytes.

    Raises:
        TypeError, ValueError: an argument is not what it should be, or x does not fit.
        Exception: whatever `apply` raises in inference, with a note that gives the path.

    >>> import jax, jax.numpy as jnp, mlax
    >>> model = mlax.batched(mlax.series(mlax.dense(4), mlax.batch_norm()))
    >>> x = jnp.ones((1, 3))
    >>> params, state = model.init(jax.random.key(0), x)
    >>> program, _, _ = mlax.export(model, params, state, x, "batch, _", platforms=("cpu", "cuda"))
    >>> program = jax.export.deserialize(program.serialize())
    >>> program.call(jnp.ones((7, 3))).shape
    (7, 4)
    """
    read_layer("export", "layer", layer)
    require_input("export", x)
    around = jax.sharding.get_abstract_mesh()
    if around.size > 1:
        wanted, got = "no mesh to be set, as the program is for one device", f"{around.shape}"
        way_out = "call it outside jax.set_mesh, with params from jax.device_get"
        raise ValueError(expected("export", wanted, got, way_out))
    _require_platforms(platforms)
    read_literal(Literal["inside", "beside"], "export", "weights", weights)
    if shapes is not None or constraints:
        x = _symbolic(x, shapes, constraints)
    x = jax.tree.map(_unplaced, shapes_of(x))
    made = {"params": params, "state": state}
    leaves, structure = named("export", made), jax.tree.structure(made)
    variables = list(leaves)[len(jax.tree.leaves(params)) :]

    @jax.jit
    def infer(values: dict[str, Any], x: Any) -> tuple[Any, dict[str, Any]]:
        made = jax.tree.unflatten(structure, [values[name] for name in leaves])
        y, after = layer.apply(made["params"], made["state"], x, inference_mode=True)
        require_like(kind_of(layer), made["state"], after)
        return y, dict(zip(variables, jax.tree.leaves(after), strict=True))

    try:
        specs = dict(zip(leaves, _specs(layer, made, x), strict=True))
        traced = infer.trace(specs, x)
    except InconclusiveDimensionOperation as error:
        error.add_note('export: say what holds, as in constraints=["length <= 16"]')
        raise
    run = _without_checks(infer) if traced.jaxpr.effects else infer
    kept = _unchanged(traced, specs)
    changed = [name for name in variables if name not in kept or _is_symbolic(specs[name])]
    fixed = {name: leaf for name, leaf in leaves.items() if name not in changed}
    beside = fixed if weights == "beside" else {}
    inside = {} if weights == "beside" else _constants(fixed)
    dicts = {"weights": beside, "state": {name: leaves[name] for name in changed}}
    given = {key: {name: specs[name] for name in arrays} for key, arrays in dicts.items() if arrays}

    def program(plain: Any, **given: dict[str, Any]) -> Any:
        values = inside | given.get("weights", {}) | given.get("state", {})
        y, after = run(values, _restored(x, plain))
        return (_plain(y), {name: after[name] for name in changed}) if changed else _plain(y)

    program.__name__ = kind_of(layer)  # in errors of `call`
    exported = jax.export.export(jax.jit(program), platforms=platforms)(_plain(x), **given)
    return Artifact(exported, **dicts)


def _require_platforms(platforms: Any) -> None:
    """Require known platforms: JAX itself takes any string, even letter by letter."""
    if platforms is None:
        return
    known = ("cpu", "cuda", "rocm", "tpu")
    wanted = f"some of {', '.join(known)}, in a tuple"
    if not is_sequence(platforms) or not len(platforms):
        raise TypeError(message("export", "platforms", wanted, repr(platforms)))
    for platform in platforms:
        if platform not in (*known, jax.export.default_export_platform()):
            way_out = 'for "gpu", say which' if platform == "gpu" else ""
            raise ValueError(message("export", "platforms", wanted, repr(platform), way_out))
    if len(set(platforms)) < len(platforms):
        raise ValueError(message("export", "platforms", f"{wanted}, each once", platforms))


# Shapes.


def _symbolic(x: Any, shapes: Any, constraints: Sequence[str]) -> Any:
    """Return shapes like x, some of whose lengths are symbolic."""
    specs = jax.export.symbolic_args_specs
    if _fits(shapes, x):
        return specs(x, shapes, constraints)
    plain = _plain(x)
    if not _fits(shapes, plain):
        wanted = "a string, or a tree of them like x"
        got, way_out = described(shapes), f"x is {jax.tree.map(form, plain)}"
        raise TypeError(message("export", "shapes", wanted, got, way_out))
    return _restored(x, specs(plain, shapes, constraints))


def _fits(shapes: Any, x: Any) -> bool:
    """Return whether a tree has a string, or None, for each array in x, or for several."""
    leaves = jax.tree.leaves(shapes, is_leaf=lambda leaf: leaf is None)
    try:
        jax.tree.map(lambda *_: None, shapes, x, is_leaf=lambda leaf: leaf is None)
    except ValueError:
        return False
    return all(leaf is None or isinstance(leaf, str) for leaf in leaves)


def _unplaced(leaf: Any) -> jax.ShapeDtypeStruct:
    """Return the shape of an array on one device: the program belongs to no mesh."""
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)


def _is_symbolic(leaf: Any) -> bool:
    return any(map(jax.export.is_symbolic_dim, leaf.shape))


def _specs(layer: Layer[P, S, Any, Any], made: dict[str, Any], x: Any) -> list[Any]:
    """Return the shapes of params and variables; lengths that follow x are symbolic as in x."""
    specs = [_unplaced(leaf) for leaf in jax.tree.leaves(shapes_of(made))]
    count = len(jax.tree.leaves(made["state"]))
    if count and any(map(_is_symbolic, jax.tree.leaves(x))):
        key = jax.eval_shape(lambda: jax.random.key(0))
        own = jax.tree.leaves(jax.eval_shape(layer.init, key, x)[1])
        if len(own) == count:  # or `apply` says that the state is another layer's
            pairs = zip(own, specs[-count:], strict=True)
            specs[-count:] = [mine if _is_symbolic(mine) else spec for mine, spec in pairs]
    return specs


# Variables that inference keeps.


def _unchanged(traced: Any, specs: dict[str, Any]) -> set[str]:
    """Return the names of the variables that inference returns unchanged."""
    jaxpr = traced.jaxpr.jaxpr
    inputs = dict(zip(sorted(specs), jaxpr.invars, strict=False))  # followed by those of x
    names = sorted(traced.out_info[1])
    outputs = jaxpr.outvars[len(jaxpr.outvars) - len(names) :]
    pairs = zip(names, outputs, strict=True)
    return {name for name, output in pairs if _origin(jaxpr, output) is inputs[name]}


_CALLS = frozenset({"jit", "remat2", "scan"})
"""Primitives that run a function on their arguments; `remat2` is that of `jax.checkpoint`."""


def _origin(jaxpr: Jaxpr, output: Any) -> Any:
    """Return the variable that an output of a program is, through the calls that pass it on.

    JAX sees through most of them itself, but not through `jax.checkpoint`, nor a loop around it.
    """
    for eqn in jaxpr.eqns:
        if eqn.primitive.name in _CALLS and output in eqn.outvars:
            body = eqn.params["jaxpr"]
            body = getattr(body, "jaxpr", body)
            inner = _origin(body, body.outvars[eqn.outvars.index(output)])
            stacked = int(eqn.primitive.name == "scan")  # rows, as a carry may change its place
            inputs: list[Any] = eqn.invars  # whose types JAX does not tell
            for inside, outside in zip(body.invars, inputs, strict=True):
                ndims = {variable.aval.ndim - stacked for variable in (output, outside)}
                if inside is inner and ndims == {inside.aval.ndim}:
                    return _origin(jaxpr, outside)
    return output


# What a file can hold.


def _without_checks(infer: Callable[..., Any]) -> Callable[..., Any]:
    """Return the function without the checks of `jax.experimental.checkify`."""
    checked = checkify.checkify(infer, errors=frozenset())
    return lambda values, x: checked(values, x)[1]


def _constants(weights: dict[str, Any]) -> dict[str, Any]:
    """Return weights that are on no device, if one file can hold them."""
    size = nbytes(weights)
    if size >= 2**31:
        what, way_out = "less than 2 GiB of weights inside", 'pass weights="beside"'
        raise ValueError(expected("export", what, f"{size:,} bytes", way_out))
    constants: dict[str, Any] = {}
    for name, leaf in weights.items():
        if isinstance(leaf, jax.ShapeDtypeStruct):
            way_out = 'pass weights="beside"'
            raise TypeError(message("export", name, "an array", "only its shape", way_out))
        is_key = jnp.issubdtype(jax.dtypes.result_type(leaf), jax.dtypes.prng_key)
        constants[name] = leaf if is_key else np.asarray(leaf)
    return constants


def _plain(tree: Any) -> Any:
    """Return the tree with a dict in place of every container that only its library can read."""
    found = jax.tree_util.tree_leaves_with_path(tree, is_leaf=lambda node: node is not tree)
    if tree is None or found and not found[0][0]:
        return tree
    children = [(path_of(path), _plain(child)) for path, child in found]
    if type(tree) in (tuple, list):
        return type(tree)(child for _, child in children)
    if type(tree) is dict and all(type(key) is str for key in tree):
        return {key: _plain(child) for key, child in tree.items()}
    return {name: child for name, child in children if child is not None}


def _restored(like: Any, plain: Any) -> Any:
    """Return the tree like `like` that `_plain` turns into `plain`."""
    leaves, structure = jax.tree.flatten(like)
    places = jax.tree.leaves(_plain(structure.unflatten(range(len(leaves)))))
    by_place = dict(zip(places, jax.tree.leaves(plain), strict=True))
    return structure.unflatten([by_place[i] for i in range(len(leaves))])
