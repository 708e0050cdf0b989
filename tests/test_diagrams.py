"""Tests of `diagram`: what flows where, and that it can be read."""

import itertools
import random
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import pytest

import mlax
from mlax.flow import INPUT, OUTPUT, Graph, Join, flow
from mlax.outline import abstract_model
from mlax.types import Diagram, Sublayers
from tests.diagrams import FOLDER, MODELS, floats

X = floats(4, 8)
Layer = mlax.Layer[Any, Any, Any, Any]


def graph(layer: Layer, x: Any = X, path: str = "") -> Graph:
    """Return what flows inside a layer of a model."""
    keys = tuple(path.split(".")) if path else ()
    return flow(abstract_model("test", layer, x), x).graph(keys)


def sources(found: Graph) -> dict[str, set[str]]:
    """Return the layers that each layer reads, through joins."""

    def through(node: Any) -> set[str]:
        if not isinstance(node, Join):
            return {node}
        return set().union(*(through(a) for a, b in found.edges if b == node))

    layers = [node for node in found.nodes if not isinstance(node, Join)]
    return {
        node: set().union(*(through(a) for a, b in found.edges if b == node))
        for node in (*layers, OUTPUT)
    }


@pytest.mark.parametrize("name", MODELS)
def test_diagrams_look_as_when_they_were_looked_at(name: str) -> None:
    drawn = str(mlax.diagram(*MODELS[name]()))
    assert drawn == (FOLDER / f"{name}.svg").read_text(encoding="utf-8")
    require_readable(drawn)


class Area(NamedTuple):
    """A rectangle."""

    x: float
    y: float
    width: float
    height: float

    def meets(self, other: "Area") -> bool:
        """Return whether the two have points in common."""
        return (
            self.x < other.x + other.width and other.x < self.x + self.width
            and self.y < other.y + other.height and other.y < self.y + self.height
        )

    def holds(self, other: "Area") -> bool:
        """Return whether the other lies inside."""
        return (
            self.x <= other.x and other.x + other.width <= self.x + self.width
            and self.y <= other.y and other.y + other.height <= self.y + self.height
        )


def areas(svg: str, name: str) -> list[Area]:
    """Return the rectangles of a class; those without a class are the page."""
    return [
        Area(*(float(one.attrib[key]) for key in ("x", "y", "width", "height")))
        for one in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}rect")
        if one.get("class", "") == name
    ]


def texts(svg: str) -> list[tuple[Area, str]]:
    """Return the labels of arrows, as wide as a usual font makes them."""
    found = []
    for one in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        if one.get("font-size") == "10" and one.get("text-anchor") == "start":
            text = "".join(one.itertext())
            x, y = float(one.attrib["x"]), float(one.attrib["y"])
            found.append((Area(x, y - 8, 5.2 * len(text), 10), text))
    return found


def require_readable(svg: str) -> None:
    """Require that nothing lies on something else, and all of it on the page."""
    (page,) = areas(svg, "")
    boxes, frames = areas(svg, "box") + areas(svg, "join"), areas(svg, "frame")
    labels = [area for area, _ in texts(svg)]
    for one in (*boxes, *frames, *areas(svg, "behind"), *labels):
        assert page.holds(one)
    for one, other in itertools.combinations([*boxes, *labels], 2):
        assert not one.meets(other), (one, other)
    for frame in frames:
        for one in (*boxes, *frames):
            assert frame.holds(one) or one.holds(frame) or not frame.meets(one), (frame, one)


def test_arrows_of_a_wiring_are_those_of_its_function() -> None:
    found = graph(*MODELS["unet"]())
    assert sources(found) == {
        "down_1": {INPUT}, "down_2": {"down_1"}, "bottom": {"down_2"}, "up_2": {"down_2", "bottom"},
        "up_1": {"down_1", "up_2"}, OUTPUT: {INPUT, "up_1"},
    }
    assert [op for node, op in found.nodes.items() if isinstance(node, Join)] == [
        "concatenate", "concatenate", "add",
    ]
    model, x = MODELS["gpt"]()
    found = graph(model, x, "body")
    first, second = (node for node in found.nodes if isinstance(node, Join))
    assert set(found.edges) == {
        (INPUT, "attention_norm"), ("attention_norm", "attention"), ("attention", first),
        (INPUT, first), (first, "mlp_norm"), ("mlp_norm", "mlp"), ("mlp", second),
        (first, second), (second, OUTPUT),
    }


