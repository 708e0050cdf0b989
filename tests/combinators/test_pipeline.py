"""Tests of `mlax.pipeline` against `mlax.repeat`, on meshes of stages and on one device."""

import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import mlax
from mlax import AxisName, Key, Layer

KEY = jax.random.key(0)
RNG = jax.random.key(1)
X = np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)
# Any: layers of all kinds side by side.
AnyLayer = Layer[Any, Any, Any, Any]
BLOCK: AnyLayer = mlax.residual(mlax.series(mlax.dense(4), mlax.f(jnp.tanh)))


def mesh_of(types: AxisType, **axes: int) -> Any:
    size = int(np.prod(list(axes.values())))
    devices = jax.devices()[:size]
    return jax.make_mesh(tuple(axes.values()), tuple(axes), (types,) * len(axes), devices=devices)


STAGES = mesh_of(AxisType.Auto, stage=4)


def put(mesh: Any, tree: Any, *spec: Any) -> Any:
    return jax.device_put(tree, NamedSharding(mesh, P(*spec)))


def close(got: Any, wanted: Any, tolerance: float = 1e-5) -> None:
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True)
    for a, b in pairs:
        np.testing.assert_allclose(np.asarray(a), np.asarray(b), tolerance, tolerance)


def step_of(layer: AnyLayer, state: Any) -> Any:
    """Return the function from params, x and a key to ((loss, (y, state)), gradients)."""

    def loss(params: Any, x: Any, rng: Key | None = None) -> tuple[jax.Array, Any]:
        y, after = layer.apply(params, state, x, rng)
        total = jnp.mean(jnp.sin(3 * y) * jnp.arange(y.shape[-1], dtype=y.dtype))
        return total, (y, after.variables)

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


@functools.cache
def expected() -> Any:
    """Return what a step of `repeat` returns."""
    params, state = mlax.repeat(BLOCK, 8).init(KEY, X)
    return step_of(mlax.repeat(BLOCK, 8), state)(params, X)


def test_init_makes_what_repeat_makes() -> None:
    layer: AnyLayer = mlax.batched(mlax.series(mlax.dense(4), mlax.batch_norm()))
    made, wanted = (
        (params, state.variables)
        for params, state in (
            mlax.pipeline(layer, 3, microbatches=2).init(KEY, X), mlax.repeat(layer, 3).init(KEY, X)
        )
    )
    assert jax.tree.structure(made) == jax.tree.structure(wanted)
    jax.tree.map(np.testing.assert_array_equal, made, wanted)


@pytest.mark.parametrize(
    ("axes", "microbatches", "types"),
    [
        ({}, 4, AxisType.Auto), ({"stage": 1}, 16, AxisType.Explicit),
        ({"stage": 2}, 1, AxisType.Auto), ({"stage": 4}, 16, AxisType.Auto),
        ({"stage": 8}, 4, AxisType.Auto), ({"stage": 8}, 2, AxisType.Explicit),
        ({"data": 2, "stage": 4}, 4, AxisType.Auto),
        ({"data": 2, "stage": 4}, 4, AxisType.Explicit),
    ],
    ids=str,
)
def test_a_step_is_that_of_repeat(axes: dict[str, int], microbatches: int, types: AxisType) -> None:
    layer: AnyLayer = mlax.pipeline(BLOCK, 8, microbatches=microbatches)
    params, state = layer.init(KEY, X)
    if not axes:
        close(step_of(layer, state)(params, X), expected())
        return
    mesh = mesh_of(types, **axes)
    batch = "data" if "data" in axes else None
    with jax.set_mesh(mesh):
        got = step_of(layer, state)(put(mesh, params, "stage"), put(mesh, X, batch))
    close(got, expected())
    (_, (y, _)), (of_params, of_x) = got
    assert {a.addressable_shards[0].data.shape[0] for a in jax.tree.leaves(of_params)} == {
        8 // axes["stage"]
    }
    if types == AxisType.Explicit:
        assert jax.typeof(y).sharding.spec == jax.typeof(of_x).sharding.spec == P(batch, None)


