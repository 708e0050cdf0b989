"""`Recurrent` and `RecurrentRng`: order of the steps, keys, and what the cell changes."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mlax import Module, Parameter, nn
from mlax.layer import AxisName, Key

KEY = jax.random.key(0)
XS = jnp.array([[1.0, 2.0], [3.0, -1.0], [0.5, 0.0], [2.0, 2.0]])


class Cell(Module):
    """h = tanh(x W + h U), y = 2 h, written as scripts write it; it counts its steps."""

    def __init__(self, rng: Key, width: int = 3) -> None:
        super().__init__()
        key1, key2 = jax.random.split(rng)
        self.of_x = nn.Linear(key1, width)
        self.of_h = nn.Linear(key2, width)
        self.steps = Parameter(trainable=False)

    def setup(self, xh: Any) -> None:
        self.steps.data = jnp.zeros((), jnp.int32)

    def forward(
        self,
        xh: Any,
        rng: None = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> Any:
        x, h = xh
        a, self.of_x = self.of_x(x, None)
        b, self.of_h = self.of_h(h, None)
        if not inference_mode:
            self.steps.data += 1
        h = jnp.tanh(a + b)
        return 2 * h, h


class NoisyCell(Module):
    """y = h + a uniform number, h = h + 1."""

    def forward(
        self, xh: Any, rng: Key, inference_mode: bool = False, batch_axis_name: AxisName = ()
    ) -> Any:
        _, h = xh
        return (h if inference_mode else h + jax.random.uniform(rng)), h + 1


def expected(cell: Any, xs: Any, h: Any, order: Any) -> tuple[Any, Any]:
    """Run the cell in NumPy."""
    w, u = np.asarray(cell.of_x.linear_kernel.data), np.asarray(cell.of_h.linear_kernel.data)
    ys = np.zeros((len(xs), len(h)), np.float32)
    for i in order:
        h = np.tanh(np.asarray(xs[i]) @ w + h @ u)
        ys[i] = 2 * h
    return ys, h


@pytest.mark.parametrize("unroll", [1, 3])
@pytest.mark.parametrize("reverse", [False, True])
def test_steps(reverse: bool, unroll: int) -> None:
    (ys, h), module = nn.Recurrent(Cell(KEY), reverse, unroll)((XS, jnp.zeros(3)), None)
    order = range(4)[::-1] if reverse else range(4)
    ys_expected, h_expected = expected(module.cell, XS, np.zeros(3), order)
    np.testing.assert_allclose(ys, ys_expected, rtol=1e-5)
    np.testing.assert_allclose(h, h_expected, rtol=1e-5)


def test_what_the_cell_changes_goes_from_step_to_step() -> None:
    x = (XS, jnp.zeros(3))
    module: Any
    _, module = nn.Recurrent(Cell(KEY))(x, None)
    steps = [module.cell.steps.data]
    for inference_mode in (False, True):
        _, module = module(x, None, inference_mode)
        steps.append(module.cell.steps.data)
    assert steps == [4, 8, 8]


class Particular(Module):
    """Sets itself up by the values of the first step, and counts calls of Python."""

    calls: ClassVar[list[int]] = []

    def __init__(self) -> None:
        super().__init__()
        self.seen: Any = None
        self.first = Parameter(trainable=False)

    def setup(self, xh: Any) -> None:
        x, _ = xh
        self.first.data = x + 1 if x.sum() > 2 else x

    def forward(
        self,
        xh: Any,
        rng: None = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> Any:
        self.calls.append(1)
        self.seen = len(self.calls)
        return xh[0] + self.first.data, xh[1]


@pytest.mark.parametrize(("reverse", "first"), [(False, [2.0, 3.0]), (True, [3.0, 3.0])])
def test_the_first_step_that_is_run_sets_up_the_cell(reverse: bool, first: list[float]) -> None:
    cell = Particular()
    (ys, _), module = nn.Recurrent(cell, reverse)((XS, jnp.zeros(3)), None)
    assert module.cell is cell
    assert cell.initialized
    np.testing.assert_array_equal(cell.first.data, first)
    np.testing.assert_allclose(ys, XS + np.array(first))


def test_the_cell_is_called_once_for_each_step() -> None:
    cell = Particular()
    for rounds in (1, 2):
        Particular.calls.clear()
        with jax.disable_jit():
            for _ in range(rounds):
                nn.Recurrent(cell)((XS, jnp.zeros(3)), None)
        assert len(Particular.calls) == rounds * len(XS)


def test_the_cell_stays_the_one_that_was_passed_in() -> None:
    cell = Cell(KEY)
    module = nn.Recurrent(cell)
    for _ in range(2):
        _, module = module((XS, jnp.zeros(3)), None)
    assert module.cell is cell
    assert cell.steps.data == 8


def test_no_step_sets_up_nothing() -> None:
    x = (XS[:0], jnp.zeros(3))
    with pytest.raises(ValueError, match="^recurrent: expected at least one step"):
        nn.Recurrent(Cell(KEY))(x, None)
    _, module = nn.Recurrent(Cell(KEY))((XS, jnp.zeros(3)), None)
    (ys, h), _ = module(x, None)
    assert ys.shape == (0, 3)
    np.testing.assert_array_equal(h, 0)


def test_a_carry_that_changes_raises_in_the_first_step() -> None:
    module = nn.Recurrent(nn.F(lambda xh: (xh[0], jnp.concatenate([xh[1], xh[1]]))))
    with pytest.raises(TypeError, match="^recurrent: expected the next carry"):
        module((XS, jnp.zeros(3)), None)
    other = nn.Recurrent(Cell(KEY, 2))
    with pytest.raises(TypeError, match="^recurrent: expected the next carry"):
        other((XS, jnp.zeros(3)), None)
    assert not other.cell.initialized


def test_the_cell_is_a_child() -> None:
    _, module = nn.Recurrent(Cell(KEY))((XS, jnp.zeros(3)), None)
    assert type(module.cell) is Cell
    trained, rest = module.partition()
    assert [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(trained)] == [
        ".cell.of_x.linear_kernel.data",
        ".cell.of_h.linear_kernel.data",
    ]
    assert jax.tree.structure(trained.combine(rest)) == jax.tree.structure(module)


@pytest.mark.parametrize("reverse", [False, True])
def test_keys_are_counted_in_running_order(reverse: bool) -> None:
    rng = jax.random.key(7)
    x = (XS, jnp.zeros(()))
    (ys, h), _ = nn.RecurrentRng(NoisyCell(), reverse)(x, rng)
    noise = np.array([jax.random.uniform(jax.random.fold_in(rng, i)) for i in range(4)])
    in_order = np.arange(4) + noise
    np.testing.assert_allclose(ys, in_order[::-1] if reverse else in_order, rtol=1e-6)
    assert h == 4


def test_inference_needs_no_key() -> None:
    (ys, _), _ = nn.RecurrentRng(NoisyCell())((XS, jnp.zeros(())), None, True)
    np.testing.assert_array_equal(ys, np.arange(4))


def test_any_pytree_of_steps() -> None:
    class Sum(Module):
        def forward(
            self,
            xh: Any,
            rng: None = None,
            inference_mode: bool = False,
            batch_axis_name: AxisName = (),
        ) -> Any:
            x, h = xh
            total = {"total": h["total"] + x["a"] * x["b"][0]}
            return {"y": total["total"]}, total

    xs = {"a": jnp.arange(3.0), "b": [jnp.array([1.0, 2.0, 3.0])]}
    (ys, h), _ = nn.Recurrent(Sum())((xs, {"total": jnp.zeros(())}), None)
    np.testing.assert_array_equal(ys["y"], [0, 2, 8])
    assert h["total"] == 8


def test_in_a_batch_under_jit() -> None:
    module = nn.Series([nn.Recurrent(Cell(KEY)), nn.F(lambda yh: yh[0])])
    batch = jnp.stack([XS, -XS])
    call = jax.vmap(lambda module, x: module((x, jnp.zeros(3)), None), (None, 0), (0, None))
    ys, after = jax.jit(call)(module, batch)
    cell = after.layers.data[0].cell
    np.testing.assert_allclose(
        ys, [expected(cell, xs, np.zeros(3), range(4))[0] for xs in batch], rtol=1e-5
    )
    assert cell.steps.data == 4


@pytest.mark.parametrize("cls", [nn.Recurrent, nn.RecurrentRng])
def test_wrong_arguments(cls: Any) -> None:
    with pytest.raises(TypeError, match="cell"):
        cls(jnp.sin)
    with pytest.raises(ValueError, match="recurrent: expected unroll to be a bool or a non-"):
        cls(Cell(KEY), unroll=-1)
    with pytest.raises(TypeError, match="recurrent: expected x to be a pair"):
        cls(Cell(KEY))(XS, KEY)
    with pytest.raises(ValueError, match="recurrent: expected xs to be arrays with a .*time axis"):
        cls(Cell(KEY))(((XS, XS[:2]), jnp.zeros(3)), KEY)


def test_a_missing_key_is_named() -> None:
    cell = nn.SeriesRng([nn.F(lambda xh: xh), nn.FRng(lambda xh, rng: xh)])
    module = nn.RecurrentRng(cell)
    with pytest.raises(ValueError, match="expected rng to be a PRNG key") as caught:
        module((XS, jnp.zeros(2)), None)
    assert "SeriesRng[1] > FRng" in caught.value.__notes__[0]
    assert caught.value.__notes__[0] == "in RecurrentRng.cell > SeriesRng[1] > FRng"
    _, module = module((XS, jnp.zeros(2)), jax.random.key(0))
    with pytest.raises(ValueError, match="expected rng to be a PRNG key") as caught:
        module((XS, jnp.zeros(2)), None)
    assert "in RecurrentRng.cell > SeriesRng[1] > FRng" in caught.value.__notes__


@pytest.mark.parametrize("reverse", [False, True])
def test_a_carry_of_none_is_zeros(reverse: bool) -> None:
    xs = jax.random.normal(KEY, (5, 3))
    (ys, h), module = nn.Recurrent(nn.GRUCell(KEY, 4), reverse)((xs, None), None)
    for again in (module, jax.jit(lambda module: module)(module)):
        for carry in (None, jnp.zeros(4)):
            (same, last), _ = jax.jit(lambda m, x: m(x, None))(again, (xs, carry))
            np.testing.assert_allclose(same, ys, rtol=1e-6)
            np.testing.assert_allclose(last, h, rtol=1e-6)
