"""The numbers of a model that are kept in files."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlax
from tests.golden.models import MODELS, Model

FILES = Path(__file__).parent
"""Where the files are."""

Numbers = dict[str, np.ndarray[Any, np.dtype[Any]]]
"""Arrays by path, in the order of `jax.tree.leaves`."""

QUICKLY = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Options of XLA that halve the time of these tests."""


def named(tree: Any) -> Numbers:
    """Return the leaves by their paths."""
    found: Numbers = {}
    mlax.map_with_path(lambda path, leaf: found.setdefault(path, np.asarray(leaf)), tree)
    return found


def below(path: str, numbers: Numbers) -> Numbers:
    """Return the numbers whose paths start with this one."""
    return {name: array for name, array in numbers.items() if f"{name}.".startswith(f"{path}.")}


def initial(model: Model) -> tuple[Any, Any]:
    """Return params and state."""
    made: tuple[Any, Any] = model.layer.init(jax.random.key(0), model.x)
    return made


def checkpoint() -> dict[str, Any]:
    """Return what a program saves: a model, the state of an optimizer, a key, a number."""
    params, state = initial(MODELS["perceptron"])
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-3))
    return {
        "params": params, "state": state, "opt_state": optimizer.init(params),
        "key": jax.random.key(2), "half": jnp.arange(3, dtype=jnp.bfloat16), "steps": 5,
    }


def results(model: Model, params: Any, state: Any) -> dict[str, Any]:
    """Return the output and the state of a step in training, and of inference after it."""

    def run(params: Any, state: Any, x: Any) -> dict[str, Any]:
        y, state = model.layer.apply(params, state, x, jax.random.key(1))
        training = {"y": y, "state": state}
        y, _ = model.layer.apply(params, state, x, inference_mode=True)
        return {"training": training, "inference": {"y": y}}

    found: dict[str, Any] = jax.jit(run, compiler_options=QUICKLY)(params, state, model.x)
    return found


def drawn_by_jax() -> Numbers:
    """Return numbers that JAX draws, and its version.

    The last bits depend on the CPU too: a fused multiplication and addition is rounded once.
    """
    key = jax.random.key(0)
    return named(
        {
            "normal": jax.random.normal(key, (1000,)),
            "orthogonal": jax.nn.initializers.orthogonal()(key, (16, 16)),
            "version": np.array(jax.__version__),
        }
    )
