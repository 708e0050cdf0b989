"""Every Python snippet of README.md runs and prints what its comments say."""

import re
import sys
import types
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SNIPPETS = {
    title: snippet
    for title, section in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", README, re.M | re.S)
    for snippet in re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)
}


def test_no_snippet_is_overlooked() -> None:
    """Each section has at most one snippet, so that section titles can name them."""
    assert len(SNIPPETS) == README.count("```python") > 0


@pytest.mark.parametrize("title", SNIPPETS)
def test_snippet(
    title: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run it as a module of its own and compare each print(...) with the comment behind it."""
    snippet = SNIPPETS[title]
    expected = re.findall(r"^print\(.*\)  # (.*)$", snippet, re.M)
    module = types.ModuleType("readme")  # what it defines can be pickled, as in a script
    monkeypatch.setitem(sys.modules, "readme", module)
    exec(compile(snippet, f"README.md, {title}", "exec"), module.__dict__)
    assert capsys.readouterr().out.splitlines() == expected
