"""What `convert` and `revert` do with the rules of a table: see `mlax.weights`."""

import functools
import operator
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeAlias, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt

from mlax.arguments import described, is_sequence
from mlax.combinators.child import variables_of
from mlax.errors import message
from mlax.tree import map_with_path

__all__ = ["Rule", "Table", "convert", "revert"]

P = TypeVar("P")
S = TypeVar("S")
T = TypeVar("T")

Array: TypeAlias = npt.NDArray[Any]
"""A NumPy array."""


class Rule(NamedTuple):
    """Where tensors belong: see `mlax.weights`.

    With None on one side, a rule says what that side may lack:

        Rule("cls.*", None)       tensors that are left out
        Rule(None, "pooler.*")    leaves that stay as in `like`, unless a tensor has its place there

    There, a star matches any text, dots included. In all other rules, only braces match text.
    """

    theirs: str | None
    """The name of the tensors, or of a part, such as "name[0 of 3]", the first one; or several
    names to add, with " + " between them."""
    ours: str | None
    """The path of a leaf, or of a part of it, in params or in the variables of the state."""
    axes: str | None = None
    """The axes of a tensor and of ours, such as "oi->io"; None if they are the same."""
    optional: bool = False
    """Whether there may be neither such a tensor nor such a leaf."""

    @property
    def terms(self) -> list[str]:
        """The names of the tensors to be added."""
        return [] if self.theirs is None else re.split(r" *\+ *", self.theirs)

    @property
    def axes_back(self) -> str | None:
        """The axes of ours and of a tensor."""
        return self.axes and "->".join(reversed(self.axes.split("->")))

    @property
    def counted(self) -> list[str]:
        """The texts in braces that index the leading axes of ours."""
        ours = _in_braces(self.ours or "")
        return [text for term in self.terms[:1] for text in _in_braces(term) if text not in ours]

    def __str__(self) -> str:
        return f"Rule({', '.join(map(repr, self[: 3 if self.axes else 2]))})"


Table: TypeAlias = Sequence[Rule]
"""Rules; the first one that applies counts."""


def _in_braces(side: str) -> list[str]:
    return re.findall(r"{(\w+)}", side)


def _require_rules(owner: str, table: Any) -> None:
    """Require rules that can be read in both directions."""
    if not is_sequence(table) or isinstance(table, Rule):
        raise TypeError(message(owner, "table", "a list or tuple of Rule", described(table)))
    for i, rule in enumerate(table):
        if not isinstance(rule, Rule):
            way_out = "put one table into another with a star, as in [*table, Rule(...)]"
            raise TypeError(message(owner, f"table[{i}]", "a Rule", described(rule), way_out))
        wanted = _wanted(rule)
        if wanted:
            raise ValueError(message(owner, f"table[{i}]", wanted, rule))


def _wanted(rule: Rule) -> str | None:
    """Return what a rule lacks to be read in both directions."""
    if not all(text is None or isinstance(text, str) for text in rule[:3]):
        return "made of strings"
    sides = [*rule.terms, *([] if rule.ours is None else [rule.ours])]
    braces = [_in_braces(side) for side in sides]
    if not sides:
        return "one with a name or a path"
    if any(len(set(texts)) < len(texts) for texts in braces):
        return "one with each text in braces once on each side"
    if any(re.search("[{}]", re.sub(r"{\w+}", "", side)) for side in sides):
        return "one with names in braces, as in {layer}"
    if len({frozenset(texts) for texts in braces[: len(rule.terms)]}) > 1:
        return "a sum of names with the same texts in braces"
    if rule.theirs is None or rule.ours is None:
        return None
    if any("*" in side for side in sides):
        return "one with None on a side if there is a star"
    if not set(braces[-1]) <= set(braces[0]):
        return "one whose braces on the right are on the left as well"
    before, arrow, after = (rule.axes or "->").partition("->")
    letters = [sorted(side.replace("1", "")) for side in (before, after)]
    is_read = arrow and re.fullmatch(r"\w*", before + after)
    if not is_read or letters[0] != letters[1] or len(set(letters[0])) < len(letters[0]):
        return "one of axes with the same letters on both sides, each once, as in 'oi->io'"
    return None


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
    indices: tuple[int, ...]
    """The indices along the leading axes of the leaf, () for all of it."""

    def shape(self, of_leaf: tuple[int, ...]) -> tuple[float, ...]:
        """Return the shape of the place in a leaf: not of integers if the parts aren't equal."""
        shape = of_leaf[len(self.indices) :]
        return (*shape[:-1], *(length / self.part.total for length in shape[-1:]))

    def __str__(self) -> str:
        index = f"[{', '.join(map(str, self.indices))}]" if self.indices else ""
        return str(self.part._replace(whole=f"{self.part.whole}{index}"))


