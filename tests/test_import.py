"""What `import mlax` loads: no other package, and the blocks and `nn` only on first use."""

import json
import subprocess
import sys

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