def test_the_collectives_of_a_step() -> None:
    layer: AnyLayer = mlax.pipeline(BLOCK, 8, microbatches=4)
    params, state = layer.init(KEY, X)
    for types in (AxisType.Auto, AxisType.Explicit):
        mesh = mesh_of(types, data=2, stage=4)
        with jax.set_mesh(mesh):
            args = put(mesh, params, "stage"), put(mesh, X, "data")
            program = step_of(layer, state).lower(*args).compile().as_text()
        found = re.findall(r" (\S+) ([\w-]+)\((?:.*?op_name=\"([^\"]*))?", program)
        collectives = [
            (shape.split("{")[0], kind, "while/body" in scope, "transpose" in scope)
            for shape, kind, scope in found
            if re.match("all-|collective|reduce-scatter", kind)
        ]
        sent = [one for one in collectives if one[1] == "collective-permute"]
        # One microbatch on each of the two shards of the batch, on to the next stage and back.
        assert sorted(sent) == [
            ("f32[2,4]", "collective-permute", True, backward) for backward in (False, True)
        ]
        assert {kind for _, kind, _, _ in collectives} == {"collective-permute", "all-reduce"}
        # y and the gradient of x, from one stage to all; what is left are sums over the batch.
        whole = [one for one in collectives if one[0] in ("f32[4,2,4]", "f32[8,4]", "f32[2,4,4]")]
        assert len(whole) == 2


def noisy_init(rng: Key, x: Any) -> tuple[dict[str, jax.Array], jax.Array]:
    """Make a matrix, and a running sum."""
    return {"w": 0.5 * jax.random.normal(rng, (4, 4))}, jnp.zeros(4)


def noisy_apply(
    params: dict[str, jax.Array], state: jax.Array, x: jax.Array, rng: Key,
    inference_mode: bool = False, batch_axis_name: AxisName = (),
) -> tuple[jax.Array, jax.Array]:
    """Return tanh(x @ w) with noise, minus the mean over what it sees of the batch."""
    y = jnp.tanh(x @ params["w"])
    if inference_mode:
        return y, state
    y = y + 0.1 * jax.random.normal(rng, y.shape)
    return y - y.mean(0), 0.9 * state + y.sum(0)


@pytest.mark.parametrize("count", [1, 4])
def test_keys_variables_and_statistics_are_those_of_one_microbatch_after_the_other(
    count: int,
) -> None:
    noisy: AnyLayer = Layer(noisy_init, noisy_apply)
    layer: AnyLayer = mlax.pipeline(noisy, 4, microbatches=count)
    repeated: AnyLayer = mlax.repeat(noisy, 4)
    params, state = layer.init(KEY, X)
    wanted, (_, after) = np.zeros_like(X), repeated.init(KEY, X)
    for m in range(count):
        key = RNG if count == 1 else jax.random.fold_in(RNG, m)
        wanted[m::count], after = repeated.apply(params, after, X[m::count], key)
    args = params, state, X, RNG
    run = jax.jit(layer.apply, static_argnames="inference_mode")
    close(run(*args), (wanted, after.variables))
    with jax.set_mesh(STAGES):
        close(run(*args), (wanted, after.variables))
        y, _ = run(*args[:3], inference_mode=True)
    close(y, repeated.apply(params, after, X, inference_mode=True)[0])


def test_dropout_masks_do_not_depend_on_the_devices() -> None:
    for drop in (mlax.dropout(0.2, (0, 1)), mlax.batched(mlax.dropout(0.2, 0))):
        layer: AnyLayer = mlax.pipeline(drop, 4, microbatches=4)
        params, state = layer.init(KEY, X)
        run = jax.jit(lambda rng, layer=layer, made=(params, state): layer.apply(*made, X, rng)[0])
        y = run(RNG)
        assert 0 < np.count_nonzero(y) < y.size
        with jax.set_mesh(STAGES):
            np.testing.assert_array_equal(run(RNG), y)


