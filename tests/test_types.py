"""mypy, strict, over the package and the tests: the files and options of mypy.ini."""

from pathlib import Path

import pytest
from mypy import api

ROOT = Path(__file__).parent.parent


def test_mypy_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)  # `files` in mypy.ini is relative to it
    report, errors, status = api.run([])
    assert status == 0, report + errors
