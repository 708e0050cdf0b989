"""Tests of `mlax.block` against plain JAX: sharing, keys, variables, paths, errors."""

import copy
import gc
import pickle
import time
import weakref
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import AxisName, Key, Layer
from mlax.types import Sublayers

KEY = jax.random.key(0)
X = jnp.array([1.0, -2.0, 0.5])
# Any: layers of all kinds side by side.
AnyLayer = Layer[Any, Any, Any, Any]


def notes(error: pytest.ExceptionInfo[BaseException]) -> list[str]:
    """Return the paths noted on an error."""
    return [n for n in getattr(error.value, "__notes__", []) if n.startswith("in ")]


def assert_grads(model: AnyLayer, x: Any, plain: Any, leaves: int) -> None:
    """Require the output and gradients of `plain(leaves of params, x)`."""
    params, state = model.init(KEY, x)
    values = jax.tree.leaves(params)
    assert len(values) == leaves

    def loss(params: Any) -> jax.Array:
        return sum_of_squares(model.apply(params, state, x)[0])

    def plain_loss(values: list[jax.Array]) -> jax.Array:
        return sum_of_squares(plain(values, x))

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    expected, expected_grads = jax.jit(jax.value_and_grad(plain_loss))(values)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert jax.tree.structure(grads) == jax.tree.structure(params)
    for leaf, other in zip(jax.tree.leaves(grads), expected_grads, strict=True):
        np.testing.assert_allclose(leaf, other, rtol=1e-4, atol=1e-6)


def sum_of_squares(tree: Any) -> jax.Array:
    """Return the sum of the squares of all arrays."""
    return jnp.sum(jnp.stack([jnp.sum(leaf**2) for leaf in jax.tree.leaves(tree)]))


@mlax.block(linear=mlax.linear(3))
def twice(sub: Sublayers, x: Any) -> Any:
    """Two calls of one layer with tanh between them."""
    return sub.linear(jnp.tanh(sub.linear(x)))


def plain_twice(kernels: Any, x: Any) -> Any:
    """Return what `twice` computes."""
    return jnp.tanh(x @ kernels[0]) @ kernels[0]


@mlax.block(
    norm=mlax.layer_norm(),
    gate=mlax.dense(3),
    value=mlax.dense(3),
    drop=mlax.dropout(0.5, -1),
)
def gated(sub: Sublayers, inputs: Any) -> Any:
    """A gated unit that passes a mask on."""
    x, mask = inputs
    h = sub.norm(x)
    return x + mask * sub.drop(jax.nn.sigmoid(sub.gate(h)) * sub["value"](h)), mask


