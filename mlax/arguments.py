"""Arguments: which values a hyperparameter accepts, and one wording for the errors.

The annotation of a hyperparameter says which values it accepts: `out_features: Size`,
`padding: Padding`, a `Literal`. Most are an `Annotated` with a `Rule`, a function that raises or
returns the value in its plain form; `mlax.layer` and `mlax.stateless` apply the rules when a layer
is made, before there is any input. The functions `require_*` check what depends on the input.
Every message reads

    OWNER: expected ARGUMENT to be WANTED, got VALUE; WAY OUT

and nothing here reads a value from the device.
"""

import collections.abc
import contextlib
import functools
import inspect
import math
import operator
import types
import typing
from collections.abc import Callable, Hashable, Sequence
from typing import Annotated, Any, Literal, NamedTuple, TypeAlias, TypeGuard, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.sharding import PartitionSpec
from jax.typing import DTypeLike

from mlax.equality import source
from mlax.errors import expected, message
from mlax.layer import Layer, Shaped, State
from mlax.tree import Where, read_where

ANOTHER_MODEL = "does it belong to another model?"
CHANNEL_AXES = {"channel_last": -1, "channel_first": 0}
PADDINGS = ("VALID", "SAME", "SAME_LOWER")

T = TypeVar("T")


def described(value: object) -> str:
    """Describe a value for an error message: arrays by shape and dtype."""
    if isinstance(value, Tracer):
        return f"a traced array of shape {value.shape} and dtype {value.dtype}"
    if isinstance(value, jax.Array | np.ndarray | jax.ShapeDtypeStruct):
        return f"an array of shape {value.shape} and dtype {value.dtype}"
    if value is None or isinstance(value, bool | int | float | str):
        return repr(value)
    if isinstance(value, State):
        return "a State"
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType):
        return f"the function {source(value)}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'AEIOUaeiou' else 'a'} {name}"


Reader: TypeAlias = Callable[[str, str, Any], Any]


class Rule(NamedTuple):
    """The part of an annotation that says which values a hyperparameter accepts."""

    read: Reader
    """`read(owner, name, value)` raises, or returns the value in its plain form."""

    def __repr__(self) -> str:
        """Return the name of the function, as `help` shows it in signatures."""
        return f"Rule({source(self.read)})"


