"""The laws that every layer obeys, each a function that raises an AssertionError.

1. shapes: `jax.eval_shape` of `init` and `apply` agrees with the real thing.
2. state: `apply` keeps the structure, shapes and dtypes of the state.
3. transformations: `jax.jit` agrees with eager evaluation, and `jax.vmap` with a loop.
4. inference: no key is needed, and the state comes back unchanged.
5. gradients: with respect to params and x, they are finite and agree with finite differences.
6. paths: every array in params has a path of names.
7. copies: params and state survive copying, pickling and files without a second compilation.
9. strangers: params and state of another layer raise an error that names the layer.
10. keys, batch_axis: the key and `batch_axis_name` reach every layer inside, and no key is used
    twice, not even by two examples, steps or copies.
"""

import copy
import dataclasses
import functools
import io
import pickle
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import DictKey, GetAttrKey, SequenceKey, keystr

from mlax.arguments import AnyLayer, read_layer
from mlax.combinators.child import kind_of
from mlax.combinators.series import series
from mlax.errors import expected
from mlax.layer import Key, State
from mlax.mesh import names_of
from mlax.statistics import WARNS
from mlax.taps import setting
from mlax.testing.spy import keys_used, recorded_calls

Result: TypeAlias = tuple[Any, Any]
"""y and state."""


@dataclasses.dataclass(frozen=True, eq=False)
class Example:
    """A layer and an input, with the results that several laws need, computed once."""

    layer: AnyLayer
    """The layer."""
    x: Any
    """Its input, a pytree of arrays: one example."""
    rng: Key | None = None
    """The key of `init`; `apply` gets fold_in(rng, 0). None is jax.random.key(0)."""
    tolerance: float = 1e-5
    """Absolute and relative tolerance for results that differ by rounding errors."""

    @property
    def init_rng(self) -> Key:
        """The key of `init`."""
        return jax.random.key(0) if self.rng is None else self.rng

    @property
    def apply_rng(self) -> Key:
        """The key of `apply`."""
        return jax.random.fold_in(self.init_rng, 0)

    @property
    def key_in_training(self) -> Key | None:
        """The key of `apply`, None if the layer needs none."""
        return self.apply_rng if self.layer.needs_rng else None

    @functools.cached_property
    def made(self) -> tuple[Any, Any]:
        """What `init` returns."""
        return self.layer.init(self.init_rng, self.x)

    @functools.cached_property
    def eager(self) -> tuple[Result, Result]:
        """What `apply` returns in training and in inference, without `jax.jit`."""
        return self.in_both_modes(*self.made, self.x, self.key_in_training)

    @functools.cached_property
    def jitted(self) -> Callable[..., tuple[Result, Result]]:
        """`apply` in both modes, compiled: a function of params, state, x and rng."""

        def in_both_modes(*args: Any) -> tuple[Result, Result]:
            self.traces.append(None)
            return self.in_both_modes(*args)

        return jax.jit(in_both_modes)

    @functools.cached_property
    def traces(self) -> list[None]:
        """One entry for each trace of `jitted`."""
        return []

    def in_both_modes(
        self, params: Any, state: Any, x: Any, rng: Key | None
    ) -> tuple[Result, Result]:
        """Return what `apply` returns in training and in inference."""
        apply = self.layer.apply
        return apply(params, state, x, rng), apply(params, state, x, rng, True)


Law: TypeAlias = Callable[[Example], None]

LAWS: dict[str, Law] = {}
"""The laws by name, "shapes" for `check_shapes`, in the order of their numbers."""


def _law(number: int) -> Callable[[Law], Law]:
    """Return a decorator for a check, whose errors then name the law and the layer."""

    def register(check: Law) -> Law:
        name = check.__name__.removeprefix("check_")

        @functools.wraps(check)
        def law(example: Example) -> None:
            owner = f"{kind_of(example.layer)}, law {number} ({name})"
            try:
                with setting(WARNS, False):  # one example alone may have nothing to normalise
                    check(example)
            except AssertionError as error:
                raise AssertionError(f"{owner}: {error}").with_traceback(
                    error.__traceback__
                ) from error.__cause__
            except Exception as error:
                raise AssertionError(
                    f"{owner}: expected no error, got {type(error).__name__}: {error}"
                ) from error

        LAWS[name] = law
        return law

    return register


