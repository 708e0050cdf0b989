"""A model as shapes and dtypes, and how tables spell them."""

import re
from typing import Any, NamedTuple

import jax

from mlax.arguments import AnyLayer, read_integer, read_layer
from mlax.combinators.child import Child
from mlax.combinators.making import abstract_child, one_tracing, shapes
from mlax.errors import message
from mlax.pair import require_input


class Model(NamedTuple):
    """A model as shapes and dtypes."""

    params: Any
    """Its parameters."""
    variables: Any
    """Its variables."""
    child: Child
    """The model as the layer of a combinator."""
    x: Any
    """Its input."""
    rng: Any
    """A key."""
    output: Any
    """Its output in training."""


def require_depth(owner: str, depth: int | None) -> None:
    """Require a number of levels, or None."""
    if depth is not None and read_integer(owner, "depth", depth, "at least 0") < 0:
        raise ValueError(message(owner, "depth", "at least 0", depth))


def abstract_model(owner: str, layer: AnyLayer, x: Any) -> Model:
    """Return a model as its `init` would make it."""
    read_layer(owner, "layer", layer)
    require_input(owner, x)
    key = jax.eval_shape(lambda: jax.random.key(0))
    x = shapes(x)
    with one_tracing():
        made = abstract_child(owner, None, layer, key, x)
    return Model(made.params, made.variables, made.child, x, key, made.output())


# Tables.


def cut(text: str, width: int) -> str:
    """Return the text, cut to fit a column."""
    return text if len(text) <= width else f"{text[: width - 1]}…"


def short(number: int) -> str:
    """Return a number with at most three digits and a letter."""
    if number < 1000:
        return str(number)
    power = min(int(f"{number:.2e}".split("e")[1]) // 3, 6)
    return f"{number / 1000**power:.3g}{'KMGTPE'[power - 1]}"


_SHORT = re.compile("^(float|int|uint|complex)(?=[0-9])")
"""Names of dtypes that are spelled by their first letter."""


def spelled(output: Any) -> str:
    """Return shapes and dtypes, as in "f32[5,2]"."""
    leaves = [
        _SHORT.sub(lambda found: found[0][0], leaf.dtype.name.replace("bfloat", "bf"))
        + f"[{','.join(map(str, leaf.shape))}]"
        for leaf in jax.tree.leaves(output)
    ]
    return leaves[0] if len(leaves) == 1 else f"({', '.join(leaves)})" if leaves else "-"
