"""Reading arguments: one rule for each kind, and one wording for what is wrong with it.

The functions `check_*` judge a hyperparameter alone, when a layer is made; they are what
`mlax.layer(checks=...)` takes. The others need to know the input, and return the argument
in its plain form. Every message reads

    OWNER: expected ARGUMENT to be WANTED, got VALUE; WAY OUT

and nothing here looks at a value on the device.
"""

import operator
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jax.typing import DTypeLike

from mlax.pair import State

C = TypeVar("C", bound=Hashable)

Axes: TypeAlias = int | Sequence[int]
Sizes: TypeAlias = int | Sequence[int]
InFeatures: TypeAlias = int | Sequence[int | None]
Padding: TypeAlias = str | int | Sequence[int | tuple[int, int]]

PADDINGS = ("VALID", "SAME", "SAME_LOWER")
CHANNEL_AXES = {"channel_last": -1, "channel_first": 0}

ANOTHER_MODEL = "is it that of another model?"


class Shaped(Protocol):
    """An array, or a `jax.ShapeDtypeStruct` in its place."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Lengths of the axes."""
        ...

    @property
    def dtype(self) -> np.dtype[Any]:
        """Dtype of the elements."""
        ...


def message(owner: str, argument: str, wanted: str, got: object, way_out: str = "") -> str:
    """Return the text of an error."""
    text = f"{owner}: expected {argument} to be {wanted}, got {got}"
    return f"{text}; {way_out}" if way_out else text


def config_of(owner: str, state: object, wanted: type[C]) -> C:
    """Return the config of a state, and require that it is one of this layer."""
    if not isinstance(state, State) or type(state.config) is not wanted:
        got = f"one of {type(state.config if isinstance(state, State) else state).__name__}"
        raise TypeError(message(owner, "state", "what init returned", got, ANOTHER_MODEL))
    return state.config


def require_params(
    owner: str, params: object, wanted: type[tuple[Any, ...]], absent: Sequence[str] = ()
) -> None:
    """Require the named tuple that `init` made, with None in the fields `absent` and no others."""
    if not isinstance(params, wanted):
        got = type(params).__name__
        raise TypeError(message(owner, "params", f"a {wanted.__name__}", got, ANOTHER_MODEL))
    for name, value in zip(getattr(wanted, "_fields"), params, strict=True):
        if value is None and name not in absent:
            way_out = "put what partition took apart together again, with combine"
            raise TypeError(message(owner, f"params.{name}", "an array", "None", way_out))
        if value is not None and name in absent:
            got = f"an array of shape {np.shape(value)}"
            raise TypeError(message(owner, f"params.{name}", "None", got, ANOTHER_MODEL))


def absent_of(params: Any) -> tuple[str, ...]:
    """Return the names of the fields of a named tuple that are None."""
    return tuple(name for name, value in params._asdict().items() if value is None)


def integer(owner: str, name: str, value: Any, wanted: str = "an integer") -> int:
    """Return `value` as an int; bools and floats are none."""
    if not isinstance(value, bool | np.bool_):
        try:
            return operator.index(value)
        except TypeError:
            pass
    raise TypeError(message(owner, name, wanted, repr(value)))


def check_integer(owner: str, name: str, value: Any) -> None:
    """Require an integer."""
    integer(owner, name, value)


def check_size(owner: str, name: str, value: Any) -> None:
    """Require a positive integer."""
    if integer(owner, name, value, "a positive integer") < 1:
        raise ValueError(message(owner, name, "a positive integer", repr(value)))


def check_sizes(owner: str, name: str, value: Any) -> None:
    """Require a positive integer or a sequence of them."""
    for entry in entries(owner, name, value):
        check_size(owner, name, entry)


def check_dilation(owner: str, name: str, value: Any) -> None:
    """Require None, a positive integer or a sequence of them."""
    if value is not None:
        check_sizes(owner, name, value)


def check_rate(owner: str, name: str, value: Any) -> None:
    """Require a number in [0, 1)."""
    _check_number(owner, name, value, "in [0, 1)", lambda number: 0 <= number < 1)