def check_laws(
    layer: AnyLayer, x: Any, *,
    rng: Key | None = None, skip: Mapping[str, str] | None = None, tolerance: float = 1e-5,
) -> None:
    """Check that a layer obeys the laws on one example, and raise at the first that it breaks.

    A combinator is checked with `mlax.testing.spy()` in place of its layers.

    Args:
        layer: any layer.
        x: its input, a pytree of arrays. Choose a small one: the layer is run some 20 times.
        rng: the key of `init`; `apply` gets fold_in(rng, 0). None is jax.random.key(0).
        skip: names of laws that don't hold, each with the reason; see `mlax.testing.LAWS`.
        tolerance: absolute and relative tolerance for results that differ by rounding errors.

    Raises:
        AssertionError: the layer breaks a law; the message names both.
        TypeError: `layer` is not a layer.
        ValueError: a name in `skip` is not a law, or its reason is empty.

    >>> import jax.numpy as jnp, mlax
    >>> from mlax.testing import check_laws
    >>> def init(rng, x):
    ...     return {"gain": jnp.ones(x.shape)}, jnp.zeros((), int)
    >>> def apply(params, steps, x, rng=None, inference_mode=False, batch_axis_name=()):
    ...     return params["gain"] * x, steps + 1
    >>> check_laws(mlax.Layer(init, apply), jnp.ones(3))
    Traceback (most recent call last):
    AssertionError: init, law 4 (inference): expected state to come back unchanged, got 1 for 0
    >>> def apply(params, steps, x, rng=None, inference_mode=False, batch_axis_name=()):
    ...     return params["gain"] * x, steps if inference_mode else steps + 1
    >>> check_laws(mlax.Layer(init, apply), jnp.ones(3))
    """
    read_layer("check_laws", "layer", layer)
    skip = {} if skip is None else skip
    for name, reason in skip.items():
        if name not in LAWS:
            what = f"skip to name laws ({', '.join(LAWS)})"
            raise ValueError(expected("check_laws", what, repr(name)))
        if not reason:
            what = f"skip to say why {name} does not hold"
            raise ValueError(expected("check_laws", what, repr(reason)))
    example = Example(layer, x, rng, tolerance)
    for name, law in LAWS.items():
        if name not in skip:
            law(example)


@_law(1)
def check_shapes(example: Example) -> None:
    """Law 1: `jax.eval_shape` agrees with the real thing, and `init` only reads shapes."""
    init, x = example.layer.init, example.x
    shapes = jax.eval_shape(init, example.init_rng, x)
    _require_like("eval_shape of init to be like what it returns", shapes, example.made)
    made = init(example.init_rng, jax.eval_shape(lambda x: x, x))
    require_same("init to return for the shapes of x what it returns for x", made, example.made)
    shapes = jax.eval_shape(example.in_both_modes, *example.made, x, example.key_in_training)
    _require_like("eval_shape of apply to be like what it returns", shapes, example.eager)


@_law(2)
def check_state(example: Example) -> None:
    """Law 2: `apply` keeps the structure, shapes and dtypes of the state."""
    for mode, (_, after) in zip(("training", "inference"), example.eager, strict=True):
        _require_like(f"state to keep its form in {mode}", after, example.made[1])


@_law(3)
def check_transformations(example: Example) -> None:
    """Law 3: `jax.jit` agrees with eager evaluation, `jax.vmap` with a loop over examples."""
    params, state = example.made
    tolerance = example.tolerance
    made = example.layer.init(jax.random.key_data(example.init_rng), example.x)
    require_same("a raw key to make what a typed one makes", made, example.made)
    compiled = example.jitted(params, state, example.x, example.apply_rng)
    require_same("jit of apply to be apply", compiled, example.eager, tolerance)

    arrays = jax.device_get(example.x)
    batch = jax.tree.map(lambda a: np.stack([a, np.flip(a), np.roll(a, 1)]), arrays)
    keys = jax.random.split(example.apply_rng, 3)
    over_batch = jax.jit(jax.vmap(example.jitted, (None, None, 0, 0)))
    mapped = over_batch(params, state, batch, jax.random.key_data(keys))
    loop = [
        example.jitted(params, state, jax.tree.map(lambda a: jnp.asarray(a[i]), batch), keys[i])
        for i in range(3)
    ]
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *loop)
    require_same(
        "vmap of apply with raw keys to be a loop with typed ones", mapped, stacked, tolerance
    )


