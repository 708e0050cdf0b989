"""Low-rank adaptation: a layer that runs with kernels W + (alpha / rank) a @ b, and trains a and b.

    W  (..., inputs, outputs), a leaf of the params of the layer, now a variable
    a  (..., inputs, rank)
    b  (..., rank, outputs), which starts as zeros

The kernel of a convolution counts as a matrix with inputs = (window..., in_channels) as one axis.

params mirror those of the layer, with (a, b) in place of each W, and None elsewhere. So only what
is trained has a gradient and optimizer state.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from mlax import mesh
from mlax.arguments import (
    ANOTHER_MODEL, AnyLayer, Pattern, Positive, Size, described, read_layer, require_key,
)
from mlax.belonging import require_params_like, require_state_like
from mlax.combinators import (
    Call, Child, Made, Transform, init_only_child, transform, variables_of,
)
from mlax.combinators.kernels import kernels_of, require_containers, within
from mlax.combinators.quantized import QuantizedConfig, QuantizedVariables
from mlax.errors import message
from mlax.initializers import Initializer, initialize, lecun_normal
from mlax.layer import Key, Layer, State
from mlax.layer import S, X, Y
from mlax.pair import require_input
from mlax.serialization import serializable
from mlax.tree import Where, map_with_path, require_selected


@serializable
class Adapter(NamedTuple):
    """What is trained in place of a kernel."""

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

    def holding(self, other: Any) -> Any:
        """Return these variables, with the weights that `other` holds."""
        return self._replace(base=other.base)


class LoraConfig(NamedTuple):
    """Configuration of `lora`."""

    layer: Child
    """The layer."""
    where: Where
    """Which leaves of its params have adapters."""
    rank: int
    """Length of the axis that a and b share."""
    alpha: float | None
    """rank times the factor of a @ b; None means rank."""

    @property
    def scale(self) -> float:
        """The factor of a @ b."""
        return 1.0 if self.alpha is None else self.alpha / self.rank

    def view(
        self, params: Any, variables: LoraVariables, copies: int = 0
    ) -> tuple[Child, Any, Any]:
        """Return the adapted layer, its params with a @ b added to its kernels, and its variables.

        Args:
            params: the adapters.
            variables: the variables of `lora`.
            copies: the number of leading axes of all arrays that hold copies of it.
        """
        layer, base, inner = _multiplied_out(self.layer, variables.base, variables.layer)
        kernel_of = kernels_of("lora", layer, copies)
        require_containers("lora", params, base, Adapter)
        selected = require_selected("lora", base, self.where)

        def added(path: str, leaf: jax.Array, is_adapted: bool, adapter: Adapter | None) -> Any:
            if isinstance(adapter, Adapter) is not is_adapted or (
                adapter is not None and any(factor is None for factor in adapter)
            ):
                wanted, got = "an Adapter" if is_adapted else "None", described(adapter)
                raise TypeError(message("lora", f"params.{path}", wanted, got, ANOTHER_MODEL))
            if adapter is None:
                return leaf
            kernel = kernel_of(path, leaf)
            shapes = _shapes(kernel.matrix, self.rank)
            for name, factor, shape in zip(Adapter._fields, adapter, shapes, strict=True):
                if factor.shape != shape:
                    wanted, got = f"of shape {shape}", described(factor)
                    place = f"params.{path}.{name}"
                    raise ValueError(message("lora", place, wanted, got, ANOTHER_MODEL))
            product = self.scale * jnp.matmul(mesh.whole(adapter.a), mesh.whole(adapter.b))
            return leaf + kernel.of_matrix(product).astype(leaf.dtype)

        return layer, map_with_path(added, base, selected, params), inner


def _multiplied_out(child: Child, params: Any, variables: Any) -> tuple[Child, Any, Any]:
    """Return a layer with params and variables, or the dequantized one in `mlax.quantized`."""
    if isinstance(child.config, QuantizedConfig):
        return child.config.view(params, variables)
    return child, params, variables


def _shapes(matrix: tuple[int, ...], rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the shapes of a and b."""
    *copies, inputs, outputs = matrix
    return (*copies, inputs, rank), (*copies, rank, outputs)


class Lora(Transform[Any, State[LoraVariables, LoraConfig], Any, Any]):
    """The type of `lora`: x and y are those of the layer; no type says where the adapters are."""

    def __call__(
        self, layer: Layer[Any, Any, X, Y], where: Where, rank: int, *,
        alpha: float | None = None, kernel_initializer: Initializer = lecun_normal,
    ) -> Layer[Any, State[LoraVariables, LoraConfig], X, Y]:
        """Return the layer with adapters."""
        return self.bind(layer, where, rank, alpha=alpha, kernel_initializer=kernel_initializer)


def apply(
    call: Call, config: LoraConfig, params: Any, variables: LoraVariables, x: Any
) -> tuple[Any, LoraVariables]:
    """Return the output of the layer with its adapters: see `mlax.lora`."""
    layer, adapted, inner = config.view(params, variables)
    y, after = call(layer, adapted, inner, x)
    if layer is not config.layer:
        after = variables.layer._replace(layer=after)
    return y, LoraVariables(variables.base, after)


