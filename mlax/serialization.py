"""How `jax.export` writes our containers: named tuples by name, states by their hyperparameters.

A function of params, state and x that is exported has their containers in its signature. JAX
writes tuples, lists, dicts and None; it is told about the others here, when the classes are made. A
program that reads such a file has to import the classes too: `import mlax.types` imports all.

A config may hold any function, and unpickling would run whatever a file says. So the file has the
text of the config, see mlax/fingerprint.py, which is enough: the hyperparameters are in the program
already, and a state is accepted if its config has this text. A state that the program returns can
be passed to it again, and state.with_variables(returned.variables) takes its variables to a layer.
"""

import json
from typing import Any, NamedTuple, TypeVar

import jax

from mlax.layer import State, Static

T = TypeVar("T", bound=tuple[Any, ...])


def serializable(cls: type[T]) -> type[T]:
    """Let `jax.export` write a named tuple of ours, under its public name: a class decorator."""
    return jax.export.register_namedtuple_serialization(cls, serialized_name=f"mlax.{cls.__name__}")


class SerializedConfig(NamedTuple):
    """The config of a state that came out of an exported program."""

    text: str
    """The fingerprint of the config, as JSON."""

    @property
    def kind(self) -> str:
        """What errors call the layer that it belongs to."""
        return "an exported program"


class _FromFile(Static):
    """A config in a tree structure that was read from a file: equal to those with its text."""

    __slots__ = ("met",)

    def __init__(self, text: str) -> None:
        super().__init__(SerializedConfig(text))
        self.met: object = None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Static):
            return False
        if other.config is self.met:  # the text takes a millisecond, and calls are many
            return True
        same = _text(self) == _text(other)
        if same:
            self.met = other.config
        return same

    __hash__ = Static.__hash__


def _text(static: Static) -> str:
    if isinstance(static.config, SerializedConfig):
        return static.config.text
    from mlax.fingerprint import fingerprint  # it knows combinators and modules, which need State

    return json.dumps(fingerprint(State((), static.config)))


jax.export.register_pytree_node_serialization(
    State, serialized_name="mlax.State",
    serialize_auxdata=lambda static: _text(static).encode(),
    deserialize_auxdata=lambda text: _FromFile(text.decode()),
)