def hints_of(function: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of a function or class, as far as they can be resolved."""
    try:
        return typing.get_type_hints(function, include_extras=True)
    except (NameError, TypeError):  # names that only a type checker or a local scope knows
        hints = inspect.get_annotations(function)
        return {name: hint for name, hint in hints.items() if not isinstance(hint, str)}


def rule_of(hint: Any) -> Reader | None:
    """Return the rule for an annotation: `Annotated`, `Literal`, `bool`, functions or layers.

    `X | None` has the rule of X and accepts None. Returns None if there is no rule.
    """
    if typing.get_origin(hint) is Annotated:
        rules = [entry.read for entry in hint.__metadata__ if isinstance(entry, Rule)]
        return rules[-1] if rules else rule_of(hint.__origin__)  # the outermost is the last
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        rules = [rule for rule in map(rule_of, typing.get_args(hint)) if rule]
        if len(rules) != 1 or types.NoneType not in typing.get_args(hint):
            return None
        return lambda owner, name, value: None if value is None else rules[0](owner, name, value)
    if typing.get_origin(hint) is Literal:
        return functools.partial(read_literal, hint)
    if hint is bool:
        return read_bool
    kind = typing.get_origin(hint) or hint
    if isinstance(kind, type) and issubclass(kind, Layer):
        return read_layer
    is_protocol = getattr(kind, "_is_protocol", False) and "__call__" in vars(kind)
    return read_function if kind is collections.abc.Callable or is_protocol else None


def instance_of(kind: type) -> Rule:
    """Return the rule that a hyperparameter is an instance of this class."""

    def read(owner: str, name: str, value: Any) -> Any:
        if not isinstance(value, kind):
            raise TypeError(message(owner, name, f"a {kind.__name__}", described(value)))
        return value

    return Rule(read)


def read_integer(owner: str, name: str, value: Any, wanted: str = "an integer") -> int:
    """Return `value` as an int; bools and floats don't count as integers."""
    if not isinstance(value, bool | np.bool_):
        with contextlib.suppress(TypeError):
            return operator.index(value)
    raise TypeError(message(owner, name, wanted, _shown(value)))


def read_size(owner: str, name: str, value: Any) -> int:
    """Require a positive integer."""
    size = read_integer(owner, name, value, "a positive integer")
    if size < 1:
        raise ValueError(message(owner, name, "a positive integer", repr(value)))
    return size


def read_unroll(owner: str, name: str, value: Any) -> int:
    """Require a number of steps, 0 for all; or a bool, for all or one."""
    if isinstance(value, bool):
        return value
    wanted = "a bool or a non-negative integer"
    steps = read_integer(owner, name, value, wanted)
    if steps < 0:
        raise ValueError(message(owner, name, wanted, repr(value)))
    return steps


def read_sizes(owner: str, name: str, value: Any) -> int | tuple[int, ...]:
    """Require a positive integer or a sequence of them."""
    return _read_each(read_size, owner, name, value)


def read_axes(owner: str, name: str, value: Any) -> int | tuple[int, ...]:
    """Require an axis or a sequence of axes."""
    read = functools.partial(read_integer, wanted="an integer or a sequence of integers")
    return _read_each(read, owner, name, value)


def _read_each(read: Callable[..., T], owner: str, name: str, value: Any) -> T | tuple[T, ...]:
    read_entries = tuple(read(owner, name, entry) for entry in entries(owner, name, value))
    return read_entries if is_sequence(value) else read_entries[0]


def read_number(owner: str, name: str, value: Any, wanted: str = "a number") -> Any:
    """Require a number, which may be traced."""
    if isinstance(value, jax.Array) and value.ndim == 0 and jnp.issubdtype(value.dtype, np.number):
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | np.number):
        raise TypeError(message(owner, name, wanted, _shown(value)))
    return value.item() if isinstance(value, np.number) else value


def _within(wanted: str, fits: Callable[[Any], bool], owner: str, name: str, value: Any) -> Any:
    number = read_number(owner, name, value, f"a number {wanted}")
    if not isinstance(number, Tracer) and not fits(number):
        raise ValueError(message(owner, name, wanted, _shown(value)))
    return number


read_rate: Reader = functools.partial(_within, "in [0, 1)", lambda number: 0 <= number < 1)
read_momentum: Reader = functools.partial(_within, "in [0, 1]", lambda number: 0 <= number <= 1)
read_epsilon: Reader = functools.partial(_within, "at least 0", lambda number: number >= 0)
read_positive: Reader = functools.partial(
    _within, "positive and finite", lambda number: 0 < number < math.inf
)


