"""Time compositions of mlax against hand-written JAX: same math, same shapes, both jitted.

    python tests/benchmarks/costs.py [NAME ...]

A training step returns the loss and the input of the next step. Rounds of the contenders are
interleaved in changing order. Each line has the median time of a step, from the call until the
loss is ready, and two ratios to the step by hand: of the step, and of the call alone, which returns
before the loss is ready (dispatch).
"""

import argparse
import functools
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

import mlax
from mlax import nn

LEARNING_RATE = 1e-8
"""So small that thousands of steps leave the numbers as they are: denormal ones are slow."""

Make = Callable[[], Callable[[], Any]]
"""Makes what is timed: a call of it is one step."""


def training(loss: Callable[..., Any], carry: Any, *inputs: Any) -> Callable[[], Any]:
    """Return a jitted step of gradient descent on `loss(params, state, *inputs)`, with state."""

    @jax.jit
    def step(carry: Any, *inputs: Any) -> tuple[Any, jax.Array]:
        params, state = carry
        (value, state), grads = jax.value_and_grad(loss, has_aux=True)(params, state, *inputs)
        params = jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, grads)
        return (params, state), value

    return repeated(step, carry, *inputs)


def repeated(step: Callable[..., tuple[Any, jax.Array]], *inputs: Any) -> Callable[[], jax.Array]:
    """Return a function that takes a step, keeps its results for the next, and returns the loss."""
    held = list(inputs)

    def run() -> jax.Array:
        held[0], value = step(*held)
        return value

    return run


