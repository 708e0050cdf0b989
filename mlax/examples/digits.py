"""Train a convolutional network to read handwritten digits.

    python -m mlax.examples.digits

The data are the 1,797 images of 8 x 8 pixels that come with scikit-learn; a quarter of them are
held out for testing. The network is written twice, as pure functions and as modules of `mlax.nn`:
both draw the same parameters and the same dropout masks from the same seed.
"""

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp

import mlax
from mlax import nn

try:
    import optax
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, PercentFormatter
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split
    from tqdm import tqdm
except ModuleNotFoundError as _error:
    raise ModuleNotFoundError(
        f'{_error}, which the examples need: pip install "mlax[examples]"', name=_error.name
    ) from None

BATCH_SIZE = 64
SPLIT_SEED = 0

Tree: TypeAlias = Any
"""A pytree of arrays: parameters, state, optimizer state."""


class Digits(NamedTuple):
    """Images and their labels."""

    images: jax.Array
    """(n, 8, 8, 1), from 0 for paper to 1 for ink."""
    labels: jax.Array
    """(n,), 0 to 9."""


class Scores(NamedTuple):
    """How well a batch was classified."""

    loss: jax.Array
    """Mean cross-entropy."""
    accuracy: jax.Array
    """Fraction of digits classified correctly."""


class Classifier(NamedTuple):
    """What the training loop needs of a network, whatever its style."""

    carry: Tree
    """Everything that a step changes."""
    step: Callable[[Tree, Digits, mlax.Key], tuple[Tree, Scores]]
    """`step(carry, batch, rng)` trains on a batch."""
    predict: Callable[[Tree, jax.Array], jax.Array]
    """`predict(carry, images)` returns the logits."""


# The network as pure functions.


def block(channels: int) -> mlax.Layer[Tree, Tree, jax.Array, jax.Array]:
    """Return a convolution with batch normalisation."""
    return mlax.series(
        mlax.conv(channels, 3, padding="SAME"),
        mlax.z_norm("channel_last"),
        mlax.scaler((0, 0, -1)),
        mlax.bias((0, 0, -1)),
        mlax.f(jax.nn.relu),
    )


def function_style(
    rng: mlax.Key, image: jax.Array, optimizer: optax.GradientTransformation
) -> Classifier:
    """Return the network as a pair of functions; the carry is (params, state, opt_state)."""
    init, apply = mlax.series(
        block(32), mlax.max_pool(2, strides=2),
        block(64), block(64), mlax.max_pool(2, strides=2),
        mlax.f(jnp.ravel), mlax.dropout(0.5, axis=0),
        mlax.linear(10), mlax.bias(-1),
    )
    params, state = init(rng, image)

    def loss(
        params: Tree, state: Tree, batch: Digits, rng: mlax.Key
    ) -> tuple[jax.Array, tuple[Tree, Scores]]:
        logits, state = jax.vmap(
            lambda image, key: apply(params, state, image, key, False, "batch"),
            out_axes=(0, None),
            axis_name="batch",
        )(batch.images, jax.random.split(rng, len(batch.images)))
        scores = score(logits, batch.labels)
        return scores.loss, (state, scores)

    @jax.jit
    def step(carry: Tree, batch: Digits, rng: mlax.Key) -> tuple[Tree, Scores]:
        params, state, opt_state = carry
        grads, (state, scores) = jax.grad(loss, has_aux=True)(params, state, batch, rng)
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return (optax.apply_updates(params, updates), state, opt_state), scores

    @jax.jit
    def predict(carry: Tree, images: jax.Array) -> jax.Array:
        params, state, _ = carry
        logits: jax.Array = jax.vmap(
            lambda image: apply(params, state, image, inference_mode=True)[0]
        )(images)
        return logits

    return Classifier((params, state, optimizer.init(params)), step, predict)


# The same network as modules.


