"""Draw the diagrams: see the docstring of the package."""

import mlax
from tests.diagrams import FOLDER, MODELS

for name, model in MODELS.items():
    mlax.diagram(*model()).save(FOLDER / f"{name}.svg")
