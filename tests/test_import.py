"""What `import mlax` loads, and who imports whom: each room those above it in the list."""

import ast
import graphlib
import json
import subprocess
import sys
from pathlib import Path

import mlax

PROGRAM = """
import json, sys
import jax
before = set(sys.modules)
import mlax
first = sorted(set(sys.modules) - before)
found = {name: hasattr(mlax, name) for name in mlax.__all__}
print(json.dumps([first, sorted(set(sys.modules) - before), found, mlax.nn.Linear.__module__]))
"""


def test_no_other_package_is_imported() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], check=True, capture_output=True, text=True, timeout=120
    )
    first, later, found, module = json.loads(done.stdout)
    allowed = {"mlax", "jax", "jaxlib", "numpy", *sys.stdlib_module_names}
    assert not {name.split(".")[0] for name in later} - allowed
    assert not [name for name in first if name.startswith(("mlax.nn", "mlax.blocks."))]
    assert set(found) == set(mlax.__all__) and all(found.values())
    assert module == "mlax.nn.linear"


def test_names_that_are_imported_later_are_listed() -> None:
    assert set(mlax.__all__) <= set(dir(mlax))
    assert not hasattr(mlax, "dens")


LATE = "mlax.serialization", "mlax.fingerprint"
"""The one import against the order: `jax.export` asks a `State` for its text, once it exists."""


def test_imports_go_one_way() -> None:
    top = Path(mlax.__file__).parent
    files = {
        ".".join(path.relative_to(top.parent).with_suffix("").parts).removesuffix(".__init__"): path
        for path in top.rglob("*.py")
    }
    del files["mlax"]  # it imports the others when they are used
    by_file: dict[str, set[str]] = {}
    by_room: dict[str, set[str]] = {}
    for name, path in files.items():
        found = set[str | None]()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom):
                inner = {f"{node.module}.{alias.name}" for alias in node.names}
                found |= inner if inner <= set(files) else {*inner, node.module}
            elif isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
        by_file[name] = {other for other in files if other in found and (name, other) != LATE}
        by_room.setdefault(_room(name), set()).update(map(_room, by_file[name]))
    assert sum(map(len, by_file.values())) > len(files)
    by_room = {room: others - {room} for room, others in by_room.items()}
    for imported in (by_file, by_room):
        graphlib.TopologicalSorter(imported).prepare()  # an error names the circle


def _room(name: str) -> str:
    """Return the folder of mlax/ that a module is in, or the module itself."""
    return ".".join(name.split(".")[:2])