def check_momentum(owner: str, name: str, value: Any) -> None:
    """Require a number in [0, 1]."""
    _check_number(owner, name, value, "in [0, 1]", lambda number: 0 <= number <= 1)


def check_epsilon(owner: str, name: str, value: Any) -> None:
    """Require a number that is not negative."""
    _check_number(owner, name, value, "at least 0", lambda number: number >= 0)


def _check_number(
    owner: str, name: str, value: Any, wanted: str, fits: Callable[[Any], bool]
) -> None:
    if isinstance(value, Tracer):
        return
    if not isinstance(value, int | float | np.number):
        raise TypeError(message(owner, name, f"a number {wanted}", repr(value)))
    if not fits(value):
        raise ValueError(message(owner, name, wanted, repr(value)))


def check_callable(owner: str, name: str, value: Any) -> None:
    """Require something that can be called."""
    if not callable(value):
        raise TypeError(message(owner, name, "a function", repr(value)))


def check_optional_callable(owner: str, name: str, value: Any) -> None:
    """Require None or something that can be called."""
    if value is not None:
        check_callable(owner, name, value)


def check_dtype(owner: str, name: str, value: Any) -> None:
    """Require what `jax.numpy.dtype` understands."""
    if value is None:
        raise TypeError(message(owner, name, "a dtype", repr(value)))
    try:
        jnp.dtype(value)
    except TypeError:
        raise TypeError(message(owner, name, "a dtype", repr(value))) from None


def check_optional_dtype(owner: str, name: str, value: Any) -> None:
    """Require None or a dtype."""
    if value is not None:
        check_dtype(owner, name, value)


def check_precision(owner: str, name: str, value: Any) -> None:
    """Require what `jax.lax` takes as precision."""
    if isinstance(value, lax.DotAlgorithm):  # a tuple itself
        return
    entries = value if isinstance(value, tuple) else (value, value)
    wanted = "None, a jax.lax.Precision or its name, or a pair of them"
    for entry in entries:
        if isinstance(entry, str):
            try:
                lax.Precision(entry)
            except ValueError:
                if entry not in lax.DotAlgorithmPreset.__members__:
                    raise ValueError(message(owner, name, wanted, repr(value))) from None
        elif entry is not None and not isinstance(entry, lax.Precision | lax.DotAlgorithmPreset):
            raise TypeError(message(owner, name, wanted, repr(value)))
    if len(entries) != 2:
        raise ValueError(message(owner, name, wanted, repr(value)))


