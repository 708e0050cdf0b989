"""Tests of `mlax.moe` against a loop over tokens and experts."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

import mlax
from mlax import Key, Layer
from mlax.types import MoeParams, Routed

KEY = jax.random.key(0)
RNG = jax.random.key(1)
# Any: layers of all kinds side by side.
AnyLayer = Layer[Any, Any, Any, Any]


def normal(*shape: int) -> Any:
    """Return numbers that are always the same for the same shape."""
    return np.random.default_rng(sum(shape)).normal(size=shape).astype(np.float32)


EXPERT = mlax.dense(3, bias_initializer=jax.random.normal)


class Choices(NamedTuple):
    """Who goes where."""

    chosen: Any
    """(tokens, num_experts), 1 where a token chose an expert."""
    kept: Any
    """(tokens, num_experts), 1 where it also got a slot."""


def choices(kernel: Any, x: Any, mask: Any, top_k: int, capacity: float) -> Choices:
    """Return the choices of all tokens, made one by one."""
    logits = np.asarray(x, np.float64) @ np.asarray(kernel, np.float64)
    chosen, kept = np.zeros(logits.shape), np.zeros(logits.shape)
    for choice in range(top_k):
        for token in np.flatnonzero(mask):
            expert = np.argsort(-logits[token])[choice]
            kept[token, expert] = chosen[:, expert].sum() < capacity
            chosen[token, expert] = 1
    return Choices(chosen, kept)


def written_out(params: Any, x: Any, mask: Any, made: Choices, normalizes: Any) -> Routed:
    """Return the mixture of dense experts, expert by expert."""
    logits = x @ params.router.kernel
    probabilities = jnp.exp(logits) / jnp.sum(jnp.exp(logits), -1, keepdims=True)
    gates = probabilities * made.chosen
    gates /= jnp.where(mask & normalizes, jnp.sum(gates, -1), 1)[:, None]
    y = jnp.zeros((len(x), params.experts.kernel.shape[-1]))
    for e in range(logits.shape[1]):
        output = x @ params.experts.kernel[e] + params.experts.bias[e]
        y += (gates * made.kept)[:, e, None] * output
    load, dropped = made.chosen.sum(0), (made.chosen - made.kept).sum(0)
    mean = jnp.sum(probabilities * mask[:, None], 0) / mask.sum()
    balance_loss = len(load) * jnp.sum(load / load.sum() * mean)
    z_loss = jnp.sum(jnp.log(jnp.exp(logits).sum(-1)) ** 2 * mask) / mask.sum()
    return Routed(y, balance_loss, z_loss, load, dropped)


def loss_of(routed: Routed) -> tuple[Any, Routed]:
    """Return a number that all differentiable outputs have a part in, and the outputs."""
    return jnp.sum(jnp.sin(routed.y)) + 3 * routed.balance_loss + routed.z_loss, routed


@jax.jit
def gradient_written_out(*args: Any) -> Any:
    """Return the gradients of `loss_of` by params and x."""
    loss = lambda *args: loss_of(written_out(*args))
    return jax.grad(loss, (0, 1), has_aux=True)(*args)


def assert_close(actual: Any, expected: Any, tolerance: float = 2e-5) -> None:
    """Require equal structures, and numbers that differ only by rounding."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, tolerance, tolerance)


