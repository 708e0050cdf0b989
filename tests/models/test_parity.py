"""Every model against that of `transformers`, by weights that are given to both."""

import functools
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import mlax
from tests.models.cases import CASES, OUTPUTS, Array, like, outputs, weights

for_each_model = pytest.mark.parametrize("name", CASES)


@functools.cache
def computed(name: str) -> dict[str, Array]:
    """Return our output."""
    case = CASES[name]
    apply = jax.jit(functools.partial(case.layer.apply, inference_mode=True))
    y, _ = apply(*weights(case), case.x)
    return outputs(name, y)


def require_close(found: dict[str, Array], wanted: dict[str, Array]) -> None:
    """Require outputs that agree to 1e-4, and that are not all alike."""
    assert set(found) == set(wanted)
    for path, array in wanted.items():
        assert array.std() > 0.1, path
        np.testing.assert_allclose(found[path], array, 1e-4, 1e-4, err_msg=path)


@for_each_model
def test_outputs_are_those_that_transformers_gave(name: str) -> None:
    with np.load(OUTPUTS) as file:
        kept = {path: file[path] for path in file if path.split(".")[0] == name}
    require_close(computed(name), kept)


@for_each_model
def test_weights_go_there_and_back(name: str, tmp_path: Path) -> None:
    """To a file that `transformers` loads, and from the file that it saves."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from tests.models import huggingface

    case = CASES[name]
    made = weights(case)
    tensors = mlax.weights.revert(made, case.table)
    y, saved = huggingface.computed(name, tensors, tmp_path)
    require_close(computed(name), outputs(name, y))
    require_equal_bits(mlax.weights.convert(saved, case.table, like(case)), made)
    tracked = {name for name in saved if name.endswith(".num_batches_tracked")}
    assert {*saved} - tracked == {*tensors}


@for_each_model
def test_tensors_convert_to_the_same_bits(name: str) -> None:
    case = CASES[name]
    made = weights(case)
    tensors = mlax.weights.revert(made, case.table)
    require_equal_bits(mlax.weights.convert(tensors, case.table, like(case)), made)


@pytest.mark.parametrize(
    ("name", "own", "more"),
    [
        ("gpt2", "transformer.wte.weight", "lm_head.weight"),
        ("qwen", "model.embed_tokens.weight", "lm_head.weight"),
    ],
)
def test_a_tied_head_may_be_among_the_tensors(name: str, own: str, more: str) -> None:
    case = CASES[name]
    made = weights(case)
    tensors = mlax.weights.revert(made, case.table)
    tensors[more] = tensors[own].copy()
    require_equal_bits(mlax.weights.convert(tensors, case.table, like(case)), made)


@pytest.mark.parametrize(
    ("name", "before", "after"), [("gpt2", "transformer.", ""), ("bert", "", "bert.")]
)
def test_names_may_start_at_the_model_or_within_it(name: str, before: str, after: str) -> None:
    case = CASES[name]
    made = weights(case)
    tensors = mlax.weights.revert(made, case.table)
    renamed = {after + path.removeprefix(before): array for path, array in tensors.items()}
    require_equal_bits(mlax.weights.convert(renamed, case.table, like(case)), made)


def require_equal_bits(found: Any, wanted: Any) -> None:
    """Require equal structures, dtypes and bits."""
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    jax.tree.map(functools.partial(np.testing.assert_array_equal, strict=True), found, wanted)