def read_bool(owner: str, name: str, value: Any) -> bool:
    """Require True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(message(owner, name, "True or False", _shown(value)))
    return bool(value)


def read_literal(hint: Any, owner: str, name: str, value: Any) -> Any:
    """Require one of the values that a `Literal` lists."""
    choices = typing.get_args(hint)
    for choice in choices:
        is_alike = isinstance(value, bool) == isinstance(choice, bool)  # True is 1
        if is_alike and isinstance(value, type(choice)) and value == choice:
            return choice
    *others, last = [f'"{one}"' if isinstance(one, str) else repr(one) for one in choices]
    wanted = f"{', '.join(others)} or {last}" if others else last
    raise ValueError(message(owner, name, wanted, _shown(value)))


def read_function(owner: str, name: str, value: Any) -> Any:
    """Require a callable that is not a layer."""
    if isinstance(value, Layer) or not callable(value):
        got = "a layer" if isinstance(value, Layer) else _shown(value)
        raise TypeError(message(owner, name, "a function", got))
    return value


def read_layer(owner: str, name: str, value: Any) -> Layer[Any, Any, Any, Any]:
    """Require a layer; the error says how to make one from the value."""
    if isinstance(value, Layer):
        return value
    if isinstance(value, list | tuple):
        got, way_out = f"a {type(value).__name__}", f"unpack it, as in {owner}(*layers)"
    elif hasattr(value, "bind"):
        got = f"{value!r} without its hyperparameters"
        way_out = f"call it, as in {value.__name__}(...)"
    elif hasattr(value, "forward"):
        got, way_out = "a module", "turn it into a layer with mlax.as_layer(module)"
    elif callable(value):
        got = f"the function {source(value)}"
        way_out = f"turn it into a layer with mlax.f({source(value)})"
    else:
        got, way_out = described(value), "put two functions into mlax.Layer(init, apply)"
    raise TypeError(message(owner, name, "a layer", got, way_out))


def read_dtype(owner: str, name: str, value: Any) -> np.dtype[Any]:
    """Require something that `jax.numpy.dtype` understands."""
    if value is not None:
        with contextlib.suppress(TypeError):
            dtype: np.dtype[Any] = jnp.dtype(value)
            return dtype
    raise TypeError(message(owner, name, "a dtype", _shown(value)))


def read_real_dtype(owner: str, name: str, value: Any) -> np.dtype[Any]:
    """Require a real floating dtype: integers would cut numbers off."""
    dtype = read_dtype(owner, name, value)
    if not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(message(owner, name, "a real floating dtype", dtype.name))
    return dtype


def read_precision(owner: str, name: str, value: Any) -> Any:
    """Require a precision that `jax.lax` accepts."""
    if isinstance(value, lax.DotAlgorithm):  # a tuple itself
        return value
    pair = tuple(value) if isinstance(value, tuple | list) else (value, value)
    wanted = "None, a jax.lax.Precision or its name, or a pair of them"
    for entry in pair:
        if isinstance(entry, str):
            try:
                lax.Precision(entry)
            except ValueError:
                if entry not in lax.DotAlgorithmPreset.__members__:
                    raise ValueError(message(owner, name, wanted, repr(value))) from None
        elif entry is not None and not isinstance(entry, lax.Precision | lax.DotAlgorithmPreset):
            way_out = ""
            if isinstance(entry, int):
                way_out = f"input sizes are inferred from x: {owner}({entry}) sets the output size"
            raise TypeError(message(owner, name, wanted, _shown(value), way_out))
    if len(pair) != 2:
        raise ValueError(message(owner, name, wanted, repr(value)))
    return pair if isinstance(value, tuple | list) else value


def read_sharding(owner: str, name: str, value: Any) -> PartitionSpec:
    """Require a PartitionSpec."""
    if not isinstance(value, PartitionSpec):
        wanted = 'a PartitionSpec, such as PartitionSpec("model")'
        raise TypeError(message(owner, name, wanted, _shown(value)))
    return value


def read_pattern(owner: str, name: str, value: Any) -> Where:
    """Require a pattern, several patterns, or a predicate on path and leaf."""
    return read_where(owner, value)


def read_normalized_axis(owner: str, name: str, value: Any) -> str | int | tuple[int, ...]:
    """Require "all", "channel_last", "channel_first", an axis or a sequence of axes."""
    if not isinstance(value, str):
        return read_axes(owner, name, value)
    if value != "all" and value not in CHANNEL_AXES:
        wanted = '"all", "channel_last", "channel_first", or axes'
        raise ValueError(message(owner, name, wanted, repr(value)))
    return value


def read_padding(
    owner: str, name: str, value: Any, names: Sequence[str] = PADDINGS
) -> str | int | tuple[Any, ...]:
    """Require the name of a padding, an integer, or a sequence of integers and pairs."""
    if isinstance(value, str):
        if value.upper() not in names:
            wanted = f"one of {', '.join(names)}, or integers"
            raise ValueError(message(owner, name, wanted, repr(value)))
        return value.upper()
    wanted = "made of integers and pairs of integers"

    def read_entry(owner: str, name: str, entry: Any) -> Any:
        if not is_sequence(entry):
            return read_integer(owner, name, entry, wanted)
        if len(entry) != 2:
            raise ValueError(message(owner, name, wanted, repr(value)))
        return tuple(read_integer(owner, name, side, wanted) for side in entry)

    if isinstance(value, np.ndarray) and value.ndim == 2:
        value = value.tolist()
    return _read_each(read_entry, owner, name, value)


def read_data_format(owner: str, name: str, value: Any) -> str:
    """Require "channel_last", "channel_first", or distinct letters with one C, as in HWC."""
    wanted = '"channel_last", "channel_first", or a spec such as "HWC"'
    if not isinstance(value, str):
        raise TypeError(message(owner, name, wanted, _shown(value)))
    spec = value.isalpha() and value.count("C") == 1 and len(set(value)) == len(value)
    if value not in CHANNEL_AXES and (not spec or "N" in value):
        raise ValueError(message(owner, name, wanted, repr(value)))
    return value


def _shown(value: object) -> str:
    is_described = isinstance(value, jax.Array | np.ndarray | types.FunctionType)
    return described(value) if is_described else source(value)


def is_sequence(value: object) -> TypeGuard[Sequence[Any]]:
    """Return whether a value is a sequence, including a NumPy array, but not a string."""
    if isinstance(value, np.ndarray):
        return value.ndim > 0
    return isinstance(value, Sequence) and not isinstance(value, str)


def entries(owner: str, name: str, value: Any) -> Sequence[Any]:
    """Return a sequence unchanged, and anything else as a sequence of one."""
    ndim = value.ndim if isinstance(value, np.ndarray | jax.Array) else 0
    if isinstance(value, str | Tracer) or ndim > 1 or ndim and isinstance(value, jax.Array):
        wanted = "an integer or a sequence of integers"
        raise TypeError(message(owner, name, wanted, _shown(value)))
    return value if is_sequence(value) else (value,)


Size: TypeAlias = Annotated[int, Rule(read_size)]
"""A positive integer."""
Unroll: TypeAlias = Annotated[int, Rule(read_unroll)]
"""How many steps an iteration of a loop takes, as in `jax.lax.scan`."""
Sizes: TypeAlias = Annotated[int | Sequence[int], Rule(read_sizes)]
"""A positive integer, or one for each spatial axis."""
Axis: TypeAlias = Annotated[int, Rule(read_integer)]
"""An axis."""
Axes: TypeAlias = Annotated[int | Sequence[int], Rule(read_axes)]
"""An axis or a sequence of axes."""
NormalizedAxis: TypeAlias = Annotated[
    Literal["all", "channel_last", "channel_first"] | int | Sequence[int],
    Rule(read_normalized_axis),
]
"""The axes that statistics are taken over: "all", all but the channel axis, or given axes."""
Number: TypeAlias = Annotated[float, Rule(read_number)]
"""A number."""
Rate: TypeAlias = Annotated[float, Rule(read_rate)]
"""A probability in [0, 1)."""
Momentum: TypeAlias = Annotated[float, Rule(read_momentum)]
"""A number in [0, 1]."""
Epsilon: TypeAlias = Annotated[float, Rule(read_epsilon)]
"""A non-negative number."""
Positive: TypeAlias = Annotated[float, Rule(read_positive)]
"""A positive number."""
Padding: TypeAlias = Annotated[str | int | Sequence[int | tuple[int, int]], Rule(read_padding)]
"""The name of a padding, an integer, or an integer or a pair for each spatial axis."""
DataFormat: TypeAlias = Annotated[
    Literal["channel_last", "channel_first", "C", "WC", "CW", "HC", "CH", "TC", "CT", "LC", "CL"]
    | Literal["HWC", "HCW", "CHW", "WHC", "WCH", "CWH"]
    | Literal["HWDC", "HWCD", "HCWD", "CHWD", "DHWC", "DHCW", "DCHW", "CDHW"],
    Rule(read_data_format),
]
"""Where the channel axis is: "channel_last", "channel_first", or a spec such as "HWC".

