"""A sparse mixture of experts: y = sum of gate_e(x) expert_e(x) over the experts e that x chooses.

    x        (..., features), all leading axes hold tokens
    kernel   (features, num_experts), of the router: probabilities = softmax(x @ kernel)
    slots    (num_experts, capacity, features), the tokens that each expert gets
    outputs  (num_experts, capacity, out_features)
    y        (..., out_features)

params.experts are the params of the expert, each array with a leading axis of num_experts.

Sources: Shazeer et al., "Outrageously large neural networks", 2017; Lepikhin et al., "GShard",
2020; Fedus et al., "Switch transformers", 2021.
"""

import functools
import math
from fractions import Fraction
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from mlax import arguments, constraints, mesh
from mlax.arguments import ANOTHER_MODEL, AnyLayer, DType, Rule, Size, described
from mlax.belonging import require_params
from mlax.combinators import (
    Call, Child, Made, Transform, copy_keys, init_copies, init_keys, require_copies, transform,
)
from mlax.errors import message
from mlax.initializers import Initializer, initialize, lecun_normal
from mlax.layer import Key, Layer, P, State
from mlax.layers.linear import LinearParams, matmul
from mlax.pair import HParams
from mlax.serialization import serializable
from mlax.statistics import wide_dtype


def _read_capacity_factor(owner: str, name: str, value: Any) -> float:
    wanted = "a positive number, or None so that no token is dropped"
    if isinstance(value, jax.Array):
        raise TypeError(message(owner, name, wanted, described(value)))
    factor: float = arguments.read_number(owner, name, value, wanted)
    if not 0 < factor < math.inf:
        raise ValueError(message(owner, name, wanted, repr(value)))
    return factor


CapacityFactor: TypeAlias = Annotated[float, Rule(_read_capacity_factor)]
"""A positive number."""
Dispatch: TypeAlias = Literal["sorted", "einsum"]
"""How tokens get to their experts and back."""


@serializable
class MoeInputs(NamedTuple):
    """The input of `moe`, where some tokens are padding."""

    x: Any
    """(..., features)."""
    mask: Any = None
    """Boolean, (...), True where a token is real; the others take no capacity, and their y is 0."""


@serializable
class Routed(NamedTuple):
    """The output of `moe`."""

    y: jax.Array
    """(..., out_features), in the dtype that the experts return."""
    balance_loss: jax.Array
    """num_experts * sum over experts of (fraction of choices) * (mean probability)."""
    z_loss: jax.Array
    """Mean over tokens of logsumexp(logits)^2."""
    load: jax.Array
    """(num_experts,), int32: how many tokens chose each expert."""
    dropped: jax.Array
    """(num_experts,), int32: how many of these each expert had no room for."""


@serializable
class MoeParams(NamedTuple, Generic[P]):
    """Parameters of `moe`."""

    router: LinearParams
    """kernel (features, num_experts)."""
    experts: P
    """The params of the expert, stacked on a leading axis of num_experts."""


class MoeConfig(NamedTuple):
    """Configuration of `moe`."""

    expert: Child
    """The expert."""
    num_experts: int
    """Number of experts."""
    top_k: int
    """Number of experts that each token chooses."""
    capacity_factor: float | None
    """Number of slots of all experts, per choice."""
    dispatch: str
    """How tokens get to their experts and back."""
    normalize: bool | None
    """Whether the gates of a token sum to 1."""


