"""What `convert` and `revert` do with the rules of a table: see `mlax.weights`."""

import functools
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import numpy as np
import numpy.typing as npt

from mlax.combinators.child import variables_of
from mlax.errors import message
from mlax.tree import map_with_path

__all__ = ["Rule", "Table", "convert", "revert"]

P = TypeVar("P")
S = TypeVar("S")
T = TypeVar("T")

Array: TypeAlias = npt.NDArray[Any]
"""An array of NumPy."""


class Rule(NamedTuple):
    """Where tensors belong: see `mlax.weights`."""

    theirs: str
    """The name of the tensors, or of a part, such as "name[0 of 3]"; or several, to be added, with
    " + " between them."""
    ours: str | None
    """The path, or that of a part, in params or in the variables of the state; None leaves the
    tensors out."""
    axes: str | None = None
    """The axes of a tensor and of ours, such as "oi->io"; None if they are the same."""

    @property
    def terms(self) -> list[str]:
        """The names of the tensors to be added."""
        return self.theirs.split(" + ")

    @property
    def axes_back(self) -> str | None:
        """The axes of ours and of a tensor."""
        return self.axes and "->".join(reversed(self.axes.split("->")))

    @property
    def counted(self) -> str | None:
        """The text in braces that counts along the leading axis of ours."""
        theirs, ours = (set(re.findall(r"{(\w+)}", side or "")) for side in self[:2])
        return min(theirs - ours, default=None)


Table: TypeAlias = Sequence[Rule]
"""Rules; the first one that applies counts."""


def _require_rules(owner: str, table: Table) -> None:
    """Require rules that can be read in both directions."""
    for rule in table:
        theirs, ours = (set(re.findall(r"{(\w+)}", side or "")) for side in rule[:2])
        if rule.ours is not None and len(theirs - ours) > 1:
            wanted = "one text in braces that ours lacks, as one axis can be counted"
            raise ValueError(message(owner, f"the rule {rule.theirs!r}", wanted, rule.ours))
        before, _, after = (rule.axes or "->").partition("->")
        letters = [sorted(side.replace("1", "")) for side in (before, after)]
        if letters[0] != letters[1] or len(set(letters[0])) < len(letters[0]):
            wanted = "axes with the same letters on both sides, each once, as in 'oi->io'"
            raise ValueError(message(owner, f"the rule {rule.theirs!r}", wanted, rule.axes))


class Part(NamedTuple):
    """A tensor or leaf, or one of its equal parts along the last axis of ours."""

    whole: str
    """The name of the tensor or the path of the leaf, or a pattern of them."""
    number: int
    """Which part, counted from 0."""
    total: int
    """The number of parts, 1 for a whole."""

    def __str__(self) -> str:
        return self.whole if self.total == 1 else f"{self.whole}[{self.number} of {self.total}]"


class Place(NamedTuple):
    """Where a tensor belongs."""

    part: Part
    """The part of a leaf."""
    layer: int | None
    """The index along the leading axis of the leaf, None for all of it."""

    def shape(self, of_leaf: tuple[int, ...]) -> tuple[float, ...]:
        """Return the shape of the place in a leaf: not of integers if the parts aren't equal."""
        shape = of_leaf if self.layer is None else of_leaf[1:]
        return (*shape[:-1], *(length / self.part.total for length in shape[-1:]))

    def __str__(self) -> str:
        layer = "" if self.layer is None else f"[{self.layer}]"
        return str(self.part._replace(whole=f"{self.part.whole}{layer}"))


Sums: TypeAlias = dict[tuple[str, ...], dict[str, Array | None]]
"""What is to be added in one place: by the names in each rule, the arrays that were found; None for
one that does not fit."""


