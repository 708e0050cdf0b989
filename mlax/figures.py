"""The figures of a diagram as SVG text: boxes, frames, and rows of figures with arrows in between.

A `Figure` has a size and draws itself, in light colors on white. A frame is around `Rows`: arrows
run down from row to row, and past rows at their side.
"""

import html
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from mlax.flow import INPUT, OUTPUT, Graph, Join, Node


class Figure(NamedTuple):
    """Something that is drawn, on a vertical line that enters at its top and leaves below."""

    left: float
    """How far it reaches to the left of the line."""
    right: float
    """How far to the right."""
    height: float
    """From top to bottom."""
    draw: Callable[[float, float], Iterator[str]]
    """Yields its elements, for where the line enters."""
    width_of_entry: float = 0
    """How wide its top is for arrows that end side by side."""


_PAD, _BAR, _BOX, _CORNER, _RADIUS, _BEHIND = 14, 22, 28, 5, 9, 4


def box(title: tuple[str, str], color: tuple[str, str], has_copies: bool, is_again: bool) -> Figure:
    """Return the box of a layer without sublayers, dashed if the layer is called again."""
    half = _even(max(_width(*title) + 20, 64)) / 2
    behind = _BEHIND if has_copies else 0
    style = f'fill="{color[0]}" stroke="{color[1]}"' + ' stroke-dasharray="4 3"' * is_again

    def draw(x: float, y: float) -> Iterator[str]:
        yield from _sheets(x - half, y, 2 * half, _BOX, behind, "box", style)
        yield _written(x, y + 18, title)

    return Figure(half, half + behind, _BOX + behind, draw, half)


def frame(title: tuple[str, str], has_copies: bool, inside: Figure) -> Figure:
    """Return the frame of a layer around its sublayers."""
    behind = _BEHIND if has_copies else 0
    wider = max(0.0, _width(*title) + 20 - inside.left - inside.right - 2 * _PAD) / 2
    left, right = inside.left + _PAD + wider, inside.right + _PAD + wider
    height = _BAR + inside.height
    bar = f"v{_CORNER - _BAR} q0,-{_CORNER} {_CORNER},-{_CORNER} h{_n(left + right - 2 * _CORNER)}"
    bar += f" q{_CORNER},0 {_CORNER},{_CORNER} v{_BAR - _CORNER} z"

    def draw(x: float, y: float) -> Iterator[str]:
        style = f'fill="#ffffff" stroke="{_BORDER}"'
        yield from _sheets(x - left, y, left + right, height, behind, "frame", style)
        start = f"M{_n(x - left)},{_n(y + _BAR)}"
        yield f'<path d="{start} {bar}" fill="#f1f1f1" stroke="{_BORDER}"/>'
        yield _written(x + (right - left) / 2, y + 15, title)
        yield from inside.draw(x, y + _BAR)

    return Figure(left, right + behind, height + behind, draw)


def _sheets(
    x: float, y: float, width: float, height: float, behind: int, name: str, style: str
) -> Iterator[str]:
    """Yield a rectangle, and others behind it."""
    for step in range(behind, 0, -2):
        yield _rectangle(x + step, y + step, width, height, f'class="behind" {style}')
    yield _rectangle(x, y, width, height, f'class="{name}" {style}')


def join(operation: str) -> Figure:
    """Return the circle that joins the outputs of layers."""
    sign = SIGNS.get(operation, "")
    wide = _even(_width("", sign) + 16) / 2
    half = 4 if not sign else _RADIUS if len(sign) == 1 else wide
    height = 2 * _RADIUS if sign else 8

    def draw(x: float, y: float) -> Iterator[str]:
        style = f'class="join" fill="{"#ffffff" if sign else _STROKE}" stroke="{_STROKE}"'
        yield _rectangle(x - half, y, 2 * half, height, style, height / 2)
        if sign:
            yield _written(x, y + 13, ("", sign))

    return Figure(half, half, height, draw)


SIGNS = {
    "add": "+", "add_any": "+", "sub": "−", "mul": "×", "dot_general": "·",
    "concatenate": "concat", "cond": "one of", "select_n": "select",
}
"""What is written for operations that join outputs."""