At run time, any other distinct letters with one C are accepted too.
"""
Pattern: TypeAlias = Annotated[Where, Rule(read_pattern)]
"""Which leaves: a pattern, several patterns, or a predicate on path and leaf."""
Precision: TypeAlias = Annotated[lax.PrecisionLike, Rule(read_precision)]
"""Precision of a product: a precision of `jax.lax`, its name, or a pair, one for each factor."""
DType: TypeAlias = Annotated[DTypeLike, Rule(read_dtype)]
"""The dtype of an array."""
RealDType: TypeAlias = Annotated[DTypeLike, Rule(read_real_dtype)]
"""A real floating dtype."""
Sharding: TypeAlias = Annotated[PartitionSpec, Rule(read_sharding)]
"""The mesh axes that each axis of an array is sharded over."""
AnyLayer: TypeAlias = Layer[Any, Any, Any, Any]
"""A layer of any kind."""


def require_call(owner: str, rng: Any, inference_mode: Any, batch_axis_name: Any) -> None:
    """Require the last three arguments of `apply` to be a key or None, a bool and names."""
    if rng is not None:
        require_key(owner, rng)
    if type(inference_mode) is not bool and not isinstance(inference_mode, np.bool_):
        way_out = "True in inference, False in training"
        if isinstance(inference_mode, Tracer):
            way_out = 'it is static: jax.jit(..., static_argnames="inference_mode")'
        got = described(inference_mode)
        raise TypeError(message(owner, "inference_mode", "True or False", got, way_out))
    if isinstance(batch_axis_name, Tracer) or not isinstance(batch_axis_name, Hashable):
        is_list = isinstance(batch_axis_name, list)
        got = repr(batch_axis_name) if is_list else described(batch_axis_name)
        wanted, way_out = "a name or a tuple of names", 'write ("batch",) or "batch"'
        raise TypeError(message(owner, "batch_axis_name", wanted, got, way_out))


def require_key(owner: str, rng: Any) -> None:
    """Require one PRNG key."""
    wanted = "one PRNG key"
    if isinstance(rng, bool | np.bool_):
        way_out = "inference_mode comes after rng: apply(params, state, x, None, True)"
        raise TypeError(message(owner, "rng", wanted, repr(rng), way_out))
    comes_first = "the key comes first: init(rng, x), apply(params, state, x, rng)"
    if not hasattr(rng, "dtype") or not hasattr(rng, "shape"):
        is_x = any(hasattr(leaf, "shape") for leaf in jax.tree.leaves(rng))
        way_out = comes_first if is_x else "make one with jax.random.key(0)"
        raise TypeError(message(owner, "rng", wanted, described(rng), way_out))
    typed = jnp.issubdtype(rng.dtype, jax.dtypes.prng_key)
    if not typed and (rng.dtype != np.uint32 or not rng.shape):
        raise TypeError(message(owner, "rng", wanted, described(rng), comes_first))
    if len(rng.shape) > (0 if typed else 1):
        way_out = "use one of them, or map over them with jax.vmap"
        raise TypeError(message(owner, "rng", wanted, f"keys of shape {rng.shape}", way_out))


def required_key(owner: str, rng: jax.Array | None) -> jax.Array:
    """Return the key, which must not be None."""
    if rng is None:
        way_out = "pass rng=jax.random.key(...), or inference_mode=True"
        raise ValueError(message(owner, "rng", "a PRNG key in training", rng, way_out))
    return rng


def require_ndims(
    owner: str, x: Any, ndims: tuple[int, ...],
    way_out: str = "map a batch axis with mlax.batched or jax.vmap",
) -> None:
    """Require arrays of the ranks that `init` was given: other ranks would change the meaning."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(x)]
    if tuple(map(len, shapes)) != ndims:
        wanted = "1 axis" if ndims == (1,) else f"{', '.join(map(str, ndims))} axes"
        got = f"shape {shapes[0]}" if len(shapes) == 1 else f"shapes {shapes}"
        raise ValueError(expected(owner, f"x with {wanted}, as in init", got, way_out))


