"""Tables without the libraries that they are for, which test_torch.py and test_flax.py need."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax.weights import convert, flax_conv, torch_conv, torch_gru
from tests.oracle import KEY
from tests.weights.parity import wrongs


@pytest.mark.parametrize("kernel", ["HWI", "OHHI", "O1I", "O I", ""])
@pytest.mark.parametrize("table", [torch_conv, flax_conv])
def test_a_kernel_has_letters_for_its_axes(table: Any, kernel: str) -> None:
    with pytest.raises(ValueError, match=f"{table.__name__}: expected kernel .* got '{kernel}'"):
        table("theirs", "ours", kernel)


def test_a_bias_of_theirs_without_one_of_ours_is_an_error() -> None:
    like = jax.eval_shape(mlax.conv(2, 1).init, KEY, jnp.ones((1, 1, 3)))
    given = {"c.weight": np.ones((2, 3, 1, 1)), "c.bias": np.ones(2)}
    with pytest.raises(ValueError, match=r"got no place for c.bias; Rule\(name, None\) leaves"):
        convert(given, torch_conv("c", ""), like)


def test_a_cell_without_one_of_two_biases_is_an_error() -> None:
    like = jax.eval_shape(mlax.gru_cell(2).init, KEY, (jnp.ones(1), None))
    given = {"weight_ih": np.ones((6, 1)), "weight_hh": np.ones((6, 2)), "bias_ih": np.ones(6)}
    with pytest.raises(ValueError) as caught:
        convert(given, torch_gru("", "", None), like)
    assert wrongs(caught.value) == {
        "no tensor bias_hh[0 of 3] for bias", "no tensor bias_hh[1 of 3] for bias",
        "no tensor for recurrent_bias",
    }