def convert(tensors: Mapping[str, Any], table: Table, like: tuple[P, S]) -> tuple[P, S]:
    """Return `(params, state)` made of tensors: NumPy arrays, in the dtypes of the tensors.

    Several tensors may have one place if they are equal, as tied weights are.

    Args:
        tensors: arrays by name, such as `safetensors.numpy.load_file` returns; or dicts of dicts,
            such as flax has, whose names are joined by dots.
        table: the rules, such as `mlax.models.LLAMA_HUGGINGFACE`.
        like: what `layer.init` returns, or the shapes of it by `jax.eval_shape`.

    Raises:
        ValueError: a tensor has no place, a leaf has no tensor, or shapes or dtypes differ. The
            error lists all of them.

    >>> import jax, jax.numpy as jnp, mlax, numpy as np
    >>> tensors = {"fc.weight": np.ones((2, 3)), "fc.bias": np.zeros(2)}
    >>> model = mlax.series(head=mlax.dense(2))
    >>> like = jax.eval_shape(model.init, jax.random.key(0), jnp.ones(3))
    >>> table = mlax.weights.torch_linear("fc", "head")
    >>> params, state = mlax.weights.convert(tensors, table, like)
    >>> params["head"].kernel.shape
    (3, 2)
    """
    _require_rules("convert", table)
    leaves = _leaves(like)
    placed: dict[str, dict[Place, Sums]] = {path: {} for path in leaves}
    sides = [(term, rule) for rule in table for term in rule.terms]
    wrong: list[str] = []

    def read(rule: Rule, texts: dict[str, str]) -> tuple[Place | None, tuple[str, ...]] | None:
        """Return the place in a leaf, if not left out, and the names of what is added there."""
        names = tuple(term.format(**texts) for term in rule.terms)
        if rule.ours is None:
            return None, names
        part, layer = _part(rule.ours.format(**texts)), texts.get(rule.counted or "")
        if part.whole in leaves and layer is None:
            return Place(part, None), names
        length = leaves[part.whole].shape[0] if part.whole in leaves else 0
        if layer is not None and layer.isdecimal() and int(layer) < length:
            return Place(part, int(layer)), names
        return None

    for name, tensor in _named(tensors):
        for part, found in _by_part(name, sides, read).items():
            if found is None:
                wrong.append(f"no place for {part}")
                continue
            rule, (place, names) = found
            if place is None:
                continue
            path, array = place.part.whole, np.asarray(tensor)
            piece, shape = _cut(_arranged(array, rule.axes), part), leaves[path].shape
            if piece is None or piece.shape != place.shape(shape):
                wrong.append(f"{part} of shape {array.shape} for {path} of shape {shape}")
                piece = None
            placed[path].setdefault(place, {}).setdefault(names, {})[str(part)] = piece
    arrays = [_assembled(path, leaves[path].shape, placed[path], wrong) for path in leaves]
    if wrong:
        wanted = "those of the model, by the table"
        raise ValueError(message("convert", "tensors", wanted, "; ".join(wrong)))
    made: tuple[P, S] = jax.tree.unflatten(jax.tree.structure(like), arrays)
    return made


def _assembled(
    path: str, shape: tuple[int, ...], places: dict[Place, Sums], wrong: list[str]
) -> Array | None:
    """Return the leaf made of what was found for its places; add to `wrong` what was not."""
    is_whole = not places or any(place.layer is None for place in places)
    total = max((place.part.total for place in places), default=1)
    layers = [None] if is_whole else range(shape[0])
    rows = [[Place(Part(path, i, total), layer) for i in range(total)] for layer in layers]
    wanted = [place for row in rows for place in row]
    errors = [f"no tensor for {place}" for place in wanted if place not in places]
    if places.keys() - set(wanted):
        errors.append(f"several tensors for {path}")
    pieces: dict[Place, Array] = {}
    dtypes: set[str] = set()
    for place, sums in places.items():
        for names, found in sums.items():
            errors += [f"no tensor {name} for {path}" for name in names if name not in found]
            terms = [term for name in names if (term := found.get(name)) is not None]
            dtypes |= {term.dtype.name for term in terms}
            if len(terms) < len(names):
                continue
            added = functools.reduce(np.add, terms)
            if not _have_equal_bits(added, pieces.setdefault(place, added)):
                errors.append(f"{' + '.join(names)} for {path}, which another tensor has taken")
    if len(dtypes) > 1:
        errors.append(f"dtypes {', '.join(sorted(dtypes))} for {path}")
    wrong += errors
    if errors or len(pieces) < len(wanted):
        return None
    joined = [_joined([pieces[place] for place in row]) for row in rows]
    return joined[0] if is_whole else np.stack(joined)


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
    _require_rules("revert", table)
    leaves = {path: np.asarray(leaf) for path, leaf in _leaves(made).items()}
    sides = [(rule.ours, rule) for rule in table if rule.ours is not None]
    pieces: dict[str, dict[Part, tuple[Array, Rule]]] = {}
    wrong: list[str] = []
    for path, leaf in leaves.items():
        for part, found in _by_part(path, sides, lambda _, texts: texts).items():
            if found is None:
                wrong.append(f"no rule for {part}")
                continue
            rule, texts = found
            for index, layer in enumerate([leaf] if rule.counted is None else leaf):
                piece = _cut(layer, part)
                for term in rule.terms:
                    theirs = _part(term.format(**texts, **{str(rule.counted): index}))
                    others = pieces.setdefault(theirs.whole, {})
                    if piece is None or _arranged(piece, rule.axes_back) is None:
                        wrong.append(f"{path} of shape {leaf.shape} for {theirs} by {rule.axes}")
                    elif theirs in others or any(theirs.total != other.total for other in others):
                        wrong.append(f"{path} for {theirs}, which another leaf has taken")
                    else:
                        is_first = term == rule.terms[0]
                        others[theirs] = piece if is_first else np.full_like(piece, -0.0), rule
    tensors = {name: _restored(name, parts, wrong) for name, parts in pieces.items() if parts}
    if wrong:
        got = "; ".join(wrong)
        raise ValueError(message("revert", "params and variables", "those of the table", got))
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _restored(
    name: str, parts: dict[Part, tuple[Array, Rule]], wrong: list[str]
) -> Array | None:
    """Return the tensor made of its parts; add to `wrong` those that lack or differ."""
    total = max(part.total for part in parts)
    wanted = [Part(name, i, total) for i in range(total)]
    lacking = [f"no leaf for {part}" for part in wanted if part not in parts]
    wrong += lacking
    if lacking:
        return None
    found = [parts[part] for part in wanted]
    if len({(piece.shape, piece.dtype, rule.axes) for piece, rule in found}) > 1:
        got = ", ".join(f"{piece.dtype.name}{list(piece.shape)}" for piece, _ in found)
        wrong.append(f"parts {got} for {name}, which have to be alike")
        return None
    return _arranged(_joined([piece for piece, _ in found]), found[0][1].axes_back)


