"""Every Python snippet of README.md runs and prints what its comments say."""

import re
import sys
import types
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", README, re.M | re.S))
SNIPPETS = {
    title: snippet
    for title, section in SECTIONS.items()
    for snippet in re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)
}


def test_no_snippet_is_overlooked() -> None:
    """Each section has at most one snippet, so that section titles can name them."""
    assert len(SNIPPETS) == README.count("```python") > 0


@pytest.mark.parametrize("title", SNIPPETS)
def test_snippet(
    title: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run it as a module of its own and compare what it prints with its comments, or its text."""
    snippet = SNIPPETS[title]
    expected = re.findall(r"^print\(.*\)  # (.*)$", snippet, re.M)
    for text in re.findall(r"^```text\n(.*?)^```$", SECTIONS[title], re.M | re.S):
        expected += text.splitlines()
    module = types.ModuleType("readme")  # what it defines can be pickled, as in a script
    monkeypatch.setitem(sys.modules, "readme", module)
    exec(compile(snippet, f"README.md, {title}", "exec"), module.__dict__)
    assert capsys.readouterr().out.splitlines() == expected