def check_bool(owner: str, name: str, value: Any) -> None:
    """Require True or False."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(message(owner, name, "True or False", repr(value)))


def check_scalar(owner: str, name: str, value: Any) -> None:
    """Require one number."""
    if isinstance(value, str) or np.ndim(value) != 0:
        raise TypeError(message(owner, name, "a number", repr(value)))


def check_in_features(owner: str, name: str, value: Any) -> None:
    """Require integers of at least -1, or None in place of 0."""
    for entry in entries(owner, name, value):
        wanted = "made of 0, 1, -1 and lengths of axes"
        if entry is not None and integer(owner, name, entry, wanted) < -1:
            raise ValueError(message(owner, name, wanted, repr(value)))


def check_axis(owner: str, name: str, value: Any) -> None:
    """Require an axis or a sequence of axes."""
    for entry in entries(owner, name, value):
        integer(owner, name, entry, "an integer or a sequence of integers")


def check_normalized_axis(owner: str, name: str, value: Any) -> None:
    """Require "all", "channel_last", "channel_first", an axis or a sequence of axes."""
    if not isinstance(value, str):
        check_axis(owner, name, value)
    elif value != "all" and value not in CHANNEL_AXES:
        wanted = '"all", "channel_last", "channel_first", or axes'
        raise ValueError(message(owner, name, wanted, repr(value)))


def check_padding(owner: str, name: str, value: Any) -> None:
    """Require the name of a padding, an integer, or integers and pairs of them."""
    if isinstance(value, str):
        if value.upper() not in PADDINGS:
            wanted = f"one of {', '.join(PADDINGS)}, or integers"
            raise ValueError(message(owner, name, wanted, repr(value)))
        return
    for entry in entries(owner, name, value):
        pair = entry if isinstance(entry, Sequence) else (entry, entry)
        wanted = "made of integers and pairs of integers"
        if len(pair) != 2:
            raise ValueError(message(owner, name, wanted, repr(value)))
        for side in pair:
            integer(owner, name, side, wanted)


def check_conv_format(owner: str, name: str, value: Any) -> None:
    """Require "channel_last", "channel_first", or specs of x, kernel and y."""
    if isinstance(value, str):
        if value not in CHANNEL_AXES:
            wanted = '"channel_last", "channel_first", or three specs, as ("HWC", "HWIO", "HWC")'
            raise ValueError(message(owner, name, wanted, repr(value)))
        return
    specs = entries(owner, name, value)
    wanted = 'three specs without N, as ("HWC", "HWIO", "HWC")'
    if len(specs) != 3 or not all(isinstance(spec, str) for spec in specs):
        raise TypeError(message(owner, name, wanted, repr(value)))
    spatial = set(specs[0]) - {"C"}
    letters = (spatial | {"C"}, spatial | {"I", "O"}, spatial | {"C"})
    for spec, expected in zip(specs, letters, strict=True):
        if "N" in spec or set(spec) != expected or len(spec) != len(expected):
            raise ValueError(message(owner, name, wanted, repr(value)))


def check_data_format(owner: str, name: str, value: Any) -> None:
    """Require "channel_last", "channel_first", or distinct letters with one C, as in HWC."""
    wanted = '"channel_last", "channel_first", or a spec such as "HWC"'
    if not isinstance(value, str):
        raise TypeError(message(owner, name, wanted, repr(value)))
    spec = value.isalpha() and value.count("C") == 1 and len(set(value)) == len(value)
    if value not in CHANNEL_AXES and (not spec or "N" in value):
        raise ValueError(message(owner, name, wanted, repr(value)))


def entries(owner: str, name: str, value: Any) -> Sequence[Any]:
    """Return a sequence as it is, and anything else as a sequence of one."""
    if isinstance(value, str) or isinstance(value, np.ndarray | jax.Array) and value.ndim:
        raise TypeError(message(owner, name, "an integer or a sequence of integers", repr(value)))
    return value if isinstance(value, Sequence) else (value,)


def per_axis(owner: str, name: str, value: Sizes, rank: int) -> tuple[int, ...]:
    """Return one positive integer for each of `rank` spatial axes."""
    check_sizes(owner, name, value)
    if not isinstance(value, Sequence):
        return (operator.index(value),) * rank
    if len(value) != rank:
        wanted = f"an integer or {rank} of them, one for each spatial axis"
        raise ValueError(message(owner, name, wanted, repr(value)))
    return tuple(map(operator.index, value))


def optional_per_axis(owner: str, name: str, value: Sizes | None, rank: int) -> tuple[int, ...]:
    """Return one positive integer for each of `rank` spatial axes; None stands for 1."""
    return per_axis(owner, name, 1 if value is None else value, rank)


def padding_per_axis(owner: str, value: Padding, rank: int) -> str | tuple[tuple[int, int], ...]:
    """Return the name of the padding, or a pair (before, after) for each spatial axis."""
    check_padding(owner, "padding", value)
    if isinstance(value, str):
        return value.upper()
    if isinstance(value, int | np.integer):
        value = (int(value),) * rank
    if len(value) != rank:
        wanted = f"an integer or {rank} integers or pairs, one for each spatial axis"
        raise ValueError(message(owner, "padding", wanted, repr(value)))
    pairs = (entry if isinstance(entry, Sequence) else (entry, entry) for entry in value)
    return tuple((operator.index(before), operator.index(after)) for before, after in pairs)


def channel_axis(owner: str, data_format: str, x: Shaped) -> int:
    """Return the index of the channel axis of `x`."""
    check_data_format(owner, "data_format", data_format)
    if data_format in CHANNEL_AXES:
        require_rank(owner, x, 1)
        return CHANNEL_AXES[data_format] % len(x.shape)
    if len(data_format) != len(x.shape):
        wanted = f"a spec of {len(x.shape)} letters, one for each axis of x of shape {x.shape}"
        raise ValueError(message(owner, "data_format", wanted, repr(data_format)))
    return data_format.index("C")


def canonical_axes(owner: str, axis: Axes, ndim: int) -> tuple[int, ...]:
    """Return distinct axes in rising order, counted from the front."""
    check_axis(owner, "axis", axis)
    axes = tuple(map(operator.index, entries(owner, "axis", axis)))
    for entry in axes:
        if not -ndim <= entry < ndim:
            wanted = f"in [{-ndim}, {ndim}) for x with {ndim} axes"
            raise ValueError(message(owner, "axis", wanted, repr(axis)))
    canonical = tuple(sorted({entry % ndim for entry in axes}))
    if len(canonical) != len(axes):
        raise ValueError(message(owner, "axis", "distinct axes", repr(axis)))
    return canonical


def normalized_axes(owner: str, axis: str | Axes, ndim: int) -> tuple[int, ...]:
    """Return the axes that `axis` says to normalise over: see `mlax.functional.z_norm`."""
    check_normalized_axis(owner, "axis", axis)
    if not isinstance(axis, str):
        return canonical_axes(owner, axis, ndim)
    if axis == "all":
        return tuple(range(ndim))
    if not ndim:
        raise ValueError(f"{owner}: expected x with at least 1 axis, got shape ()")
    channel = CHANNEL_AXES[axis] % ndim
    return tuple(i for i in range(ndim) if i != channel)


def hashable_axis(owner: str, axis: str | Axes) -> str | tuple[int, ...]:
    """Return `axis` in a form that can be hashed and compared."""
    if isinstance(axis, str):
        return axis
    return tuple(map(operator.index, entries(owner, "axis", axis)))


def require_array(owner: str, x: object, name: str = "x") -> None:
    """Require an array, or a `jax.ShapeDtypeStruct` in its place."""
    if not (hasattr(x, "shape") and hasattr(x, "dtype")):
        raise TypeError(message(owner, name, "an array", type(x).__name__))


def array(owner: str, x: jax.Array, name: str = "x") -> jax.Array:
    """Return an array of jax, in a dtype that jax has: float64 of NumPy may be none."""
    require_array(owner, x, name)
    return jnp.asarray(x)


def require_rank(owner: str, x: Shaped, at_least: int) -> None:
    """Require at least that many axes."""
    require_array(owner, x)
    if len(x.shape) < at_least:
        axes = "1 axis" if at_least == 1 else f"{at_least} axes"
        raise ValueError(f"{owner}: expected x with at least {axes}, got shape {x.shape}")


def require_integers(owner: str, x: Shaped) -> None:
    """Require an integer dtype."""
    require_array(owner, x)
    if not jnp.issubdtype(x.dtype, jnp.integer):
        raise TypeError(message(owner, "x", "of an integer dtype", jnp.dtype(x.dtype).name))


def required_key(owner: str, rng: jax.Array | None) -> jax.Array:
    """Return the key, and require that there is one."""
    if rng is None:
        way_out = "pass rng=jax.random.key(...), or inference_mode=True"
        raise ValueError(message(owner, "rng", "a PRNG key in training", rng, way_out))
    return rng


def require_castable(owner: str, x: Shaped, dtype: DTypeLike) -> None:
    """Require that parameters of `dtype` can be cast to the dtype of `x` and keep their sense."""
    require_array(owner, x)
    if jnp.issubdtype(dtype, jnp.inexact) and not jnp.issubdtype(x.dtype, jnp.inexact):
        raise TypeError(
            message(
                owner,
                "x",
                f"of a floating dtype, as its parameters are ({jnp.dtype(dtype).name})",
                jnp.dtype(x.dtype).name,
                "cast it with x.astype",
            )
        )


def require_real(owner: str, x: Shaped) -> None:
    """Require a dtype that is not complex."""
    require_array(owner, x)
    if jnp.issubdtype(x.dtype, jnp.complexfloating):
        wanted, got = "of a real dtype", jnp.dtype(x.dtype).name
        raise TypeError(message(owner, "x", wanted, got, "take x.real and x.imag apart"))


def require_axes(owner: str, name: str, parameter: jax.Array, count: int) -> None:
    """Require that many axes: stacked parameters would broadcast, and y have another shape."""
    if parameter.ndim != count:
        wanted, got = f"of {count} axes", f"shape {parameter.shape}"
        raise ValueError(message(owner, name, wanted, got, ANOTHER_MODEL))


def require_features(owner: str, x: Shaped, kernel: jax.Array) -> None:
    """Require that x @ kernel is defined, with a kernel of 2 axes in the dtype of x."""
    require_axes(owner, "params.kernel", kernel, 2)
    require_rank(owner, x, 1)
    if x.shape[-1] != kernel.shape[0]:
        raise ValueError(
            f"{owner}: expected x with {kernel.shape[0]} features in its last axis, as the "
            f"kernel has, got shape {x.shape}"
        )
    require_castable(owner, x, kernel.dtype)


def require_output(owner: str, x: jax.Array, y: jax.Array) -> None:
    """Require that a window fits into x somewhere."""
    if x.size and not y.size:
        raise ValueError(
            f"{owner}: expected a window that fits into x, got y of shape {y.shape} from x of "
            f"shape {x.shape}; pad x or make the window smaller"
        )


def feature_shape(
    owner: str, in_features: InFeatures, x: Shaped
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return `in_features` as one 0, 1 or -1 for each axis, and the shape of the parameter.

    The empty sequence stands for no axis of its own: a scalar.
    """
    check_in_features(owner, "in_features", in_features)
    features = tuple(entry or 0 for entry in entries(owner, "in_features", in_features))
    if features and len(features) != len(x.shape):
        wanted = f"one entry for each axis of x of shape {x.shape}, or empty"
        raise ValueError(message(owner, "in_features", wanted, repr(in_features)))
    for entry, length in zip(features, x.shape, strict=False):
        if entry not in (-1, 0, 1, length):
            wanted = f"0, 1, -1 or the length of each axis of x of shape {x.shape}"
            raise ValueError(message(owner, "in_features", wanted, repr(in_features)))
    kinds = tuple(entry if entry in (0, 1) else -1 for entry in features)
    pairs = zip(kinds, x.shape, strict=False)
    return kinds, tuple(1 if kind == 1 else length for kind, length in pairs if kind)