def init_count(rng: Key, x: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Make a parameter and a state that is no `State`."""
    return jnp.full((), 2.0), {"calls": jnp.zeros(())}


def apply_count(
    params: jax.Array,
    state: dict[str, jax.Array],
    x: jax.Array,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Scale x, and count the calls in training."""
    return params * x, state if inference_mode else {"calls": state["calls"] + 1}


COUNT = Layer(init_count, apply_count)


# One set of parameters, however often a layer is called.


def test_a_layer_that_is_called_twice_has_one_set_of_parameters() -> None:
    params, state = twice.init(KEY, X)
    assert mlax.paths(params) == ["linear.kernel"]
    assert mlax.count(params) == 9
    kernel = np.asarray(params["linear"].kernel)
    y, after = twice.apply(params, state, X)
    np.testing.assert_allclose(y, np.tanh(np.asarray(X) @ kernel) @ kernel, rtol=1e-5)
    assert after == state
    assert_grads(twice, X, plain_twice, 1)


def test_parameters_are_those_of_the_layers_alone() -> None:
    model = mlax.block(a=mlax.linear(4), b=mlax.linear(3))(lambda sub, x: sub.b(sub.a(x)))
    params, _ = model.init(KEY, X)
    a = mlax.linear(4).init(jax.random.fold_in(KEY, 0), X)[0]
    b = mlax.linear(3).init(jax.random.fold_in(KEY, 1), jnp.ones(4))[0]
    np.testing.assert_array_equal(params["a"].kernel, a.kernel)
    np.testing.assert_array_equal(params["b"].kernel, b.kernel)


def test_a_siamese_pair() -> None:
    encoder: AnyLayer = mlax.series(mlax.linear(2), mlax.f(jnp.tanh))

    @mlax.block(encoder=encoder)
    def distance(sub: Sublayers, pair: Any) -> Any:
        a, b = map(sub.encoder, pair)
        return jnp.sum((a - b) ** 2)

    def plain(kernels: Any, x: Any) -> jax.Array:
        a, b = (jnp.tanh(x[i] @ kernels[0]) for i in range(2))
        return jnp.sum((a - b) ** 2)

    assert_grads(distance, (X, 2 * X), plain, 1)


def test_tied_weights() -> None:
    @mlax.block(embed=mlax.embed(7, 3), body=mlax.linear(3))
    def language_model(sub: Sublayers, tokens: Any) -> Any:
        return sub.body(sub.embed(tokens)) @ sub.embed.params.embedding.T

    tokens = jnp.array([0, 6, 3])

    def plain(leaves: Any, x: jax.Array) -> jax.Array:
        kernel, embedding = leaves  # in the order of jax.tree.leaves
        return jnp.matmul(embedding[x] @ kernel, embedding.T)

    params, _ = language_model.init(KEY, tokens)
    assert mlax.count(params) == 7 * 3 + 9
    assert mlax.paths(params) == ["embed.embedding", "body.kernel"]
    assert_grads(language_model, tokens, plain, 2)


def test_shared_layers_among_others() -> None:
    layers: dict[str, AnyLayer] = {
        "a": mlax.linear(3),
        "b": mlax.bias(-1),
        "c": mlax.scaler(-1),
    }

    @mlax.block(**layers)
    def model(sub: Sublayers, x: Any) -> Any:
        x = sub.b(sub.a(sub.b(x)))
        return sub.a(sub.c(jnp.tanh(sub.a(sub.c(x)))))

    def plain(leaves: Any, x: jax.Array) -> jax.Array:
        kernel, bias, scale = leaves
        x = (x + bias) @ kernel + bias
        return jnp.matmul(scale * jnp.tanh((scale * x) @ kernel), kernel)

    assert_grads(model, X, plain, 3)


def test_blocks_in_blocks() -> None:
    @mlax.block(inner=twice, bias=mlax.bias(-1))
    def outer(sub: Sublayers, x: Any) -> Any:
        y = sub.bias(sub.inner(x))
        return sub.bias(sub.inner(y)) @ sub.inner.params["linear"].kernel.T

    def plain(leaves: Any, x: jax.Array) -> jax.Array:
        bias, kernel = leaves
        y = plain_twice([kernel], x) + bias
        return jnp.matmul(plain_twice([kernel], y) + bias, kernel.T)

    params, _ = outer.init(KEY, X)
    assert mlax.paths(params) == ["inner.linear.kernel", "bias.bias"]
    inner_key = jax.random.fold_in(jax.random.fold_in(KEY, 0), 0)
    kernel = mlax.linear(3).init(inner_key, X)[0].kernel
    np.testing.assert_array_equal(params["inner"]["linear"].kernel, kernel)
    assert_grads(outer, X, plain, 2)


@pytest.mark.parametrize("around", ["repeat", "batched", "remat", "cast", "series"])
def test_blocks_in_other_combinators(around: str) -> None:
    def repeated(values: Any, x: jax.Array) -> jax.Array:
        for kernel in values[0]:
            x = plain_twice([kernel], x)
        return x

    batch = jnp.stack([X, 2 * X])
    cases: dict[str, tuple[AnyLayer, Any, Callable[..., Any]]] = {
        "repeat": (mlax.repeat(twice, 2), X, repeated),
        "batched": (mlax.batched(twice), batch, plain_twice),
        "remat": (mlax.remat(twice), X, plain_twice),
        "cast": (mlax.cast(twice, compute_dtype=jnp.float32), X, plain_twice),
        "series": (mlax.series(mlax.f(jnp.sin), twice), X, lambda k, x: plain_twice(k, jnp.sin(x))),
    }
    assert_grads(*cases[around], 1)


def test_members_of_an_ensemble() -> None:
    model = mlax.ensemble(twice, 2)
    params, state = model.init(KEY, X)
    y, _ = model.apply(params, state, X)
    for i in range(2):
        kernel = np.asarray(params["linear"].kernel[i])
        np.testing.assert_allclose(y[i], plain_twice([kernel], np.asarray(X)), rtol=1e-5)


def test_combinators_around_a_sublayer() -> None:
    @mlax.block(a=mlax.remat(mlax.residual(mlax.linear(3))))
    def model(sub: Sublayers, x: Any) -> Any:
        return sub.a(sub.a(x))

    def plain(values: Any, x: jax.Array) -> jax.Array:
        for _ in range(2):
            x = x + x @ values[0]
        return x

    assert_grads(model, X, plain, 1)


def test_half_precision_is_seen_in_init() -> None:
    """Under `cast` output shapes and dtypes in `init` are those that `apply` computes."""
    seen: list[Any] = []

    @mlax.block(body=mlax.linear(3), again=mlax.linear(3))
    def model(sub: Sublayers, x: Any) -> Any:
        y = sub.body(x)
        seen.append(y.dtype)
        return sub.again(y) @ sub.body.params.kernel

    half = mlax.cast(model, compute_dtype=jnp.bfloat16)
    params, state = half.init(KEY, X)
    y, _ = half.apply(params, state, X)
    assert set(seen) == {jnp.dtype(jnp.bfloat16)}
    assert y.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype(jnp.float32)}


