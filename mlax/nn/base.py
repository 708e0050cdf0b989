"""The base of the documented classes, and of those over one pair.

`PairModule` keeps hyperparameters and parameters as attributes, and `forward` makes the params and
the config of its pair from them, so that nothing else decides what it computes.
"""

import functools
import inspect
from collections.abc import Callable
from typing import Any, ClassVar, Generic, TypeVar

from mlax.arguments import described, require_key
from mlax.errors import expected, message
from mlax.layer import AxisName, Key, State
from mlax.module import Module
from mlax.pair import PairBase, bind
from mlax.structure import Late

X = TypeVar("X")
Y = TypeVar("Y")


class Documented(Late, Module):
    """A module whose constructor says what it expects when its arguments don't fit."""

    _way_out: ClassVar[str] = ""
    """What to do about wrong arguments."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Make the constructor of a subclass say what it expects."""
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            setattr(cls, "__init__", _explained(cls, cls.__init__))


def _explained(cls: type[Documented], init: Callable[..., None]) -> Callable[..., None]:
    _, *parameters = inspect.signature(init).parameters.values()
    signature = inspect.Signature(parameters)
    by_name = any(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)
    too_many = "pass the others by name" if by_name else cls._way_out

    @functools.wraps(init)
    def constructor(self: Documented, *args: Any, **kwargs: Any) -> None:
        owner = type(self) if type(self).__init__ is constructor else cls
        bind(
            owner.__name__, signature, args, kwargs, wrong=cls._way_out, too_many=too_many
        )
        init(self, *args, **kwargs)

    return constructor


class OverPair(Documented, Generic[X, Y]):
    """A pair as a module; `forward` in a subclass says whether it needs a key.

    Hyperparameters are attributes with the names of the pair's, and are checked when they are set.
    The key, in the attribute `rng`, only makes the parameters; it is not part of the structure
    of an initialized module.
    """

    _way_out = "the first argument is a key, such as jax.random.key(0)"
    _spent: ClassVar[tuple[str, ...]] = ("rng",)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Keep the key of a class that computes in its own way, and may need it."""
        super().__init_subclass__(**kwargs)
        if "forward" in vars(cls) and cls.__module__ != __name__:
            cls._spent = ()

    _pair: ClassVar[PairBase[Any, Any, Any, Any]]
    """The pair."""
    _params: ClassVar[tuple[Callable[..., Any], tuple[str, ...]]] = (lambda: (), ())
    """The type of the params, and the attributes that hold its fields."""
    _variables: ClassVar[tuple[Callable[..., Any], tuple[str, ...]]] = (lambda: (), ())
    """The type of the variables, and the attributes that hold its fields."""

    _sequences: ClassVar[tuple[str, ...]] = ()
    """Hyperparameters that are kept as tuples: one entry is a sequence of one."""
    _one_rank: ClassVar[bool] = False
    """Whether `setup` keeps the number of axes of x, and another one raises."""

    rng: Key | None
    """The key that makes the parameters, in classes that have any."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Set an attribute; a hyperparameter is checked, and kept in its plain form."""
        if name in self._pair.__signature__.parameters:
            if isinstance(value, Module):
                owner, way_out = type(self).__name__, "hold the module itself, as in Series([module])"
                raise TypeError(message(owner, name, "no module", described(value), way_out))
            value = self._pair.read_one(name, value)
            if name in self._sequences and not isinstance(value, tuple):
                value = (value,)
        elif name == "rng" and value is not None:
            require_key(type(self).__name__, value)
        super().__setattr__(name, value)

    def setup(self, x: Any) -> None:
        """Create the parameters and the running statistics."""
        if self._params[1] or self._variables[1]:
            if self.rng is None:
                owner, way_out = type(self).__name__, "set the attribute rng to a new key"
                got = "None: it is forgotten once there are parameters"
                raise TypeError(message(owner, "rng", "one PRNG key", got, way_out))
            params, state = self._pair.init(self.rng, x, **self._hparams())
            self._store(self._params[1], params)
            self._store(self._variables[1], state.variables)
        if self._one_rank:
            self.ndim: int | None = self._pair.config_for(self._hparams(), x).ndim

    def _run(
        self, x: X, rng: Key | None, inference_mode: bool, batch_axis_name: AxisName
    ) -> Y:
        hparams = self._hparams()
        if "ndim" in vars(self):
            hparams["ndim"] = self.ndim
        state = State(self._load(*self._variables), self._pair.config_for(hparams, x))
        params = self._load(*self._params)
        self._require_sizes()
        y: Y
        y, state = self._pair.apply(params, state, x, rng, inference_mode, batch_axis_name)
        self._store(self._variables[1], state.variables)
        return y

    def _hparams(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self._pair.__signature__.parameters}

    def _load(self, kind: Callable[..., Any], names: tuple[str, ...]) -> Any:
        """Return the data of the parameters; None for one whose `use_NAME` is False."""
        used = [getattr(self, f"use_{name}", True) for name in names]
        data = [getattr(self, n).data if use else None for n, use in zip(names, used, strict=True)]
        if not self.initialized and (True, None) in zip(used, data, strict=True):
            what, way_out = "an initialized module", "call it once, module(x, rng)"
            raise TypeError(expected(type(self).__name__, what, "one that is not", way_out))
        return kind(*data)

    def _store(self, names: tuple[str, ...], values: Any) -> None:
        for name, value in zip(names, values, strict=True):
            getattr(self, name).data = value

    def _sizes(self) -> dict[str, tuple[int | None, ...]]:
        """Return the lengths of axes of parameters that hyperparameters prescribe, or None."""
        return {}

    def _require_sizes(self) -> None:
        for name, sizes in self._sizes().items():
            if getattr(self, name).data is None:
                continue  # the pair tells what is missing
            shape = getattr(self, name).data.shape
            pairs = zip(sizes, shape, strict=False)
            if len(sizes) != len(shape) or any(size not in (None, n) for size, n in pairs):
                spelled = ", ".join("any" if size is None else str(size) for size in sizes)
                what = f"{name} of shape ({spelled}), as its attributes say"
                way_out = "set the attributes back, or a new rng and initialized = False"
                raise ValueError(expected(type(self).__name__, what, f"shape {shape}", way_out))


class PairModule(OverPair[X, Y]):
    """A pair that needs no key, as a module."""

    def forward(
        self, x: X, rng: None = None, inference_mode: bool = False, batch_axis_name: AxisName = ()
    ) -> Y:
        """Return the output; in training, update the running statistics if there are any."""
        return self._run(x, None, inference_mode, batch_axis_name)


class PairModuleRng(OverPair[X, Y]):
    """A pair that needs a key, as a module."""

    def forward(
        self, x: X, rng: Key | None, inference_mode: bool = False, batch_axis_name: AxisName = ()
    ) -> Y:
        """Return the output; in training, update the running statistics if there are any."""
        return self._run(x, rng, inference_mode, batch_axis_name)
