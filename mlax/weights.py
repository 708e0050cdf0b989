"""Weights from elsewhere, and back: `convert` and `revert` by one table of rules, bit for bit.

    Rule("h.{layer}.mlp.up.weight", "body.mlp.up.kernel", "oi->io")

says that tensors of such names make up the leaf of params at `body.mlp.up.kernel`. Braces stand for
any text without a dot. If ours has the same braces, it is the same text; if not, it is a number,
which counts along a leading axis of the leaf, as in `mlax.repeat`. The letters are the axes of a
tensor, and those of the leaf; 1 is an axis of length 1, which the other side needn't have.

No tensor and no leaf is left out, unless a rule says so.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import numpy as np
import numpy.typing as npt

from mlax.errors import message
from mlax.layer import State
from mlax.tree import map_with_path

__all__ = ["Rule", "Table", "convert", "revert", "torch_linear", "torch_norm"]

P = TypeVar("P")
S = TypeVar("S")

Array: TypeAlias = npt.NDArray[Any]
"""An array of NumPy."""


class Rule(NamedTuple):
    """Where tensors belong: see `mlax.weights`."""

    theirs: str
    """The name of the tensors."""
    ours: str | None
    """The path in params, or in the variables of the state; None leaves the tensors out."""
    axes: str | None = None
    """The axes of a tensor and of ours, such as "oi->io"; None if they are the same."""

    @property
    def counted(self) -> str | None:
        """The text in braces that counts along the leading axis of ours."""
        theirs, ours = (set(re.findall(r"{(\w+)}", side or "")) for side in self[:2])
        return min(theirs - ours, default=None)


Table: TypeAlias = Sequence[Rule]
"""Rules; the first one that applies counts."""


def torch_linear(theirs: str, ours: str) -> Table:
    """Return the rules for a `torch.nn.Linear` that is our `dense`."""
    return (
        Rule(f"{theirs}.weight", f"{ours}.kernel", "oi->io"), Rule(f"{theirs}.bias", f"{ours}.bias")
    )


def torch_norm(theirs: str, ours: str) -> Table:
    """Return the rules for a normalisation, with its running statistics if it has them."""
    return (
        Rule(f"{theirs}.weight", f"{ours}.scale"), Rule(f"{theirs}.bias", f"{ours}.bias"),
        Rule(f"{theirs}.running_mean", f"{ours}.mean"),
        Rule(f"{theirs}.running_var", f"{ours}.var"),
        Rule(f"{theirs}.num_batches_tracked", None),
    )


def convert(tensors: Mapping[str, Any], table: Table, like: tuple[P, S]) -> tuple[P, S]:
    """Return `(params, state)` made of tensors: NumPy arrays, in the dtypes of the tensors.

    Several tensors may have one place if they are equal, as tied weights are.

    Args:
        tensors: arrays by name, such as `safetensors.numpy.load_file` returns.
        table: the rules, such as `mlax.models.LLAMA_HUGGINGFACE`.
        like: what `layer.init` returns, or the shapes of it by `jax.eval_shape`.

    Raises:
        ValueError: a tensor has no place, a leaf has no tensor, or shapes differ. The error lists
            all of them.

    >>> import jax, jax.numpy as jnp, mlax, numpy as np
    >>> tensors = {"fc.weight": np.ones((2, 3)), "fc.bias": np.zeros(2)}
    >>> model = mlax.series(head=mlax.dense(2))
    >>> like = jax.eval_shape(model.init, jax.random.key(0), jnp.ones(3))
    >>> table = mlax.weights.torch_linear("fc", "head")
    >>> params, state = mlax.weights.convert(tensors, table, like)
    >>> params["head"].kernel.shape
    (3, 2)
    """
    leaves = _leaves(like)
    parts: dict[str, dict[int | None, Array]] = {path: {} for path in leaves}
    wrong: list[str] = []
    for name, tensor in tensors.items():
        place = _place(name, table, leaves)
        if place is None:
            wrong.append(f"no place for {name}")
            continue
        rule, path, index = place
        if path is None:
            continue
        array, shape = np.asarray(tensor), leaves[path].shape
        part = _arranged(array, rule.axes)
        if part is None or part.shape != (shape if index is None else shape[1:]):
            wrong.append(f"{name} of shape {array.shape} for {path} of shape {shape}")
            part = array
        before = parts[path].setdefault(index, part)
        if part is not before and not _have_equal_bits(part, before):
            wrong.append(f"{name} for {path}, which another tensor has taken")
    for path, found in parts.items():
        if not found:
            wrong.append(f"no tensor for {path}")
        elif None in found and len(found) > 1:
            wrong.append(f"several tensors for {path}")
        elif None not in found:
            lacking = set(range(leaves[path].shape[0])) - set(found)
            wrong += [f"no tensor for {path}[{i}]" for i in sorted(lacking)]
    if wrong:
        wanted = "those of the model, by the table"
        raise ValueError(message("convert", "tensors", wanted, "; ".join(wrong)))

    def joined(path: str) -> Array:
        found = parts[path]
        return found[None] if None in found else np.stack([found[i] for i in range(len(found))])

    made: tuple[P, S] = jax.tree.unflatten(
        jax.tree.structure(like), [joined(path) for path in leaves]
    )
    return made


def revert(made: tuple[Any, Any], table: Table) -> dict[str, Array]:
    """Return the tensors by name that `convert` makes `(params, state)` of.

    Raises:
        ValueError: there is no rule for a leaf, or it has other axes. The error lists all of them.

    >>> import jax, jax.numpy as jnp, mlax
    >>> made = mlax.series(head=mlax.dense(2)).init(jax.random.key(0), jnp.ones(3))
    >>> tensors = mlax.weights.revert(made, mlax.weights.torch_linear("fc", "head"))
    >>> tensors["fc.weight"].shape
    (2, 3)
    """
    tensors: dict[str, Array] = {}
    wrong: list[str] = []
    for path, leaf in _leaves(made).items():
        found = ((rule, _texts(rule.ours, path)) for rule in table if rule.ours is not None)
        rule, texts = next((pair for pair in found if pair[1] is not None), (None, None))
        if rule is None or texts is None:
            wrong.append(f"no rule for {path}")
            continue
        axes, array = rule.axes and "->".join(reversed(rule.axes.split("->"))), np.asarray(leaf)
        for index, part in enumerate([array] if rule.counted is None else array):
            name = rule.theirs.format(**texts, **{str(rule.counted): index})
            tensor = _arranged(part, axes)
            if tensor is None:
                wrong.append(f"{path} of shape {array.shape} for {name} by {rule.axes}")
            elif name in tensors:
                wrong.append(f"{path} for {name}, which another leaf has taken")
            else:
                tensors[name] = tensor
    if wrong:
        got = "; ".join(wrong)
        raise ValueError(message("revert", "params and variables", "those of the table", got))
    return tensors


def _leaves(made: tuple[Any, Any]) -> dict[str, Any]:
    """Return the leaves of params, and of the variables of the state, by path."""
    params, state = made
    found: dict[str, Any] = {}

    def add(path: str, leaf: Any) -> None:
        if path in found:
            raise ValueError(message("weights", "paths", "different in params and state", path))
        found[path] = leaf

    for tree in (params, state.variables if isinstance(state, State) else state):
        map_with_path(add, tree)
    return found


def _place(
    name: str, table: Table, leaves: Mapping[str, Any]
) -> tuple[Rule, str | None, int | None] | None:
    """Return the rule for a tensor, the path of its leaf, and its index along the leading axis."""
    for rule in table:
        texts = _texts(rule.theirs, name)
        if texts is None:
            continue
        if rule.ours is None:
            return rule, None, None
        path = rule.ours.format(**texts)
        if path in leaves and rule.counted is None:
            return rule, path, None
        index = texts.get(rule.counted or "", "")
        if path in leaves and index.isdecimal() and int(index) < leaves[path].shape[0]:
            return rule, path, int(index)
    return None


def _texts(pattern: str, name: str) -> dict[str, str] | None:
    """Return the texts in braces, or None if the name does not match."""
    found = re.fullmatch(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^.]+)", re.escape(pattern)), name)
    return None if found is None else found.groupdict()


def _arranged(array: Array, axes: str | None) -> Array | None:
    """Return an array with its axes in another order, or None if it has others."""
    if axes is None:
        return array
    before, after = axes.split("->")
    ones = [length for axis, length in zip(before, array.shape, strict=False) if axis == "1"]
    if array.ndim != len(before) or ones != [1] * len(ones):
        return None
    letters, new_letters = before.replace("1", ""), after.replace("1", "")
    array = array.squeeze(tuple(i for i, axis in enumerate(before) if axis == "1"))
    array = array.transpose([letters.index(axis) for axis in new_letters])
    return np.expand_dims(array, tuple(i for i, axis in enumerate(after) if axis == "1"))


def _have_equal_bits(a: Array, b: Array) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