# Variables and keys.


def test_variables_go_from_call_to_call() -> None:
    @mlax.block(count=COUNT, other=COUNT)
    def model(sub: Sublayers, x: Any) -> Any:
        return sub.other(sub.count(sub.count(sub.count(x))))

    params, state = model.init(KEY, X)
    y, after = model.apply(params, state, X)
    np.testing.assert_array_equal(y, 16 * np.asarray(X))
    assert after.variables == {"count": {"calls": 3}, "other": {"calls": 1}}
    assert jax.tree.structure(after) == jax.tree.structure(state)
    _, same = model.apply(params, after, X, inference_mode=True)
    assert same.variables == after.variables


def test_running_statistics_of_two_calls() -> None:
    x = np.random.default_rng(0).normal(3, 2, (8, 3)).astype(np.float32)

    @mlax.block(norm=mlax.z_norm((), momentum=0.9))
    def model(sub: Sublayers, x: Any) -> Any:
        return sub.norm(2 * sub.norm(x) + 1)

    batch = mlax.batched(model)
    params, state = batch.init(KEY, jnp.asarray(x))
    y, after = batch.apply(params, state, jnp.asarray(x))

    def normed(x: Any) -> Any:
        return (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)

    hidden = 2 * normed(x) + 1
    np.testing.assert_allclose(y, normed(hidden), rtol=1e-3, atol=1e-4)
    mean = 0.9 * (0.1 * x.mean(0)) + 0.1 * hidden.mean(0)
    var = 0.9 * (0.9 + 0.1 * x.var(0)) + 0.1 * hidden.var(0)
    np.testing.assert_allclose(after.variables["norm"].mean, mean, rtol=1e-4)
    np.testing.assert_allclose(after.variables["norm"].var, var, rtol=1e-4)


def test_keys() -> None:
    seen: list[Any] = []

    def spy(x: jax.Array, rng: Key) -> jax.Array:
        seen.append(rng)
        return x

    @mlax.block(a=mlax.f_rng(spy), b=mlax.linear(3), c=mlax.f_rng(spy))
    def several(sub: Sublayers, x: Any) -> Any:
        return sub.a(sub.b(sub.c(sub.a(x))))

    @mlax.block(b=mlax.linear(3), a=mlax.f_rng(spy))
    def single(sub: Sublayers, x: Any) -> Any:
        return sub.b(sub.a(x))

    assert several.needs_rng and single.needs_rng
    assert not twice.needs_rng
    a, c = (jax.random.fold_in(KEY, i) for i in range(2))
    wanted = [jax.random.fold_in(a, 0), c, jax.random.fold_in(a, 1)]
    for model, keys in ((several, wanted), (single, [KEY])):
        params, state = model.init(KEY, X)
        seen.clear()
        model.apply(params, state, X, KEY)
        assert seen == keys


def test_a_missing_key_is_reported_by_the_layer_that_needs_it() -> None:
    x = (X, jnp.ones(()))
    model = mlax.series(gated, gated)
    params, state = model.init(KEY, x)
    with pytest.raises(ValueError, match="^dropout: expected rng to be a PRNG key") as error:
        model.apply(params, state, x)
    assert notes(error) == ["in series[0] > gated > drop > dropout"]
    y, after = model.apply(params, state, x, inference_mode=True)
    assert y[0].shape == (3,)
    assert after == state


def test_the_batch_axis_reaches_every_call() -> None:
    @mlax.block(norm=mlax.z_norm(()))
    def model(sub: Sublayers, x: Any) -> Any:
        return sub.norm(x) + sub.norm(2 * x)

    params, state = model.init(KEY, X)
    with pytest.raises(NameError, match="^z_norm: expected the batch axis 'data'") as error:
        model.apply(params, state, X, batch_axis_name="data")
    assert notes(error) == ["in model > norm > z_norm"]


