"""A model of several classes in the documented training loop."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import mlax
from mlax import nn
from mlax.layer import AxisName, Key


class Net(mlax.Module):
    """A convolutional network whose parts are attributes."""

    def __init__(self, rng: Key) -> None:
        super().__init__()
        conv, norm, inner, shortcut, head = nn.split_keys(rng, "conv norm inner shortcut head")
        self.conv = nn.Conv(conv, 4, 2)
        self.norm = nn.BatchNorm(norm)
        self.pool = nn.AvgPool(2)
        self.block = nn.ResidualRng(
            nn.SeriesRng([nn.Dense(inner, 6), nn.F(jax.nn.relu), nn.Dropout(0.1, 0)]),
            nn.Dense(shortcut, 6, use_bias=False),
        )
        self.head = nn.Series([nn.F(jnp.ravel), nn.LayerNorm(rng), nn.Dense(head, 2)])

    def forward(
        self, x: jax.Array, rng: Key | None, inference_mode: bool = False,
        batch_axis_name: AxisName = (),
    ) -> Any:
        mode = inference_mode, batch_axis_name
        x, self.conv = self.conv(x, None, *mode)
        x, self.norm = self.norm(x, None, *mode)
        x, self.pool = self.pool(x, None, *mode)
        x, self.block = self.block(x, rng, *mode)
        y, self.head = self.head(x, None, *mode)
        return y


def test_the_documented_loop_trains_the_model() -> None:
    xs = jax.random.normal(jax.random.key(0), (16, 5, 3))
    labels = (xs.sum((1, 2)) > 0).astype(int)
    _, model = Net(jax.random.key(1))(xs[0], None, True)
    optimizer = optax.adam(3e-2)
    opt_state = optimizer.init(model.filter())
    traces = []

    def loss(trainables: Net, rest: Net, rng: Key) -> Any:
        model = trainables.combine(rest)
        logits, model = jax.vmap(
            model.__call__, in_axes=(0, None, None, None), out_axes=(0, None), axis_name="N"
        )(xs, rng, False, "N")
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean(), model

    @jax.jit
    def step(model: Net, opt_state: Any, rng: Key) -> Any:
        traces.append(rng)
        trainables, rest = model.partition()
        (value, model), grads = jax.value_and_grad(loss, has_aux=True)(trainables, rest, rng)
        updates, opt_state = optimizer.update(grads, opt_state, trainables)
        model = optax.apply_updates(trainables, updates).combine(model.partition()[1])
        return model, opt_state, value

    before = jax.tree.map(np.asarray, model)
    losses = []
    for key in jax.random.split(jax.random.key(2), 30):
        model, opt_state, value = step(model, opt_state, key)
        losses.append(float(value))
    assert len(traces) == 1
    assert losses[-1] < 0.2 < losses[0]
    for (path, old), new in zip(
        jax.tree.leaves_with_path(before), jax.tree.leaves(model), strict=True
    ):
        assert not np.array_equal(old, new), jax.tree_util.keystr(path)
