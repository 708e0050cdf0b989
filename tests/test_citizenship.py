"""Each cell of the table in tests/citizenship.py, and each reason."""

import pytest

from mlax.testing import FEATURES

from .citizenship import REASONS, Reason, cell, one_of_each
from .laws.registry import Case

EXPLAINED = {
    "explicit_mesh": "c", "explicit_features": "cdefg", "auto_mesh": "",
    "shard_map_checked": "a", "shard_map": "", "spmd_axis_name": "j",
    "symbolic_batch": "b-", "symbolic_length": "bh-",
    "strict_float32": "", "strict_bfloat16": "", "rank_promotion": "", "tracer_leaks": "",
    "debug_nans": "", "key_reuse": "ik", "donation": "", "rbg_keys": "", "x64": "",
}
"""The letters of the reasons that a cell of each column may have."""

CELLS = [(case, feature) for case in one_of_each() for feature in FEATURES]


@pytest.mark.filterwarnings("ignore:.*expected more than one element:UserWarning")
@pytest.mark.parametrize(("case", "feature"), CELLS, ids=str)
def test_cell(case: Case, feature: str) -> None:
    mark, why = cell(case, feature)
    if isinstance(why, Exception):
        raise why
    assert mark in EXPLAINED[feature]
    if mark == "a":
        assert case.over_batch or case.of_layers
    if why:
        pytest.skip(why.text)


@pytest.mark.parametrize("reason", [r for r in REASONS if r.plain], ids=lambda r: r.letter)
def test_plain_jax_cannot_do_it_either(reason: Reason) -> None:
    assert reason.plain is not None
    with pytest.raises(Exception, match=reason.told):
        reason.plain()


def test_every_feature_is_in_the_table() -> None:
    assert set(EXPLAINED) == set(FEATURES)