# Pytrees, layers of users, transformations of jax.


def test_pytrees_in_and_out() -> None:
    @mlax.block(a=mlax.linear(2), b=mlax.f(lambda t: {"sum": t[0] + t[1]}))
    def model(sub: Sublayers, x: Any) -> Any:
        return {"y": (sub.a(x["p"]), None), "s": [sub.b((x["q"][0], x["p"]))["sum"]]}

    x = {"p": X, "q": (2 * X,)}
    params, state = model.init(KEY, jax.eval_shape(lambda: x))
    y, _ = model.apply(params, state, x)
    np.testing.assert_allclose(y["y"][0], np.asarray(X) @ np.asarray(params["a"].kernel), rtol=1e-6)
    assert y["y"][1] is None
    np.testing.assert_array_equal(y["s"][0], 3 * np.asarray(X))


def test_the_gated_unit_against_plain_jax() -> None:
    mask = jnp.array([1.0, 0.0, 1.0])
    params, state = gated.init(KEY, (X, mask))
    (y, passed), _ = jax.jit(gated.apply)(params, state, (X, mask), KEY)
    h = (X - X.mean()) / jnp.sqrt(X.var() + 1e-5)
    gate = jax.nn.sigmoid(h @ params["gate"].kernel)
    kept = jax.random.bernoulli(KEY, 0.5, (3,))
    wanted = X + mask * jnp.where(kept, gate * (h @ params["value"].kernel) / 0.5, 0)
    np.testing.assert_allclose(y, wanted, rtol=1e-5)
    np.testing.assert_array_equal(passed, mask)


def test_a_layer_of_two_functions() -> None:
    @mlax.block(count=COUNT)
    def model(sub: Sublayers, x: Any) -> Any:
        return sub.count(sub.count(sub.count(x)))

    params, state = model.init(KEY, X)
    np.testing.assert_array_equal(jax.tree.leaves(params), [2.0])
    y, after = jax.jit(model.apply)(params, state, X)
    np.testing.assert_array_equal(y, 8 * np.asarray(X))
    np.testing.assert_array_equal(jax.tree.leaves(after), [3])


def test_init_under_transformations() -> None:
    first, second = twice.init(KEY, X), twice.init(jax.random.key(1), X)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    assert not np.array_equal(first[0]["linear"].kernel, second[0]["linear"].kernel)
    jitted = jax.jit(lambda rng: twice.init(rng, X))(KEY)
    np.testing.assert_allclose(jitted[0]["linear"].kernel, first[0]["linear"].kernel, rtol=1e-6)
    keys = jnp.stack([KEY, jax.random.key(1)])
    stacked = jax.vmap(lambda rng: twice.init(rng, X))(keys)
    np.testing.assert_allclose(
        stacked[0]["linear"].kernel[1], second[0]["linear"].kernel, rtol=1e-6
    )
    shapes = jax.eval_shape(twice.init, KEY, X)
    assert jax.tree.structure(shapes) == jax.tree.structure(first)


def test_init_runs_no_layer() -> None:
    run: list[None] = []

    def noted(x: Any) -> Any:
        jax.debug.callback(lambda: run.append(None))
        return x

    model = mlax.block(a=mlax.f(noted))(lambda sub, x: sub.a(sub.a(x)))
    params, state = model.init(KEY, X)
    jax.effects_barrier()
    assert not run
    model.apply(params, state, X)
    jax.effects_barrier()
    assert len(run) == 2


def test_parameters_are_freed_with_their_tree() -> None:
    params, _ = twice.init(KEY, X)
    kernel = weakref.ref(params["linear"].kernel)
    del params
    gc.collect()
    assert kernel() is None


def test_one_trace_for_a_model_that_is_built_twice() -> None:
    def build(scale: float) -> AnyLayer:
        @mlax.block(a=mlax.linear(3))
        def model(sub: Sublayers, x: Any) -> Any:
            return scale * sub.a(x)

        return model

    traces: list[None] = []

    @jax.jit
    def step(params: Any, state: Any, x: jax.Array) -> Any:
        traces.append(None)
        return build(2.0).apply(params, state, x)

    for _ in range(2):
        step(*build(2.0).init(KEY, X), X)
    assert len(traces) == 1
    assert build(2.0) == build(2.0)
    assert build(2.0) != build(3.0)
    with pytest.raises(ValueError, match="^model: expected state.config.wiring to be"):
        step(*build(3.0).init(KEY, X), X)