@_law(4)
def check_inference(example: Example) -> None:
    """Law 4: in inference mode no key is needed, and the state comes back unchanged."""
    params, state = example.made
    _, (y, after) = example.eager
    require_same("state to come back unchanged", after, state)
    if example.layer.needs_rng:
        without_key, _ = example.layer.apply(params, state, example.x, None, True)
        require_same("inference to make no use of the key", without_key, y)
    with recorded_calls() as calls:
        jax.eval_shape(lambda: example.layer.apply(params, state, example.x, None, True))
    _require(all(c.inference_mode for c in calls), "every layer inside to be in inference", calls)


@_law(5)
def check_gradients(example: Example) -> None:
    """Law 5: gradients are finite and agree with finite differences, in float64.

    Each floating array in params and x is perturbed along one random direction. Params have to
    be floating, and y must be float64 if they and x are.
    """
    tree = (*example.made, example.x)
    at = jax.tree.leaves_with_path(tree)
    paths, leaves = [path for path, _ in at], [leaf for _, leaf in at]
    wide = [np.asarray(a, np.float64 if _is_floating(a) else None) for a in leaves]
    moved = [i for i, a in enumerate(leaves) if _is_floating(a) and paths[i][0] != SequenceKey(1)]
    for path, leaf in zip(paths, leaves, strict=True):
        in_params = path[0] == SequenceKey(0)
        _require(not in_params or _is_floating(leaf), "params to be floating", leaf.dtype)

    def weighted_sum(values: list[jax.Array]) -> jax.Array:
        replaced = [jnp.asarray(a) for a in wide]
        for i, value in zip(moved, values, strict=True):
            replaced[i] = value
        params, state, x = jax.tree.unflatten(jax.tree.structure(tree), replaced)
        y, _ = example.layer.apply(params, state, x, example.key_in_training)
        floating = [leaf.ravel() for leaf in jax.tree.leaves(y) if _is_floating(leaf)]
        flat = jnp.concatenate([jnp.zeros(0), *floating])
        exact = all(leaf.dtype == np.float64 for leaf in floating)
        _require(exact, "y to be float64, to compare with finite differences", flat.dtype)
        return flat @ jnp.cos(jnp.arange(flat.size))

    if not moved:
        return
    random = np.random.default_rng(0)
    with jax.enable_x64(True):
        value_and_gradient = jax.jit(jax.value_and_grad(weighted_sum))
        point = [wide[i] for i in moved]
        value, gradients = value_and_gradient(point)
        for n, gradient in enumerate(gradients):
            name = f"the gradient with respect to {_place(paths[moved[n]])}"
            _require(bool(np.isfinite(gradient).all()), f"{name} to be finite", gradient)
            direction = random.normal(size=gradient.shape)
            ends = [
                value_and_gradient([*point[:n], point[n] + step * direction, *point[n + 1 :]])[0]
                for step in (_STEP, -_STEP)
            ]
            difference = float(ends[0] - ends[1]) / (2 * _STEP)
            slope = float(np.vdot(gradient, direction))
            near = np.isclose(slope, difference, 1e-5, 1e-7 * (1 + abs(float(value))))
            _require(bool(near), f"{name} to be {difference} along a direction", slope)


_STEP = 1e-6


@_law(6)
def check_paths(example: Example) -> None:
    """Law 6: every array in params has a path that ends in a name, such as "layers[0].kernel"."""
    for path, _ in jax.tree.leaves_with_path(example.made[0]):
        named = [_is_name(entry) for entry in path]
        readable = all(
            is_name or isinstance(entry, SequenceKey)
            for is_name, entry in zip(named, path, strict=True)
        )
        _require(
            readable and named[-1:] == [True],
            "every path in params to be made of names and indices, with a name at its end",
            keystr(path) or "an array without a path",
        )


