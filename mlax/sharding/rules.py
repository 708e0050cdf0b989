"""Rules: patterns of paths, and the mesh axes that the arrays there are split over.

Everything wrong with the rules is found at once, as sentences of one error.
"""

import difflib
import fnmatch
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import jax
from jax.sharding import PartitionSpec

from mlax.arguments import described, is_sequence
from mlax.errors import message
from mlax.mesh import names_in
from mlax.sharding.leaves import Leaf
from mlax.sharding.strategies import AXES, Specs, default_specs

Rules: TypeAlias = str | Sequence[str | tuple[str, PartitionSpec]]
"""A strategy, or a list of rules (pattern, spec), of which the last may be a strategy."""

Rule: TypeAlias = tuple[str, PartitionSpec] | frozenset[str]
"""A pattern and a spec, or the parts of a strategy."""


REST_IS_WHOLE = ("*", PartitionSpec())
"""The rule for everything left."""


def read_rules(owner: str, rules: Any) -> list[Rule]:
    """Require rules."""
    if isinstance(rules, str):
        rules = (rules,)
    read: list[Rule] = []
    for rule in _listed(owner, "rules", rules, ' or a strategy such as "fsdp"'):
        if isinstance(rule, str):
            parts = frozenset(part.strip() for part in rule.split("+"))
            if not parts <= set(AXES):
                wanted = f"some of {', '.join(map(repr, AXES))}, joined by +"
                raise ValueError(message(owner, "a strategy", wanted, repr(rule)))
            read.append(parts)
        else:
            read.append(_read_pair(owner, "rules", rule, ' or a strategy such as "fsdp"'))
    return read


_PAIRS = "a list of pairs (pattern of paths, PartitionSpec)"


def _listed(owner: str, name: str, rules: Any, more: str = "") -> Sequence[Any]:
    """Require a list, which a single pair is not."""
    is_pair = isinstance(rules, tuple) and any(isinstance(r, PartitionSpec) for r in rules)
    if not is_sequence(rules) or isinstance(rules, str) or is_pair:
        got = f"the pair {rules!r}" if is_pair else described(rules)
        raise TypeError(message(owner, name, f"{_PAIRS}{more}", got))
    listed: Sequence[Any] = rules
    return listed


def read_pairs(owner: str, name: str, rules: Any) -> list[tuple[str, PartitionSpec]]:
    """Require rules without strategies."""
    return [_read_pair(owner, name, rule) for rule in _listed(owner, name, rules)]


def _read_pair(owner: str, name: str, rule: Any, more: str = "") -> tuple[str, PartitionSpec]:
    """Require a pattern and a spec."""
    is_pair = isinstance(rule, tuple) and len(rule) == 2 and isinstance(rule[0], str)
    if not is_pair or not isinstance(rule[1], PartitionSpec):
        got = repr(rule) if isinstance(rule, tuple) else described(rule)
        raise TypeError(message(owner, name, f"{_PAIRS}{more}", got))
    if getattr(rule[1], "unreduced", None) or getattr(rule[1], "reduced", None):
        wanted = "a PartitionSpec without reduced or unreduced axes"
        raise ValueError(message(owner, f"the rule for {rule[0]!r}", wanted, repr(rule[1])))
    return rule[0], rule[1]


def resolve(
    rules: Sequence[Rule], leaves: Iterable[Leaf], batch: PartitionSpec, gathered: Sequence[Any],
    sizes: Mapping[Any, int], findings: list[str],
) -> list[Specs]:
    """Return the specs of arrays, and add to the findings what is wrong with them."""
    found = []
    for leaf in leaves:
        i = _followed(rules, leaf.path)
        rule = PartitionSpec() if i is None else rules[i]
        if isinstance(rule, frozenset):
            known = [part for part in rule if AXES[part] in sizes]
            found.append(default_specs(known, leaf, batch, sizes))
            continue
        if i is None and not _is_variable(leaf.path) and math.prod(leaf.shape) > 1:
            findings.append(
                f"expected a rule for {leaf.path}, of shape {leaf.shape}, got none; a last rule "
                '("*", PartitionSpec()) keeps arrays whole'
            )
        stored = PartitionSpec() if i is None else rule[1]
        findings.extend(wrong_spec(leaf.path, leaf.shape, stored, sizes))
        entries = (*stored, *[None] * (len(leaf.shape) - len(stored)))
        used = [tuple(n for n in names_in([entry]) if n not in gathered) for entry in entries]
        found.append(Specs(stored, PartitionSpec(*(names or None for names in used))))
    return found


def _followed(rules: Sequence[Rule], path: str) -> int | None:
    """Return which rule an array follows; for variables, a pattern has to say so."""
    for i, rule in enumerate(rules):
        if isinstance(rule, frozenset):
            return i
        if _is_variable(rule[0]) is _is_variable(path) and fnmatch.fnmatchcase(path, rule[0]):
            return i
    return None


