"""What JAX offers, as checks that a layer works with it: meshes, export, strict modes.

Each check is a function of an `Example` that raises whatever goes wrong. Those with a mesh need
several devices; on a CPU, `jax.config.update("jax_num_cpu_devices", 8)` makes eight.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import export, lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mlax.combinators.batched import batched
from mlax.layer import Key
from mlax.testing.laws import Example, Law, require_same

FEATURES: dict[str, Law] = {}
"""The checks by name, in the order of the table."""

BATCH = 8
"""Number of examples in a batch."""


def _feature(check: Law) -> Law:
    FEATURES[check.__name__.removeprefix("check_")] = check
    return check


# Programs.


class _Batch:
    """A layer on a batch of examples, as one training step without the optimizer."""

    def __init__(self, example: Example, x: Any = None, only_traced: bool = False) -> None:
        self.example, self.layer = example, example.layer
        self.xs = _examples(example.x if x is None else x)
        self.rng = example.key_in_training
        self.batched = batched(self.layer, axis_name="examples")
        made_by: Callable[..., Any] = jax.eval_shape if only_traced else _called
        self.made = made_by(self.batched.init, example.init_rng, self.xs)
        try:
            jax.eval_shape(self.batched.apply, *self.made, self.xs, self.rng)
        except ValueError as error:
            if "state_axis=0" not in str(error):
                raise
            self.batched = batched(self.layer, axis_name="examples", state_axis=0)
            self.made = made_by(self.batched.init, example.init_rng, self.xs)

    def step(self, params: Any, state: Any, xs: Any, rng: Key | None, names: Any = ()) -> Any:
        """Return y, the next state and the gradients of a loss."""

        def loss(params: Any) -> Any:
            y, after = self.batched.apply(params, state, xs, rng, False, names)
            floating = [a for a in jax.tree.leaves(y) if jnp.issubdtype(a.dtype, jnp.floating)]
            return sum((jnp.sum(jnp.sin(a)).astype(float) for a in floating), 0.0), (y, after)

        gradients, (y, after) = jax.grad(loss, has_aux=True)(params)
        return y, after, gradients

    @functools.cached_property
    def expected(self) -> Any:
        """What `step` returns on one device."""
        return jax.jit(self.step)(*self.made, self.xs, self.rng)

    @property
    def tolerance(self) -> float:
        """How far apart results may be."""
        dtypes = {a.dtype for a in jax.tree.leaves((self.made, self.xs, self.expected))}
        return 0.1 if jnp.dtype(jnp.bfloat16) in dtypes else 20 * self.example.tolerance

    def require_expected(self, got: Any) -> None:
        """Require what one device returns, up to rounding."""
        require_same("the result of one device", got, self.expected, self.tolerance)


@functools.lru_cache(maxsize=4)
def _batch(example: Example) -> _Batch:
    return _Batch(example)


def _called(function: Callable[..., Any], *args: Any) -> Any:
    return function(*args)


def _examples(x: Any) -> Any:
    """Return a batch of different examples."""

    def batch(a: Any) -> Any:
        a = np.asarray(a)
        growth = 0.1 if jnp.issubdtype(a.dtype, jnp.floating) else 0
        return np.stack([np.roll(a, i) * (1 + growth * i) for i in range(BATCH)]).astype(a.dtype)

    return jax.tree.map(batch, x)


def _placed(xs: Any, mesh: Any, *axes: str | None) -> Any:
    """Return arrays whose first and last axis are sharded over mesh axes."""

    def place(a: Any) -> jax.Array:
        spec = [axes[0], *[None] * (a.ndim - 1)]
        if a.ndim > 1 and axes[1:] and a.shape[-1] % mesh.shape[axes[1]] == 0:
            spec[-1] = axes[1]
        array: jax.Array = jax.device_put(a, NamedSharding(mesh, PartitionSpec(*spec)))
        return array

    return jax.tree.map(place, xs)


def _mesh(types: AxisType, features: int = 2) -> Any:
    shape = (4, 2) if features == 2 else (2, features)
    devices = jax.devices()[: shape[0] * shape[1]]
    return jax.make_mesh(shape, ("data", "model"), (types,) * 2, devices=devices)


def _on_mesh(example: Example, mesh: Any, *axes: str, place_made: bool = True) -> Any:
    batch = _batch(example)
    with jax.set_mesh(mesh):
        made = batch.made
        if place_made:
            made = jax.device_put(made, NamedSharding(mesh, PartitionSpec()))
        got = jax.jit(batch.step)(*made, _placed(batch.xs, mesh, *axes), batch.rng)
    batch.require_expected(got)
    return got


def _features_mesh(example: Example, types: AxisType) -> Any:
    """Return a mesh whose second axis divides the number of features."""
    leaves = [a for a in jax.tree.leaves(example.x) if a.ndim]
    for size in (2, 3):
        if any(a.shape[-1] % size == 0 for a in leaves):
            return _mesh(types, size)
    raise NotImplementedError("no axis of x is divided by 2 or 3 devices")


# Meshes.


@_feature
def check_explicit_mesh(example: Example) -> None:
    """A batch sharded over an axis of an explicit mesh, as y must then be too.

    Params and state are as `init` made them, on no mesh.
    """
    y, _, _ = _on_mesh(example, _mesh(AxisType.Explicit), "data", place_made=False)
    for leaf in jax.tree.leaves(y):
        if leaf.sharding.spec[:1] != ("data",):
            raise AssertionError(f"expected y to be sharded as x, got {leaf.sharding.spec}")


@_feature
def check_explicit_features(example: Example) -> None:
    """Examples whose last axis is sharded over an axis of an explicit mesh as well."""
    _on_mesh(example, _features_mesh(example, AxisType.Explicit), "data", "model")


@_feature
def check_auto_mesh(example: Example) -> None:
    """The same on a mesh where the compiler chooses."""
    mesh = _mesh(AxisType.Auto)
    _on_mesh(example, mesh, "data", "model")


def _under_shard_map(example: Example, check_vma: bool) -> None:
    batch = _batch(example)
    mesh = jax.make_mesh((BATCH,), ("data",), (AxisType.Auto,))
    per_example, shared = PartitionSpec("data"), PartitionSpec()
    of_state = per_example if _differs(batch.made[1], example.made[1]) else shared

    def step(params: Any, state: Any, xs: Any, rng: Key | None) -> Any:
        if check_vma:  # so that the gradients are those of this shard, as without the check
            params = jax.tree.map(lambda a: lax.pcast(a, "data", to="varying"), params)
        y, after, gradients = batch.step(params, state, xs, rng, "data")
        return y, after, jax.tree.map(lambda g: lax.psum(g, "data"), gradients)

    sharded = jax.shard_map(
        step, mesh=mesh, in_specs=(shared, of_state, per_example, shared),
        out_specs=(per_example, of_state, shared), check_vma=check_vma,
    )
    batch.require_expected(jax.jit(sharded)(*batch.made, batch.xs, batch.rng))


def _differs(batched_state: Any, state: Any) -> bool:
    return [a.shape for a in jax.tree.leaves(batched_state)] != [
        a.shape for a in jax.tree.leaves(state)
    ]


@_feature
def check_shard_map_checked(example: Example) -> None:
    """`jax.shard_map` over the batch, with check_vma=True: what one device returns and draws."""
    _under_shard_map(example, True)


@_feature
def check_shard_map(example: Example) -> None:
    """`jax.shard_map` over the batch, with check_vma=False."""
    _under_shard_map(example, False)


@_feature
def check_spmd_axis_name(example: Example) -> None:
    """`jax.vmap` over a batch that is sharded over the mesh axis `spmd_axis_name`."""
    batch = _batch(example)
    mesh = _mesh(AxisType.Auto)
    state = jax.tree.unflatten(jax.tree.structure(example.made[1]), jax.tree.leaves(batch.made[1]))
    of_state = 0 if _differs(batch.made[1], example.made[1]) else None

    def apply(params: Any, state: Any, xs: Any, rng: Key | None) -> Any:
        keys = None
        if rng is not None:
            keys = jax.vmap(lambda i: jax.random.fold_in(rng, i))(jnp.arange(BATCH))

        def one(state: Any, x: Any, key: Key | None) -> Any:
            return batch.layer.apply(params, state, x, key, False, "examples")

        axes = (of_state, 0, 0), (0, of_state)
        over_batch = jax.vmap(one, *axes, axis_name="examples", spmd_axis_name="data")
        return over_batch(state, xs, keys)

    y, after, _ = batch.expected
    with jax.set_mesh(mesh):
        got = jax.jit(apply)(batch.made[0], state, _placed(batch.xs, mesh, "data"), batch.rng)
    leaves, expected = jax.tree.leaves(got), jax.tree.leaves((y, after))
    require_same("the result of one device", leaves, expected, batch.tolerance)


# Export.


def _require_exported(
    function: Callable[..., Any], shapes: Any, made: Any, x: Any, rng: Key | None, expected: Any
) -> None:
    """Export a function of (*made, x, rng), read it back, and require what it returns."""
    leaves, structure = jax.tree.flatten(made)

    def flat(leaves: Any, xs: Any, data: Any) -> Any:
        rng = None if data is None else jax.random.wrap_key_data(data)
        return jax.tree.leaves(function(*jax.tree.unflatten(structure, leaves), xs, rng))

    data = None if rng is None else jax.random.key_data(rng)
    of_rest = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), (leaves, data))
    artifact = export.export(jax.jit(flat))(of_rest[0], shapes, of_rest[1]).serialize()
    got = export.deserialize(artifact).call(leaves, x, data)
    wanted = "the artifact to return what the function returns"
    require_same(wanted, got, jax.tree.leaves(expected), 1e-4)


@_feature
def check_symbolic_batch(example: Example) -> None:
    """`jax.export` for any batch size, in inference and in training."""
    batch = _batch(example)
    (size,) = export.symbolic_shape("batch")
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct((size, *a.shape[1:]), a.dtype), batch.xs)

    def inference(params: Any, state: Any, xs: Any, rng: Key | None) -> Any:
        return batch.batched.apply(params, state, xs, rng, True)

    args = batch.made, batch.xs, batch.rng
    if not _differs(batch.made[1], example.made[1]):
        expected = jax.jit(inference)(*batch.made, batch.xs, batch.rng)
        _require_exported(inference, shapes, *args, expected)
    _require_exported(batch.step, shapes, *args, batch.expected)


@_feature
def check_symbolic_length(example: Example) -> None:
    """`jax.export` for any length of the leading axis, unless it is an axis of the parameters."""
    x, made = example.x, example.made
    if all(a.ndim < 2 for a in jax.tree.leaves(x)):
        x = jax.tree.map(lambda a: np.stack([a] * 4), x)
        try:
            made = example.layer.init(example.init_rng, x)
        except (TypeError, ValueError) as error:
            raise NotImplementedError("x has one axis") from error
    long = [a.shape[0] for a in jax.tree.leaves(x) if a.ndim > 1]
    if not long:
        raise NotImplementedError("x has one axis")
    (length,) = export.symbolic_shape("length")

    def shape(a: Any) -> Any:
        is_long = a.ndim > 1 and a.shape[0] == long[0]
        return jax.ShapeDtypeStruct((length, *a.shape[1:]) if is_long else a.shape, a.dtype)

    shapes = jax.tree.map(shape, x)
    apply, rng = example.layer.apply, example.key_in_training
    expected = jax.jit(apply)(*made, x, rng)
    _require_exported(apply, shapes, made, x, rng, expected)


# Strict modes.


def _strict(example: Example, dtype: Any) -> None:
    with jax.numpy_dtype_promotion("strict"):
        x = jax.tree.map(lambda a: a.astype(dtype) if a.dtype == np.float32 else a, example.x)
        _trace_all(example, x)


def _trace_all(example: Example, x: Any) -> None:
    """Trace `init`, `apply` in both modes and the gradients."""
    made = jax.eval_shape(example.layer.init, example.init_rng, x)
    jax.eval_shape(example.in_both_modes, *made, x, example.key_in_training)
    batch = _Batch(example, x, only_traced=True)
    jax.eval_shape(batch.step, *batch.made, batch.xs, batch.rng)


@_feature
def check_strict_float32(example: Example) -> None:
    """No implicit promotion of dtypes, with x in float32."""
    _strict(example, jnp.float32)


@_feature
def check_strict_bfloat16(example: Example) -> None:
    """No implicit promotion of dtypes, with x in bfloat16 and parameters in float32."""
    _strict(example, jnp.bfloat16)


@_feature
def check_rank_promotion(example: Example) -> None:
    """No implicit promotion of ranks."""
    with jax.numpy_rank_promotion("raise"):
        _trace_all(example, example.x)


@_feature
def check_tracer_leaks(example: Example) -> None:
    """No tracer outlives its trace, neither in `init` nor in `apply` nor in the gradients."""
    batch = _batch(example)
    with jax.checking_leaks():
        jax.eval_shape(example.layer.init, example.init_rng, example.x)
        jax.eval_shape(example.in_both_modes, *example.made, example.x, example.key_in_training)
        jax.eval_shape(batch.step, *batch.made, batch.xs, batch.rng)


@_feature
def check_debug_nans(example: Example) -> None:
    """No NaN anywhere on the way to results and gradients that have none."""
    batch = _batch(example)
    with jax.debug_nans(True):
        jax.jit(batch.step)(*batch.made, batch.xs, batch.rng)


@_feature
def check_key_reuse(example: Example) -> None:
    """No key is consumed twice, according to `jax_debug_key_reuse`."""
    batch = _batch(example)
    with jax.debug_key_reuse(True):
        jax.jit(lambda key: example.layer.init(key, example.x))(jax.random.key(3))
        key = None if batch.rng is None else jax.random.key(5)
        jax.jit(batch.batched.apply)(*batch.made, batch.xs, key)


@_feature
def check_donation(example: Example) -> None:
    """Params and state can be donated to a training step, twice in a row."""
    batch = _batch(example)

    def descend(params: Any, gradients: Any) -> Any:
        return jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients)

    def train(params: Any, state: Any, xs: Any, rng: Key | None) -> Any:
        _, state, gradients = batch.step(params, state, xs, rng)
        return descend(params, gradients), state

    donating = jax.jit(train, donate_argnums=(0, 1))
    made = jax.jit(lambda made: jax.tree.map(jnp.copy, made))(batch.made)
    _, state, gradients = batch.expected
    expected = jax.jit(descend)(batch.made[0], gradients), state
    got = donating(*made, batch.xs, batch.rng)
    require_same("the result of a step that donates", got, expected, batch.tolerance)
    donating(*got, batch.xs, batch.rng)


# Keys and dtypes.


@_feature
def check_rbg_keys(example: Example) -> None:
    """Keys of the implementation "rbg", in `init` and in `apply`."""
    key = jax.random.key(0, impl="rbg")
    made = jax.jit(example.layer.init)(key, example.x)
    rng = key if example.layer.needs_rng else None
    jax.jit(example.in_both_modes)(*made, example.x, rng)
    batch = _batch(example)
    jax.eval_shape(batch.step, *batch.made, batch.xs, rng)


@_feature
def check_x64(example: Example) -> None:
    """With 64-bit types, float32 gives what it gives without, except for random numbers."""
    inference_mode = example.key_in_training is not None
    expected, _ = example.eager[inference_mode]
    with jax.enable_x64(True):
        example.layer.init(example.init_rng, example.x)
        apply = jax.jit(example.layer.apply, static_argnums=4)
        y, _ = apply(*example.made, example.x, None, inference_mode)
    require_same("the result without x64", y, expected, 20 * example.tolerance)
