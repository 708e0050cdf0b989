"""Weights in 8 bits: W / scale in int8 or float8, with a scale for each output channel.

    W       (..., inputs, outputs), a kernel of `mlax.conv`, or an embedding (vocab_size, embed_dim)
    values  the shape of W
    scale   the same with inputs of length 1, or (vocab_size, 1), in float32: max |W| / most over
            inputs, where most is the largest value used: 127 for int8, 448 for float8

int8 rounds to whole steps: |values * scale - W| <= scale / 2, which is max |W| / 254. float8_e4m3fn
rounds to 4 significant bits: the error is at most |W| / 16, or scale / 1024 if that is more. In
both, values * scale is then rounded to the dtype of W. No scale is below 1e-38.

Only weights are quantized: they are dequantized where they are used. The block-scaled products
of `jax.nn.scaled_matmul` (mxfp8) run only on some GPUs, and are not used.

Weights in 8 bits can't be trained, so they are variables; params are the other weights.
"""

import dataclasses
import functools
from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

from mlax import mesh
from mlax.arguments import AnyLayer, Pattern, Rule, described, read_dtype, read_layer
from mlax.belonging import require_params_like, require_state_like
from mlax.combinators import (
    Call, Child, Made, Transform, init_only_child, transform, variables_of,
)
from mlax.combinators.kernels import kernels_of, require_containers, within
from mlax.errors import message
from mlax.layer import Key, Layer, State
from mlax.layer import S, X, Y
from mlax.pair import require_input
from mlax.serialization import serializable
from mlax.statistics import wide_dtype
from mlax.tree import Where, combine, map_with_path, partition, require_selected

_MOST = {jnp.dtype(jnp.int8): 127, jnp.dtype(jnp.float8_e4m3fn): 448}
"""The largest value used, for each dtype."""


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["values", "scale"], meta_fields=["dtype"]
)
@dataclasses.dataclass(frozen=True)
class Quantized:
    """What is stored in place of an array: values * scale."""

    values: jax.Array
    """int8 or float8, the shape of the array."""
    scale: jax.Array
    """float32 or better, 1 along the axes that share it."""
    dtype: np.dtype[Any]
    """The dtype of the array."""

    @property
    def array(self) -> jax.Array:
        """values * scale, in the dtype of the array."""
        scale = mesh.whole(self.scale)
        return (self.values.astype(scale.dtype) * scale).astype(self.dtype)


jax.export.register_pytree_node_serialization(
    Quantized, serialized_name="mlax.Quantized",
    serialize_auxdata=lambda dtypes: dtypes[0].name.encode(),
    deserialize_auxdata=lambda name: (jnp.dtype(name.decode()),),
)


@serializable
class QuantizedVariables(NamedTuple):
    """Variables of `quantized`."""

    weights: Any
    """The params of the layer: `Quantized` for those in 8 bits, None for the others."""
    layer: Any
    """The variables of the layer."""

    def holding(self, other: Any) -> Any:
        """Return these variables, with the weights that `other` holds."""
        return self._replace(weights=other.weights)


class QuantizedConfig(NamedTuple):
    """Configuration of `quantized`."""

    layer: Child
    """The layer."""
    where: Where
    """Which leaves of its params are quantized."""
    dtype: DTypeLike
    """The dtype that they are stored in."""

    def view(self, params: Any, variables: QuantizedVariables) -> tuple[Child, Any, Any]:
        """Return the layer with its dequantized params and its variables."""
        products = jax.tree.map(
            lambda small: small.array, variables.weights, is_leaf=lambda n: isinstance(n, Quantized)
        )
        require_containers("quantized", params, products, Quantized)
        return self.layer, combine(params, products), variables.layer


def apply(
    call: Call, config: QuantizedConfig, params: Any, variables: QuantizedVariables, x: Any
) -> tuple[Any, QuantizedVariables]:
    """Return the output of the layer with its weights dequantized: see `mlax.quantized`."""
    y, after = call(*config.view(params, variables), x)
    return y, QuantizedVariables(variables.weights, after)


def is_weight(path: str, leaf: Any) -> bool:
    """Return whether a leaf is a kernel or an embedding: what a layer multiplies x with."""
    return path.endswith(("kernel", "embedding")) and len(leaf.shape) >= 2


def _chosen(config: QuantizedConfig, params: Any) -> tuple[Any, Any]:
    """Return the params to quantize and the others, each with None in place of the rest."""
    way_out = "the arrays of mlax.lora and mlax.quantized are variables: put mlax.lora around this"
    require_selected("quantized", params, config.where, way_out)
    return partition(params, config.where)


def _weights(config: QuantizedConfig, chosen: Any, copies: int = 0) -> Any:
    """Return arrays in 8 bits."""
    kernel_of, dtype = kernels_of("quantized", config.layer, copies), jnp.dtype(config.dtype)
    most = _MOST[dtype]

    def weight(path: str, leaf: jax.Array) -> Quantized:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            raise TypeError(message("quantized", path, "of a floating dtype", described(leaf)))
        kernel = kernel_of(path, leaf)
        shared = (leaf.ndim - 1,) if path.endswith("embedding") else kernel.inputs
        wide = leaf.astype(wide_dtype(leaf.dtype))
        largest = jnp.max(jnp.abs(wide), shared, keepdims=True, initial=0)
        scale = jnp.maximum(jnp.where(largest == 0, most, largest) / most, _TINY)
        steps = wide / scale
        if jnp.issubdtype(dtype, jnp.integer):
            steps = jnp.clip(jnp.round(steps), -most, most)
        return Quantized(steps.astype(dtype), scale, jnp.dtype(leaf.dtype))

    return map_with_path(weight, chosen)


