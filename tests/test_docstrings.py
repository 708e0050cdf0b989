"""Everything public is documented: modules, functions, classes, methods and attributes.

A name is public if it has no leading underscore and is not inside a function. An attribute is
documented by a string below it or by a line of its class under "Attributes:".
"""

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

import mlax

ROOT = Path(mlax.__file__).parent
Definition = ast.ClassDef | ast.FunctionDef


def undocumented(body: list[ast.stmt], where: str, class_docstring: str = "") -> Iterator[str]:
    for node, following in itertools.zip_longest(body, body[1:]):
        match node:
            case ast.If():
                yield from undocumented([*node.body, *node.orelse], where, class_docstring)
            case ast.ClassDef() | ast.FunctionDef() if is_public(node) and not is_overload(node):
                path = f"{where}.{node.name}"
                docstring = ast.get_docstring(node)
                if docstring is None:
                    yield path
                if isinstance(node, ast.ClassDef):
                    yield from undocumented(node.body, path, docstring or "")
            case ast.AnnAssign(target=ast.Name(id=name)) if where.count(".") and name[0] != "_":
                described = isinstance(following, ast.Expr) or f"    {name}: " in class_docstring
                if class_docstring and not described:
                    yield f"{where}.{name}"


def is_public(node: Definition) -> bool:
    return not node.name.startswith("_") or node.name == "__call__"


def is_overload(node: Definition) -> bool:
    return any(isinstance(d, ast.Name) and d.id == "overload" for d in node.decorator_list)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_everything_public_is_documented(path: Path) -> None:
    module = ast.parse(path.read_text())
    assert ast.get_docstring(module), f"{path} has no docstring"
    assert list(undocumented(module.body, path.stem)) == []


def test_a_missing_docstring_is_found() -> None:
    source = "class A:\n    'Doc.'\n    x: int\n    def f(self): ...\n    def _g(self): ...\ndef h(): ..."
    assert list(undocumented(ast.parse(source).body, "m")) == ["m.A.x", "m.A.f", "m.h"]
