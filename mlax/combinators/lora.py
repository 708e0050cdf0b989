"""Low-rank adaptation: a layer that runs with kernels W + (alpha / rank) a @ b, and trains a and b.

    W  (..., inputs, outputs), a leaf of the params of the layer, now a variable
    a  (..., inputs, rank)
    b  (..., rank, outputs), which starts with zeros

params are like those of the layer, with (a, b) in the place of each W, and None elsewhere. So only
what is trained has a gradient and a place in the optimizer.
"""

import math
from typing import Annotated, Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp

from mlax.arguments import ANOTHER_MODEL, AnyLayer, Number, Rule, Size, described
from mlax.combinators import Call, Child, Made, init_keys, init_only_child, transform
from mlax.combinators.child import variables_of
from mlax.errors import message
from mlax.initializers import Initializer, initialize, lecun_normal
from mlax.layer import Key, Layer, State
from mlax.pair import require_params_like
from mlax.serialization import serializable
from mlax.tree import Where, map_with_path, predicate, read_where, require_match

S = TypeVar("S")
X = TypeVar("X")


def _read_pattern(owner: str, name: str, value: Any) -> Any:
    where = read_where(owner, value)
    return where if isinstance(where, str) or callable(where) else tuple(where)


Pattern: TypeAlias = Annotated[Where, Rule(_read_pattern)]
"""Which leaves: a pattern, several patterns, or a predicate on path and leaf."""


@serializable
class Adapter(NamedTuple):
    """What is trained in the place of a kernel."""

    a: jax.Array
    """(..., inputs, rank)."""
    b: jax.Array
    """(..., rank, outputs)."""


@serializable
class LoraVariables(NamedTuple):
    """Variables of `lora`."""

    base: Any
    """The params of the layer."""
    layer: Any
    """The variables of the layer."""


class LoraConfig(NamedTuple):
    """Configuration of `lora`."""

    layer: Child
    """The layer."""
    where: Where
    """Which leaves of its params have adapters."""
    rank: int
    """Length of the axis that a and b share."""
    alpha: float | None
    """The factor of a @ b, times rank."""

    @property
    def scale(self) -> float:
        """The factor of a @ b."""
        return 1.0 if self.alpha is None else self.alpha / self.rank


def apply(
    call: Call, config: LoraConfig, params: Any, variables: LoraVariables, x: Any
) -> tuple[Any, LoraVariables]:
    """Return the output of the layer with its adapters: see `mlax.lora`."""
    adapted = _adapted(config, variables.base, params)
    y, after = call(config.layer, adapted, variables.layer, x)
    return y, LoraVariables(variables.base, after)


def _adapted(config: LoraConfig, base: Any, params: Any) -> Any:
    """Return the params of the layer."""
    wants = predicate(config.where)

    def adapted(path: str, leaf: jax.Array, adapter: Adapter | None) -> jax.Array:
        if isinstance(adapter, Adapter) is not wants(path, leaf) or None in (adapter or ()):
            wanted = "an Adapter" if wants(path, leaf) else "None"
            got = described(adapter)
            raise TypeError(message("lora", f"params.{path}", wanted, got, ANOTHER_MODEL))
        if adapter is None:
            return leaf
        added: jax.Array = config.scale * jnp.matmul(adapter.a, adapter.b)
        return leaf + added.astype(leaf.dtype)

    return map_with_path(adapted, base, params)