def test_nested_twice_at_depth_ten_inits_fast() -> None:
    model: AnyLayer = mlax.linear(3)
    for _ in range(10):
        model = mlax.block(inner=model)(lambda sub, x: sub.inner(sub.inner(x)))
    start = time.perf_counter()
    params, _ = model.init(KEY, X)
    assert time.perf_counter() - start < 5
    assert mlax.count(params) == 9
    assert mlax.paths(params) == ["inner." * 10 + "kernel"]


# Pickle, copies, names.


def test_pickle_of_a_block_at_the_top_level() -> None:
    for layer, x in ((twice, X), (gated, (X, jnp.ones(())))):
        params, state = layer.init(KEY, x)
        y, _ = layer.apply(params, state, x, KEY)
        dumped = pickle.dumps((layer, params, state))
        for copied in (pickle.loads(dumped), copy.deepcopy((layer, params, state))):
            other, other_params, other_state = copied
            assert other == layer
            assert hash(other) == hash(layer)
            assert jax.tree.structure((other_params, other_state)) == jax.tree.structure(
                (params, state)
            )
            z, _ = other.apply(other_params, other_state, x, KEY)
            for leaf, expected in zip(jax.tree.leaves(z), jax.tree.leaves(y), strict=True):
                np.testing.assert_array_equal(leaf, expected)
    nested = mlax.repeat(mlax.residual(twice), 2)
    assert pickle.loads(pickle.dumps(nested)) == nested


def test_names_in_repr_and_scopes() -> None:
    text = repr(gated)
    assert text.startswith("gated(")
    for part in ("norm=layer_norm()", "gate=dense(3)", "drop=dropout(0.5, -1)"):
        assert part in text
    assert " at 0x" not in text
    model = mlax.series(stem=mlax.linear(3), body=twice)
    jaxpr = jax.make_jaxpr(model.apply)(*model.init(KEY, X), X)
    found = {str(equation.source_info.name_stack) for equation in jaxpr.jaxpr.eqns}
    assert {"stem (linear)", "body (twice)/linear (linear)"} <= found


# Errors.


def test_paths_in_errors() -> None:
    @mlax.block(norm=mlax.layer_norm(), body=mlax.series(mlax.linear(3), mlax.bias(-1)))
    def encoder(sub: Sublayers, x: Any) -> Any:
        return sub.norm(sub.body(x))

    with pytest.raises(ValueError, match="^linear: expected x with at least 1 axis") as init:
        encoder.init(KEY, jnp.ones(()))
    assert notes(init) == ["in encoder > body[0] > linear"]
    model = mlax.series(first=encoder, second=mlax.repeat(encoder, 2))
    params, state = model.init(KEY, X)
    with pytest.raises(ValueError, match="^linear: expected x with 3 features") as apply:
        model.apply(params, state, X[:2])
    assert notes(apply) == ["in series > first > body[0] > linear"]
    wrong: Any = params
    wrong["second"]["norm"] = mlax.ensemble(mlax.layer_norm(), 2).init(KEY, jnp.ones(4))[0]
    with pytest.raises(ValueError, match="^layer_norm: ") as inner:
        model.apply(wrong, state, X)
    assert notes(inner) == ["in series > second > encoder > norm > layer_norm"]


def test_a_sublayer_that_is_never_called_raises() -> None:
    model = mlax.block(a=mlax.linear(3), b=mlax.linear(3))(lambda sub, x: sub.a(x))
    with pytest.raises(ValueError, match="expected every sublayer to be called, got no call of b"):
        model.init(KEY, X)


def test_parameters_are_there_after_the_first_call() -> None:
    @mlax.block(embed=mlax.linear(3))
    def early(sub: Sublayers, x: Any) -> Any:
        kernel = sub.embed.params.kernel
        return sub.embed(x) @ kernel

    wanted = "^early: expected embed to be called before its params are read"
    with pytest.raises(ValueError, match=wanted):
        early.init(KEY, X)


def test_an_unknown_name_raises() -> None:
    for read in (lambda sub, x: sub.lienar(x), lambda sub, x: sub["lienar"](x)):
        model = mlax.block(linear=mlax.linear(3), bias=mlax.bias(-1))(read)
        wanted = "expected one of the sublayers linear, bias, got lienar"
        with pytest.raises(AttributeError, match=wanted):
            model.init(KEY, X)