def _named(tensors: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield tensors with their names, which those in dicts of dicts have joined by dots."""
    for name, tensor in tensors.items():
        if isinstance(tensor, Mapping):
            yield from _named(tensor, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", tensor


def _leaves(made: tuple[Any, Any]) -> dict[str, Any]:
    """Return the leaves of params, and of the variables of the state, by path."""
    params, state = made
    found: dict[str, Any] = {}

    def add(path: str, leaf: Any) -> None:
        if path in found:
            raise ValueError(message("weights", "paths", "different in params and state", path))
        found[path] = leaf

    for tree in (params, variables_of(state)):
        map_with_path(add, tree)
    return found


def _by_part(
    name: str, sides: Sequence[tuple[str, Rule]],
    read: Callable[[Rule, dict[str, str]], T | None],
) -> dict[Part, tuple[Rule, T] | None]:
    """Return for each part of a tensor or leaf the first rule that applies, None if none does.

    Args:
        name: the name of the tensor, or the path of the leaf.
        sides: rules, each with the side of it that is to match the name.
        read: takes a rule and the texts in braces; None means that the rule does not apply.
    """
    found: dict[int, tuple[Rule, T]] = {}
    total = 1
    for side, rule in sides:
        part = _part(side)
        texts = _texts(part.whole, name)
        if texts is None or found and (part.total != total or part.number in found):
            continue
        result = read(rule, texts)
        if result is not None:
            found[part.number], total = (rule, result), part.total
            if len(found) == total:
                break
    return {Part(name, i, total): found.get(i) for i in range(total)}


@functools.lru_cache(1024)
def _part(side: str) -> Part:
    """Return what "name[0 of 3]" or "name" says."""
    found = re.fullmatch(r"(.*)\[(\d+) of (\d+)\]", side)
    if found is None:
        return Part(side, 0, 1)
    part = Part(found[1], int(found[2]), int(found[3]))
    if part.number >= part.total:
        wanted = f"below {part.total}, counted from 0"
        raise ValueError(message("Rule", "the number of a part", wanted, repr(side)))
    return part


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


def _cut(array: Array | None, part: Part) -> Array | None:
    """Return a part of an array along its last axis, or None if it has no equal parts."""
    if array is None or part.total == 1:
        return array
    if not array.ndim or array.shape[-1] % part.total:
        return None
    return np.split(array, part.total, -1)[part.number]


def _joined(parts: Sequence[Array]) -> Array:
    """Return what `_cut` makes the parts of."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, -1)


def _have_equal_bits(a: Array, b: Array) -> bool:
    return a is b or a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
