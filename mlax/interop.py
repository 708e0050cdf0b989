"""Layers of stax and of flax.linen as layers of mlax, and layers of mlax as layers of stax.

Neither is imported here: the layers that are passed bring what is needed. So a model can move layer
by layer, and both halves train in one step.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
from jax.typing import DTypeLike

from mlax.arguments import ANOTHER_MODEL, AnyLayer, Rule, described, read_layer, required_key
from mlax.combinators.child import require_equal_shapes
from mlax.combinators.making import shapes
from mlax.errors import expected, message
from mlax.layer import AxisName, Key, State
from mlax.pair import layer

StaxLayer: TypeAlias = tuple[Callable[..., Any], Callable[..., Any]]
"""(init_fun, apply_fun), as in `jax.example_libraries.stax`."""


def _read_stax(owner: str, name: str, value: Any) -> Any:
    if isinstance(value, tuple) and len(value) == 2 and all(map(callable, value)):
        return tuple(value)
    way_out = "pass what stax.serial(...) returns"
    raise TypeError(message(owner, name, "(init_fun, apply_fun)", described(value), way_out))


class FromStaxConfig(NamedTuple):
    """Configuration of `from_stax`."""

    stax_layer: StaxLayer
    """The layer."""
    inference: StaxLayer | None
    """The layer in inference, None if it is the same."""
    needs_rng: bool
    """Whether it needs a key in training."""


def _apply_stax(
    params: Any, state: State[Any, FromStaxConfig], x: Any, rng: Key | None = None,
    inference_mode: bool = False, batch_axis_name: AxisName = (),
) -> tuple[Any, State[Any, FromStaxConfig]]:
    """Return the output of the stax layer: see `mlax.Apply` and `mlax.from_stax`."""
    config = state.config
    _require_arrays("from_stax", params)
    _, apply_fun = config.inference if inference_mode and config.inference else config.stax_layer
    if not config.needs_rng:
        return apply_fun(params, x), state
    # Even where it drops nothing, dropout of stax asks for a key.
    key = jax.random.key(0) if inference_mode else required_key("from_stax", rng)
    return apply_fun(params, x, rng=key), state


def _require_arrays(owner: str, params: Any) -> None:
    """Require params that are not those of another part of the model."""
    if any(leaf is None for leaf in jax.tree.leaves(params, is_leaf=lambda leaf: leaf is None)):
        raise TypeError(message(owner, "params", "arrays", "None", ANOTHER_MODEL))


@layer(
    _apply_stax, config=FromStaxConfig, needs_rng=lambda *_, needs_rng=False, **__: needs_rng
)
def from_stax(
    rng: Key, x: Any, stax_layer: Annotated[StaxLayer, Rule(_read_stax)], *,
    inference: Annotated[StaxLayer, Rule(_read_stax)] | None = None, needs_rng: bool = False,
) -> tuple[Any, State[tuple[()], FromStaxConfig]]:
    """A layer of stax: its params are those that stax makes, and there are no variables.

    Args:
        stax_layer: (init_fun, apply_fun), of `jax.example_libraries.stax` or like it. Its input
            shape is that of x, batch axis included.
        inference: the layer for inference mode, as stax builds its dropout twice, with
            mode="train" and mode="test". It has the same params.
        needs_rng: whether it needs a key in training.

    Raises:
        ValueError: the layer for inference mode has other params.

    >>> import jax, jax.numpy as jnp, mlax
    >>> from jax.example_libraries import stax
    >>> model = mlax.series(mlax.from_stax(stax.serial(stax.Dense(4), stax.Relu)), mlax.dense(2))
    >>> params, state = model.init(jax.random.key(0), jnp.ones((5, 3)))
    >>> model.apply(params, state, jnp.ones((5, 3)))[0].shape
    (5, 2)
    """
    def params_of(of: StaxLayer) -> Any:
        return of[0](rng, jax.tree.map(lambda a: tuple(a.shape), x))[1]

    params = params_of(stax_layer)
    if inference is not None:
        other = jax.eval_shape(lambda: params_of(inference))
        require_equal_shapes("from_stax", shapes(params), other, "the params of inference")
    return params, State((), FromStaxConfig(stax_layer, inference, needs_rng))


def to_stax(
    layer: AnyLayer, *, inference_mode: bool = False, dtype: DTypeLike = jnp.float32
) -> StaxLayer:
    """Return a layer as a layer of stax, (init_fun, apply_fun).

    The params of stax are then (params, state), of which only params are arrays.

    Args:
        layer: any layer without variables, as stax has no place for them.
        inference_mode: the mode that it runs in, which stax fixes when a layer is made.
        dtype: dtype of the input, of which stax knows only the shape.

    Raises:
        ValueError: the layer has variables.

    >>> import jax, mlax
    >>> from jax.example_libraries import stax
    >>> init_fun, apply_fun = stax.serial(mlax.to_stax(mlax.dense(4)), stax.Relu)
    >>> out_shape, params = init_fun(jax.random.key(0), (-1, 3))
    >>> out_shape
    (-1, 4)
    """
    read_layer("to_stax", "layer", layer)

    def init_fun(rng: Key, input_shape: Any) -> tuple[Any, Any]:
        is_shape = isinstance(input_shape, tuple) and all(isinstance(n, int) for n in input_shape)
        shapes = [input_shape] if is_shape else list(input_shape)
        examples = [jax.ShapeDtypeStruct([abs(n) for n in shape], dtype) for shape in shapes]
        x = examples[0] if is_shape else examples
        params, state = layer.init(rng, x)
        if jax.tree.leaves(state):
            way_out = "keep it in mlax, and bring the others there with mlax.from_stax"
            raise ValueError(expected("to_stax", "a layer without variables", "some", way_out))

        def apply(params: Any, state: Any, x: Any, rng: Key) -> Any:
            return layer.apply(params, state, x, rng, inference_mode)[0]

        y = jax.eval_shape(apply, params, state, x, rng)
        is_open = any(-1 in shape for shape in shapes)
        out_shape = jax.tree.map(lambda a: (-1, *a.shape[1:]) if is_open else a.shape, y)
        return out_shape, (params, state)

    def apply_fun(params: Any, inputs: Any, rng: Key | None = None, **_: Any) -> Any:
        params, state = params
        key = rng if layer.needs_rng else None
        return layer.apply(params, state, inputs, key, inference_mode)[0]

    return init_fun, apply_fun


def _read_names(owner: str, name: str, value: Any) -> tuple[str, ...]:
    names = (value,) if isinstance(value, str) else value
    if not isinstance(names, Sequence) or not all(isinstance(one, str) for one in names):
        raise TypeError(message(owner, name, "a name or several", repr(value)))
    return tuple(names)


def _read_keywords(owner: str, name: str, value: Any) -> tuple[tuple[str, Any], ...]:
    items = value.items() if isinstance(value, Mapping) else value
    try:
        return tuple(sorted(dict(items).items()))
    except (TypeError, ValueError):
        raise TypeError(message(owner, name, "a dict by name", described(value))) from None


Names: TypeAlias = Annotated[str | Sequence[str], Rule(_read_names)]
"""A name, or several."""
Keywords: TypeAlias = Annotated[Mapping[str, Any] | tuple[()], Rule(_read_keywords)]
"""Arguments by keyword."""


class FromLinenConfig(NamedTuple):
    """Configuration of `from_linen`."""

    module: Any
    """The module."""
    mutable: tuple[str, ...]
    """The collections that a call in training replaces."""
    rngs: tuple[str, ...]
    """The names of the keys that it needs in training."""
    training: tuple[tuple[str, Any], ...]
    """Arguments by keyword in training."""
    inference: tuple[tuple[str, Any], ...]
    """Arguments by keyword in inference."""


def _apply_linen(
    params: Any, state: State[dict[str, Any], FromLinenConfig], x: Any, rng: Key | None = None,
    inference_mode: bool = False, batch_axis_name: AxisName = (),
) -> tuple[Any, State[dict[str, Any], FromLinenConfig]]:
    """Return the output of the module: see `mlax.Apply` and `mlax.from_linen`."""
    config, collections = state.config, dict(state.variables)
    _require_arrays("from_linen", params)
    keywords = dict(config.inference if inference_mode else config.training)
    rngs: dict[str, Key] = {}
    if config.rngs and not inference_mode:
        rngs = _keys(required_key("from_linen", rng), config.rngs)
    module, variables = config.module, {"params": params, **collections}
    if inference_mode or not config.mutable:
        return module.apply(variables, x, rngs=rngs, **keywords), state
    y, after = module.apply(variables, x, rngs=rngs, mutable=list(config.mutable), **keywords)
    return y, State({**collections, **after}, config)


def _keys(rng: Key, names: Sequence[str]) -> dict[str, Key]:
    """Return a key for each name: `rng` itself if there is only one name."""
    if len(names) == 1:
        return {names[0]: rng}
    return {name: jax.random.fold_in(rng, i) for i, name in enumerate(names)}


def _read_module(owner: str, name: str, value: Any) -> Any:
    if isinstance(value, type) or not hasattr(value, "lazy_init"):
        way_out = "pass an instance, as in mlax.from_linen(linen.Dense(4))"
        raise TypeError(message(owner, name, "a flax.linen module", described(value), way_out))
    return value


@layer(_apply_linen, config=FromLinenConfig, needs_rng=lambda *_, rngs=(), **__: bool(rngs))
def from_linen(
    rng: Key, x: Any, module: Annotated[Any, Rule(_read_module)], *, mutable: Names = (),
    rngs: Names = (), training: Keywords = (), inference: Keywords = (),
) -> tuple[Any, State[dict[str, Any], FromLinenConfig]]:
    """A module of flax.linen: params is its collection of that name, the others are variables.

    Args:
        module: a `flax.linen.Module` of one input, whose fields are hashable.
        mutable: the collections that a call in training replaces, such as "batch_stats".
        rngs: the names of the keys that it needs in training, such as "dropout". A single one is
            the key of the layer; of several, the i-th is fold_in(rng, i).
        training: arguments by keyword in training, such as {"train": True}.
        inference: the same in inference mode, and in `init`.

    Raises:
        TypeError: `module` is not a module.

    >>> import flax.linen as linen
    >>> import jax, jax.numpy as jnp, mlax
    >>> model = mlax.series(mlax.from_linen(linen.Dense(4)), mlax.f(jnp.tanh), mlax.dense(2))
    >>> params, state = model.init(jax.random.key(0), jnp.ones((5, 3)))
    >>> mlax.paths(params)
    ['0.bias', '0.kernel', '2.kernel', '2.bias']
    """
    collections = dict(module.lazy_init({"params": rng}, shapes(x), **dict(inference)))
    params = collections.pop("params", {})
    config = FromLinenConfig(
        module, _read_names("from_linen", "mutable", mutable),
        _read_names("from_linen", "rngs", rngs),
        *(_read_keywords("from_linen", "", keywords) for keywords in (training, inference)),
    )
    return params, State(collections, config)