@pytest.mark.parametrize("seed", range(6))
def test_arrows_of_random_wirings(seed: int) -> None:
    draw = random.Random(seed)
    names = [f"layer_{i}" for i in range(7)]
    reads = {
        name: draw.sample([INPUT, *names[:i]], draw.randint(1, min(i + 1, 3)))
        for i, name in enumerate(names)
    }
    reads[OUTPUT] = draw.sample(names, 2)

    def wire(sub: Sublayers, x: Any) -> Any:
        made = {INPUT: x}
        for name in names:
            made[name] = sub[name](sum(jnp.tanh(made[one]) for one in reads[name]))
        return made[reads[OUTPUT][0]] * 2 + made[reads[OUTPUT][1]]

    layers = {name: mlax.f(jnp.cos) if i % 3 else mlax.dense(8) for i, name in enumerate(names)}
    model = mlax.series(body=mlax.remat(mlax.repeat(mlax.block(**layers)(wire), 2)))
    wanted = {name: set(read) for name, read in reads.items()}
    assert sources(graph(model, X, "body")) == wanted
    require_readable(str(mlax.diagram(model, X)))


def test_arrows_through_loops_maps_and_branches() -> None:
    @mlax.block(a=mlax.dense(8), b=mlax.dense(8), unread=mlax.dense(8))
    def step(sub: Sublayers, inputs: Any) -> Any:
        x, h = inputs
        sub.unread(x)
        return jnp.where(x > 0, sub.a(x), 0.0), sub.b(h)

    encoders = mlax.parallel(mlax.batched(mlax.dense(8)), mlax.f(jnp.tanh))
    model = mlax.series(encoders, mlax.recurrent(step))
    found = sources(graph(model, (floats(5, 8), floats(8)), "1"))
    assert found == {"a": {INPUT}, "b": {INPUT}, "unread": {INPUT}, OUTPUT: {INPUT, "a", "b"}}

    choice = mlax.switch(lambda x: (x.sum() > 0).astype(int), mlax.dense(8), mlax.f(jnp.tanh))
    assert sources(graph(choice)) == {"0": {INPUT}, "1": {INPUT}, OUTPUT: {"0", "1", INPUT}}
    assert sources(graph(mlax.batched(choice))) == sources(graph(choice))


def test_what_returns_its_input_and_what_reads_nothing() -> None:
    @mlax.block(same=mlax.f(lambda x: x), scale=mlax.parameter((8,)), out=mlax.dense(3))
    def wire(sub: Sublayers, x: jax.Array) -> Any:
        return sub.out(sub.same(x) * sub.scale())

    assert sources(graph(wire)) == {
        "same": {INPUT}, "scale": set(), "out": {"same", "scale"}, OUTPUT: {"out"}
    }
    require_readable(str(mlax.diagram(wire, X)))
    assert sources(graph(mlax.series(mlax.series(), mlax.series()))) == {
        "0": {INPUT}, "1": {"0"}, OUTPUT: {"1"}
    }


def labels(drawing: Diagram) -> list[str]:
    """Return the labels of arrows."""
    return [text for _, text in texts(str(drawing))]


def test_arrows_have_shapes() -> None:
    model = mlax.series(mlax.dense(5), mlax.dense(3), mlax.f(lambda x: (x, x[0].astype(int))))
    assert labels(mlax.diagram(model, X)) == ["f32[4,5]", "f32[4,3]"]
    assert ">(f32[4,3], i32[3])<" in str(mlax.diagram(model, X))
    step = mlax.block(cell=mlax.rnn_cell(6), head=mlax.dense(2))(_step)
    drawing = mlax.diagram(mlax.carried(mlax.recurrent(step)), floats(9, 4))
    assert labels(drawing) == ["f32[4]", "(f32[6], f32[6])", "f32[2]"]
    assert ">f32[9,2]<" in str(drawing)


def test_arrows_in_batches_have_the_axis_of_the_batch_in_front() -> None:
    gru = mlax.carried(mlax.recurrent(mlax.gru_cell(6)))
    model = mlax.batched(mlax.series(gru, mlax.f(jnp.tanh), mlax.dense(5)))
    assert labels(mlax.diagram(model, floats(3, 10, 4))) == ["f32[3,10,6]", "f32[3,10,6]"]
    both = mlax.batched(mlax.bidirectional(mlax.gru_cell(6), mlax.gru_cell(6)))
    x = floats(3, 10, 4), (floats(3, 6), floats(3, 6))
    assert labels(mlax.diagram(both, x)) == ["(f32[3,10,6], f32[3,6])"] * 2