def per_axis(owner: str, name: str, value: Sizes, rank: int) -> tuple[int, ...]:
    """Return one positive integer for each of `rank` spatial axes."""
    sizes = read_sizes(owner, name, value)
    if not isinstance(sizes, tuple):
        return (sizes,) * rank
    if len(sizes) != rank:
        wanted = f"an integer or {rank} of them, one for each spatial axis"
        raise ValueError(message(owner, name, wanted, repr(value)))
    return sizes


def optional_per_axis(owner: str, name: str, value: Sizes | None, rank: int) -> tuple[int, ...]:
    """Return one positive integer for each of `rank` spatial axes; None means 1."""
    return per_axis(owner, name, 1 if value is None else value, rank)


def padding_per_axis(owner: str, value: Padding, rank: int) -> str | tuple[tuple[int, int], ...]:
    """Return the name of the padding, or a pair (before, after) for each spatial axis."""
    padding = read_padding(owner, "padding", value)
    if isinstance(padding, str):
        return padding
    sides = padding if isinstance(padding, tuple) else (padding,) * rank
    if len(sides) != rank:
        wanted = f"an integer or {rank} integers or pairs, one for each spatial axis"
        raise ValueError(message(owner, "padding", wanted, repr(value)))
    return tuple(side if isinstance(side, tuple) else (side, side) for side in sides)


