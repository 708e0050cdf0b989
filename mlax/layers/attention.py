"""Attention: y = output(softmax(q k^T / sqrt(head_dim) + bias) v); q, k, v are linear in the input.

    x       (..., length, features)
    memory  (..., memory_length, memory_features), x itself in self-attention
    q       (..., length, num_heads, head_dim)
    k, v    (..., memory_length, num_kv_heads, head_dim)
    y       (..., length, out_features)

Every query and every key has one position, given or counted from 0. Causal attention and windows
compare positions, rotary embeddings rotate by them, and a negative position is padding. So one rule
serves whole sequences, padding on either side, and chunks decoded with a cache, which holds the
keys, the values and the positions of all tokens so far.
"""

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from mlax import arguments, functional, taps
from mlax.arguments import ANOTHER_MODEL, DType, Epsilon, Number, Rate, Sharding, Size
from mlax.belonging import require_params
from mlax.decoding import require_inference
from mlax.errors import expected, message
from mlax.initializers import Initializer, initialize, lecun_normal
from mlax.layer import AxisName, Key, State
from mlax.layers import dense, norms
from mlax.layers.attention_cache import CachePolicy, empty_cache, extended, positions_after
from mlax.layers.attention_product import NOT_BY_XLA, Implementation, product, weighted, weights_of
from mlax.layers.dense import DenseParams
from mlax.layers.norms import NormParams
from mlax.pair import layer
from mlax.positions import of_rank, signed, with_padding
from mlax.serialization import serializable

Rotation: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]
"""Rotates queries or keys, (..., length, heads, head_dim), by their positions, (..., length)."""

PositionBias: TypeAlias = Callable[[jax.Array, jax.Array], jax.Array]
"""From positions of queries and of keys to a bias, (..., num_heads, length, memory_length)."""


@serializable
class AttentionInputs(NamedTuple):
    """The input of `attention` when it is more than x; None means absent.

        x                 (..., length, features)
        memory            (..., memory_length, memory_features), what is attended to instead of x
        mask              boolean, True where a key takes part; broadcastable to
                          (..., length, memory_length), or with all axes to
                          (..., num_heads, length, memory_length)
        bias              broadcastable to the latter, added to the logits
        positions         (..., length), integers, counted from 0 if None; negative is padding
        memory_positions  (..., memory_length), the same for a memory
        lengths           (...), the number of real tokens, in the memory if there is one; the rest
                          are padding, as keys and, without a memory, as queries
    """

    x: Any
    """(..., length, features)."""
    memory: Any = None
    """(..., memory_length, memory_features), what is attended to; None means x."""
    mask: Any = None
    """Boolean, broadcastable to (..., length, memory_length) or, with all axes, to
    (..., num_heads, length, memory_length); True where a key takes part."""
    bias: Any = None
    """Broadcastable to (..., num_heads, length, memory_length), added to the logits."""
    positions: Any = None
    """(..., length), integers; negative ones are padding. None counts from 0."""
    memory_positions: Any = None
    """(..., memory_length), the positions of the keys, if there is a memory."""
    lengths: Any = None
    """(...), the number of real tokens, in the memory if there is one."""


@serializable
class AttentionParams(NamedTuple):
    """Parameters of `attention`."""

    query: DenseParams | None
    """kernel (features, num_heads * head_dim)."""
    key: DenseParams | None
    """kernel (memory_features, num_kv_heads * head_dim)."""
    value: DenseParams | None
    """kernel (memory_features, num_kv_heads * head_dim)."""
    fused: DenseParams | None
    """All three, concatenated along the last axis, if `fused`."""
    query_norm: NormParams | None
    """The scale (head_dim,) of the normalised queries, if `qk_norm`."""
    key_norm: NormParams | None
    """The scale (head_dim,) of the normalised keys, if `qk_norm`."""
    output: DenseParams
    """kernel (num_heads * head_dim, out_features)."""