@_law(7)
def check_copies(example: Example) -> None:
    """Law 7: params and state survive copying, pickling and files, without a second compilation."""
    original = example.made
    leaves, structure = jax.tree.flatten(original)
    saved = io.BytesIO()
    np.savez(saved, *map(np.asarray, leaves))
    saved.seek(0)
    with np.load(saved) as arrays:
        loaded = [
            jnp.asarray(arrays[name].view(leaf.dtype))
            for name, leaf in zip(arrays, leaves, strict=True)
        ]
    made_again = example.layer.init(example.init_rng, example.x)
    copies = {
        "unflatten": jax.tree.unflatten(structure, leaves),
        "copy.copy": tuple(map(copy.copy, original)),
        "copy.deepcopy": copy.deepcopy(original),
        "pickle": pickle.loads(pickle.dumps(original)),
        "np.savez": jax.tree.unflatten(jax.tree.structure(made_again), loaded),
    }
    result = example.jitted(*original, example.x, example.apply_rng)
    traces = len(example.traces)
    for name, copied in copies.items():
        _require_like(f"params and state to survive {name}", copied, original)
        require_same(f"params and state to survive {name}", copied, original)
        again = example.jitted(*copied, example.x, example.apply_rng)
        require_same(f"apply to return the same after {name}", again, result)
        _require(len(example.traces) == traces, f"no new compilation after {name}", "one")


class Stranger(NamedTuple):
    """Params or config of some other layer."""

    weight: float = 1.0
    """A number."""


@_law(9)
def check_strangers(example: Example) -> None:
    """Law 9: params and state of another layer raise an error that names the layer.

    The layer itself may raise it or, for a function that can't know, a series around it.
    """
    (params, state), around = example.made, series(example.layer)
    around_params, around_state = around.init(example.init_rng, example.x)
    wrong: dict[str, tuple[Any, Any]] = {}
    if isinstance(state, State):
        wrong["its params as state"] = (params, params)
        wrong["the state of another layer"] = (params, State(state.variables, Stranger()))
    if jax.tree.leaves(params):
        wrong["its state as params"] = (state, state)
        wrong["the params of another layer"] = (Stranger(), state)
    for what, pair in wrong.items():
        got = _complaint(example, example.layer, *pair)
        if got and not _names(example.layer, got) and pair[1] is state:
            got = _complaint(example, around, (pair[0],), around_state)
        _require(got != "", f"{what} to raise an error", "none")
        _require(_names(example.layer, got), f"{what} to raise an error that names the layer", got)
    if not isinstance(state, State):
        other = series(series(example.layer)).init(example.init_rng, example.x)[1]
        got = _complaint(example, around, around_params, other)
        _require(_names(example.layer, got), "the state of another series to raise an error", got)


def _complaint(example: Example, layer: AnyLayer, params: Any, state: Any) -> str:
    """Return what `apply` raises, with its notes, or nothing."""
    try:
        layer.apply(params, state, example.x, example.key_in_training)
    except Exception as error:
        return "\n".join([f"{error}", *getattr(error, "__notes__", [])])
    return ""


def _names(layer: AnyLayer, told: str) -> bool:
    return kind_of(layer) in told or bool(re.match(r"[^\s:]+: expected ", told))


@_law(10)
def check_keys(example: Example) -> None:
    """Law 10: a layer uses its key if and only if it declares a need, and no key twice.

    Keys are tracked through `jax.jit`, `jax.lax.scan` and `jax.vmap`, so no two places, steps
    or copies may draw from the same key. Raw keys give the same results as typed ones.
    """
    init, apply, x = example.layer.init, example.layer.apply, example.x
    used = keys_used(lambda rng: init(rng, x), example.init_rng)
    _require(len(set(used)) == len(used), "init to use no key twice", _repeated(used))

    needs = example.layer.needs_rng
    keys = jax.random.split(example.apply_rng, 4)
    outputs = [example.jitted(*example.made, x, key)[0] for key in keys]
    results = [[np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(y)] for y in outputs]
    changed = any(result != results[0] for result in results)
    _require(changed or not needs, "the key to be used by a layer that needs one", "no use of it")
    _require(needs or not changed, "no use of the key by a layer that needs none", "another result")
    if not needs:
        return
    used = keys_used(jax.jit(lambda rng: apply(*example.made, x, rng)), example.apply_rng)
    _require(len(set(used)) == len(used), "apply to use no key twice", _repeated(used))