# Where figures stand, and how arrows go.


_GAP, _LABEL, _LINES, _HEAD = 6, 16, 9, 14
"""Heights below a row: before labels, of labels, from line to line, and after the last line."""


class _Arrow(NamedTuple):
    """An edge of a graph."""

    source: Node
    target: Node
    start: int
    """The row of the source."""
    end: int
    """The row of the target."""


class Rows:
    """The figures of a graph in rows, each below all that it reads, and the arrows between them.

    Between two rows, outputs go sideways on lines of their own, except for those that only meet. An
    arrow that passes a row does so on the side of its source, on the left of a single column.
    """

    def __init__(self, graph: Graph, figures: dict[Node, Figure], labels: dict[Node, str]):
        nothing = Figure(0, 0, 0, lambda x, y: iter(()))
        self._figures = {INPUT: nothing, OUTPUT: nothing, **figures}
        self._labels = labels
        self._rows = _rows(graph)
        self._reach = {
            node: max(figure.right, _width_of_label(labels.get(node, "")))
            for node, figure in self._figures.items()
        }
        self._x = {n: x for row in self._rows for n, x in self._places(row)}
        row_of = {node: i for i, row in enumerate(self._rows) for node in row}
        self._arrows = [_Arrow(a, b, row_of[a], row_of[b]) for a, b in graph.edges]
        self._passing = {a for a in self._arrows if a.end - a.start > 1}
        self._sideways = {  # into a join from the side
            a for a in self._passing if isinstance(a.target, Join) and len(self._rows[a.end]) == 1
        }
        self._entry = self._entries()
        self._lines = self._lines_between()
        self._lane = self._lanes()
        self._top: dict[Node, float] = {}
        self._level: list[float] = []
        self._set_heights()

    def figure(self) -> Figure:
        """Return the whole as one figure."""
        lanes = self._lane.values()
        left = max([*self._extents(-1), *(4 - lane for lane in lanes)])
        right = max([*self._extents(1), *(lane + 4 for lane in lanes)])
        return Figure(left, right, self._top[OUTPUT], self._draw)

    def _draw(self, x: float, y: float) -> Iterator[str]:
        for node, figure in self._figures.items():
            yield from figure.draw(x + self._x[node], y + self._top[node])
        for arrow in self._arrows:
            points = [(x + a, y + b) for a, b in self._points(arrow)]
            yield _line(points, has_head=arrow.target != OUTPUT)
        for node, label in self._labels.items():
            yield _label(x + self._x[node] + 5, y + self._bottom(node) + 12, label)

    def _places(self, row: list[Node]) -> Iterator[tuple[Node, float]]:
        """Yield the nodes of a row and where their lines are, around 0."""
        xs, end = [], 0.0
        for node in row:
            xs.append(end + self._figures[node].left)
            end = xs[-1] + self._reach[node] + 20
        for node, x in zip(row, xs, strict=True):
            yield node, round(x - (xs[0] + xs[-1]) / 2)

    def _extents(self, side: int) -> list[float]:
        """Return how far rows reach to the left, -1, or to the right, 1."""
        reach = self._reach if side == 1 else {n: f.left for n, f in self._figures.items()}
        return [max(side * self._x[node] + reach[node] for node in row) for row in self._rows]

    def _entries(self) -> dict[_Arrow, float]:
        """Return where arrows enter from above."""
        entries: dict[_Arrow, float] = {}
        for node, figure in self._figures.items():
            arriving = [a for a in self._arrows if a.target == node and a not in self._sideways]
            arriving.sort(key=lambda a: (a not in self._passing, self._x[a.source]))
            space = min(14.0, figure.width_of_entry / max(len(arriving), 1))
            for i, arrow in enumerate(arriving):
                entries[arrow] = self._x[node] + space * (i - (len(arriving) - 1) / 2)
        return entries

    def _lines_between(self) -> list[dict[Node | _Arrow, int]]:
        """Return which line below each row is taken by outputs, and by arrows from further up."""
        lines: list[dict[Node | _Arrow, int]] = [{} for _ in self._rows]
        for arrow in self._arrows:
            below = lines[arrow.start]
            if arrow in self._passing or self._entry[arrow] != self._x[arrow.source]:
                below.setdefault(self._owner(arrow), len(below))
            if arrow in self._passing - self._sideways:
                lines[arrow.end - 1][arrow] = len(lines[arrow.end - 1])
        return lines

    def _owner(self, arrow: _Arrow) -> Node:
        """Return the node whose line an arrow takes."""
        meets = not self._figures[arrow.target].width_of_entry and arrow not in self._passing
        is_only = sum(a.source == arrow.source for a in self._arrows) == 1
        return arrow.target if meets and is_only else arrow.source

    def _lanes(self) -> dict[_Arrow, float]:
        """Return where arrows pass rows, the short ones inside the long ones."""
        lanes: dict[_Arrow, float] = {}
        for arrow in sorted(self._passing, key=lambda a: (a.end - a.start, a.start, str(a))):
            side = 1 if self._x[arrow.source] > 0 else -1
            last = arrow.end + (arrow in self._sideways)
            lane = max(self._extents(side)[arrow.start + 1 : last]) + 12
            others = [x for a, x in lanes.items() if a.start < arrow.end and arrow.start < a.end]
            while any(abs(side * lane - other) < 8 for other in others):
                lane += 8
            lanes[arrow] = side * lane
        return lanes

    def _set_heights(self) -> None:
        """Set the tops of the figures, and the level of the first line below each row."""
        y = 0.0
        for row, lines in zip(self._rows, self._lines, strict=True):
            height = max(self._figures[node].height for node in row)
            for node in row:
                self._top[node] = y + (height - self._figures[node].height) / 2
            self._level.append(y + height + _GAP + _LABEL * any(n in self._labels for n in row))
            y = self._level[-1] + _LINES * max(len(lines) - 1, 0) + _HEAD

    def _bottom(self, node: Node) -> float:
        return self._top[node] + self._figures[node].height

    def _points(self, arrow: _Arrow) -> list[tuple[float, float]]:
        """Return the corners of an arrow."""
        source, target = arrow.source, arrow.target
        x, figure = self._x[source], self._figures[target]

        def level(row: int, owner: Node | _Arrow) -> float:
            return self._level[row] + _LINES * self._lines[row][owner]

        points = [(x, self._bottom(source))]
        if arrow in self._passing:
            lane, y = self._lane[arrow], level(arrow.start, source)
            points += [(x, y), (lane, y)]
            if arrow in self._sideways:
                edge = figure.right if lane > self._x[target] else -figure.left
                y = self._top[target] + figure.height / 2
                return [*points, (lane, y), (self._x[target] + edge, y)]
            y = level(arrow.end - 1, arrow)
            points += [(lane, y), (self._entry[arrow], y)]
        elif self._entry[arrow] != x:
            y = level(arrow.start, self._owner(arrow))
            points += [(x, y), (self._entry[arrow], y)]
        return [*points, (self._entry[arrow], self._top[target])]