class AttentionConfig(NamedTuple):
    """Configuration of `attention`."""

    num_heads: int
    """Number of query heads."""
    num_kv_heads: int | None
    """Number of key and value heads."""
    causal: bool
    """Whether keys at later positions are masked out."""
    window: int | None
    """Number of positions that a query attends to, its own included."""
    rotary: Rotation | None
    """Rotates queries and keys by their positions."""
    position_bias: PositionBias | None
    """Computes a bias for the logits from the positions of queries and keys."""
    fused: bool
    """Whether the kernels of queries, keys and values are one array."""
    use_bias: bool
    """Whether queries, keys and values have a bias."""
    use_output_bias: bool | None
    """Whether the output has a bias; None means `use_bias`."""
    qk_norm: bool
    """Whether queries and keys are normalised."""
    epsilon: float
    """Term added to the mean square in `qk_norm`."""
    scale: float | None
    """Factor of q k^T."""
    softcap: float | None
    """Bound on the logits."""
    dropout_rate: float
    """Probability of dropping a weight."""
    implementation: Implementation | None
    """What computes the product."""
    require_fused: bool
    """Whether to raise where `implementation` is not used."""
    cache_length: int | None
    """Number of tokens that the cache has room for."""
    cache_policy: CachePolicy
    """What happens when the cache is full."""
    out_sharding: PartitionSpec | None
    """Sharding of y over explicit mesh axes."""

    @property
    def projections(self) -> dict[str, dense.DenseConfig]:
        """The projections, by the names of their parameters."""
        names = ("fused",) if self.fused else ("query", "key", "value")
        output = self.use_bias if self.use_output_bias is None else self.use_output_bias
        configs = {name: dense.DenseConfig(self.use_bias, None) for name in names}
        return {**configs, "output": dense.DenseConfig(output, None)}