_TINY = float(np.finfo(np.float32).tiny)


def _read_kept(owner: str, name: str, value: Any) -> Any:
    dtype = read_dtype(owner, name, value)
    if dtype not in _MOST:
        wanted = "jnp.int8 or jnp.float8_e4m3fn"
        raise ValueError(message(owner, name, wanted, dtype.name))
    return dtype


KeptDType: TypeAlias = Annotated[DTypeLike, Rule(_read_kept)]
"""int8 or float8_e4m3fn."""


class Quantizer(Transform[Any, State[QuantizedVariables, QuantizedConfig], Any, Any]):
    """The type of `quantized`: x and y are those of the layer; no type says which params remain."""

    def __call__(
        self, layer: Layer[Any, Any, X, Y], where: Where = is_weight, *,
        dtype: DTypeLike = jnp.int8,
    ) -> Layer[Any, State[QuantizedVariables, QuantizedConfig], X, Y]:
        """Return the layer with weights in 8 bits."""
        return self.bind(layer, where, dtype=dtype)


@transform(apply, QuantizedConfig, Quantizer)
def quantized(
    rng: Key, x: Any, layer: AnyLayer, where: Pattern = is_weight, *, dtype: KeptDType = jnp.int8
) -> Made:
    """A layer whose weights are stored in 8 bits, a quarter of their size in float32.

    Each output channel of a kernel, in each copy of the layer, has a scale, as has each row of an
    embedding. In int8 the largest error is max |W| / 254 over the channel or row; in float8_e4m3fn
    it is |W| / 16 for each weight, or max |W| / 450_000 if that is more. A channel with a NaN or an
    infinity becomes NaN. Quantized weights are variables; params are the others, such as biases,
    with None in place of the quantized ones.

    This saves memory, not time: each call dequantizes the weights, and computes products in the
    dtype of x. (On a CPU, a forward pass of a small transformer took twice as long.)

    `mlax.init_quantized` starts from existing params, `mlax.init_state` makes a state for decoding
    with the same weights, and `mlax.merge_quantized` returns the params of the layer alone.
    `mlax.lora` around it trains adapters of the quantized kernels.

    Args:
        layer: any layer.
        where: which leaves of the layer's params to quantize, by path. They are floating, and
            (inputs, outputs) in each copy of their layer or kernels of `mlax.conv`. By default all
            whose name ends in kernel or embedding.
        dtype: the dtype that they are stored in, jnp.int8 or jnp.float8_e4m3fn.

    Raises:
        TypeError: a selected leaf is not floating.
        ValueError: a pattern selects no leaf, or one with another layout.

    >>> import jax, jax.numpy as jnp, mlax
    >>> model, x = mlax.series(mlax.dense(8), mlax.f(jnp.tanh), mlax.dense(4)), jnp.ones(6)
    >>> params, state = model.init(jax.random.key(0), x)
    >>> small = mlax.quantized(model)
    >>> biases, small_state = mlax.init_quantized(small, x, params, state)
    >>> small_state.variables.weights[0].kernel.values.dtype, mlax.paths(biases)
    (dtype('int8'), ['0.bias', '2.bias'])
    >>> y, _ = small.apply(biases, small_state, x)
    """
    made = init_only_child("quantized", layer, rng, x)
    config = QuantizedConfig(made.child, where, dtype)
    chosen, others = _chosen(config, made.params)
    weights = _weights(config, chosen)
    return made._replace(params=others, variables=QuantizedVariables(weights, made.variables))


def init_quantized(
    layer: Layer[Any, S, Any, Any], x: Any, params: Any, state: Any
) -> tuple[Any, S]:
    """Return params and state of a layer made by `quantized`, from existing params.

    Args:
        layer: a layer made by `mlax.quantized`, or by combinators of one layer around it.
        x: an input, or its shapes and dtypes.
        params: the params of the layer inside.
        state: its state.

    Raises:
        TypeError: the params have another structure or dtype, or the state is of another layer.
        ValueError: the params have other shapes.
    """
    read_layer("init_quantized", "layer", layer)
    require_input("init_quantized", x)
    others, own = jax.eval_shape(layer.init, jax.random.key(0), x)
    types = QuantizedConfig, QuantizedVariables
    config, copies, plain = within("init_quantized", "mlax.quantized", own, *types, layer)
    full, variables = jax.eval_shape(lambda *held: config.view(*held)[1:], others, own.variables)
    require_params_like("init_quantized", full, params)
    require_state_like("init_quantized", plain.state(variables), state)
    chosen, others = _chosen(config, params)
    weights = jax.jit(functools.partial(_weights, config, copies=copies))(chosen)
    started: Any = State(QuantizedVariables(weights, variables_of(state)), own.config)
    return others, started


def merge_quantized(params: Any, state: Any) -> tuple[Any, Any]:
    """Return params and state of the layer inside `quantized`, with its weights dequantized.

    Combinators of one layer around `quantized`, such as `mlax.batched`, remain, around that layer.

    Raises:
        TypeError: the state is not one of `mlax.quantized`.
    """
    types = QuantizedConfig, QuantizedVariables
    found = within("merge_quantized", "mlax.quantized", state, *types)
    _, merged, variables = found.config.view(params, state.variables)
    return merged, found.plain.state(variables)