def test_batch_norm_on_stages() -> None:
    layer: AnyLayer = mlax.pipeline(mlax.batched(mlax.batch_norm()), 4, microbatches=2)
    params, state = layer.init(KEY, X)
    wanted = step_of(layer, state)(params, X)
    first = X[::2]
    standard = (first - first.mean(0)) / np.sqrt(first.var(0) + 1e-5)
    np.testing.assert_allclose(wanted[0][1][0][::2], standard, 1e-3, 1e-3)
    with jax.set_mesh(STAGES):
        close(step_of(layer, state)(params, X), wanted, 1e-4)


def test_inputs_that_are_pytrees_of_all_dtypes() -> None:
    def masked(inputs: Any) -> Any:
        x, mask, positions, nothing = inputs
        return jnp.where(mask[:, None], jnp.tanh(x), x), mask, positions, nothing

    x = (X.astype(jnp.bfloat16), X[:, 0] > 0, np.arange(16, dtype=np.int8), None)
    layer: AnyLayer = mlax.pipeline(mlax.f(masked), 4, microbatches=4)
    _, state = layer.init(KEY, x)
    wanted = x
    for _ in range(4):
        wanted = masked(wanted)
    with jax.set_mesh(STAGES):
        y, _ = jax.jit(layer.apply)((), state, x)
        gradient = jax.jit(
            jax.grad(lambda a: layer.apply((), state, (a, *x[1:]))[0][0].sum().astype(float))
        )(x[0])
    assert [a.dtype for a in y[:3]] == [a.dtype for a in x[:3]]
    close(y, wanted, 1e-2)
    assert gradient.dtype == jnp.bfloat16
    np.testing.assert_array_equal(np.asarray(gradient == 1)[~x[1]], True)


def test_stages_that_wait_spoil_no_gradient() -> None:
    def normalized(x: jax.Array) -> jax.Array:
        return x / jnp.sqrt(jnp.sum(x**2, -1, keepdims=True))

    unit: AnyLayer = mlax.residual(mlax.series(mlax.linear(4), mlax.f(normalized)))
    layer, repeated = mlax.pipeline(unit, 4, microbatches=2), mlax.repeat(unit, 4)
    params, state = layer.init(KEY, X)
    wanted = step_of(repeated, repeated.init(KEY, X)[1])(params, X)
    with jax.set_mesh(STAGES):
        got = step_of(layer, state)(params, X)
    close(got, wanted)


def program_of(layer: AnyLayer) -> str:
    """Return the program of the gradient on a mesh."""
    params, state = layer.init(KEY, X)
    with jax.set_mesh(STAGES):
        return str(jax.make_jaxpr(jax.grad(lambda p: layer.apply(p, state, X)[0].sum()))(params))


def test_remat_unroll_and_policy_are_those_of_repeat() -> None:
    make = functools.partial(mlax.pipeline, BLOCK, 8, microbatches=2)
    saveable = jax.checkpoint_policies.everything_saveable
    plain, remat, policy = map(
        program_of, (make(), make(remat=True), make(policy=saveable, unroll=2))
    )
    assert plain.count("tanh") == policy.count("tanh") == remat.count("tanh") - 1 == 1
    assert "unroll=2" in policy
    assert "unroll=2" not in plain + remat


