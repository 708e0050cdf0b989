"""Write the files: see the docstring of the package."""

import importlib.metadata
import pickle
from typing import Any

import jax
import numpy as np
from jax import export

import mlax
from mlax.errors import expected
from tests.golden.models import MODELS, Model
from tests.golden.results import FILES, checkpoint, drawn_by_jax, initial, named, results


def main() -> None:
    """Write the files of all models."""
    _require_oldest_jax()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_traceback_in_locations_limit", 0)  # the paths of this machine
    _save("jax", drawn_by_jax())
    mlax.save(FILES / "checkpoint.safetensors", checkpoint(), checksum=True)
    for name, model in MODELS.items():
        params, state = jax.tree.map(np.asarray, initial(model))
        (FILES / f"{name}.pickle").write_bytes(pickle.dumps((params, state), protocol=4))
        made = {"params": params, "state": state, "x": model.x, **results(model, params, state)}
        _save(name, named(made))
        (FILES / f"{name}.jaxexport").write_bytes(_exported(model, params, state))


def _require_oldest_jax() -> None:
    """Require the oldest JAX: a later one reads its artifacts, an older one may not."""
    required = importlib.metadata.requires("mlax") or []
    (oldest,) = (one.removeprefix("jax>=") for one in required if one.startswith("jax>="))
    if not jax.__version__.startswith(f"{oldest}."):
        wanted = f"JAX {oldest}, the oldest that mlax supports"
        raise SystemExit(expected("tests.golden", wanted, jax.__version__))


def _save(name: str, numbers: dict[str, Any]) -> None:
    np.savez(FILES / f"{name}.npz", **numbers)


def _exported(model: Model, params: Any, state: Any) -> bytes:
    structure = jax.tree.structure((params, state, model.x))

    def infer(*leaves: Any) -> Any:
        params, state, x = jax.tree.unflatten(structure, leaves)
        return model.layer.apply(params, state, x, inference_mode=True)[0]

    (batch,) = export.symbolic_shape("batch")
    x = [
        jax.ShapeDtypeStruct((batch, *leaf.shape[1:]), leaf.dtype)
        for leaf in jax.tree.leaves(model.x)
    ]
    return bytes(export.export(jax.jit(infer))(*jax.tree.leaves((params, state)), *x).serialize())


if __name__ == "__main__":
    main()