@_law(10)
def check_batch_axis(example: Example) -> None:
    """Law 10: all layers inside also take their statistics over `batch_axis_name`.

    Under `jax.vmap` the state is then that of the whole batch, and has no batch axis.
    """
    batch = jax.tree.map(lambda a: np.stack([a, np.flip(a)]), jax.device_get(example.x))
    keys = None
    if example.layer.needs_rng:
        keys = jax.random.split(example.apply_rng, 2)
    for inference_mode in (False, True):

        def one(params: Any, state: Any, x: Any, rng: Key | None) -> Result:
            return example.layer.apply(params, state, x, rng, inference_mode, _AXIS)

        def whole(params: Any, state: Any, x: Any, rng: Key | None) -> Result:
            over_batch = jax.vmap(one, (None, None, 0, 0), (0, None), axis_name=_AXIS)
            result: Result = over_batch(params, state, x, rng)
            return result

        try:
            with recorded_calls() as calls:
                jax.eval_shape(whole, *example.made, batch, keys)
        except ValueError as error:
            if "out_axes" not in str(error):
                raise
            raise AssertionError(
                "expected one state for the batch, got one for each example; take statistics "
                "over batch_axis_name"
            ) from error
        for call in calls:
            axes = call.batch_axis_name
            reached = _AXIS in names_of(axes)
            _require(reached, "batch_axis_name to reach every layer inside", repr(axes))


_AXIS = "batch_of_check_laws"


# What the laws share.


def _require(holds: bool, wanted: str, got: object) -> None:
    if not holds:
        raise AssertionError(f"expected {wanted}, got {got}")


def _require_like(wanted: str, got: Any, like: Any) -> None:
    """Require equal structures, and leaves of equal shapes, dtypes and weak types."""
    _require_one_structure(wanted, got, like)
    pairs = zip(jax.tree.leaves_with_path(like), jax.tree.leaves(got), strict=True)
    for (path, a), b in pairs:
        forms = [
            jax.typeof(leaf).str_short() + " (weak type)" * getattr(leaf, "weak_type", False)
            for leaf in (b, a)
        ]
        _require(forms[0] == forms[1], wanted, f"{forms[0]} for {forms[1]} at {_place(path)}")


def require_same(wanted: str, got: Any, same: Any, tolerance: float = 0.0) -> None:
    """Require equal structures, and leaves with equal bits, or numbers equal up to rounding."""
    _require_one_structure(wanted, got, same)
    pairs = zip(jax.tree.leaves_with_path(same), jax.tree.leaves(got), strict=True)
    for (path, leaf), other in pairs:
        a, b = np.asarray(leaf), np.asarray(other)
        equal = a.shape == b.shape and a.dtype == b.dtype
        if equal and tolerance and _is_floating(a):
            wide = b.astype(np.float64), a.astype(np.float64)
            equal = np.allclose(*wide, tolerance, tolerance, equal_nan=True)
        elif equal:
            equal = a.tobytes() == b.tobytes()
        where = f" at {_place(path)}" if path else ""
        _require(equal, wanted, f"{_shown(b)} for {_shown(a)}{where}")


def _require_one_structure(wanted: str, got: Any, like: Any) -> None:
    structures = [jax.tree.structure(tree) for tree in (got, like)]
    _require(structures[0] == structures[1], wanted, f"{structures[0]} for {structures[1]}")


def _shown(array: np.ndarray[Any, np.dtype[Any]]) -> str:
    if array.size > 8:
        return f"an array of shape {array.shape} and dtype {array.dtype}"
    return " ".join(str(array).split())


def _place(path: tuple[Any, ...]) -> str:
    return keystr(path) or "the root"


def _is_floating(leaf: Any) -> bool:
    return bool(jnp.issubdtype(leaf.dtype, jnp.floating))


def _is_name(entry: Any) -> bool:
    name = entry.key if isinstance(entry, DictKey) else getattr(entry, "name", None)
    return isinstance(entry, DictKey | GetAttrKey) and str(name).isidentifier()


def _repeated(used: list[bytes]) -> str:
    times = max((used.count(key) for key in used), default=0)
    return f"{times} uses of one key"
