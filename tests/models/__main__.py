"""Write the outputs of `transformers`: see the docstring of the package."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

import mlax
from tests.models.cases import CASES, OUTPUTS, outputs, weights
from tests.models.huggingface import computed

if __name__ == "__main__":
    found: dict[str, Any] = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as folder:
            tensors = mlax.weights.revert(weights(case), case.table)
            y, _ = computed(name, tensors, Path(folder))
        found |= outputs(name, y)
    np.savez_compressed(OUTPUTS, **found)