def test_calls_that_need_other_parameters_raise() -> None:
    model = mlax.block(a=mlax.linear(4))(lambda sub, x: sub.a(sub.a(x)))
    with pytest.raises(ValueError, match=r"^linear: expected x with 3 features .*\(4,\)") as error:
        model.init(KEY, X)
    (path,) = notes(error)
    assert path.endswith("> a > linear")


def test_names_that_are_arguments_of_init_raise() -> None:
    for name in ("rng", "x"):
        layers: dict[str, AnyLayer] = {name: mlax.linear(3)}
        with pytest.raises(ValueError, match=f"expected a name other than '{name}'"):
            mlax.block(**layers)(lambda sub, x: x)


def test_the_state_of_another_block_raises() -> None:
    @mlax.block(linear=mlax.linear(3))
    def once(sub: Sublayers, x: Any) -> Any:
        return sub.linear(x)

    params, state = once.init(KEY, X)
    with pytest.raises(TypeError, match="^twice: expected state to be that of twice, got .* once"):
        twice.apply(params, state, X)
    model, other = mlax.series(body=twice), mlax.series(body=once)
    with pytest.raises((TypeError, ValueError), match="twice.* got .*once"):
        model.apply(*other.init(KEY, X), X)


@pytest.mark.parametrize("layer", [mlax.dropout(0.5, 0), mlax.z_norm("all")], ids=repr)
@pytest.mark.parametrize("transform", ["scan", "vmap", "checkpoint"])
def test_keys_and_statistics_are_not_lost_in_a_transformation(
    layer: AnyLayer, transform: str
) -> None:
    """A key would be used again and the new statistics would be tracers: both raise at once."""

    @mlax.block(inner=layer)
    def model(sub: Sublayers, x: jax.Array) -> Any:
        if transform == "scan":
            return jax.lax.scan(lambda h, _: (sub.inner(h), None), x, None, length=2)[0]
        return jax.vmap(sub.inner)(x[None]) if transform == "vmap" else jax.checkpoint(sub.inner)(x)

    params, state = model.init(KEY, X)
    with pytest.raises(ValueError, match="^model: expected inner to be called outside .* mlax.rep"):
        model.apply(params, state, X, KEY)
    y, _ = model.apply(params, state, X, None, True)
    assert y.size == 3 and bool(jnp.isfinite(y).all())


def test_a_layer_without_key_and_variables_can_be_mapped() -> None:
    @mlax.block(inner=mlax.dense(2))
    def model(sub: Sublayers, x: jax.Array) -> Any:
        return jax.vmap(sub.inner)(x)

    batch = jnp.stack([X, 2 * X])
    params, state = model.init(KEY, batch)
    expected = np.asarray(batch) @ np.asarray(params["inner"].kernel)
    np.testing.assert_allclose(model.apply(params, state, batch)[0], expected, rtol=1e-5)
    (y, values), _ = jax.jit(mlax.tap(model).apply)(params, state, batch)
    np.testing.assert_allclose(y, expected, rtol=1e-5)
    assert values == {}


def test_parameters_are_read_as_their_layer_sees_them() -> None:
    tokens = jnp.array([0, 2])

    def tied(embed: AnyLayer) -> AnyLayer:
        @mlax.block(embed=embed)
        def model(sub: Sublayers, x: jax.Array) -> Any:
            return sub.embed(x) @ sub.embed.params.embedding.T

        return model

    frozen = tied(mlax.frozen(mlax.embed(4, 3)))
    params, state = frozen.init(KEY, tokens)
    grads = jax.grad(lambda params: frozen.apply(params, state, tokens)[0].sum())(params)
    np.testing.assert_array_equal(jax.tree.leaves(grads)[0], np.zeros((4, 3)))
    half = tied(mlax.cast(mlax.embed(4, 3), compute_dtype=jnp.bfloat16))
    assert half.apply(*half.init(KEY, tokens), tokens)[0].dtype == jnp.bfloat16


def test_a_dict_has_the_same_order_everywhere() -> None:
    @mlax.block(inner=mlax.f(jnp.negative))
    def model(sub: Sublayers, x: dict[str, jax.Array]) -> Any:
        return jnp.concatenate([sub.inner(value) for value in x.values()])

    x = {"b": X, "a": 0 * X}
    params, state = model.init(KEY, x)
    eager, jitted = model.apply(params, state, x)[0], jax.jit(model.apply)(params, state, x)[0]
    np.testing.assert_array_equal(eager, [0, 0, 0, -1, 2, -0.5])
    np.testing.assert_array_equal(jitted, eager)
