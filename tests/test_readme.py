"""Every Python snippet of README.md runs and prints what its comments say."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
SNIPPETS = {
    title: snippet
    for title, section in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", README, re.M | re.S)
    for snippet in re.findall(r"^```python\n(.*?)^```$", section, re.M | re.S)
}


def test_no_snippet_is_overlooked() -> None:
    """Each section has at most one, so that titles can name them."""
    assert len(SNIPPETS) == README.count("```python") > 0


@pytest.mark.parametrize("title", SNIPPETS)
def test_snippet(title: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Run it in a namespace of its own and compare each print(...) with the comment behind it."""
    snippet = SNIPPETS[title]
    expected = re.findall(r"^print\(.*\)  # (.*)$", snippet, re.M)
    exec(compile(snippet, f"README.md, {title}", "exec"), {"__name__": "readme"})
    assert capsys.readouterr().out.splitlines() == expected