@transform(apply, LoraConfig, Lora)
def lora(
    rng: Key, x: Any, layer: AnyLayer, where: Pattern, rank: Size, *,
    alpha: Positive | None = None, kernel_initializer: Initializer = lecun_normal,
) -> Made:
    """Low-rank adaptation: the layer with kernels W + (alpha / rank) a @ b, where W is fixed.

    params are the adapters (a, b), at the paths of the kernels; the params of the layer are
    variables. b starts as zeros, so at first the layer computes what it did before. A kernel has an
    adapter for each copy of its layer in `mlax.repeat`, `mlax.ensemble` and `mlax.moe`.

    `mlax.init_lora` starts from existing params, `mlax.init_state` makes a state for decoding with
    the same weights, and `mlax.merge_lora` returns the params of the layer alone. Put `mlax.lora`
    around the whole model: every loop around it would carry its variables.

    `mlax.lora(mlax.quantized(layer), ...)` adds adapters to kernels in 8 bits (QLoRA).

    Args:
        layer: any layer.
        where: which leaves of the layer's params have adapters, by path: "*.attention.*.kernel".
            They are (inputs, outputs) in each copy of their layer, or kernels of `mlax.conv`.
        rank: length of the axis that a and b share, at most that of inputs and of outputs.
        alpha: the factor of a @ b is alpha / rank; None means 1.
        kernel_initializer: called with the shape (inputs, rank), for each copy.

    Raises:
        ValueError: `where` selects no leaf, or one with another layout, or the rank is too large.

    Source: Hu et al., "LoRA: low-rank adaptation of large language models", 2021; Dettmers et al.,
    "QLoRA: efficient finetuning of quantized LLMs", 2023.

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
    adapted, base, _ = _multiplied_out(made.child, made.params, made.variables)
    way_out = "kernels in mlax.quantized are variables: put mlax.lora directly around it"
    selected = require_selected("lora", base, where, way_out)
    kernel_of, paths = kernels_of("lora", adapted), list[str]()

    def adapter(path: str, leaf: jax.Array, is_adapted: bool) -> Adapter | None:
        paths.append(path)
        if not is_adapted:
            return None
        matrix = kernel_of(path, leaf).matrix
        if rank > min(matrix[-2:]):
            wanted, got = f"at most {min(matrix[-2:])}, as {path} is of shape {leaf.shape}", rank
            raise ValueError(message("lora", "rank", wanted, got, "leave it out of where"))
        of_a, of_b = _shapes(matrix, rank)
        key = jax.random.fold_in(jax.random.fold_in(rng, 1), len(paths))

        def init_a(key: Key) -> jax.Array:
            name = "kernel_initializer"
            return initialize("lora", name, kernel_initializer, key, of_a[-2:], leaf.dtype)

        if len(of_a) == 2:
            a = init_a(key)
        else:
            copies = jnp.arange(math.prod(of_a[:-2]))
            a = jax.vmap(lambda i: init_a(jax.random.fold_in(key, i)))(copies)
        return Adapter(a.reshape(of_a), jnp.zeros(of_b, leaf.dtype))

    params = map_with_path(adapter, base, selected)
    variables = LoraVariables(made.params, made.variables)
    return made._replace(params=params, variables=variables)


def init_lora(
    layer: Layer[Any, S, Any, Any], rng: Key, x: Any, params: Any, state: Any
) -> tuple[Any, S]:
    """Return the adapters and the state of a layer made by `lora`, from existing params.

    Args:
        layer: a layer made by `mlax.lora`, or by combinators of one layer around it.
        rng: PRNG key for the adapters.
        x: an input, or its shapes and dtypes.
        params: the params of the layer inside.
        state: its state.

    Raises:
        TypeError: the params have another structure or dtype, or the state is of another layer.
        ValueError: the params have other shapes.
    """
    read_layer("init_lora", "layer", layer)
    require_key("init_lora", rng)
    require_input("init_lora", x)
    _, own = jax.eval_shape(layer.init, rng, x)
    found = within("init_lora", "mlax.lora", own, LoraConfig, LoraVariables, layer)
    require_params_like("init_lora", own.variables.base, params)
    require_state_like("init_lora", found.plain.state(own.variables.layer), state)
    adapters = jax.jit(lambda rng: layer.init(rng, x)[0])(rng)
    started: Any = State(LoraVariables(params, variables_of(state)), own.config)
    return adapters, started


def merge_lora(params: Any, state: Any) -> tuple[Any, Any]:
    """Return params and state of the layer inside `lora`, with the adapters added to its kernels.

    With them, the layer itself gives the same outputs, up to rounding. Combinators of one layer
    around `lora`, such as `mlax.batched`, remain, around that layer. If `lora` is directly around
    `mlax.quantized`, the result belongs to the layer inside both, as 8 bits can't hold the sum. If
    `mlax.quantized` is further inside, merge the adapters before calling `mlax.merge_quantized`.

    Raises:
        TypeError: the state is not one of `mlax.lora`.
        ValueError: the adapters have other shapes.
    """
    found = within("merge_lora", "mlax.lora", state, LoraConfig, LoraVariables)
    layer, merged, variables = found.config.view(params, state.variables, found.copies)
    plain = found.plain.state(state.variables.layer)
    if layer is not found.config.layer:
        types = QuantizedConfig, QuantizedVariables
        plain = within("merge_lora", "mlax.quantized", plain, *types).plain.state(variables)
    return merged, plain