class Moe(Transform[Any, State[Any, MoeConfig], jax.Array | MoeInputs, Routed]):
    """The type of `moe`: its experts have the params type of the layer."""

    child_key = "experts"

    def __call__(
        self, expert: Layer[P, Any, jax.Array, jax.Array], num_experts: int, top_k: int = 2, *,
        capacity_factor: float | None = 1.25, dispatch: Dispatch = "sorted",
        normalize: bool | None = None, kernel_initializer: Initializer = lecun_normal,
        dtype: DType = jnp.float32,
    ) -> Layer[MoeParams[P], State[Any, MoeConfig], jax.Array | MoeInputs, Routed]:
        """Return the mixture of experts."""
        return self.bind(
            expert, num_experts, top_k, capacity_factor=capacity_factor, dispatch=dispatch,
            normalize=normalize, kernel_initializer=kernel_initializer, dtype=dtype,
        )

    def read(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> HParams:
        """Return the hyperparameters; a token can't choose more experts than there are."""
        hparams = super().read(args, kwargs)
        bound = self.bound(hparams).arguments
        count, top_k = bound["num_experts"], bound["top_k"]
        if top_k > count:
            raise ValueError(message("moe", "top_k", f"at most num_experts={count}", top_k))
        return hparams


def apply(
    call: Call, config: MoeConfig, params: MoeParams[Any], variables: Any, x: Any
) -> tuple[Routed, Any]:
    """Return the outputs of the chosen experts, weighted: see `mlax.moe`."""
    require_params("moe", params, MoeParams, config)
    require_params("moe", params.router, LinearParams, None)
    child, n = config.expert, config.num_experts
    require_copies("moe", params.experts, n)
    if params.router.kernel.shape[1:] != (n,):
        wanted, got = f"of shape (features, {n})", f"shape {params.router.kernel.shape}"
        raise ValueError(message("moe", "params.router.kernel", wanted, got, ANOTHER_MODEL))
    x, mask = _inputs(x, params.router.kernel.dtype)
    x = jnp.asarray(x)
    capacity = _capacity(config.capacity_factor, config.top_k, n, _count(x))
    keys = copy_keys(call.rng, n) if child.needs_rng else None
    experts, variables, keys = mesh.sharded_together("moe", (params.experts, variables, keys))

    # Where tokens go depends on all of them: the compiler moves them between the devices.
    route = mesh.without_types(
        functools.partial(_routed, config, capacity),
        (PartitionSpec(), PartitionSpec(), _spec_of_slots(experts, x, capacity)),
    )
    routes, sums, slots = route(params.router.kernel, x, mask)

    def expert(params: Any, variables: Any, key: Key | None, x: jax.Array) -> tuple[Any, Any]:
        return call(child, params, variables, x, key)

    run = jax.vmap(expert, (0, 0, 0, None if capacity is None else 0), axis_size=n)
    roles = ("tokens",) if capacity is None else ("experts", "tokens")
    outputs, variables = run(experts, variables, keys, constraints.split(slots, *roles))
    outputs = constraints.split(outputs, "experts", "tokens")

    spec = mesh.spec_of(x)
    last = spec[-1] if outputs.shape[-1] == x.shape[-1] else None
    combine = mesh.without_types(
        functools.partial(_combined, config, capacity), PartitionSpec(*spec[:-1], last)
    )
    return _with_losses(call, config, combine(routes, outputs, x), sums), variables


def _spec_of_slots(experts: Any, x: jax.Array, capacity: int | None) -> PartitionSpec:
    """Return the mesh axes of the slots: of the experts, and of the tokens if they fit."""
    of_experts = [mesh.spec_of(leaf)[0] for leaf in jax.tree.leaves(experts)[:1]]
    taken = mesh.names_in(of_experts)
    rows = [name for name in mesh.names_in(mesh.spec_of(x)[:-1]) if name not in taken]
    if capacity is None:
        return PartitionSpec(tuple(rows))
    shards = math.prod(jax.sharding.get_abstract_mesh().shape[name] for name in rows)
    return PartitionSpec(*of_experts or [None], tuple(rows) if capacity % shards == 0 else None)


class _Routes(NamedTuple):
    """Where each choice of each token goes; (top_k, tokens)."""

    gate: jax.Array
    """The weight of the expert's output."""
    expert: jax.Array
    """The expert, num_experts for padding."""
    slot: jax.Array
    """The slot of that expert; the token is dropped if it is capacity or more."""


class _Sums(NamedTuple):
    """Sums over tokens."""

    tokens: jax.Array
    """Number of real tokens."""
    load: jax.Array
    """(num_experts,): number of choices."""
    dropped: jax.Array
    """(num_experts,): number of dropped choices."""
    probability: jax.Array
    """(num_experts,)."""
    squared: jax.Array
    """Sum of logsumexp(logits)^2."""


def _routed(
    config: MoeConfig, capacity: int | None, kernel: jax.Array, x: jax.Array,
    mask: jax.Array | None,
) -> tuple[_Routes, _Sums, jax.Array]:
    """Return where the tokens go, sums over them, and the tokens in the slots of the experts."""
    n = config.num_experts
    x = x.reshape(_count(x), x.shape[-1])
    mask = jnp.ones(x.shape[:1], bool) if mask is None else mask.reshape(x.shape[0])
    x = jnp.where(mask[:, None], x, 0)  # otherwise NaN in padding would reach the sums
    wide = x.astype(wide_dtype(x.dtype))
    logits = matmul("moe", wide, kernel, lax.Precision.HIGHEST)
    probabilities = jax.nn.softmax(logits, -1)
    gates, experts = lax.top_k(probabilities, config.top_k)
    normalizes = config.top_k > 1 if config.normalize is None else config.normalize
    if normalizes:
        gates = gates / jnp.sum(gates, -1, keepdims=True)
    experts = jnp.where(mask[:, None], experts, n).T

    load = jnp.sum(jax.nn.one_hot(experts, n, dtype=jnp.int32), (0, 1), dtype=jnp.int32)
    sums = _Sums(
        jnp.sum(mask, dtype=wide.dtype), load,
        jnp.zeros_like(load) if capacity is None else jnp.maximum(load - capacity, 0),
        jnp.sum(jnp.where(mask[:, None], probabilities, 0), 0),
        jnp.sum(jnp.where(mask, jnp.square(jax.nn.logsumexp(logits, -1)), 0)),
    )
    if capacity is None:
        slots = jnp.broadcast_to(jnp.arange(x.shape[0]), experts.shape)
        return _Routes(gates.T, experts, slots), sums, x

    # Stable: what every expert gets is in the order of the choices, and then of the tokens.
    order = jnp.argsort(experts.reshape(-1), stable=True)
    first = jnp.cumsum(load) - load
    slots = jnp.argsort(order).reshape(experts.shape) - first.at[experts].get(mode="clip")
    routes = _Routes(gates.T, experts, slots)
    if config.dispatch == "einsum":
        at_expert = jax.nn.one_hot(experts, n, dtype=x.dtype)
        at_slot = jax.nn.one_hot(slots, capacity, dtype=x.dtype)
        places = _einsum("kte,ktc->tec", at_expert, at_slot)
        return routes, sums, _einsum("tec,tf->ecf", places, x)
    slot = jnp.arange(capacity)[None]
    choices = order.at[first[:, None] + slot].get(mode="fill", fill_value=0)
    tokens = jnp.where(slot < load[:, None], choices % x.shape[0], x.shape[0])
    return routes, sums, x.at[tokens].get(mode="fill", fill_value=0)


def _combined(
    config: MoeConfig, capacity: int | None, routes: _Routes, outputs: jax.Array, x: jax.Array
) -> jax.Array:
    """Return the outputs of the experts, (num_experts, capacity, out_features), at the tokens."""
    n, rows, features = outputs.shape
    wide = outputs.astype(wide_dtype(outputs.dtype))
    gates = routes.gate.astype(wide.dtype)
    if config.dispatch == "einsum":
        at_expert = jax.nn.one_hot(routes.expert, n, dtype=wide.dtype)
        if capacity is None:
            y = _einsum("te,etf->tf", _einsum("kt,kte->te", gates, at_expert), wide)
        else:
            at_slot = jax.nn.one_hot(routes.slot, capacity, dtype=wide.dtype)
            weights = _einsum("kt,kte,ktc->tec", gates, at_expert, at_slot)
            y = _einsum("tec,ecf->tf", weights, wide)
    else:
        fits = (routes.slot < rows) & (routes.expert < n)
        row = jnp.where(fits, routes.expert * rows + routes.slot, n * rows)
        chosen = wide.reshape(n * rows, features).at[row].get(mode="fill", fill_value=0)
        y = jnp.sum(gates[:, :, None] * chosen, 0)
    return y.astype(outputs.dtype).reshape(*x.shape[:-1], features)


_einsum = functools.partial(jnp.einsum, precision=lax.Precision.HIGHEST)


def _with_losses(call: Call, config: MoeConfig, y: jax.Array, sums: _Sums) -> Routed:
    """Return y with the losses of the whole batch."""
    names = () if call.inference_mode else call.batch_axis_name
    dtype = sums.probability.dtype

    def mean(value: jax.Array) -> jax.Array:
        return mesh.batch_mean("moe", value.astype(dtype), names)

    count = mean(sums.tokens)
    count = jnp.where(count > 0, count, 1)
    fraction, probability = mean(sums.load) / (count * config.top_k), mean(sums.probability) / count
    balance_loss = config.num_experts * jnp.sum(fraction * probability)
    return Routed(y, balance_loss, mean(sums.squared) / count, sums.load, sums.dropped)


def _inputs(x: Any, dtype: DTypeLike) -> MoeInputs:
    """Return the input as `MoeInputs`, for a router of some dtype."""
    inputs = x if isinstance(x, MoeInputs) else MoeInputs(x)
    if isinstance(inputs.x, tuple | list | dict):
        got = described(inputs.x)
        way_out = "pass mlax.MoeInputs(x, mask)"
        raise TypeError(message("moe", "x", "an array or MoeInputs", got, way_out))
    arguments.require_rank("moe", inputs.x, 1)
    arguments.require_real("moe", inputs.x)
    arguments.require_castable("moe", inputs.x, dtype)
    if inputs.mask is not None:
        arguments.require_array("moe", inputs.mask, "mask")
        if inputs.mask.dtype != bool or inputs.mask.shape != inputs.x.shape[:-1]:
            wanted = f"of dtype bool and shape {inputs.x.shape[:-1]}, one for each token"
            got = described(inputs.mask)
            raise ValueError(message("moe", "mask", wanted, got))
    return inputs


def _count(x: Any) -> int:
    """Return the number of tokens."""
    return math.prod(x.shape[:-1])


def _capacity(
    capacity_factor: float | None, top_k: int, num_experts: int, tokens: int
) -> int | None:
    """Return the number of slots of each expert, None if it has one for every token."""
    if capacity_factor is None:
        return None
    # Exact, and in integers, since the number of tokens may be symbolic.
    factor = Fraction(str(capacity_factor)) * top_k / num_experts
    return None if factor >= 1 else -(-tokens * factor.numerator // factor.denominator)


@transform(apply, MoeConfig, Moe)
def moe(
    rng: Key, x: Any, expert: AnyLayer, num_experts: Size, top_k: Size = 2, *,
    capacity_factor: CapacityFactor | None = 1.25, dispatch: Dispatch = "sorted",
    normalize: bool | None = None, kernel_initializer: Initializer = lecun_normal,
    dtype: DType = jnp.float32,
) -> Made:
    """A sparse mixture of experts: each token goes to the `top_k` experts that it chooses.

    (..., features) -> `mlax.types.Routed`: y (..., out_features), losses and counts. All leading
    axes hold tokens; x may be `mlax.MoeInputs`, some of whose tokens are padding. The router gives
    each token probabilities over the experts, softmax(x @ kernel), in float32 or better. y is the
    sum of the outputs of the most probable experts, weighted by these probabilities.

    As shapes are static, each expert takes at most

        capacity = ceil(capacity_factor * tokens * top_k / num_experts)

    tokens: first choices before second ones, and among these earlier tokens before later ones. A
    choice beyond that is dropped: it adds 0 to y, and the other weights are unchanged. So what is
    dropped depends on all tokens, later ones included; where it must not, as in decoding, use the
    same params with capacity_factor=None.

    In `mlax.batched` and `jax.vmap` each example, and in `jax.shard_map` each shard, has a capacity
    and counts of its own. The losses are those of the whole batch, over `batch_axis_name`, in
    training, and those of the tokens at hand in inference:

        balance_loss = num_experts * sum_e (fraction of choices)_e * (mean probability)_e
        z_loss = mean logsumexp(x @ kernel)^2

    All top_k * tokens choices count, dropped ones included. balance_loss is 1 if both are uniform;
    only the probabilities have a gradient.

    Args:
        expert: a layer from (..., features) to (..., out_features) that computes each row alone and
            has no variables. Expert i is initialised with fold_in(fold_in(rng, 1), i). If it needs
            a key, expert i gets fold_in(rng, i), and a single expert gets `rng` itself.
        num_experts: number of experts, and length of the leading axis of the arrays in
            params.experts, which may be sharded over it.
        top_k: number of experts that each token chooses.
        capacity_factor: 1 is enough if the load is uniform. None drops nothing, and neither does
            num_experts / top_k or more: every expert then runs on every token.
        dispatch: how tokens get to their experts. "sorted" sorts the choices and moves rows.
            "einsum" multiplies by arrays (tokens, num_experts, capacity), which takes time and
            memory quadratic in the number of tokens; it is for compilers and devices that do only
            products well. Results are the same, but in "einsum" a token of NaN spoils all others.
        normalize: whether the weights of a token are divided by their sum. None means True if
            `top_k` > 1: a single weight would always be 1, and y would not train the router.
        kernel_initializer: called with (features, num_experts), and the key fold_in(rng, 0).
        dtype: dtype of the kernel of the router.

    Raises:
        TypeError: an argument is of the wrong type, or x is not floating.
        ValueError: `top_k` exceeds `num_experts`, a number is not positive, the expert has
            variables or an output of another shape, or the mask does not fit x.

    Source: Shazeer et al., "Outrageously large neural networks", 2017; Lepikhin et al., "GShard",
    2020, for the capacity; Fedus et al., "Switch transformers", 2021, for balance_loss; Zoph et
    al., "ST-MoE", 2022, for z_loss.

    In a transformer, blocks pass on x and the sum of the losses so far:

    >>> import jax, jax.numpy as jnp, mlax
    >>> @mlax.block(
    ...     norm=mlax.rms_norm(), attention=mlax.attention(2, causal=True),
    ...     moe_norm=mlax.rms_norm(), moe=mlax.moe(mlax.mlp(16, jax.nn.silu, gated=True), 4),
    ... )
    ... def sparse_block(sub, inputs):
    ...     x, loss = inputs
    ...     x = x + sub.attention(sub.norm(x))
    ...     routed = sub.moe(sub.moe_norm(x))
    ...     return x + routed.y, loss + 0.01 * routed.balance_loss + 0.001 * routed.z_loss
    >>> init, apply = mlax.repeat(sparse_block, 3)
    >>> inputs = jnp.ones((7, 8)), jnp.zeros(())
    >>> params, state = init(jax.random.key(0), inputs)
    >>> params["moe"].experts["up"].kernel.shape
    (3, 4, 8, 16)
    >>> (y, loss), state = apply(params, state, inputs)
    >>> y.shape, loss.shape
    ((7, 8), ())
    """
    x, _ = _inputs(x, dtype)
    keys = init_keys(rng, 2)
    shape = (x.shape[-1], num_experts)
    kernel = initialize("moe", "kernel_initializer", kernel_initializer, keys[0], shape, dtype)
    tokens = _count(x)
    capacity = _capacity(capacity_factor, top_k, num_experts, tokens)
    rows = tokens if capacity is None else capacity
    slots = jax.ShapeDtypeStruct((rows, x.shape[-1]), x.dtype)
    made = init_copies("moe", expert, keys[1], slots, num_experts, "experts")
    if jax.tree.leaves(made.variables):
        wanted, way_out = "a layer without variables", "use a norm without running statistics"
        raise ValueError(message("moe", "expert", wanted, made.child.kind, way_out))
    y: Any = made.output()
    is_array = isinstance(y, jax.ShapeDtypeStruct) and jnp.issubdtype(y.dtype, jnp.floating)
    if not is_array or y.shape[:-1] != (rows,):
        wanted = f"floating, of shape ({rows}, out_features) for x of shape {slots.shape}"
        raise ValueError(message("moe", "the output of the expert", wanted, described(y)))
    y = jax.ShapeDtypeStruct((*x.shape[:-1], y.shape[-1]), y.dtype)
    loss: Any = jax.ShapeDtypeStruct((), wide_dtype(x.dtype))
    counts: Any = jax.ShapeDtypeStruct((num_experts,), jnp.int32)
    output = Routed(y, loss, loss, counts, counts)
    params = MoeParams(LinearParams(kernel), made.params)
    return made._replace(params=params, output=lambda: output)