def _rows(graph: Graph) -> list[list[Node]]:
    """Return the nodes in rows, by their longest path from the input, the first row."""
    row_of: dict[Node, int] = {INPUT: 0}
    for node in graph.nodes:
        sources = [row_of[source] for source, target in graph.edges if target == node]
        row_of[node] = 1 + max(sources, default=0)
    row_of[OUTPUT] = 1 + max(row_of.values())
    rows: list[list[Node]] = [[] for _ in range(row_of[OUTPUT] + 1)]
    for node, row in row_of.items():
        rows[row].append(node)
    return rows


# SVG.


_STROKE, _BORDER, _INK = "#555555", "#b5b5b5", "#222222"


def page(figure: Figure, x: str, y: str) -> str:
    """Return the text of a drawing."""
    half = [max(_width_of_label(text) / 2 for text in (x, y))] * 2
    left, right = (max(pair) + 16 for pair in zip((figure.left, figure.right), half, strict=True))
    top, bottom = 56, 56 + figure.height
    width, height = math.ceil(left + right), math.ceil(bottom + 56)
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    font = 'font-family="Helvetica, Arial, sans-serif"'
    style = f'{font} font-size="12" fill="none" stroke-width="1"'
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>',
        _rectangle(0, 0, width, height, 'fill="#ffffff"', 8),
        _label(left, 26, x, "middle"),
        _line([(left, 32), (left, top)]),
        *figure.draw(left, top),
        _line([(left, bottom), (left, bottom + 24)]),
        _label(left, bottom + 38, y, "middle"),
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _rectangle(
    x: float, y: float, width: float, height: float, style: str, corner: float = _CORNER
) -> str:
    place = f'x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}"'
    return f'<rect {place} rx="{_n(corner)}" {style}/>'