def test_variables_that_do_not_change_are_not_saved_for_each_step() -> None:
    def init(rng: Key, x: Any) -> tuple[dict[str, jax.Array], jax.Array]:
        return {"bias": jnp.zeros(4)}, jax.random.normal(rng, (4, 4))

    def apply(
        params: Any, state: jax.Array, x: jax.Array, rng: Key | None = None,
        inference_mode: bool = False, batch_axis_name: AxisName = (),
    ) -> tuple[jax.Array, jax.Array]:
        return jnp.tanh(x @ state + params["bias"]), state

    layer: AnyLayer = mlax.pipeline(Layer(init, apply), 4, microbatches=8)
    _, state = layer.init(KEY, X)
    program = program_of(layer)
    assert "f32[11,1,2,4]" in program  # activations, of each step
    assert "f32[11,1,4,4]" not in program
    with jax.set_mesh(STAGES):
        _, after = layer.apply({"bias": jnp.zeros((4, 4))}, state, X)
    np.testing.assert_array_equal(after.variables, state.variables)


def test_tap_returns_values_of_microbatches_and_copies() -> None:
    layer: AnyLayer = mlax.pipeline(BLOCK, 8, microbatches=4)
    params, state = layer.init(KEY, X)
    repeated = mlax.tap(mlax.repeat(BLOCK, 8), "0.0")
    _, values = repeated.apply(params, mlax.repeat(BLOCK, 8).init(KEY, X)[1], X)[0]
    wanted = values["0.0"].reshape(8, 4, 4, 4).transpose(2, 0, 1, 3)
    run = jax.jit(lambda p: mlax.tap(layer, "0.0").apply(p, state, X)[0][1]["0.0"])
    close(run(params), wanted)
    with jax.set_mesh(STAGES):
        close(run(params), wanted)


def test_inside_a_shard_map_over_the_batch() -> None:
    layer: AnyLayer = mlax.pipeline(BLOCK, 8, microbatches=2)
    params, state = layer.init(KEY, X)

    def run(check_vma: bool) -> Any:
        def loss(params: Any, x: Any) -> jax.Array:
            y, _ = layer.apply(params, state, x, None, False, "data")
            return jnp.mean(jnp.sin(3 * y) * jnp.arange(4.0))

        def gradients(params: Any, x: Any) -> Any:
            return jax.tree.map(lambda g: jax.lax.pmean(g, "data"), jax.grad(loss)(params, x))

        mapped = jax.shard_map(
            gradients, in_specs=(P(), P("data")), out_specs=P(), axis_names={"data"},
            check_vma=check_vma,
        )
        return jax.jit(mapped)(params, X)

    with jax.set_mesh(mesh_of(AxisType.Auto, data=2, stage=4)):
        close(run(False), expected()[1][0])
        with pytest.raises(NotImplementedError, match="^pipeline: expected no jax.shard_map .*vma"):
            run(True)


def test_a_shard_without_other_axes_is_one_device() -> None:
    layer: AnyLayer = mlax.pipeline(BLOCK, 8, microbatches=2)
    params, state = layer.init(KEY, X)
    mapped = jax.shard_map(
        lambda x: layer.apply(params, state, x)[0], mesh=mesh_of(AxisType.Auto, data=2),
        in_specs=P("data"), out_specs=P("data"),
    )
    close(jax.jit(mapped)(X), expected()[0][1][0])


def test_export_for_multiples_of_the_microbatches() -> None:
    layer: AnyLayer = mlax.pipeline(BLOCK, 8, microbatches=4)
    params, state = layer.init(KEY, X)
    (size,) = export.symbolic_shape("4*batch")
    x = jax.ShapeDtypeStruct((size, 4), jnp.float32)
    program = export.export(jax.jit(lambda p, x: layer.apply(p, state, x)[0]))(params, x)
    close(program.call(params, X), expected()[0][1][0])


def apply_on(axes: dict[str, int], n: int = 8, x: Any = X) -> None:
    layer: AnyLayer = mlax.pipeline(BLOCK, n, microbatches=4)
    params, state = layer.init(KEY, X)
    with jax.set_mesh(mesh_of(AxisType.Auto, **axes)):
        layer.apply(params, state, x)


def apply_without_a_mesh() -> None:
    layer: AnyLayer = mlax.pipeline(BLOCK, 8, microbatches=4)
    params, state = layer.init(KEY, X)
    params = put(mesh_of(AxisType.Explicit, stage=4), params, "stage")
    jax.jit(layer.apply)(params, state, X)