@pytest.mark.parametrize("dispatch", ["sorted", "einsum"])
@pytest.mark.parametrize(
    ("top_k", "capacity_factor", "normalize"),
    [
        (1, 1.0, None), (2, 0.6, None), (2, 1.0, False), (3, None, True), (1, None, True),
        (2, 9, None),
    ],
)
def test_equals_a_loop(
    top_k: int, capacity_factor: float | None, normalize: bool | None, dispatch: Any
) -> None:
    layer = mlax.moe(
        EXPERT, 4, top_k, capacity_factor=capacity_factor, normalize=normalize, dispatch=dispatch
    )
    x, mask = normal(12, 5), np.arange(12) % 5 != 3
    params, state = layer.init(KEY, x)

    def loss(params: Any, x: Any) -> Any:
        inputs = mlax.MoeInputs(x.reshape(4, 3, 5), mask.reshape(4, 3))
        routed, _ = layer.apply(params, state, inputs)
        return loss_of(routed._replace(y=routed.y.reshape(12, 3)))

    got = jax.jit(jax.grad(loss, (0, 1), has_aux=True))(params, x)
    capacity = math.ceil((capacity_factor or 4) * 12 * top_k / 4)
    made = choices(params.router.kernel, x, mask, top_k, capacity)
    normalizes = top_k > 1 if normalize is None else normalize
    assert_close(got, gradient_written_out(params, x, mask, made, normalizes))
    assert (got[1].dropped.sum() > 0) == (capacity_factor in (0.6, 1.0))
    assert got[1].load.dtype == got[1].dropped.dtype == jnp.int32


@pytest.mark.parametrize("dispatch", ["sorted", "einsum"])
def test_first_choices_go_before_second_ones_and_earlier_tokens_before_later_ones(
    dispatch: Any,
) -> None:
    layer = mlax.moe(
        mlax.f(jnp.ones_like), 3, 2, capacity_factor=1, dispatch=dispatch, normalize=False
    )
    logits = jnp.array([[1.0, 2, 0], [2, 1, 0], [2, 1, 0]])  # expert 0 is wanted by all
    params = MoeParams(mlax.types.LinearParams(jnp.eye(3)), ())
    routed, _ = jax.jit(layer.apply)(params, layer.init(KEY, logits)[1], logits)
    first, second = jax.nn.softmax(jnp.array([2.0, 1, 0]))[:2]
    # The 2 slots of each: 0 takes tokens 1 and 2, not 0; 1 takes 0 and 1, not 2.
    np.testing.assert_allclose(routed.y[:, 0], [first, first + second, first], 1e-6)
    np.testing.assert_array_equal(routed.load, [3, 3, 0])
    np.testing.assert_array_equal(routed.dropped, [1, 1, 0])


def test_the_capacity_is_rounded_up_from_the_exact_product() -> None:
    assert math.ceil(1.1 * 50 / 5) == 12  # 55.00000000000001 / 5
    layer = mlax.moe(mlax.f(jnp.ones_like), 5, 1, capacity_factor=1.1)
    x = jnp.ones((50, 1))
    _, state = layer.init(KEY, x)
    params = MoeParams(mlax.types.LinearParams(jnp.eye(1, 5)), ())
    np.testing.assert_array_equal(jax.jit(layer.apply)(params, state, x)[0].dropped[0], 39)


@pytest.mark.parametrize(
    ("dispatch", "capacity_factor"), [("sorted", 0.5), ("einsum", 0.5), ("sorted", None)]
)
def test_padding_may_be_anything_and_there_may_be_no_token(
    dispatch: Any, capacity_factor: float | None
) -> None:
    layer = mlax.moe(EXPERT, 3, capacity_factor=capacity_factor, dispatch=dispatch)
    mask = np.arange(6) % 2 == 0
    x = np.where(mask[:, None], normal(6, 5), 0)
    params, state = layer.init(KEY, x)

    @jax.jit
    def gradient(params: Any, x: Any, mask: Any) -> Any:
        loss = lambda params: loss_of(layer.apply(params, state, mlax.MoeInputs(x, mask))[0])
        return jax.grad(loss, has_aux=True)(params)

    with_nans = np.where(mask[:, None], x, np.float32(np.nan))
    assert_close(gradient(params, with_nans, mask), gradient(params, x, mask), 0)
    assert_close(gradient(params, x, ~mask[:1] & mask)[0], jax.tree.map(jnp.zeros_like, params), 0)
    empty, _ = jax.jit(layer.apply)(params, state, jnp.zeros((0, 5)))
    assert empty.y.shape == (0, 3) and empty.balance_loss == 0


def test_a_broken_token_spoils_only_itself() -> None:
    layer = mlax.moe(EXPERT, 3)
    x = normal(4, 5)
    x[1] = np.nan
    routed, _ = jax.jit(layer.apply)(*layer.init(KEY, x), x)
    np.testing.assert_array_equal(np.isnan(routed.y).any(-1), [False, True, False, False])