def _written(x: float, y: float, title: tuple[str, str]) -> str:
    """Return a title around x. Its two parts meet at one place, whatever the font."""
    name, kind = map(html.escape, title)
    if not name:
        return f'<text x="{_n(x)}" y="{_n(y)}" text-anchor="middle" fill="{_INK}">{kind}</text>'
    x += _width(*title) / 2 - _width("", title[1])
    style = f'y="{_n(y)}" fill="{_INK}"'
    bold = f'<text x="{_n(x - 6)}" text-anchor="end" font-weight="bold" {style}>{name}</text>'
    return f'{bold}<text x="{_n(x)}" {style}>{kind}</text>'


def _label(x: float, y: float, text: str, anchor: str = "start") -> str:
    place = f'x="{_n(x)}" y="{_n(y)}" text-anchor="{anchor}"'
    return f'<text {place} font-size="10" fill="{_STROKE}">{html.escape(text)}</text>'


def _line(points: Sequence[tuple[float, float]], has_head: bool = True) -> str:
    """Return a line with round corners, and an arrowhead."""
    path = f"M{_n(points[0][0])},{_n(points[0][1])}"
    for before, corner, after in zip(points, points[1:], points[2:], strict=False):
        start, end = _near(corner, before), _near(corner, after)
        path += " L{},{} Q{},{} {},{}".format(*map(_n, (*start, *corner, *end)))
    (x0, y0), (x, y) = points[-2:]
    path += f" L{_n(x)},{_n(y)}"
    head = ""
    if has_head:
        tips = (-6, -3.5), (-6, 3.5)
        at = [(x + a, y + b) if x != x0 else (x + b, y + a) for a, b in tips]
        corners = " ".join(f"{_n(a)},{_n(b)}" for a, b in [*at, (x, y)])
        head = f'<path d="M{corners} z" fill="{_STROKE}"/>'
    return f'<path d="{path}" stroke="{_STROKE}"/>{head}'


def _near(corner: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """Return the point where the bend at a corner begins."""
    (x, y), dx, dy = corner, other[0] - corner[0], other[1] - corner[1]
    length = abs(dx) + abs(dy)
    part = min(4.0, length / 2) / length if length else 0.0
    return x + part * dx, y + part * dy


def _n(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0")


_WIDTHS = {
    **dict.fromkeys("ijl", 0.28), **dict.fromkeys("ft ,.:;|!/[]()r-'›", 0.4),
    **dict.fromkeys("cksvxyz_", 0.56), "m": 0.98, "w": 0.82, **dict.fromkeys("MW@…", 1.0),
}
"""Widths of characters in the widest of common fonts, at size 1."""


def _width_of(text: str) -> float:
    others = (1.0 if ord(c) > 0x2E80 else 0.73 if c.isupper() else 0.63 for c in text)
    return sum(_WIDTHS.get(c, other) for c, other in zip(text, others, strict=True))


def _width(name: str, kind: str) -> float:
    """Return the width of a title."""
    return 12 * (_width_of(kind) + (1.1 * _width_of(name) + 0.5 if name else 0))


def _width_of_label(text: str) -> float:
    return 10 * _width_of(text) + 6 if text else 0


def _even(width: float) -> int:
    return 2 * math.ceil(width / 2)