def module_block(rng: mlax.Key, channels: int) -> nn.Series:
    """Return a convolution with batch normalisation."""
    key = functools.partial(jax.random.fold_in, rng)
    return nn.Series(
        [
            nn.Conv(key(0), channels, 3, padding="SAME"),
            nn.ZNorm(key(1), "channel_last"),
            nn.Scaler(key(2), (0, 0, -1)),
            nn.Bias(key(3), (0, 0, -1)),
            nn.F(jax.nn.relu),
        ]
    )


def module_style(
    rng: mlax.Key, image: jax.Array, optimizer: optax.GradientTransformation
) -> Classifier:
    """Return the network as a module; the carry is (model, opt_state)."""
    key = functools.partial(jax.random.fold_in, rng)
    model = nn.SeriesRng(
        [
            module_block(key(0), 32), nn.MaxPool(2, 2),
            module_block(key(2), 64), module_block(key(3), 64), nn.MaxPool(2, 2),
            nn.F(jnp.ravel), nn.Dropout(0.5, axis=0),
            nn.Linear(key(7), 10), nn.Bias(key(8), -1),
        ]
    )
    _, model = model(image, rng, inference_mode=True)

    def loss(
        trainables: nn.SeriesRng, rest: nn.SeriesRng, batch: Digits, rng: mlax.Key
    ) -> tuple[jax.Array, tuple[nn.SeriesRng, Scores]]:
        model = trainables.combine(rest)
        logits, model = jax.vmap(
            lambda image, key: model(image, key, False, "batch"),
            out_axes=(0, None),
            axis_name="batch",
        )(batch.images, jax.random.split(rng, len(batch.images)))
        scores = score(logits, batch.labels)
        return scores.loss, (model, scores)

    @jax.jit
    def step(carry: Tree, batch: Digits, rng: mlax.Key) -> tuple[Tree, Scores]:
        model, opt_state = carry
        trainables, rest = model.partition()
        grads, (model, scores) = jax.grad(loss, has_aux=True)(trainables, rest, batch, rng)
        updates, opt_state = optimizer.update(grads, opt_state, trainables)
        trainables = optax.apply_updates(trainables, updates)
        return (trainables.combine(model.partition()[1]), opt_state), scores

    @jax.jit
    def predict(carry: Tree, images: jax.Array) -> jax.Array:
        model, _ = carry
        logits: jax.Array = jax.vmap(
            lambda image: model(image, None, inference_mode=True)[0]
        )(images)
        return logits

    return Classifier((model, optimizer.init(model.filter())), step, predict)


STYLES = {"function": function_style, "module": module_style}


# Shared by both styles.


def score(logits: jax.Array, labels: jax.Array) -> Scores:
    """Return loss and accuracy for logits (n, 10) and labels (n,)."""
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return Scores(jnp.mean(losses), jnp.mean(jnp.argmax(logits, axis=-1) == labels))


def load() -> tuple[Digits, Digits]:
    """Return 1,347 digits for training and 450 for testing."""
    data = load_digits()
    images = jnp.asarray(data.images, jnp.float32)[..., None] / 16
    train, test = train_test_split(
        range(len(images)), test_size=0.25, stratify=data.target, random_state=SPLIT_SEED
    )
    digits = Digits(images, jnp.asarray(data.target))
    return select(digits, jnp.asarray(train)), select(digits, jnp.asarray(test))


def select(digits: Digits, indices: jax.Array) -> Digits:
    """Return the digits at these indices."""
    return Digits(digits.images[indices], digits.labels[indices])