def apply_in_shard_map() -> None:
    layer: AnyLayer = mlax.pipeline(BLOCK, 8, microbatches=4)
    params, state = layer.init(KEY, X)
    jax.shard_map(lambda x: layer.apply(params, state, x)[0], mesh=STAGES, in_specs=P(),
                  out_specs=P())(X)


def decode() -> None:
    counter: AnyLayer = mlax.position_embedding(16, decodes=True)
    layer: AnyLayer = mlax.pipeline(counter, 2, microbatches=2)
    params, state = layer.init(KEY, X)
    layer.apply(params, state, X, None, True)


@pytest.mark.parametrize(
    ("run", "wanted"),
    [
        (lambda: mlax.pipeline(BLOCK, 8, microbatches=3).init(KEY, X),
         "a batch that microbatches=3 divides, got one of 16 examples"),
        (lambda: apply_on({"stage": 4}, x=X[:6]),
         "a batch that microbatches=4 divides, got one of 6 examples"),
        (lambda: mlax.pipeline(BLOCK, 8, microbatches=4).init(KEY, jnp.ones(())),
         "x to be arrays with a leading batch axis of one length"),
        (lambda: mlax.pipeline(mlax.dense(5), 8, microbatches=4).init(KEY, X),
         r"the output of the layer to be float32\[16, 4\], got float32\[16, 5\]"),
        (lambda: apply_on({"stage": 4}, n=6),
         "n to be a multiple of the 4 devices along the mesh axis 'stage', got 6"),
        (lambda: apply_on({"data": 4}),
         r"a mesh with an axis 'stage', got one of \('data',\); add one, .* mlax.repeat"),
        (apply_without_a_mesh,
         "a mesh that is set, got none, and arrays sharded over 'stage'; call it in jax.set_mesh"),
        (apply_in_shard_map,
         "to map 'stage' itself, got a call inside jax.shard_map over it; leave it out"),
        (lambda: apply_on({"stage": 4}, x=X[0]),
         r"x with 2 axes, as in init, got shape \(4,\); .* x\[None\]"),
        (decode, "a layer whose variables stay fixed in inference, .*; decode with mlax.repeat"),
        (lambda: mlax.pipeline(BLOCK, 8, microbatches=0),
         "microbatches to be a positive integer, got 0"),
    ],
)
def test_what_does_not_fit_raises(run: Any, wanted: str) -> None:
    with pytest.raises(ValueError, match=f"^pipeline: expected {wanted}"):
        run()


def test_a_wrong_axis_name_and_the_path_of_errors() -> None:
    wrong: Any = 3
    with pytest.raises(TypeError, match="^pipeline: expected axis_name to be a str, got 3"):
        mlax.pipeline(BLOCK, 8, microbatches=4, axis_name=wrong)
    layer = mlax.series(body=mlax.pipeline(BLOCK, 8, microbatches=4))
    params, state = layer.init(KEY, X)
    with jax.set_mesh(STAGES), pytest.raises(Exception) as info:
        layer.apply(params, state, np.ones((16, 5), np.float32))
    assert "in series > body > residual[0] > series[0] > dense" in info.value.__notes__


def test_both_ends_of_a_pipeline_are_initialised_where_they_belong() -> None:
    mesh = mesh_of(AxisType.Explicit, stage=8)
    layer: AnyLayer = mlax.pipeline(BLOCK, 8, microbatches=4)
    with jax.set_mesh(mesh):
        init = jax.jit(layer.init, out_shardings=NamedSharding(mesh, P("stage")))
        params, state = init(KEY, X)
        assert {a.addressable_shards[0].data.shape[0] for a in jax.tree.leaves(params)} == {1}
        close(jax.jit(layer.apply)(params, state, X)[0], expected()[0][1][0])