def test_nothing_is_dropped_without_capacity_so_that_tokens_are_independent() -> None:
    x = normal(9, 5)
    training = mlax.moe(EXPERT, 4, capacity_factor=0.5)
    params, _ = training.init(KEY, x)
    decoding = mlax.moe(EXPERT, 4, capacity_factor=None)
    state = mlax.init_state(decoding, params, x)
    apply = jax.jit(decoding.apply)
    whole, _ = apply(params, state, x)
    one_by_one = [apply(params, state, token)[0].y for token in x]
    np.testing.assert_allclose(np.stack(one_by_one), whole.y, 1e-5, 1e-5)


def test_examples_have_capacities_of_their_own_and_losses_together() -> None:
    layer = mlax.moe(EXPERT, 4, capacity_factor=0.5)
    batch = mlax.MoeInputs(normal(3, 6, 5), np.arange(6) < np.array([[6], [2], [4]]))
    params, state = mlax.batched(layer).init(KEY, batch)
    together, _ = jax.jit(mlax.batched(layer).apply)(params, state, batch)
    _, own = layer.init(KEY, normal(6, 5))
    apply = jax.jit(layer.apply)
    one_by_one = [
        apply(params, own, mlax.MoeInputs(*example))[0] for example in zip(*batch, strict=True)
    ]
    for name in ("y", "load", "dropped"):
        each = np.stack([getattr(routed, name) for routed in one_by_one])
        np.testing.assert_allclose(getattr(together, name), each, 1e-5, 1e-5)
    x, mask = batch.x.reshape(18, 5), batch.mask.reshape(18)
    whole = written_out(params, x, mask, choices(params.router.kernel, x, mask, 2, 18), True)
    np.testing.assert_allclose(together.balance_loss, [whole.balance_loss] * 3, 1e-5)
    np.testing.assert_allclose(together.z_loss, [whole.z_loss] * 3, 1e-5)
    in_inference = jax.jit(mlax.batched(layer).apply, static_argnums=(3, 4))
    alone, _ = in_inference(params, state, batch, None, True)
    np.testing.assert_allclose(
        alone.balance_loss, [routed.balance_loss for routed in one_by_one], 1e-5
    )


def test_the_balance_loss_of_a_uniform_router_is_one() -> None:
    layer = mlax.moe(EXPERT, 4, 4, kernel_initializer=jax.nn.initializers.zeros)
    x = normal(3, 5)
    routed, _ = jax.jit(layer.apply)(*layer.init(KEY, x), x)
    np.testing.assert_allclose(routed.balance_loss, 1, 1e-6)
    np.testing.assert_allclose(routed.z_loss, math.log(4) ** 2, 1e-6)


def noise(x: jax.Array, rng: Key) -> jax.Array:
    """Return noise of the shape of x."""
    return jax.random.normal(rng, x.shape, x.dtype)


def test_each_expert_gets_a_key() -> None:
    layer = mlax.moe(mlax.f_rng(noise, lambda x, rng: x), 3, 3, capacity_factor=None)
    x = normal(2, 5)
    params, state = layer.init(KEY, x)
    routed, _ = layer.apply(params, state, x, RNG)
    gates = jax.nn.softmax(x @ params.router.kernel)
    each = [noise(x, jax.random.fold_in(RNG, i)) for i in range(3)]
    np.testing.assert_allclose(routed.y, jnp.einsum("te,etf->tf", gates, jnp.stack(each)), 1e-5)


def test_init_is_that_of_its_parts() -> None:
    params, _ = mlax.moe(EXPERT, 3).init(KEY, normal(4, 5))
    of_router, of_experts = (jax.random.fold_in(KEY, i) for i in range(2))
    assert_close(params.router, mlax.linear(3).init(of_router, normal(4, 5))[0], 0)
    assert_close(params.experts, mlax.ensemble(EXPERT, 3).init(of_experts, normal(4, 5))[0], 0)
    assert mlax.paths(params) == ["router.kernel", "experts.kernel", "experts.bias"]