def mlax_training(layer: mlax.Layer[Any, Any, Any, Any], x: jax.Array) -> Callable[[], Any]:
    """Return a step of gradient descent on the mean square of the output of a layer."""

    def loss(params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        y, state = layer.apply(params, state, x)
        return jnp.mean(jnp.square(y)), state

    return training(loss, layer.init(jax.random.key(0), x), x)


def dense_params(count: int, width: int) -> list[tuple[jax.Array, jax.Array]]:
    """Return (kernel, bias) of each layer."""
    initializer = jax.nn.initializers.lecun_normal()
    keys = jax.random.split(jax.random.key(0), count)
    return [(initializer(key, (width, width)), jnp.zeros(width)) for key in keys]


def hand_stack(count: int, width: int, batch: int, residual: bool) -> Callable[[], Any]:
    """Return a step of a stack of dense layers with relu, a loop over a list."""

    def loss(params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        for kernel, bias in params:
            y = jax.nn.relu(x @ kernel + bias)
            x = x + y if residual else y
        return jnp.mean(jnp.square(x)), state

    return training(loss, (dense_params(count, width), ()), jnp.ones((batch, width)))


def block(width: int, dense: bool = False) -> mlax.Layer[Any, Any, Any, Any]:
    """Return a dense layer with relu, of two layers or of one."""
    relu = mlax.f(jax.nn.relu)
    if dense:
        return mlax.series(mlax.dense(width), relu)
    return mlax.series(mlax.linear(width), mlax.bias(-1), relu)


def mlax_stack(
    count: int, width: int, batch: int, residual: bool, *, named: bool = False, dense: bool = False
) -> Callable[[], Any]:
    """Return the same step through batched(series(...))."""
    layers = [block(width, dense) for _ in range(count)]
    if residual:
        layers = [mlax.residual(layer) for layer in layers]
    model: mlax.Layer[Any, Any, Any, Any]
    if named:
        model = mlax.series(**{f"layer{i}": layer for i, layer in enumerate(layers)})
    else:
        model = mlax.series(*layers)
    return mlax_training(mlax.batched(model), jnp.ones((batch, width)))


def hand_scan(count: int, width: int, batch: int) -> Callable[[], Any]:
    """Return a step of a residual stack by `jax.lax.scan`, written out."""
    kernels, biases = map(jnp.stack, zip(*dense_params(count, width), strict=True))

    def loss(params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        def body(x: jax.Array, layer: Any) -> tuple[jax.Array, None]:
            kernel, bias = layer
            return x + jax.nn.relu(x @ kernel + bias), None

        return jnp.mean(jnp.square(jax.lax.scan(body, x, params)[0])), state

    return training(loss, ((kernels, biases), ()), jnp.ones((batch, width)))


def mlax_repeat(count: int, width: int, batch: int) -> Callable[[], Any]:
    """Return the same step through `repeat`."""
    model = mlax.repeat(mlax.residual(block(width)), count)
    return mlax_training(mlax.batched(model), jnp.ones((batch, width)))


def hand_lstm() -> Callable[[], Any]:
    """Return a step of an LSTM as textbooks write it: a product for each gate."""
    features, time_steps, batch = 64, 64, 32
    initializer = jax.nn.initializers.lecun_normal()
    keys = jax.random.split(jax.random.key(0), 8)
    gates = [
        (
            initializer(keys[2 * i], (features, features)),
            initializer(keys[2 * i + 1], (features, features)),
            jnp.zeros(features),
        )
        for i in range(4)
    ]

    def loss(params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        def step(carry: Any, x: jax.Array) -> Any:
            h, c = carry
            i, f, g, o = (x @ w + h @ u + b for w, u, b in params)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zeros = jnp.zeros((batch, features))
        _, ys = jax.lax.scan(step, (zeros, zeros), jnp.swapaxes(x, 0, 1))
        return jnp.mean(jnp.square(jnp.swapaxes(ys, 0, 1))), state

    return training(loss, (gates, ()), jnp.ones((batch, time_steps, features)))


def mlax_lstm() -> Callable[[], Any]:
    """Return the same step through `recurrent(lstm_cell)`."""
    features, time_steps, batch = 64, 64, 32
    zeros = jnp.zeros((batch, features))
    layer = mlax.batched(mlax.recurrent(mlax.lstm_cell(features)))
    x = (jnp.ones((batch, time_steps, features)), (zeros, zeros))

    def loss(params: Any, state: Any, x: Any) -> tuple[jax.Array, Any]:
        (ys, _), state = layer.apply(params, state, x)
        return jnp.mean(jnp.square(ys)), state

    return training(loss, layer.init(jax.random.key(0), x), x)


LENGTH, FEATURES, HEADS, BATCH, BLOCKS, RATE = 64, 128, 4, 16, 2, 0.1
"""The sizes of the encoder."""


def keyed_training(loss: Callable[..., Any], carry: Any, x: jax.Array) -> Callable[[], Any]:
    """Return a step of gradient descent that carries params, state and a key."""

    def keyed_loss(params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        state, key = state
        key, dropout_key = jax.random.split(key)
        value, state = loss(params, state, x, dropout_key)
        return value, (state, key)

    params, state = carry
    return training(keyed_loss, (params, (state, jax.random.key(1))), x)


def hand_encoder() -> Callable[[], Any]:
    """Return a step of pre-norm encoder blocks with dropout as scripts write it, for a batch."""
    initializer = jax.nn.initializers.lecun_normal()

    def dense_layer(rng: jax.Array, inputs: int, outputs: int) -> Any:
        return initializer(rng, (inputs, outputs)), jnp.zeros(outputs)

    def block_params(rng: jax.Array) -> Any:
        keys = jax.random.split(rng, 6)
        norm = jnp.ones(FEATURES), jnp.zeros(FEATURES)
        attention = [dense_layer(key, FEATURES, FEATURES) for key in keys[:4]]
        mlp = (
            dense_layer(keys[4], FEATURES, 4 * FEATURES),
            dense_layer(keys[5], 4 * FEATURES, FEATURES),
        )
        return norm, attention, norm, mlp

    def layer_norm(params: Any, x: jax.Array) -> jax.Array:
        scale, bias = params
        mean = x.mean(-1, keepdims=True)
        variance = jnp.square(x - mean).mean(-1, keepdims=True)
        y: jax.Array = (x - mean) / jnp.sqrt(variance + 1e-5) * scale + bias
        return y

    def dense_of(params: Any, x: jax.Array) -> jax.Array:
        kernel, bias = params
        y: jax.Array = x @ kernel + bias
        return y

    def attention_of(params: Any, x: jax.Array) -> jax.Array:
        q, k, v = (
            dense_of(p, x).reshape(BATCH, LENGTH, HEADS, FEATURES // HEADS) for p in params[:3]
        )
        logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(FEATURES // HEADS)
        y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), v)
        return dense_of(params[3], y.reshape(BATCH, LENGTH, FEATURES))

    def dropout(x: jax.Array, rng: jax.Array) -> jax.Array:
        mask = jax.random.bernoulli(rng, 1 - RATE, x.shape)
        return jnp.where(mask, x / (1 - RATE), 0)

    def loss(params: Any, state: Any, x: jax.Array, rng: jax.Array) -> tuple[jax.Array, Any]:
        for (norm1, attention, norm2, (up, down)), key in zip(
            params, jax.random.split(rng, BLOCKS), strict=True
        ):
            key1, key2 = jax.random.split(key)
            x = x + dropout(attention_of(attention, layer_norm(norm1, x)), key1)
            y = dense_of(down, jax.nn.gelu(dense_of(up, layer_norm(norm2, x))))
            x = x + dropout(y, key2)
        return jnp.mean(jnp.square(x)), state

    params = [block_params(key) for key in jax.random.split(jax.random.key(0), BLOCKS)]
    return keyed_training(loss, (params, ()), jnp.ones((BATCH, LENGTH, FEATURES)))


def attend(qkv: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
    """Return the values by attention, head by head; all are (length, features)."""
    q, k, v = (x.reshape(LENGTH, HEADS, FEATURES // HEADS) for x in qkv)

    def head(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        logits = mlax.functional.dot_product_attention_logits(q, k)
        return mlax.functional.apply_attention_weights(jax.nn.softmax(logits), v)

    y: jax.Array = jax.vmap(head, 1, 1)(q, k, v)
    return y.reshape(LENGTH, FEATURES)


def mlax_encoder() -> Callable[[], Any]:
    """Return the same step as an expression."""
    attention = mlax.series(
        mlax.branch(mlax.dense(FEATURES), mlax.dense(FEATURES), mlax.dense(FEATURES)),
        mlax.f(attend),
        mlax.dense(FEATURES),
    )
    mlp = mlax.series(mlax.dense(4 * FEATURES), mlax.f(jax.nn.gelu), mlax.dense(FEATURES))
    blocks = [
        mlax.residual(mlax.series(mlax.layer_norm(), sublayer, mlax.dropout(RATE, (0, 1))))
        for _ in range(BLOCKS)
        for sublayer in (attention, mlp)
    ]
    layer = mlax.batched(mlax.series(*blocks))
    x = jnp.ones((BATCH, LENGTH, FEATURES))

    def loss(params: Any, state: Any, x: jax.Array, rng: jax.Array) -> tuple[jax.Array, Any]:
        y, state = layer.apply(params, state, x, rng)
        return jnp.mean(jnp.square(y)), state

    return keyed_training(loss, layer.init(jax.random.key(0), x), x)


def mlax_shell(count: int, width: int, batch: int) -> Callable[[], Any]:
    """Return a step of a stack of dense layers with relu through `mlax.nn`, modules in and out."""
    model = nn.Series(
        layer
        for key in jax.random.split(jax.random.key(0), count)
        for layer in (nn.Linear(key, width), nn.Bias(key, -1), nn.F(jax.nn.relu))
    )
    x = jnp.ones((batch, width))
    _, model = model(x[0], None)

    def loss(params: Any, rest: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        y, module = jax.vmap(
            params.combine(rest).__call__,
            (0, None, None, None),
            (0, None),
            axis_name="batch",
        )(x, None, False, "batch")
        return jnp.mean(jnp.square(y)), module

    @jax.jit
    def step(module: nn.Series, x: jax.Array) -> tuple[nn.Series, jax.Array]:
        params, rest = module.partition()
        (value, module), grads = jax.value_and_grad(loss, has_aux=True)(params, rest, x)
        trained: nn.Series = jax.tree.map(lambda p, g: p - LEARNING_RATE * g, params, grads)
        return trained.combine(module.filter(inverse=True)), value

    return repeated(step, model, x)


def traced(make_loss: Callable[[], tuple[Callable[..., Any], Any, Any]]) -> Callable[[], Any]:
    """Return a function that traces the gradient of a loss anew."""
    loss, carry, x = make_loss()

    def trace() -> Any:
        jax.jit(lambda *args: jax.grad(loss, has_aux=True)(*args)).trace(*carry, x)

    return trace


def mlax_deep() -> tuple[Callable[..., Any], Any, Any]:
    """Return the loss of a `series` of 300 layers, its carry and an input."""
    layers = [mlax.linear(8), mlax.bias(-1), mlax.f(jax.nn.relu)] * 100
    model = mlax.batched(mlax.series(*layers))

    def loss(params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        y, state = model.apply(params, state, x)
        return jnp.mean(jnp.square(y)), state

    x = jnp.ones((8, 8))
    return loss, model.init(jax.random.key(0), x), x


def hand_deep() -> tuple[Callable[..., Any], Any, Any]:
    """Return the loss of 100 times (linear, bias, relu) by hand, vmapped as people do."""

    def example(params: Any, x: jax.Array) -> jax.Array:
        for kernel, bias in params:
            x = jax.nn.relu(x @ kernel + bias)
        return x

    def loss(params: Any, state: Any, x: jax.Array) -> tuple[jax.Array, Any]:
        return jnp.mean(jnp.square(jax.vmap(example, (None, 0))(params, x))), state

    return loss, (dense_params(100, 8), ()), jnp.ones((8, 8))


TINY, MIDDLE, LARGE = (8, 8), (64, 32), (256, 128)
"""Width and batch: where the call shows, and where the products count."""

CASES: dict[str, tuple[Make, Make]] = {}
for n, size in ((10, TINY), (100, TINY), (10, LARGE)):
    for residual in (False, True):
        hand = functools.partial(hand_stack, n, *size, residual)
        ours = functools.partial(mlax_stack, n, *size, residual)
        kind = f"{'residual' if residual else 'series'} {n}{', large' if size == LARGE else ''}"
        CASES[kind] = (hand, ours)
        CASES[f"{kind}, named"] = (hand, functools.partial(ours, named=True))
        CASES[f"{kind}, dense"] = (hand, functools.partial(ours, dense=True))
for name, size in {"tiny": TINY, "middle": MIDDLE, "large": LARGE}.items():
    ours = functools.partial(mlax_repeat, 100, *size)
    CASES[f"repeat 100, {name}, to unrolled"] = (
        functools.partial(hand_stack, 100, *size, True),
        ours,
    )
    CASES[f"repeat 100, {name}, to scan"] = (functools.partial(hand_scan, 100, *size), ours)
CASES |= {
    "tracing 300": (lambda: traced(hand_deep), lambda: traced(mlax_deep)),
    "lstm": (hand_lstm, mlax_lstm),
    "encoder": (hand_encoder, mlax_encoder),
    "shell 100": (
        functools.partial(hand_stack, 100, *TINY, False),
        functools.partial(mlax_shell, 100, *TINY),
    ),
}


def rounds(runs: list[Callable[[], Any]], duration: float) -> list[tuple[float, float]]:
    """Return the medians of the times (call, step) of each contender."""
    times: list[list[tuple[float, float]]] = [[] for _ in runs]
    order = list(range(len(runs)))
    end = time.perf_counter() + duration
    while time.perf_counter() < end or len(times[0]) < 10:
        random.shuffle(order)
        for i in order:
            start = time.perf_counter()
            result = runs[i]()
            returned = time.perf_counter()
            jax.block_until_ready(result)
            times[i].append((returned - start, time.perf_counter() - start))
    return [
        (statistics.median(call for call, _ in each), statistics.median(step for _, step in each))
        for each in times
    ]


def main() -> None:
    """Print a line for each case."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", help=f"any of {list(CASES)}; default all")
    parser.add_argument("--seconds", type=float, default=10.0, help="time for each case")
    args = parser.parse_args()
    for name in args.names or CASES:
        runs = [make() for make in CASES[name]]
        for run in runs:
            jax.block_until_ready(run())
        (hand_call, hand_step), (call, step) = rounds(runs, args.seconds)
        print(
            f"{name}: hand {hand_step * 1e6:.0f} us, mlax {step * 1e6:.0f} us, "
            f"ratio {step / hand_step:.3f}, of the call {call / hand_call:.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