def apply(
    params: AttentionParams, state: State[Any, AttentionConfig], x: Any, rng: Key | None = None,
    inference_mode: bool = False, batch_axis_name: AxisName = (),
) -> tuple[jax.Array, State[Any, AttentionConfig]]:
    """Return the output of attention: see `mlax.Apply` and `mlax.attention`."""
    config, cache = state.config, state.variables
    _require_params(params, config)
    inputs = AttentionInputs(*(a if a is None else jnp.asarray(a) for a in _inputs(x)))
    inputs = inputs._replace(**{
        name: signed(places)
        for name in ("positions", "memory_positions")
        if (places := getattr(inputs, name)) is not None
    })
    query, key, value = _projections(params, config, inputs)
    key, value = key.astype(query.dtype), value.astype(query.dtype)
    positions, lengths = inputs.positions, inputs.lengths
    memory_positions = positions if inputs.memory is None else inputs.memory_positions
    if config.cache_length is not None:
        _require_decoding(inputs, cache.positions.shape[:-1], inference_mode)
        shape = inputs.x.shape[:-1]
        positions = memory_positions = positions_after(cache, shape, positions, lengths)
        lengths = None
    if config.rotary is not None:
        query = config.rotary(query, _or_counted(positions, query))
        key = config.rotary(key, _or_counted(memory_positions, key))
    overflows: Any = None
    if config.cache_length is not None:
        cache, overflows = extended(
            cache, key, value, positions, config.cache_policy, config.window
        )
        key, value = (jnp.swapaxes(a, -2, -3).astype(query.dtype) for a in (cache.key, cache.value))
        memory_positions = cache.positions

    if config.position_bias is not None:
        places = _or_counted(positions, query), _or_counted(memory_positions, key)
        bias = config.position_bias(*places)
        inputs = inputs._replace(bias=bias if inputs.bias is None else inputs.bias + bias)
    drops = bool(config.dropout_rate) and not inference_mode
    needs_weights = drops or config.softcap is not None or taps.is_wanted("weights")
    if query.dtype in NOT_BY_XLA and config.implementation in (None, "xla"):
        needs_weights = True
    mask, bias = _fitting_mask_and_bias(inputs, query, key)
    by_positions = positions is not None or memory_positions is not None
    # With a window, a query far from a memory may attend to nothing; and JAX's own window takes
    # Python's range of the lengths, which must not be symbolic.
    is_symbolic = any(map(jax.export.is_symbolic_dim, (query.shape[-3], key.shape[-3])))
    beyond = config.window is not None and (inputs.memory is not None or is_symbolic)
    if needs_weights or by_positions or beyond:
        positions = _or_counted(positions, query)
        memory_positions = _or_counted(memory_positions, key)
        if lengths is not None:
            memory_positions = with_padding(memory_positions, lengths)
            if inputs.memory is None:
                positions = with_padding(positions, lengths)
        allowed = _allowed(config, positions, memory_positions)[..., None, :, :]
        mask = allowed if mask is None else mask & allowed
        lengths, order = None, {}
    else:
        order = _order(config)

    variables = cache
    if needs_weights:
        if config.require_fused:
            what, got = "no dropout, softcap, tap of weights, float16 or float64", "one of them"
            raise ValueError(expected("attention", what, got, "or pass require_fused=False"))
        weights = weights_of(query, key, bias, mask, scale=config.scale, softcap=config.softcap)
        variables = taps.recorded("weights", weights, cache)
        if drops:
            drop_key = arguments.required_key("attention", rng)
            axes = tuple(range(weights.ndim))
            weights = functional.dropout(weights, drop_key, config.dropout_rate, axes)
        y = weighted(weights, value)
    else:
        y = product(
            query, key, value, bias, mask, lengths, order, scale=config.scale,
            implementation=config.implementation,
        )
    y = _without_padding(y, mask, lengths, inputs.memory is None)
    if overflows is not None:
        y = jnp.where(overflows, jnp.nan, y)
    output = dense.DenseConfig(True, config.out_sharding)
    y = dense.apply(params.output, output, y.reshape(*y.shape[:-2], y.shape[-2] * y.shape[-1]))
    return y, State(variables, config)


_DENSE = dense.DenseConfig(True, None)


def _require_params(params: AttentionParams, config: AttentionConfig) -> None:
    """Require the parameters that these hyperparameters make, and no others."""
    norms_used = ("query_norm", "key_norm") if config.qk_norm else ()
    for name, value in params._asdict().items():
        if (value is None) is (name in (*config.projections, *norms_used)):
            wanted = "parameters" if value is None else "None"
            got = arguments.described(value)
            raise TypeError(message("attention", f"params.{name}", wanted, got, ANOTHER_MODEL))
    for name, projection in config.projections.items():
        require_params("attention", getattr(params, name), DenseParams, projection)


def _inputs(x: Any) -> AttentionInputs:
    """Return the input as `AttentionInputs`, with shapes and dtypes that fit together."""
    inputs = x if isinstance(x, AttentionInputs) else AttentionInputs(x)
    if isinstance(inputs.x, tuple | list | dict):
        way_out = "pass mlax.AttentionInputs(x, memory=..., mask=..., positions=...)"
        got = arguments.described(inputs.x)
        raise TypeError(message("attention", "x", "an array or AttentionInputs", got, way_out))
    for name, value in zip(inputs._fields, inputs, strict=True):
        if value is not None or name == "x":
            arguments.require_array("attention", value, name)
    _require_shapes(inputs)
    return inputs