@pytest.mark.parametrize("around", [mlax.remat, mlax.batched])
def test_a_wiring_may_take_gradients(around: Any) -> None:
    def wire(sub: Sublayers, x: jax.Array) -> Any:
        return jax.grad(lambda x: sub.energy(x)[0].sum())(x)

    def pair(x: jax.Array) -> Any:
        return x, jnp.int32(3)

    parts = mlax.batched(mlax.series(mlax.dense(6), mlax.f(pair)), axis_name="atoms")
    drawing = mlax.diagram(around(mlax.block(energy=parts)(wire)), floats(2, 3, 4))
    assert "dense" in str(drawing) and ">f32[2,3,4]<" in str(drawing)


def _step(sub: Sublayers, inputs: Any) -> Any:
    y, h = sub.cell(inputs)
    return sub.head(y), h


def test_equal_layers_that_follow_each_other_are_one() -> None:
    def count(*layers: Layer) -> int:
        return len(areas(str(mlax.diagram(mlax.series(*layers), X)), "box"))

    dense = mlax.dense(8)
    assert count(dense, dense, dense) == 1
    assert "dense ×3" in str(mlax.diagram(mlax.series(dense, dense, dense), X))
    assert count(dense, mlax.f(jnp.tanh), dense) == 3
    assert count(mlax.f(jnp.tanh), mlax.f(jnp.cos), mlax.f(jnp.cos)) == 2
    assert count(mlax.dense(3), mlax.dense(3), mlax.dense(3)) == 2  # the first reads 8 features


def test_of_a_mixture_the_experts_are_several() -> None:
    model = mlax.series(mlax.moe(mlax.repeat(mlax.dense(8), 2), 4), mlax.f(lambda routed: routed.y))
    svg = str(mlax.diagram(model, X))
    assert ">moe<" in svg and "repeat ×2 ×4 › dense" in svg and svg.count("×4") == 1


def test_depth_folds() -> None:
    model, x = MODELS["gpt"]()
    drawn = [str(mlax.diagram(model, x, depth=n)) for n in range(4)]
    assert [len(areas(svg, "box")) for svg in drawn] == [1, 5, 8, 9]
    assert [len(areas(svg, "frame")) for svg in drawn] == [0, 1, 2, 3]


def test_names_are_escaped_and_dtypes_of_all_kinds_are_spelled(tmp_path: Path) -> None:
    layers: dict[str, Layer] = {"<a&b>.c": mlax.dense(8), 'say "x"': mlax.f(lambda x: (x, "")[0])}
    drawing = mlax.diagram(mlax.series(**layers), X)
    assert "&lt;a&amp;b&gt;.c" in str(drawing)
    require_readable(str(drawing))
    drawing.save(tmp_path / "model.svg")
    assert (tmp_path / "model.svg").read_text(encoding="utf-8") == drawing._repr_svg_()
    for name in ("a'b\"", "a.'b\".c", "\\'\"."):
        assert labels(mlax.diagram(mlax.series(**{name: mlax.dense(4), "z": mlax.dense(3)}), X))
    drawn = mlax.diagram(mlax.f(lambda pair: pair[0]), (X, jax.random.key(0)))
    assert "(f32[4,8], key&lt;fry&gt;[])" in str(drawn)


def test_models_that_only_infer() -> None:
    decoder = mlax.series(mlax.attention(2, causal=True, cache_length=10), mlax.dense(3))
    assert labels(mlax.diagram(decoder, X, inference_mode=True)) == ["f32[4,8]"]


def test_errors_have_the_path() -> None:
    with pytest.raises(ValueError) as caught:
        mlax.diagram(mlax.series(body=mlax.series(mlax.conv(4, (3, 3)))), jnp.ones((2, 2)))
    assert any("series > body[0] > conv" in note for note in caught.value.__notes__)
    with pytest.raises(TypeError, match="^diagram: expected layer"):
        mlax.diagram(jnp.tanh, X)  # type: ignore[arg-type]  # on purpose


@pytest.mark.parametrize("draw", [mlax.diagram, mlax.summary])
def test_levels_are_counted_from_0(draw: Any) -> None:
    with pytest.raises(ValueError, match="depth to be at least 0, got -1"):
        draw(mlax.dense(3), jnp.ones(2), depth=-1)
    with pytest.raises(TypeError, match="depth to be at least 0"):
        draw(mlax.dense(3), jnp.ones(2), depth=1.5)