def channel_axis(owner: str, data_format: str, x: Shaped) -> int:
    """Return the index of the channel axis of `x`."""
    read_data_format(owner, "data_format", data_format)
    if data_format in CHANNEL_AXES:
        require_rank(owner, x, 1)
        return CHANNEL_AXES[data_format] % len(x.shape)
    if len(data_format) != len(x.shape):
        wanted = f"a spec of {len(x.shape)} letters, one for each axis of x of shape {x.shape}"
        raise ValueError(message(owner, "data_format", wanted, repr(data_format)))
    return data_format.index("C")


def canonical_axes(owner: str, axis: Axes, ndim: int) -> tuple[int, ...]:
    """Return distinct axes in increasing order, counted from the front."""
    read = read_axes(owner, "axis", axis)
    axes = read if isinstance(read, tuple) else (read,)
    if not all(-ndim <= entry < ndim for entry in axes):
        wanted = f"in [{-ndim}, {ndim}) for x with {ndim} axes"
        raise ValueError(message(owner, "axis", wanted, repr(axis)))
    canonical = tuple(sorted({entry % ndim for entry in axes}))
    if len(canonical) != len(axes):
        raise ValueError(message(owner, "axis", "distinct axes", repr(axis)))
    return canonical


def normalized_axes(owner: str, axis: NormalizedAxis, ndim: int) -> tuple[int, ...]:
    """Return the axes to normalise over: see `mlax.functional.z_norm`."""
    read_normalized_axis(owner, "axis", axis)
    if not isinstance(axis, str):
        return canonical_axes(owner, axis, ndim)
    if axis == "all":
        return tuple(range(ndim))
    if not ndim:
        raise ValueError(expected(owner, "x with at least 1 axis", "shape ()"))
    channel = CHANNEL_AXES[axis] % ndim
    return tuple(i for i in range(ndim) if i != channel)


def require_array(owner: str, x: object, name: str = "x") -> None:
    """Require an array, or a `jax.ShapeDtypeStruct` in its place."""
    if not (hasattr(x, "shape") and hasattr(x, "dtype")):
        raise TypeError(message(owner, name, "an array", described(x)))


def require_integers(owner: str, x: Any, name: str = "x") -> None:
    """Require an array of an integer dtype."""
    require_array(owner, x, name)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        got = jnp.dtype(x.dtype).name
        raise TypeError(message(owner, name, "of an integer dtype", got))