def _is_variable(path: str) -> bool:
    return path.startswith("variables.")


def wrong_spec(
    path: str, shape: tuple[int, ...], spec: PartitionSpec, sizes: Mapping[Any, int]
) -> Iterator[str]:
    """Yield what is wrong with the spec of an array."""
    if len(spec) > len(shape):
        yield f"expected {path} to have the {len(spec)} axes of {spec}, got shape {shape}"
    yield from wrong_names(path, spec, sizes)
    for axis, (length, entry) in enumerate(zip(shape, spec, strict=False)):
        names = names_in([entry])
        size = math.prod(sizes.get(name, 1) for name in names)
        if length % size:
            over = f"{' and '.join(map(repr, names))} of the mesh, {size}"
            yield f"expected axis {axis} of {path} to be a multiple of {over}, got shape {shape}"


def wrong_names(path: str, spec: PartitionSpec, sizes: Mapping[Any, int]) -> Iterator[str]:
    """Yield what is wrong with the mesh axes in a spec."""
    names = names_in(spec)
    for name in dict.fromkeys(names):
        if name not in sizes:
            known = ", ".join(map(repr, sizes))
            yield f"expected {path} to be split over mesh axes, {known}, got {name!r}"
        if names.count(name) > 1:
            yield f"expected {path} to be split over {name!r} once, got {spec}"


def dead_rules(rules: Sequence[Rule], paths: Sequence[str]) -> Iterator[str]:
    """Yield which rules no array follows, and why."""
    followed = {path: _followed(rules, path) for path in paths}
    for i, rule in enumerate(rules):
        is_for_the_rest = rule == REST_IS_WHOLE or len(rules) == 1 and isinstance(rule, frozenset)
        if i in followed.values() or is_for_the_rest and i == len(rules) - 1:
            continue
        if isinstance(rule, frozenset):
            spelled = "+".join(sorted(rule))
            yield f"expected arrays to be left for rule {i}, {spelled!r}, got none"
            continue
        of_variables = _is_variable(rule[0])
        own = [p for p in fnmatch.filter(paths, rule[0]) if _is_variable(p) is of_variables]
        if own:
            earlier = ", ".join(sorted({str(followed[path]) for path in own}))
            yield (
                f"expected arrays to follow rule {i}, {rule[0]!r}, got none, as all that it "
                f"matches, such as {own[0]}, follow rule {earlier}; put it before that"
            )
        else:
            close = [f"{rule[0]}.*"] if fnmatch.filter(paths, f"{rule[0]}.*") else []
            close += difflib.get_close_matches(rule[0], paths, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            yield f"expected rule {i}, {rule[0]!r}, to match a path, got none{hint}"


def missing_axes(rules: Iterable[Rule], sizes: Mapping[Any, int]) -> Iterator[str]:
    """Yield which axes strategies need that the mesh lacks."""
    for part in sorted({part for rule in rules if isinstance(rule, frozenset) for part in rule}):
        if AXES[part] not in sizes:
            known = ", ".join(map(repr, sizes))
            yield f"expected a mesh with an axis {AXES[part]!r} for {part!r}, got {known}"


def wrong_outputs(
    rules: Sequence[tuple[str, PartitionSpec]], layers: Sequence[str], sizes: Mapping[Any, int]
) -> Iterator[str]:
    """Yield what is wrong with rules for the outputs of layers."""
    left = list(layers)
    for pattern, spec in rules:
        if not fnmatch.filter(layers, pattern):
            close = difflib.get_close_matches(pattern, layers, 1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            yield f"expected {pattern!r} of outputs to match the path of a layer, got none{hint}"
        elif not fnmatch.filter(left, pattern):
            yield f"expected {pattern!r} of outputs to come before rules that match all it does"
        left = [path for path in left if not fnmatch.fnmatchcase(path, pattern)]
        yield from wrong_names(f"the output of {pattern!r}", spec, sizes)


def first_spec(rules: Sequence[tuple[str, PartitionSpec]], path: str) -> PartitionSpec | None:
    """Return the spec of the first pattern that matches a path."""
    return next((spec for pattern, spec in rules if fnmatch.fnmatchcase(path, pattern)), None)


def require_output(sizes: Mapping[Any, int], path: str, y: Any, spec: PartitionSpec) -> None:
    """Require an output that fits a spec; arrays in it with fewer axes are left alone."""
    leaves = jax.tree.leaves(y)
    fitting = [leaf for leaf in leaves if leaf.ndim >= len(spec)]
    for leaf in fitting or leaves:
        for finding in wrong_spec(f"the output of {path}", leaf.shape, spec, sizes):
            raise ValueError(f"plan: {finding}")