@transform(apply, LoraConfig)
def lora(
    rng: Key, x: Any, layer: AnyLayer, where: Pattern, rank: Size, *, alpha: Number | None = None,
    kernel_initializer: Initializer = lecun_normal,
) -> Made:
    """Low-rank adaptation: the layer with kernels W + (alpha / rank) a @ b, where W is fixed.

    params are the adapters (a, b), at the paths of the kernels; the params of the layer are
    variables. b starts with zeros, and so the layer starts as it was. Kernels of more than two
    axes, as in `mlax.repeat`, have an adapter for each index of the leading ones.

    `mlax.init_lora` starts from params that are there already, and `mlax.merge_lora` returns params
    of the layer alone. Put it around the whole model: its variables go through every loop that it
    is in.

    Args:
        layer: any layer.
        where: which leaves of its params, by path: "*.attention.*.kernel".
        rank: length of the axis that a and b share.
        alpha: the factor of a @ b is alpha / rank; None means 1.
        kernel_initializer: called with the shape of a, or for each index of the leading axes.

    Raises:
        ValueError: a pattern selects no leaf, or one of less than two axes.

    Source: Hu et al., "LoRA: low-rank adaptation of large language models", 2021.

    >>> import jax, jax.numpy as jnp, mlax
    >>> model, x = mlax.series(mlax.dense(8), mlax.f(jnp.tanh), mlax.dense(4)), jnp.ones(6)
    >>> params, state = model.init(jax.random.key(0), x)
    >>> tuned = mlax.lora(model, "*.kernel", rank=2)
    >>> adapters, tuned_state = mlax.init_lora(tuned, jax.random.key(1), x, params, state)
    >>> mlax.paths(adapters), mlax.count(adapters), mlax.count(params)
    (['0.kernel.a', '0.kernel.b', '2.kernel.a', '2.kernel.b'], 52, 92)
    >>> params, state = mlax.merge_lora(adapters, tuned_state)
    """
    made = init_only_child("lora", layer, rng, x)
    wants, paths = predicate(where), list[str]()

    def adapter(path: str, kernel: jax.Array) -> Adapter | None:
        paths.append(path)
        if not wants(path, kernel):
            return None
        if kernel.ndim < 2:
            wanted, got = "leaves (..., inputs, outputs)", f"{path}, {described(kernel)}"
            raise ValueError(message("lora", "where", wanted, got))
        *copies, inputs, outputs = kernel.shape
        key = jax.random.fold_in(jax.random.fold_in(rng, 1), len(paths))

        def init_a(key: Key) -> jax.Array:
            shape, name = (inputs, rank), "kernel_initializer"
            return initialize("lora", name, kernel_initializer, key, shape, kernel.dtype)

        if copies:
            keys = jnp.stack(init_keys(key, math.prod(copies)))
            a = jax.vmap(init_a)(keys).reshape(*copies, inputs, rank)
        else:
            a = init_a(key)
        return Adapter(a, jnp.zeros((*copies, rank, outputs), kernel.dtype))

    params = map_with_path(adapter, made.params)
    require_match("lora", where, paths)
    variables = LoraVariables(made.params, made.variables)
    return made._replace(params=params, variables=variables)


def init_lora(
    layer: Layer[Any, S, X, Any], rng: Key, x: X, params: Any, state: Any
) -> tuple[Any, S]:
    """Return the adapters and the state of a layer made by `lora`, for params that are there.

    Args:
        layer: a layer made by `mlax.lora`.
        rng: PRNG key for the adapters.
        x: an input, or its shapes and dtypes.
        params: the params of the layer within.
        state: its state.

    Raises:
        TypeError: the params are of another structure or dtype.
        ValueError: the params are of other shapes.
    """
    _, own = jax.eval_shape(layer.init, rng, x)
    if not isinstance(own, State) or not isinstance(own.variables, LoraVariables):
        got = described(layer)
        raise TypeError(message("init_lora", "layer", "one made by mlax.lora", got))
    require_params_like("init_lora", own.variables.base, params)
    adapters = jax.jit(lambda rng: layer.init(rng, x)[0])(rng)
    started: Any = State(LoraVariables(params, variables_of(state)), own.config)
    return adapters, started


def merge_lora(params: Any, state: Any) -> tuple[Any, Any]:
    """Return params and state of the layer within `lora`, with the adapters added to its kernels.

    The layer itself gives the same outputs with them, up to rounding.

    Raises:
        TypeError: the state is none of `mlax.lora`.
    """
    if not isinstance(getattr(state, "config", None), LoraConfig):
        raise TypeError(message("merge_lora", "state", "that of mlax.lora", described(state)))
    config, variables = state.config, state.variables
    merged = _adapted(config, variables.base, params)
    return merged, config.layer.state(variables.layer)