@pytest.mark.parametrize("dispatch", ["sorted", "einsum"])
def test_the_router_computes_in_float32(dispatch: Any) -> None:
    layer = mlax.moe(EXPERT, 4, capacity_factor=0.75, dispatch=dispatch)
    half = jnp.asarray(normal(12, 5), jnp.bfloat16)
    x = half.astype(jnp.float32)
    params, state = layer.init(KEY, x)
    got, _ = jax.jit(layer.apply)(params, state, half)
    mask = np.ones(12, bool)
    exact = written_out(params, x, mask, choices(params.router.kernel, x, mask, 2, 5), True)
    assert got.y.dtype == jnp.bfloat16 and got.balance_loss.dtype == jnp.float32
    np.testing.assert_array_equal(got.load, exact.load)
    np.testing.assert_allclose(got.balance_loss, exact.balance_loss, 1e-5)
    np.testing.assert_allclose(got.y.astype(jnp.float32), exact.y, 2e-2, 2e-2)
    computed = mlax.cast(layer, compute_dtype=jnp.bfloat16)
    y = jax.eval_shape(computed.apply, *computed.init(KEY, x), x)[0].y
    assert y.dtype == jnp.bfloat16


@mlax.block(norm=mlax.rms_norm(), moe=mlax.moe(mlax.mlp(6), 3))
def sparse_block(sub: Any, inputs: Any) -> Any:
    """Add a mixture of experts to x, and its loss to the sum of losses."""
    x, loss = inputs
    routed = sub.moe(sub.norm(x))
    return x + routed.y, loss + routed.balance_loss


def test_losses_add_up_in_a_repeat() -> None:
    model = mlax.repeat(sparse_block, 2)
    x, zero = jnp.asarray(normal(7, 4)), jnp.zeros(())
    params, state = model.init(KEY, (x, zero))
    got, _ = jax.jit(model.apply)(params, state, (x, zero))
    inputs: Any = (x, zero)
    _, own_state = sparse_block.init(KEY, inputs)
    for i in range(2):
        own = jax.tree.map(lambda a: a[i], params)
        inputs, _ = jax.jit(sparse_block.apply)(own, own_state, inputs)
    assert_close(got, inputs)
    assert got[1] > 1.5


def y_of(routed: Routed) -> Any:
    """Return the output alone."""
    return routed.y


def test_losses_leave_a_transformer_block_by_tap() -> None:
    sparse = mlax.series(mlax.moe(mlax.mlp(6), 3), mlax.f(y_of))
    model = mlax.repeat(mlax.transformer_block(mlax.attention(2), sparse), 2)
    x = normal(7, 4)
    params, state = model.init(KEY, x)
    tapped = mlax.tap(model, ["mlp.0", "mlp.0.experts.up"])
    (_, values), _ = jax.eval_shape(tapped.apply, params, state, x)
    assert values["mlp.0"].balance_loss.shape == (2,)
    assert values["mlp.0.experts.up"].shape == (2, 3, 6, 6)


@pytest.mark.parametrize(
    ("capacity_factor", "dispatch", "rows"),
    [(1.0, "sorted", ("data", "model")), (1.1, "einsum", ("data",)), (None, "sorted", ("data",))],
)
def test_experts_lie_on_an_explicit_mesh(capacity_factor: Any, dispatch: Any, rows: Any) -> None:
    layer = mlax.moe(mlax.dense(5), 4, capacity_factor=capacity_factor, dispatch=dispatch)
    x = normal(8, 2, 5)
    params, state = layer.init(KEY, x)

    def loss(params: Any, x: Any) -> Any:
        routed, _ = layer.apply(params, state, x)
        return loss_of(routed)

    gradient = jax.jit(jax.grad(loss, has_aux=True, argnums=(0, 1)))
    expected = gradient(params, x)
    mesh = jax.make_mesh((4, 2), ("data", "model"), (AxisType.Explicit,) * 2)

    def put(a: Any, *spec: Any) -> Any:
        return jax.device_put(a, NamedSharding(mesh, P(*spec)))

    with jax.set_mesh(mesh):
        experts = jax.tree.map(lambda a: put(a, "model"), params.experts)
        params = MoeParams(jax.tree.map(put, params.router), experts)
        got = gradient(params, put(x, rows))
    assert_close(got, expected)
    assert got[1].y.sharding.spec == P(rows if len(rows) > 1 else rows[0], None, None)
    assert got[0][0].experts.kernel.sharding.spec == P("model", None, None)