def train(
    style: str, train_digits: Digits, test_digits: Digits, epochs: int, seed: int
) -> tuple[jax.Array, list[Scores], list[Scores]]:
    """Train, and return the logits of the test digits and the scores of every epoch.

    The first list is for training, where dropout is active, the second for the test.
    """
    init_key, train_key = jax.random.split(jax.random.key(seed))
    steps = len(train_digits.labels) // BATCH_SIZE
    optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps * epochs))
    carry, step, predict = STYLES[style](init_key, train_digits.images[0], optimizer)

    train_scores: list[Scores] = []
    test_scores: list[Scores] = []
    progress = tqdm(range(epochs), unit="epoch")
    for epoch in progress:
        shuffle_key, *step_keys = jax.random.split(jax.random.fold_in(train_key, epoch), 1 + steps)
        order = jax.random.permutation(shuffle_key, len(train_digits.labels))
        batch_scores = []
        for i, key in enumerate(step_keys):
            batch = select(train_digits, order[i * BATCH_SIZE : (i + 1) * BATCH_SIZE])
            carry, scores = step(carry, batch, key)
            batch_scores.append(scores)
        train_scores.append(Scores(*jnp.mean(jnp.array(batch_scores), axis=0)))
        test_scores.append(score(predict(carry, test_digits.images), test_digits.labels))
        progress.set_postfix_str(f"test accuracy {test_scores[-1].accuracy:.1%}")
    return predict(carry, test_digits.images), train_scores, test_scores


def draw(
    test_digits: Digits, logits: jax.Array, train_scores: list[Scores], test_scores: list[Scores]
) -> Figure:
    """Plot the scores over the epochs and, below them, the misclassified test digits."""
    figure = Figure(figsize=(10, 6), layout="constrained")
    (upper,), (lower,) = figure.subfigures(2, 1, squeeze=False, height_ratios=(2.4, 1))
    loss_axes, accuracy_axes = upper.subplots(1, 2)

    epochs = range(1, 1 + len(test_scores))
    for label, color, scores in (
        ("training, with dropout", "tab:orange", train_scores),
        ("test", "tab:blue", test_scores),
    ):
        style = {"color": color, "label": label, "marker": "o", "markersize": 4}
        loss_axes.plot(epochs, [s.loss.item() for s in scores], **style)
        accuracy_axes.plot(epochs, [s.accuracy.item() for s in scores], **style)
    loss_axes.set(title="Loss", yscale="log")
    accuracy_axes.set(title=f"Accuracy, {test_scores[-1].accuracy:.1%} on test digits")
    accuracy_axes.yaxis.set_major_formatter(PercentFormatter(1))
    for axes in (loss_axes, accuracy_axes):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)

    answers = jnp.argmax(logits, axis=-1)
    wrong = jnp.flatnonzero(answers != test_digits.labels)
    shown = wrong[:10]
    which = f", {len(shown)} of them shown" if len(shown) < len(wrong) else ""
    lower.suptitle(f"{len(wrong)} of {len(answers)} test digits misread{which}")
    row = lower.subplots(1, 10)
    for axes in row:
        axes.set_axis_off()
    centred = row[(len(row) - len(shown)) // 2 :]
    for axes, i in zip(centred, shown, strict=False):
        axes.imshow(test_digits.images[i, ..., 0], cmap="gray_r")
        axes.set_title(f"{test_digits.labels[i]} as {answers[i]}", color="tab:red")
    return figure


def main(argv: list[str] | None = None) -> None:
    """Train with the command-line options, report the accuracy and plot the results."""
    parser = argparse.ArgumentParser(
        prog="python -m mlax.examples.digits",
        description="Train a convolutional network to read handwritten digits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--style", choices=STYLES, default="function", help="style of the network")
    parser.add_argument("--epochs", type=int, default=20, help="passes over the training digits")
    parser.add_argument("--seed", type=int, default=0, help="seed of everything random")
    parser.add_argument("--output", type=Path, default="digits.png", help="image file to write")
    options = parser.parse_args(argv)
    if options.epochs < 1:
        parser.error(f"--epochs: expected at least 1, got {options.epochs}")
    if options.output.is_dir() or not options.output.parent.is_dir():
        parser.error(f"--output: expected a file in a folder that exists, got {options.output}")

    train_digits, test_digits = load()
    logits, train_scores, test_scores = train(
        options.style, train_digits, test_digits, options.epochs, options.seed
    )
    draw(test_digits, logits, train_scores, test_scores).savefig(
        options.output, dpi=150, format="png"
    )
    print(f"picture: {options.output}")
    print(f"test accuracy: {test_scores[-1].accuracy:.2%}")


if __name__ == "__main__":
    main()