def array(owner: str, x: jax.Array, name: str = "x") -> jax.Array:
    """Return a jax array, in a dtype that jax supports: float64 may be disabled."""
    require_array(owner, x, name)
    return jnp.asarray(x)


def saturated(x: Any) -> Any:
    """Return NumPy integers in JAX's dtype; a number that it can't hold becomes the nearest one.

    JAX itself would drop the upper bits, and so turn it into another index.
    """
    if not isinstance(x, np.ndarray | np.generic) or not jnp.issubdtype(x.dtype, np.integer):
        return x
    dtype = jax.dtypes.canonicalize_dtype(x.dtype)
    limits = np.iinfo(dtype)
    return x if dtype == x.dtype else x.clip(limits.min, limits.max).astype(dtype)


def require_rank(owner: str, x: Shaped, at_least: int) -> None:
    """Require x to have at least `at_least` axes."""
    require_array(owner, x)
    if len(x.shape) < at_least:
        axes = "1 axis" if at_least == 1 else f"{at_least} axes"
        raise ValueError(expected(owner, f"x with at least {axes}", f"shape {x.shape}"))


def require_castable(owner: str, x: Shaped, dtype: DTypeLike) -> None:
    """Require that casting parameters of `dtype` to the dtype of `x` makes sense."""
    require_array(owner, x)
    if jnp.issubdtype(dtype, jnp.inexact) and not jnp.issubdtype(x.dtype, jnp.inexact):
        wanted = f"of a floating dtype, as its parameters are ({jnp.dtype(dtype).name})"
        got = jnp.dtype(x.dtype).name
        raise TypeError(message(owner, "x", wanted, got, "cast it with x.astype"))


def require_real(owner: str, x: Shaped) -> None:
    """Require a dtype that is not complex."""
    require_array(owner, x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        wanted, got = "of a real dtype", jnp.dtype(x.dtype).name
        raise TypeError(message(owner, "x", wanted, got, "pass x.real and x.imag separately"))


def require_axes(owner: str, name: str, parameter: jax.Array, count: int) -> None:
    """Require `count` axes: stacked parameters would broadcast, and change the shape of y."""
    if parameter.ndim != count:
        wanted, got = f"of {count} axes", f"shape {parameter.shape}"
        raise ValueError(message(owner, name, wanted, got, ANOTHER_MODEL))


def require_features(owner: str, x: Shaped, kernel: jax.Array) -> None:
    """Require that x @ kernel is defined, with a kernel of 2 axes in the dtype of x."""
    require_axes(owner, "params.kernel", kernel, 2)
    require_rank(owner, x, 1)
    if x.shape[-1] != kernel.shape[0]:
        what = f"x with {kernel.shape[0]} features in its last axis, as the kernel has"
        raise ValueError(expected(owner, what, f"shape {x.shape}"))
    require_castable(owner, x, kernel.dtype)


def require_output(owner: str, x: jax.Array, y: jax.Array) -> None:
    """Require that at least one window fits into x."""
    if x.size and not y.size:
        got, way_out = f"x of shape {x.shape}", "pad x or make the window smaller"
        raise ValueError(expected(owner, "a window that fits into x", got, way_out))


def read_pair(owner: str, name: str, value: Any, spelled: str) -> tuple[Any, Any]:
    """Return the two entries of a pair."""
    if not isinstance(value, tuple | list) or len(value) != 2:
        got = f"{len(value)} entries" if isinstance(value, tuple | list) else described(value)
        raise TypeError(message(owner, name, f"a pair {spelled}", got))
    return value[0], value[1]


def leading_length(owner: str, name: str, tree: Any, axis: str) -> int:
    """Return the common length of the leading axis of all arrays in a pytree."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(tree)]
    lengths = {shape[0] if shape else None for shape in shapes}
    if len(lengths) != 1 or None in lengths:
        wanted = f"arrays with a leading {axis} axis of one length"
        raise ValueError(message(owner, name, wanted, f"shapes {shapes}"))
    length: int = shapes[0][0]  # or symbolic, in jax.export
    return length
