"""The digits program learns, equally in both styles, and plots the result."""

import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from matplotlib.figure import Figure

from mlax.examples import digits

PNG = b"\x89PNG\r\n\x1a\n"


def test_split() -> None:
    train, test = digits.load()
    assert train.images.shape == (1347, 8, 8, 1)
    assert test.images.shape == (450, 8, 8, 1)
    assert train.images.min() == 0
    assert train.images.max() == 1
    shares = jnp.bincount(test.labels, length=10) / 450
    assert jnp.allclose(shares, 0.1, atol=0.01)  # stratified


def test_score() -> None:
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.125, 0.125, 0.75]]))
    scores = digits.score(logits, jnp.array([0, 1]))
    assert scores.loss == pytest.approx((jnp.log(2) + jnp.log(8)) / 2)
    assert scores.accuracy == 0.5


def test_both_styles_learn_alike(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    train, test = digits.load()
    few = digits.select(train, jnp.arange(4 * digits.BATCH_SIZE))
    monkeypatch.setattr(digits, "load", lambda: (few, test))
    drawn: dict[str, tuple[Any, ...]] = {}
    draw = digits.draw

    def recording_draw(*args: Any) -> Figure:
        drawn[style] = args
        return draw(*args)

    monkeypatch.setattr(digits, "draw", recording_draw)
    for style in digits.STYLES:
        picture = tmp_path / f"{style}.png"
        digits.main(["--style", style, "--epochs", "3", "--output", str(picture)])
        assert picture.read_bytes().startswith(PNG)
        _, logits, train_scores, test_scores = drawn[style]
        assert len(train_scores) == len(test_scores) == 3
        assert train_scores[-1].loss < 0.6 * train_scores[0].loss
        assert train_scores[-1].accuracy > train_scores[0].accuracy
        accuracy = jnp.mean(jnp.argmax(logits, axis=-1) == test.labels)
        assert capsys.readouterr().out.endswith(f"test accuracy: {accuracy:.2%}\n")
    assert jnp.allclose(drawn["function"][1], drawn["module"][1], atol=1e-3)


@pytest.mark.parametrize("misread", [0, 3, 40])
def test_picture(misread: int, tmp_path: Path) -> None:
    labels = jnp.arange(50) % 10
    answers = jnp.where(jnp.arange(50) < misread, (labels + 1) % 10, labels)
    test = digits.Digits(jnp.zeros((50, 8, 8, 1)), labels)
    scores = [digits.Scores(jnp.array(1 / epoch), jnp.array(0.5)) for epoch in (1, 2, 3)]

    figure = digits.draw(test, jax.nn.one_hot(answers, 10), scores, scores)

    figure.savefig(tmp_path / "digits.png")
    assert (tmp_path / "digits.png").read_bytes().startswith(PNG)
    titles = [axes.get_title() for subfigure in figure.subfigs for axes in subfigure.axes]
    wrong = [title for title in titles if " as " in title]
    assert wrong == [f"{i % 10} as {(i + 1) % 10}" for i in range(min(misread, 10))]
    assert figure.subfigs[1].get_suptitle().startswith(f"{misread} of 50")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--epochs", "0"], "--epochs: expected at least 1, got 0"),
        (["--style", "stax"], "invalid choice: 'stax'"),
        (["--output", "no/such/folder/digits.png"], "--output: expected a file in a folder"),
    ],
)
def test_wrong_options(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        digits.main(options)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["matplotlib", "optax", "sklearn", "tqdm"])
def test_missing_extra(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in [module for module in sys.modules if module.split(".")[0] == name]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, name, None)
    source = Path(digits.__file__).read_text(encoding="utf-8")
    with pytest.raises(ModuleNotFoundError, match=r'pip install "mlax\[examples\]"') as error:
        exec(compile(source, digits.__file__, "exec"), {"__name__": "digits"})
    assert error.value.name is not None
    assert error.value.name.split(".")[0] == name