def along_features(
    owner: str, parameter: jax.Array, kinds: tuple[int, ...], x: jax.Array
) -> jax.Array:
    """Return a parameter made for `feature_shape`, in the dtype of `x`, ready to broadcast."""
    require_castable(owner, x, parameter.dtype)
    _, shape = feature_shape(owner, kinds, x)
    if parameter.shape != shape:
        raise ValueError(
            f"{owner}: expected x to fit parameters of shape {parameter.shape} "
            f"(in_features {kinds}), got shape {x.shape}"
        )
    parameter = parameter.astype(x.dtype)
    without = tuple(axis for axis, kind in enumerate(kinds) if not kind)
    return jnp.expand_dims(parameter, without) if without else parameter


def optional_dtype(dtype: DTypeLike | None) -> DTypeLike | None:
    """Return the dtype that `dtype` stands for, so that equal ones compare equal."""
    return None if dtype is None else jnp.dtype(dtype)


def leading_length(owner: str, name: str, tree: Any, axis: str) -> int:
    """Return the length of the leading axis that all arrays of a pytree have in common."""
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(tree)]
    lengths = {shape[0] if shape else None for shape in shapes}
    if len(lengths) != 1 or None in lengths:
        wanted = f"arrays with a leading {axis} axis of one length"
        raise ValueError(message(owner, name, wanted, f"shapes {shapes}"))
    return int(shapes[0][0])
