"""Tests of `mlax.recurrent` against loops written out in NumPy and Python."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpy.typing as npt
import pytest

import mlax
from mlax import AxisName, Key, Layer

Floats = npt.NDArray[np.float64]
Pair = tuple[jax.Array, jax.Array]

KEY = jax.random.key(0)
XS = jnp.asarray(np.random.default_rng(0).normal(size=(5, 3)), jnp.float32)
H = jnp.array([0.5, -0.5])
# Any: cells of all kinds.
AnyLayer = Layer[Any, Any, Any, Any]


def elman_init(rng: Key, x: Pair) -> tuple[dict[str, jax.Array], tuple[()]]:
    inputs, h = x
    keys = jax.random.split(rng)
    return {
        "in": jax.random.normal(keys[0], (inputs.shape[0], h.shape[0])),
        "h": jax.random.normal(keys[1], (h.shape[0], h.shape[0])),
    }, ()


def elman_apply(
    params: dict[str, jax.Array],
    state: tuple[()],
    x: Pair,
    rng: Key | None = None,
    inference_mode: bool = False,
    batch_axis_name: AxisName = (),
) -> tuple[Pair, tuple[()]]:
    inputs, h = x
    h = jnp.tanh(inputs @ params["in"] + h @ params["h"])
    return (2 * h, h), state


ELMAN = Layer(elman_init, elman_apply)


def elman_loop(params: dict[str, jax.Array], reverse: bool) -> tuple[Floats, Floats]:
    weights = {name: np.asarray(value, np.float64) for name, value in params.items()}
    h = np.asarray(H, np.float64)
    ys = np.zeros((len(XS), len(H)))
    for i in reversed(range(len(XS))) if reverse else range(len(XS)):
        h = np.tanh(np.asarray(XS[i], np.float64) @ weights["in"] + h @ weights["h"])
        ys[i] = 2 * h
    return ys, h


def keyed_cell(with_default: bool = True) -> AnyLayer:
    """Return a cell that needs a key and gives a number drawn with it."""
    if with_default:
        return mlax.f_rng(lambda xh, rng: (jax.random.uniform(rng), xh[1]))

    def init(rng: Key, x: Pair) -> tuple[tuple[()], tuple[()]]:
        return (), ()

    def apply(
        params: tuple[()],
        state: tuple[()],
        x: Pair,
        rng: Key,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> tuple[Pair, tuple[()]]:
        return (jax.random.uniform(rng), x[1]), state

    pair: tuple[Any, Any] = (init, apply)  # Any: the protocol gives `rng` a default
    return Layer(*pair)


def on_inputs(layer: AnyLayer) -> AnyLayer:
    """Return a cell that runs the layer on each input and sums the results."""
    return mlax.series(
        mlax.parallel(layer, mlax.f(jnp.asarray)),
        mlax.f(lambda yh: (yh[0], yh[1] + jnp.sum(yh[0]))),
    )


def notes(error: pytest.ExceptionInfo[BaseException]) -> list[str]:
    """Return the paths noted on an error."""
    return [n for n in getattr(error.value, "__notes__", []) if n.startswith("in ")]


def scan_of(layer: AnyLayer, x: Any) -> Any:
    """Return the equation of the scan in a step of the layer."""
    params, state = layer.init(KEY, x)
    jaxpr = jax.make_jaxpr(layer.apply)(params, state, x)
    (equation,) = (eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan")
    return equation


@pytest.mark.parametrize(
    ("reverse", "unroll"), [(False, 1), (True, 1), (False, 2), (True, 7), (False, 0), (True, True), (False, False)]
)
def test_values(reverse: bool, unroll: int) -> None:
    init, apply = mlax.recurrent(ELMAN, reverse, unroll)
    params, state = init(KEY, (XS, H))
    (ys, h), after = apply(params, state, (XS, H))
    expected_ys, expected_h = elman_loop(params, reverse)
    np.testing.assert_allclose(ys, expected_ys, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(h, expected_h, rtol=1e-4, atol=1e-6)
    assert after == state


def test_bare_pair() -> None:
    params, state = mlax.recurrent.init(KEY, (XS, H), cell=ELMAN, reverse=True, unroll=2)
    (ys, _), _ = mlax.recurrent.apply(params, state, (XS, H))
    np.testing.assert_allclose(ys, elman_loop(params, True)[0], rtol=1e-4, atol=1e-6)


def test_params_are_those_of_the_cell_on_the_first_step() -> None:
    params, _ = mlax.recurrent(ELMAN).init(KEY, (XS, H))
    expected, _ = elman_init(jax.random.fold_in(KEY, 0), (XS[0], H))
    assert jax.tree.structure(params) == jax.tree.structure(expected)
    for value, wanted in zip(jax.tree.leaves(params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(value, wanted)


def test_reverse_and_unroll_are_those_of_the_scan() -> None:
    for reverse, unroll in ((False, 1), (True, 3)):
        scan = scan_of(mlax.recurrent(ELMAN, reverse, unroll), (XS, H)).params
        assert (scan["reverse"], scan["unroll"], scan["length"]) == (reverse, unroll, 5)


def test_parameters_are_closed_over_and_variables_are_carried() -> None:
    scan = scan_of(mlax.recurrent(ELMAN), (XS, H))
    assert len(scan.invars) == 4  # two parameters, h and xs
    assert len(scan.outvars) == 2  # h and ys: the carry comes out
    stateful = on_inputs(mlax.series(mlax.linear(2), mlax.bias(-1), mlax.z_norm(0)))
    scan = scan_of(mlax.recurrent(stateful), (XS, jnp.zeros(())))
    assert len(scan.invars) == 6  # two parameters, h, mean, var and xs
    assert len(scan.outvars) == 4  # h, mean, var and ys


@pytest.mark.parametrize(
    ("reverse", "key", "with_default"),
    [(False, KEY, True), (True, KEY, False), (True, jax.random.PRNGKey(0), True)],
    ids=["forward", "users", "raw"],
)
def test_the_step_that_is_run_as_number_i_gets_fold_in_of_i(
    reverse: bool, key: jax.Array, with_default: bool
) -> None:
    model = mlax.recurrent(keyed_cell(with_default), reverse)
    assert mlax.needs_rng(model.apply)
    params, state = model.init(key, (XS, H))
    (ys, _), _ = model.apply(params, state, (XS, H), key)
    drawn = [jax.random.uniform(jax.random.fold_in(key, i)) for i in range(5)]
    np.testing.assert_array_equal(ys, drawn[::-1] if reverse else drawn)


def test_unrolling_changes_no_keys() -> None:
    results = []
    for unroll in (1, 2):
        params, state = mlax.recurrent.init(KEY, (XS, H), keyed_cell(), True, unroll)
        results.append(mlax.recurrent.apply(params, state, (XS, H), KEY)[0][0])
    np.testing.assert_array_equal(results[1], results[0])


@pytest.mark.parametrize("reverse", [False, True])
def test_variables_go_from_step_to_step(reverse: bool) -> None:
    model = mlax.recurrent(on_inputs(mlax.z_norm(0, momentum=0.5)), reverse)
    x = (XS, jnp.zeros(()))
    params, state = model.init(KEY, x)
    _, after = model.apply(params, state, x)
    mean, var = 0.0, 1.0
    for inputs in np.asarray(XS, np.float64)[:: -1 if reverse else 1]:
        mean, var = (mean + inputs.mean()) / 2, (var + inputs.var()) / 2
    np.testing.assert_allclose(jax.tree.leaves(after), [mean, var], rtol=1e-5)
    assert jax.tree.structure(after) == jax.tree.structure(state)


def test_inference_needs_no_key_and_leaves_the_variables() -> None:
    model = mlax.recurrent(on_inputs(mlax.series(mlax.dropout(0.5, 0), mlax.z_norm(0))))
    x = (XS, jnp.zeros(()))
    params, state = model.init(KEY, x)
    (ys, _), after = model.apply(params, state, x, inference_mode=True)
    np.testing.assert_allclose(ys, np.asarray(XS) / np.sqrt(1 + 1e-5), rtol=1e-5)
    np.testing.assert_array_equal(jax.tree.leaves(after), jax.tree.leaves(state))


def test_a_users_state_is_carried() -> None:
    def init(rng: Key, x: Pair) -> tuple[tuple[()], dict[str, jax.Array]]:
        return (), {"calls": jnp.zeros((), jnp.int32)}

    def apply(
        params: tuple[()],
        state: dict[str, jax.Array],
        x: Pair,
        rng: Key | None = None,
        inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> tuple[Pair, dict[str, jax.Array]]:
        return (state["calls"], x[1]), {"calls": state["calls"] + 1}

    model = mlax.recurrent(Layer(init, apply))
    params, state = model.init(KEY, (XS, H))
    (ys, _), after = model.apply(params, state, (XS, H))
    np.testing.assert_array_equal(ys, range(5))
    assert [int(leaf) for leaf in jax.tree.leaves(after)] == [5]


def test_pytrees_of_inputs_carries_and_outputs() -> None:
    def step(xh: Any) -> Any:
        x, h = xh
        total = h["total"] + x["a"] * jnp.sum(x["b"])
        return [total, x["b"]], {"total": total}

    model: AnyLayer = mlax.recurrent(mlax.f(step))
    x = ({"a": jnp.arange(3.0), "b": jnp.ones((3, 2))}, {"total": jnp.zeros(())})
    params, state = model.init(KEY, x)
    ((totals, b), h), _ = model.apply(params, state, x)
    np.testing.assert_array_equal(totals, [0, 2, 6])
    np.testing.assert_array_equal(b, np.ones((3, 2)))
    np.testing.assert_array_equal(h["total"], 6)


def test_no_steps() -> None:
    model = mlax.recurrent(ELMAN)
    params, state = model.init(KEY, (XS[:0], H))
    (ys, h), _ = model.apply(params, state, (XS[:0], H))
    assert ys.shape == (0, 2)
    np.testing.assert_array_equal(h, H)


@pytest.mark.parametrize("reverse", [False, True])
def test_none_starts_with_the_zeros_of_the_cell(reverse: bool) -> None:
    @mlax.block(drop=mlax.dropout(0.5, 0), norm=mlax.z_norm(0), cell=mlax.lstm_cell(2))
    def cell(sub: Any, x: Any) -> Any:
        return sub.cell((sub.norm(sub.drop(x[0])), x[1]))

    model = mlax.recurrent(cell, reverse)
    params, state = model.init(KEY, (XS, None))
    h = jnp.zeros(2), jnp.zeros(2)
    expected = model.apply(params, state, (XS, h), KEY)
    got = jax.jit(model.apply)(params, state, (XS, None), KEY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), got, expected)
    (ys, after), _ = model.apply(params, state, (XS[:0], None), KEY)
    assert ys.shape == (0, 2) and all((a == 0).all() for a in after)


def test_sequences_of_another_length() -> None:
    params, state = mlax.recurrent(ELMAN).init(KEY, (XS[:1], H))
    (ys, _), _ = mlax.recurrent.apply(params, state, (XS, H))
    np.testing.assert_allclose(ys, elman_loop(params, False)[0], rtol=1e-4, atol=1e-6)


def test_gradients_are_those_of_the_loop() -> None:
    model = mlax.recurrent(ELMAN)
    params, state = model.init(KEY, (XS, H))

    def by_scan(params: Any) -> jax.Array:
        return jnp.sum(jnp.square(model.apply(params, state, (XS, H))[0][0]))

    def by_loop(params: Any) -> jax.Array:
        total, h = jnp.zeros(()), H
        for x in XS:
            (y, h), _ = elman_apply(params, (), (x, h))
            total += jnp.sum(jnp.square(y))
        return total

    for grad, wanted in zip(
        jax.tree.leaves(jax.grad(by_scan)(params)),
        jax.tree.leaves(jax.jit(jax.grad(by_loop))(params)),
        strict=True,
    ):
        np.testing.assert_allclose(grad, wanted, rtol=1e-4, atol=1e-5)


def test_batch_axis_name_reaches_the_cell() -> None:
    model = mlax.recurrent(on_inputs(mlax.z_norm(())))
    batch = jnp.stack([XS, 3 * XS + 1])
    params, state = model.init(KEY, (XS, jnp.zeros(())))
    (ys, _), _ = jax.vmap(
        lambda xs: model.apply(params, state, (xs, jnp.zeros(())), None, False, "batch"),
        out_axes=(0, None),
        axis_name="batch",
    )(batch)
    exact = np.asarray(batch, np.float64)
    expected = (exact - exact.mean(0)) / np.sqrt(exact.var(0) + 1e-5)
    np.testing.assert_allclose(ys, expected, rtol=1e-4, atol=1e-5)


def test_init_takes_shapes_runs_under_jit_and_runs_no_forward_pass() -> None:
    traced: list[bool] = []

    def step(xh: Pair) -> Pair:
        traced.append(isinstance(xh[0], jax.core.Tracer))
        return xh

    model = mlax.recurrent(mlax.series(ELMAN, mlax.f(step), mlax.f(step)))
    params, state = model.init(KEY, (XS, H))
    shapes = jax.eval_shape(lambda: (XS, H))
    others = model.init(KEY, shapes), jax.jit(lambda key, x: model.init(key, x))(KEY, (XS, H))
    for other in others:
        assert jax.tree.structure(other) == jax.tree.structure((params, state))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), other[0], params)
    assert jax.tree.structure(jax.eval_shape(model.init, KEY, shapes)) == jax.tree.structure(
        (params, state)
    )
    assert all(traced)


def test_state_is_one_node() -> None:
    cell = on_inputs(mlax.series(mlax.linear(2), mlax.bias(-1)))
    _, state = mlax.recurrent(cell).init(KEY, (XS, jnp.zeros(())))
    assert jax.tree.structure(state).num_nodes == 2  # the State and its empty variables


def test_needs_a_key_if_the_cell_does() -> None:
    assert not mlax.needs_rng(mlax.recurrent(ELMAN).apply)
    assert mlax.needs_rng(mlax.recurrent(cell=on_inputs(mlax.dropout(0.5, 0))).apply)


@pytest.mark.parametrize(
    ("hparams", "error", "text"),
    [
        ({"cell": mlax.linear}, TypeError, "cell to be .*layer.*, got .*linear"),
        ({"cell": None}, TypeError, "cell to be .*layer.*, got None"),
        ({"reverse": "yes"}, TypeError, "reverse to be .*, got 'yes'"),
        ({"unroll": -1}, ValueError, "unroll to be a bool or a non-negative integer, got -1"),
        ({"unroll": 1.5}, TypeError, "unroll to be a bool or a non-negative integer, got 1.5"),
    ],
)
def test_wrong_argument_raises(
    hparams: dict[str, Any],  # wrong types on purpose
    error: type[Exception],
    text: str,
) -> None:
    hparams = dict[str, Any](cell=ELMAN) | hparams
    with pytest.raises(error, match=f"^recurrent: expected {text}"):
        mlax.recurrent(**hparams)
    with pytest.raises(error, match=f"^recurrent: expected {text}"):
        mlax.recurrent.init(KEY, (XS, H), **hparams)


@pytest.mark.parametrize(
    ("x", "error", "text"),
    [
        (XS, TypeError, r"x to be a pair \(xs, h\), got an array of shape \("),
        ((XS, H, H), TypeError, r"x to be a pair \(xs, h\), got 3 entries"),
        ((jnp.ones(()), H), ValueError, r"xs to be arrays with .*time axis.*, got shapes \[\(\)\]"),
        (((XS, XS[:2]), H), ValueError, r"xs to be .*, got shapes \[\(5, 3\), \(2, 3\)\]"),
        (((), H), ValueError, r"xs to be arrays with .*, got shapes \[\]"),
    ],
)
def test_wrong_input_raises(
    x: Any,  # wrong types on purpose
    error: type[Exception],
    text: str,
) -> None:
    init, apply = mlax.recurrent(ELMAN)
    with pytest.raises(error, match=f"^recurrent: expected {text}"):
        init(KEY, x)
    with pytest.raises(error, match=f"^recurrent: expected {text}"):
        apply(*init(KEY, (XS, H)), x)


def test_carry_that_changes_its_dtype_raises() -> None:
    init, apply = mlax.recurrent(mlax.f(lambda xh: (xh[0], xh[1].astype(jnp.int32))))
    with pytest.raises(TypeError, match="(?s)float32.*int32"):
        apply(*init(KEY, (XS, H)), (XS, H))


def test_cell_that_returns_no_pair_raises() -> None:
    init, apply = mlax.recurrent(mlax.f(lambda xh: jnp.ones(4)))
    with pytest.raises((TypeError, ValueError), match=r"^recurrent: expected .*\(y, h\)"):
        apply(*init(KEY, (XS, H)), (XS, H))


def test_errors_have_the_path_once() -> None:
    model = mlax.series(mlax.f(lambda x: x), mlax.recurrent(on_inputs(mlax.linear(2))))
    x = (XS, jnp.zeros(()))
    with pytest.raises(ValueError, match="^linear: expected x with at least 1 axis") as error:
        model.init(KEY, (XS[:, 0], jnp.zeros(())))
    path = "in series[1] > recurrent > series[0] > parallel[0] > linear"
    assert notes(error) == [path]
    params, state = model.init(KEY, x)
    with pytest.raises(ValueError, match=r"^linear: expected x with 3 .*\(7,\)") as error:
        model.apply(params, state, (jnp.ones((5, 7)), jnp.zeros(())))
    assert notes(error) == [path]


def test_missing_key_in_training_names_rng_and_the_layer() -> None:
    model = mlax.recurrent(on_inputs(mlax.dropout(0.5, 0)))
    x = (XS, jnp.zeros(()))
    params, state = model.init(KEY, x)
    with pytest.raises(ValueError, match="^dropout: expected rng to be a PRNG key") as error:
        model.apply(params, state, x)
    assert notes(error) == ["in recurrent > series[0] > parallel[0] > dropout"]


@pytest.mark.parametrize("bidirectional", [False, True])
def test_a_batch_is_not_taken_for_time(bidirectional: bool) -> None:
    cells: list[Any] = [mlax.gru_cell(2), mlax.gru_cell(2)]
    layer: Any = mlax.bidirectional(*cells) if bidirectional else mlax.recurrent(cells[0])

    def given(xs: Any) -> Any:
        return (xs, (None, None)) if bidirectional else (xs, None)

    xs = jnp.ones((3, 3, 2))
    params, state = layer.init(KEY, given(xs[0]))
    layer.apply(params, state, given(xs[0]))
    with pytest.raises(ValueError, match="recurrent: expected x with 2 axes, as in init, got shape"):
        layer.apply(params, state, given(xs))