def _require_shapes(inputs: AttentionInputs) -> None:
    """Require axes that fit those of x, and the dtypes that their meaning demands."""
    x = inputs.x
    arguments.require_rank("attention", x, 2)
    memory = x if inputs.memory is None else inputs.memory
    if memory.shape[:-2] != x.shape[:-2] or len(memory.shape) < 2:
        wanted = f"of shape {(*x.shape[:-2], 'memory_length', 'memory_features')}"
        got = f"shape {memory.shape}"
        raise ValueError(message("attention", "memory", wanted.replace("'", ""), got))
    if inputs.memory is None and inputs.memory_positions is not None:
        what, got = "memory_positions with a memory", "no memory"
        raise ValueError(expected("attention", what, got, "pass positions"))
    lead, length, memory_length = x.shape[:-2], x.shape[-2], memory.shape[-2]
    for name, shape in (
        ("positions", (*lead, length)), ("memory_positions", (*lead, memory_length)),
        ("lengths", lead),
    ):
        value = getattr(inputs, name)
        if value is None:
            continue
        arguments.require_integers("attention", value, name)
        if not _broadcasts(value.shape, shape):
            got = f"shape {value.shape}"
            raise ValueError(message("attention", name, f"of shape {shape}", got))
    if inputs.mask is not None and inputs.mask.dtype != bool:
        got = jnp.dtype(inputs.mask.dtype).name
        way_out = "pass numbers to add to the logits as bias"
        raise TypeError(message("attention", "mask", "of dtype bool", got, way_out))


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    """Return whether an array of a shape can be broadcast to another one."""
    pairs = zip(reversed(shape), reversed(to), strict=False)
    return len(shape) <= len(to) and all(n in (1, wanted) for n, wanted in pairs)