@pytest.mark.parametrize(
    ("hparams", "error", "text"),
    [
        ({"top_k": 3}, ValueError, "top_k to be at most num_experts=2, got 3"),
        ({"num_experts": 1}, ValueError, "top_k to be at most num_experts=1, got 2"),
        ({"num_experts": 0}, ValueError, "num_experts to be a positive integer"),
        ({"capacity_factor": 0}, ValueError, "capacity_factor to be a positive number, or None"),
        ({"capacity_factor": math.inf}, ValueError, "a positive number"),
        ({"capacity_factor": jnp.ones(())}, TypeError, "a positive number"),
        ({"dispatch": "dense"}, ValueError, 'dispatch to be "sorted" or "einsum"'),
    ],
)
def test_wrong_hyperparameters(hparams: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=f"^moe: expected .*{text}"):
        mlax.moe(EXPERT, **{"num_experts": 2, **hparams})


@pytest.mark.parametrize(
    ("expert", "x", "error", "text"),
    [
        (EXPERT, np.ones(()), ValueError, "x with at least 1 axis"),
        (EXPERT, np.ones(4, int), TypeError, "x to be of a floating dtype"),
        (EXPERT, np.ones(4, complex), TypeError, "x to be of a real dtype"),
        (EXPERT, (np.ones(4), True), TypeError, r"MoeInputs, got a tuple; pass mlax.MoeInputs\("),
        (EXPERT, mlax.MoeInputs(np.ones((2, 4)), np.ones(3, bool)), ValueError, "mask to be of d"),
        (EXPERT, mlax.MoeInputs(np.ones((2, 4)), np.ones(2)), ValueError, "mask to be of dtype"),
        (mlax.z_norm(()), np.ones(4), ValueError, "expert to be a layer without variables, got z"),
        (mlax.f(jnp.sum), np.ones(4), ValueError, "the output of the expert to be floating, of"),
        (mlax.f(jnp.isnan), np.ones(4), ValueError, "the output of the expert to be floating"),
    ],
)
def test_wrong_inputs_and_experts(expert: Any, x: Any, error: Any, text: str) -> None:
    layer = mlax.series(mlax.moe(expert, 2))
    with pytest.raises(error, match=f"^moe: expected .*{text}") as raised:
        layer.init(KEY, x)
    assert "in series[0] > moe" in getattr(raised.value, "__notes__", [])


def test_wrong_params() -> None:
    layer, x = mlax.moe(EXPERT, 3), normal(4, 5)
    params, state = layer.init(KEY, x)
    wrong = params._replace(router=mlax.types.LinearParams(jnp.ones((5, 4))))
    with pytest.raises(ValueError, match="params.router.kernel to be of shape .features, 3."):
        layer.apply(wrong, state, x)
    with pytest.raises(ValueError, match="params to be stacked on a leading axis of 3"):
        layer.apply(mlax.moe(EXPERT, 2).init(KEY, x)[0], state, x)
    with pytest.raises(TypeError, match=r"params to be a MoeParams.*MoeParams\(\*params\)"):
        layer.apply(tuple(params), state, x)  # type: ignore[arg-type]  # wrong on purpose
    with pytest.raises(ValueError, match="state.config.top_k to be 2, as in this layer, got 1"):
        layer.apply(params, mlax.moe(EXPERT, 3, 1).init(KEY, x)[1], x)
    with pytest.raises(TypeError, match="x to be of a floating dtype"):
        layer.apply(params, state, jnp.ones((4, 5), int))