Sums: TypeAlias = dict[tuple[str, ...], dict[str, Array | None]]
"""The arrays to add in one place, by the names in each rule; None for an array that does not
fit."""


def convert(tensors: Mapping[str, Any], table: Table, like: tuple[P, S]) -> tuple[P, S]:
    """Return `(params, state)` made from tensors: NumPy arrays, in the dtypes of the tensors.

    float16, bfloat16 and float64 stay what they are, whatever `like` has; but floats only go into
    leaves of floats, and integers into leaves of integers. Tensors of torch may require a gradient
    and be on any device. Several tensors may have one place if they are equal, as tied weights are.

    A rule says what only one side has: `Rule("cls.*", None)` leaves tensors out, and
    `Rule(None, "pooler.*")` keeps leaves as they are in `like`.

    Args:
        tensors: arrays by name, such as `safetensors.numpy.load_file` returns; or nested dicts, as
            in flax, whose keys are joined by dots.
        table: the rules, such as `mlax.models.LLAMA_HUGGINGFACE`.
        like: what `layer.init` returns, or its shapes by `jax.eval_shape`.

    Raises:
        TypeError: the table holds something that is not a rule, or `like` is not such a pair.
        ValueError: a tensor has no place, a leaf has no tensor, shapes differ or dtypes are of
            different kinds, or a rule that is not optional matches nothing on either side. The
            error lists all of them, and counts those that differ only in their numbers.

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
    leaves = _leaves("convert", "like", like)
    placed: dict[str, dict[Place, Sums]] = {path: {} for path in leaves}
    sides = [(term, rule) for rule in table for term in rule.terms]
    wrong: list[str] = []
    copies: dict[str, str] = {}

    def read(rule: Rule, texts: dict[str, str]) -> tuple[Place | None, tuple[str, ...]] | None:
        """Return the place in a leaf, if not left out, and the names of tensors to add there."""
        if rule.ours is None:
            return None, ()
        names = tuple(term.format(**texts) for term in rule.terms)
        part, index = _part(rule.ours.format(**texts)), [texts[text] for text in rule.counted]
        if part.whole not in leaves or not all(map(_NUMBER.fullmatch, index)):
            return None
        place, shape = Place(part, tuple(map(int, index))), leaves[part.whole].shape
        if len(index) <= len(shape) and all(map(operator.lt, place.indices, shape)):
            return place, names
        lengths = " x ".join(map(str, shape[: len(index)])) or "no"
        copies.update(dict.fromkeys(names, f", as {part.whole} has {lengths} copies"))
        return None

    names: set[str] = set()
    for name, tensor in _named(tensors):
        if name in names:
            wrong.append(f"the name {name} twice")
            continue
        names.add(name)
        array: Array | None = None
        for part, found in _by_part(name, sides, read).items():
            if found is None:
                wrong.append(f"no place for {part}{copies.get(name, '')}")
                continue
            rule, (place, added) = found
            if place is None:
                continue
            array = _array(name, tensor) if array is None else array
            path, leaf = place.part.whole, leaves[place.part.whole]
            arranged = _arranged(array, rule.axes)
            piece = _cut(arranged, part)
            if _kind(array.dtype) != _kind(leaf.dtype):
                wrong.append(f"{part} of dtype {array.dtype} for {path} of dtype {leaf.dtype}")
                piece = None
            elif piece is None or piece.shape != place.shape(leaf.shape):
                by = f" by {rule.axes}" if arranged is None else ""
                wrong.append(f"{part} of shape {array.shape} for {path} of shape {leaf.shape}{by}")
                piece = None
            placed[path].setdefault(place, {}).setdefault(added, {})[str(part)] = piece
    wrong += [
        f"nothing on either side for {rule}" for rule in table
        if not rule.optional and _is_for_nothing(rule, names, leaves)
    ]
    kept = [rule.ours for rule in table if rule.theirs is None and rule.ours is not None]
    arrays = [
        _kept(path, leaf, wrong)
        if not placed[path] and any(_matches(pattern, [path]) for pattern in kept)
        else _assembled(path, leaf.shape, placed[path], wrong)
        for path, leaf in leaves.items()
    ]
    if wrong:
        wanted = "those of the model, by the table"
        raise ValueError(message("convert", "tensors", wanted, *_listed(wrong)))
    made: tuple[P, S] = jax.tree.unflatten(jax.tree.structure(like), arrays)
    return made


_NUMBER = re.compile("0|[1-9][0-9]*")
"""How an index is written in a name."""


def _array(name: str, tensor: Any) -> Array:
    """Return a tensor as a NumPy array; NumPy lacks some dtypes of PyTorch."""
    if isinstance(tensor, np.ma.MaskedArray):
        way_out = "pass an array without a mask, such as tensor.filled()"
        raise TypeError(message("convert", name, "an array", "a masked one", way_out))
    try:
        if hasattr(tensor, "detach"):
            tensor = tensor.detach().cpu()
            dtype = str(tensor.dtype).removeprefix("torch.")
            if dtype.startswith(("bfloat16", "float8")):
                return np.asarray(tensor.float()).astype(dtype)  # exact in both directions
        return np.asarray(tensor)
    except Exception as error:
        error.add_note(f"convert: in the tensor {name}")
        raise


def _kind(dtype: Any) -> Any:
    """Return the kind of a dtype, which no conversion changes."""
    kinds = jnp.floating, jnp.integer, jnp.bool_, jnp.complexfloating
    return next((kind for kind in kinds if jnp.issubdtype(dtype, kind)), dtype)


def _matches(side: str, names: Iterable[str]) -> bool:
    """Return whether a side of a rule, or the whole that it is a part of, is one of the names."""
    pattern = _part(side).whole
    return any(_texts(pattern, name) is not None for name in names)


def _is_for_nothing(rule: Rule, names: Collection[str], paths: Collection[str]) -> bool:
    """Return whether a rule that names both sides matches neither a tensor nor a leaf."""
    if rule.theirs is None or rule.ours is None:
        return False
    return not any(_matches(term, names) for term in rule.terms) and not _matches(rule.ours, paths)


def _kept(path: str, leaf: Any, wrong: list[str]) -> Any:
    """Return a leaf of `like`; add to `wrong` that it is only a shape."""
    if isinstance(leaf, jax.ShapeDtypeStruct):
        wrong.append(f"only the shape of {path} in like, where its value is needed")
    return leaf


WAYS_OUT = {
    "no place for": "Rule(name, None) leaves tensors out",
    "no tensor for": "Rule(None, path) keeps a leaf as it is in like",
    r"copies|no tensor for [^;]*\[\d+(, \d+)*\]":
        "the config of the model must have as many layers as the file",
    "which differs from another there":
        "tensors in one place must have equal values: is the model tied, and the file not?",
    r" by \w+->":
        "the axes of a rule are those of the tensor and of the leaf, such as "
        "kernel=\"OWI\" of a convolution along one axis",
    "only the shape": "pass what layer.init returns as like",
    "on either side": "optional=True lets a rule match nothing",
}
"""What errors say, and the way out of each."""


def _listed(wrong: list[str]) -> tuple[str, str]:
    """Return what is wrong, and the ways out; what differs only in numbers is counted."""
    groups: dict[str, list[str]] = {}
    for text in wrong:
        groups.setdefault(re.sub(r"(?<!\w)\d+(?! of|\w)", "0", text), []).append(text)
    for group in groups.values():
        if len(group) > 2:
            group[1:] = [f"{len(group) - 1} more such"]
    got = "; ".join(text for group in groups.values() for text in group)
    return got, "; ".join(way for sign, way in WAYS_OUT.items() if re.search(sign, got))


def _assembled(
    path: str, shape: tuple[int, ...], places: dict[Place, Sums], wrong: list[str]
) -> Array | None:
    """Return the leaf made of what was found for its places; add to `wrong` what is missing."""
    ndim = min((len(place.indices) for place in places), default=0)
    total = max((place.part.total for place in places), default=1)
    rows = [
        [Place(Part(path, i, total), index) for i in range(total)]
        for index in np.ndindex(shape[:ndim])
    ]
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
                errors.append(f"{' + '.join(names)} for {path}, which differs from another there")
    if len(dtypes) > 1:
        errors.append(f"dtypes {', '.join(sorted(dtypes))} for {path}")
    wrong += errors
    if errors or len(pieces) < len(wanted):
        return None
    joined = [_joined([pieces[place] for place in row]) for row in rows]
    return np.stack(joined).reshape(shape) if ndim else joined[0]


def revert(made: tuple[Any, Any], table: Table) -> dict[str, Array]:
    """Return the tensors, by name, from which `convert` makes `(params, state)`.

    Raises:
        TypeError: the table holds something that is not a rule, or `made` is not a pair of arrays.
        ValueError: there is no rule for a leaf, or it has other axes. The error lists all of them.

    >>> import jax, jax.numpy as jnp, mlax
    >>> made = mlax.series(head=mlax.dense(2)).init(jax.random.key(0), jnp.ones(3))
    >>> tensors = mlax.weights.revert(made, mlax.weights.torch_linear("fc", "head"))
    >>> tensors["fc.weight"].shape
    (2, 3)
    """
    _require_rules("revert", table)
    leaves = _leaves("revert", "made", made)
    for path, leaf in leaves.items():
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise TypeError(message("revert", path, "an array", "only its shape"))
    sides = [(rule.ours, rule) for rule in table if rule.ours is not None]
    sides.sort(key=lambda side: side[1].theirs is None)  # it is for leaves that no other matches
    pieces: dict[str, dict[Part, tuple[Array, Rule]]] = {}
    wrong: list[str] = []
    for path, leaf in leaves.items():
        leaf = np.asarray(leaf)
        for part, found in _by_part(path, sides, lambda _, texts: texts).items():
            if found is None:
                wrong.append(f"no rule for {part}")
                continue
            rule, texts = found
            if len(rule.counted) > leaf.ndim:
                wrong.append(f"{path} of shape {leaf.shape} for {rule.theirs}")
                continue
            for index in np.ndindex(leaf.shape[: len(rule.counted)]):
                piece = _cut(leaf[index], part)
                for term in rule.terms:
                    numbers = dict(zip(rule.counted, index, strict=True))
                    theirs = _part(term.format(**texts, **numbers))
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
        got, _ = _listed(wrong)
        raise ValueError(message("revert", "params and variables", "those of the table", got))
    return {name: tensor for name, tensor in tensors.items() if tensor is not None}


def _restored(name: str, parts: dict[Part, tuple[Array, Rule]], wrong: list[str]) -> Array | None:
    """Return the tensor made of its parts; add to `wrong` those that are missing or differ."""
    total = max(part.total for part in parts)
    wanted = [Part(name, i, total) for i in range(total)]
    lacking = [f"no leaf for {part}" for part in wanted if part not in parts]
    wrong += lacking
    if lacking:
        return None
    found = [parts[part] for part in wanted]
    if len({(piece.shape, piece.dtype, rule.axes) for piece, rule in found}) > 1:
        got = ", ".join(f"{piece.dtype.name}{list(piece.shape)}" for piece, _ in found)
        wrong.append(f"parts {got} for {name}, which must be alike")
        return None
    return _arranged(_joined([piece for piece, _ in found]), found[0][1].axes_back)


def _named(tensors: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield tensors with their names; the keys of nested dicts are joined by dots."""
    for name, tensor in tensors.items():
        if isinstance(tensor, Mapping):
            yield from _named(tensor, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", tensor


def _leaves(owner: str, argument: str, made: Any) -> dict[str, Any]:
    """Return the leaves of params, and of the variables of the state, by path."""
    if type(made) is not tuple or len(made) != 2:
        wanted = "(params, state), as layer.init returns them"
        raise TypeError(message(owner, argument, wanted, described(made)))
    params, state = made
    found: dict[str, Any] = {}

    def add(path: str, leaf: Any) -> None:
        if path in found:
            wanted, got = "different in params and state", f"two of {path!r}"
            raise ValueError(message(owner, "paths", wanted, got))
        found[path] = leaf if hasattr(leaf, "shape") else np.asarray(leaf)

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
    found = _compiled(pattern).fullmatch(name)
    return None if found is None else found.groupdict()


@functools.lru_cache(1024)
def _compiled(pattern: str) -> re.Pattern[str]:
    escaped = re.escape(pattern).replace(r"\*", ".*")
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>[^.]+)", escaped))


def _arranged(array: Array, axes: str | None) -> Array | None:
    """Return an array with its axes in another order, or None if it does not have these."""
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
    """Return the array that `_cut` cuts into these parts."""
    return parts[0] if len(parts) == 1 else np.concatenate(parts, -1)


def _have_equal_bits(a: Array, b: Array) -> bool:
    return a is b or a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()