def _projections(
    params: AttentionParams, config: AttentionConfig, inputs: AttentionInputs
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return queries, keys and values, (..., length, heads, head_dim)."""
    heads, kv_heads = config.num_heads, config.num_kv_heads or config.num_heads
    memory = inputs.x if inputs.memory is None else inputs.memory
    if params.fused is not None:
        if inputs.memory is not None:
            raise ValueError(expected("attention", "x alone with fused projections", "a memory"))
        joint = _in_heads(dense.apply(params.fused, _DENSE, inputs.x), heads + 2 * kv_heads)
        query, key, value = jnp.split(joint, [heads, heads + kv_heads], -2)
    else:
        assert params.query and params.key and params.value  # by `_require_params`
        query = _in_heads(dense.apply(params.query, _DENSE, inputs.x), heads)
        key = _in_heads(dense.apply(params.key, _DENSE, memory), kv_heads)
        value = _in_heads(dense.apply(params.value, _DENSE, memory), kv_heads)
    if key.shape[-1] != query.shape[-1] or value.shape != key.shape:
        wanted = f"keys and values with {kv_heads} heads of {query.shape[-1]} features, as queries"
        got = f"kernels for {key.shape[-1]} and {value.shape[-1]}"
        raise ValueError(expected("attention", wanted, got, ANOTHER_MODEL))
    norm = norms.RmsNormConfig(-1, config.epsilon, True, None)
    if params.query_norm is not None:
        query = norms.apply(params.query_norm, norm, query)
    if params.key_norm is not None:
        key = norms.apply(params.key_norm, norm, key)
    return query, key, value


def _in_heads(x: jax.Array, heads: int) -> jax.Array:
    return x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads)


def _or_counted(positions: Any, x: jax.Array) -> jax.Array:
    """Return positions for x, (..., length, heads, head_dim), counted if they aren't given."""
    if positions is None:
        positions = jnp.arange(x.shape[-3])
    return of_rank(positions, x.ndim - 2)


def _allowed(config: AttentionConfig, positions: jax.Array, of_keys: jax.Array) -> jax.Array:
    """Return which keys each query attends to by their positions, (..., length, memory_length)."""
    query, key = positions[..., :, None], of_keys[..., None, :]
    allowed = (key >= 0) & (query >= 0)
    if config.causal:
        allowed &= key <= query
    if config.window is not None:
        allowed &= query - key < config.window
        if not config.causal:
            allowed &= key - query < config.window
    return allowed


def _order(config: AttentionConfig) -> dict[str, Any]:
    """Return the same rule for counted positions, as arguments of the product."""
    order: dict[str, Any] = {"is_causal": config.causal}
    if config.window is not None:
        order["local_window_size"] = (config.window - 1, 0 if config.causal else config.window - 1)
    return order


def _fitting_mask_and_bias(
    inputs: AttentionInputs, query: jax.Array, key: jax.Array
) -> tuple[Any, Any]:
    """Return mask and bias with the axes (..., heads, length, memory_length), or None."""
    *lead, length, heads, _ = query.shape
    full = (*lead, heads, length, key.shape[-3])
    mask, bias = inputs.mask, inputs.bias
    if mask is not None and 2 <= mask.ndim < len(full):
        mask = mask[..., None, :, :]
    for name, value in (("mask", mask), ("bias", bias)):
        if value is not None and (value.ndim < 2 or not _broadcasts(value.shape, full)):
            wanted = f"broadcastable to {full}, (..., num_heads, length, memory_length)"
            if name == "mask":
                without = (*lead, length, full[-1])
                wanted = f"broadcastable to {without} or, with a head axis, {full}"
            got = f"shape {getattr(inputs, name).shape}"
            raise ValueError(message("attention", name, wanted, got))
    mask, bias = (a if a is None else of_rank(a, len(full)) for a in (mask, bias))
    return mask, bias


def _without_padding(y: jax.Array, mask: Any, lengths: Any, is_self_attention: bool) -> jax.Array:
    """Return y, with 0 for queries that attend to nothing."""
    if mask is not None:
        attends = jnp.swapaxes(jnp.any(mask, -1), -1, -2)[..., None]
    elif lengths is not None:
        first = jnp.arange(y.shape[-3]) if is_self_attention else jnp.zeros(1, int)
        real = of_rank(first, y.ndim - 2) < of_rank(lengths, y.ndim - 3)[..., None]
        attends = real[..., None, None]
    else:
        return y
    return jnp.where(attends, y, 0)


def _require_decoding(
    inputs: AttentionInputs, batch: tuple[int, ...], inference_mode: bool
) -> None:
    """Require an input that a cache for a batch of this shape can serve."""
    require_inference("attention", inference_mode, "cache_length")
    if inputs.memory is not None:
        raise ValueError(expected("attention", "x alone with a cache", "a memory"))
    lead = inputs.x.shape[:-2]
    if lead != batch:
        wanted, got = f"a cache for a batch of shape {lead}", f"one for {batch}"
        raise ValueError(expected("attention", wanted, got, "initialise the state for this batch"))


@layer(
    apply, config=AttentionConfig, needs_rng=lambda *_, dropout_rate=0.0, **__: dropout_rate != 0
)
def attention(
    rng: Key, x: Any, num_heads: Size, num_kv_heads: Size | None = None,
    head_dim: Size | None = None, *,
    out_features: Size | None = None, causal: bool = False, window: Size | None = None,
    rotary: Rotation | None = None, position_bias: PositionBias | None = None,
    fused: bool = False, use_bias: bool = True, use_output_bias: bool | None = None,
    qk_norm: bool = False, epsilon: Epsilon = 1e-6, scale: Number | None = None,
    softcap: Number | None = None, dropout_rate: Rate = 0.0,
    implementation: Implementation | None = None, require_fused: bool = False,
    cache_length: Size | None = None, cache_policy: CachePolicy = "error",
    kernel_initializer: Initializer = lecun_normal,
    bias_initializer: Initializer = jax.nn.initializers.zeros, dtype: DType = jnp.float32,
    out_sharding: Sharding | None = None,
) -> tuple[AttentionParams, State[Any, AttentionConfig]]:
    """Multi-head attention: y = output(softmax(q k^T * scale + bias) v).

    (..., length, features) -> (..., length, out_features). q, k and v are linear in x
    (self-attention), or q in x and k, v in a memory (cross-attention). The input is x, or
    `mlax.AttentionInputs(x, memory, mask, bias, positions, memory_positions, lengths)`.

    Every token has a position, given or counted from 0. With `causal` and `window`, a query at p
    attends to keys at q <= p and |p - q| < window. A negative position is padding, which attends to
    nothing and is attended to by nothing. y is output(0) where a query attends to nothing.

    With `cache_length`, the layer decodes: each call of `apply`, in inference mode, takes the next
    tokens of a sequence, any number of them, and attends to all tokens so far. Their keys and
    values are variables of the state. The params are the same as without a cache.

    Args:
        num_heads: number of query heads.
        num_kv_heads: number of key and value heads, which divides num_heads; None means num_heads
            (multi-head), 1 is multi-query, anything else is grouped-query attention.
        head_dim: features per head; None means features / num_heads.
        out_features: features of y; None means as many as x has.
        causal: whether queries attend to no later positions.
        window: how many positions a query attends to, its own included.
        rotary: a function (x, positions) -> x for queries and keys: `mlax.positions.rotary`, or a
            `functools.partial` of it.
        position_bias: a function (positions, memory_positions) -> bias, added to the logits:
            `functools.partial(mlax.positions.alibi, num_heads)`.
        fused: whether the kernels of q, k and v are one array, in this order along its last axis,
            for self-attention.
        use_bias: whether q, k, v and the output have a bias.
        use_output_bias: the same for the output alone; None means `use_bias`.
        qk_norm: whether queries and keys of each head are divided by their root mean square and
            scaled, before they are rotated.
        epsilon: term added to the mean square.
        scale: factor of q k^T; None means 1 / sqrt(head_dim).
        softcap: the logits become softcap * tanh(logits / softcap).
        dropout_rate: probability of dropping a weight in training.
        implementation: what computes the product: None or "xla", "cudnn", or a function with the
            signature of `jax.nn.dot_product_attention`, such as
            `mlax.functional.chunked_attention`. Dropout, softcap and a tap of "weights" need
            the weights themselves, which plain products then compute instead, as they do in
            float16 and float64 where this is None or "xla".
        require_fused: whether to raise instead.
        cache_length: number of tokens that the cache has room for.
        cache_policy: what happens when it is full. "error" raises if the number of tokens is known,
            outside `jax.jit`; in compiled code y is NaN from then on, and a check of
            `jax.experimental.checkify` fails. "nan" leaves out that check, which adds about 2 ms
            to each launch of a program with 100 arrays: worth it where each token is a launch, as
            in a loop around a jitted `apply`, but not in `mlax.generate`. "wrap" overwrites the
            oldest tokens; with a window w, it takes at most cache_length - w + 1 tokens at once.
        kernel_initializer: called with (features, heads * head_dim) for each of q, k and v, and
            with (num_heads * head_dim, out_features).
        bias_initializer: called with the length of a bias.
        dtype: dtype of the parameters. They are cast to the dtype of x when used.
        out_sharding: as in `mlax.linear`, for y: required where heads are sharded.

    Raises:
        TypeError: an argument is of the wrong type, or x is not floating.
        ValueError: num_heads does not divide features, or num_kv_heads does not divide num_heads;
            a mask, bias, position or cache doesn't fit x; or a cache is used in training.

    Source: Vaswani et al., "Attention is all you need", 2017; Ainslie et al., "GQA", 2023.

    >>> import jax, jax.numpy as jnp, mlax
    >>> x = jax.random.normal(jax.random.key(1), (6, 8))
    >>> params, state = mlax.attention(2, causal=True).init(jax.random.key(0), x)
    >>> y, _ = mlax.attention(2, causal=True).apply(params, state, x)
    >>> decoder = mlax.attention(2, causal=True, cache_length=6)
    >>> _, state = decoder.init(jax.random.key(0), x)
    >>> first, state = decoder.apply(params, state, x[:4], inference_mode=True)
    >>> second, state = decoder.apply(params, state, x[4:], inference_mode=True)
    >>> jnp.allclose(jnp.concatenate([first, second]), y, atol=1e-5)
    Array(True, dtype=bool)
    """
    inputs = _inputs(x)
    memory = inputs.x if inputs.memory is None else inputs.memory
    for name, array in (("x", inputs.x), ("memory", memory)):
        arguments.require_castable("attention", array, dtype)
        if not jnp.issubdtype(array.dtype, jnp.floating):
            got = jnp.dtype(array.dtype).name
            raise TypeError(message("attention", name, "of a floating dtype", got))
    features, memory_features = inputs.x.shape[-1], memory.shape[-1]
    if head_dim is None and features % num_heads:
        wanted, way_out = f"a divisor of the {features} features of x", "or pass head_dim"
        raise ValueError(message("attention", "num_heads", wanted, num_heads, way_out))
    kv_heads, width = num_kv_heads or num_heads, head_dim or features // num_heads
    if num_heads % kv_heads:
        wanted = f"a divisor of num_heads ({num_heads})"
        raise ValueError(message("attention", "num_kv_heads", wanted, kv_heads))
    if fused and inputs.memory is not None:
        raise ValueError(expected("attention", "x alone with fused=True", "a memory"))
    if cache_length is not None and (not causal or inputs.memory is not None):
        what, got = "causal self-attention with cache_length", "a memory"
        raise ValueError(expected("attention", what, "causal=False" if not causal else got))
    if cache_policy == "wrap" and (window is None or cache_length is None or cache_length < window):
        wanted, got = 'cache_length >= window with cache_policy="wrap"', f"{cache_length}, {window}"
        raise ValueError(expected("attention", wanted, got))

    if rotary is not None:
        one = jax.ShapeDtypeStruct((1, num_heads, width), inputs.x.dtype)
        jax.eval_shape(rotary, one, jax.ShapeDtypeStruct((1,), jnp.int32))
    if position_bias is not None:
        jax.eval_shape(position_bias, *[jax.ShapeDtypeStruct((1,), jnp.int32)] * 2)

    def projection(i: int, inputs: int, outputs: int, has_bias: bool = use_bias) -> DenseParams:
        keys = [jax.random.fold_in(jax.random.fold_in(rng, i), j) for j in range(2)]
        shape, owner = (inputs, outputs), "attention"
        kernel = initialize(owner, "kernel_initializer", kernel_initializer, keys[0], shape, dtype)
        bias = None
        if has_bias:
            bias = initialize(
                owner, "bias_initializer", bias_initializer, keys[1], (outputs,), dtype
            )
        return DenseParams(kernel, bias)

    query = projection(0, features, num_heads * width)
    key, value = (projection(i, memory_features, kv_heads * width) for i in (1, 2))
    joint = None
    if fused:
        joint = jax.tree.map(lambda *parts: jnp.concatenate(parts, -1), query, key, value)
    norm = NormParams(jnp.ones(width, dtype), None) if qk_norm else None
    output_bias = use_bias if use_output_bias is None else use_output_bias
    output = projection(3, num_heads * width, out_features or features, output_bias)
    if fused:
        params = AttentionParams(None, None, None, joint, norm, norm, output)
    else:
        params = AttentionParams(query, key, value, None, norm, norm, output)
    variables: Any = ()
    if cache_length is not None:
        lead, dtype_of_x = inputs.x.shape[:-2], inputs.x.dtype
        variables = empty_cache(lead, cache_length, kv_heads, width, dtype_of_x)
    config = AttentionConfig(
        num_heads, num_kv_heads, causal, window, rotary, position_bias, fused, use_bias,
        use_output_bias, qk_norm, epsilon, scale, softcap, dropout_rate, implementation,
        require_fused, cache_length, cache_policy, out_sharding,
    )
    return params, State(variables, config)
