"""Models as a script writes them: tuples of arrays, and functions of a batch."""

from typing import Any

import jax
import jax.numpy as jnp

from tests.benchmarks.model import Dense, Encoder, Lstm, Make, Model, ResNet, Tree
from tests.benchmarks.model import cross_entropy, mean_square

EPSILON, MOMENTUM = 1e-5, 0.9

initializer = jax.nn.initializers.lecun_normal()


def dense_params(key: jax.Array, inputs: int, outputs: int) -> Tree:
    """Return (kernel, bias)."""
    return initializer(key, (inputs, outputs)), jnp.zeros(outputs)


def norm_params(features: int) -> Tree:
    """Return (scale, bias)."""
    return jnp.ones(features), jnp.zeros(features)


def apply_dense(params: Tree, x: jax.Array) -> jax.Array:
    """Return x @ kernel + bias."""
    kernel, bias = params
    y: jax.Array = x @ kernel + bias
    return y


def stack_params(key: jax.Array, widths: tuple[int, ...]) -> list[Tree]:
    """Return the params of dense layers."""
    keys = jax.random.split(key, len(widths) - 1)
    return [dense_params(*args) for args in zip(keys, widths[:-1], widths[1:], strict=True)]


def dense(sizes: Dense) -> Model:
    """Return dense layers with relu between them."""

    def loss(params: Tree, state: Tree, x: jax.Array, key: Any) -> tuple[jax.Array, Tree]:
        *hidden, last = params
        for layer in hidden:
            x = jax.nn.relu(apply_dense(layer, x))
        return mean_square(apply_dense(last, x)), state

    return Model(lambda key: (stack_params(key, sizes.widths), ()), loss)


def residual(sizes: Dense) -> Model:
    """Return residual dense layers with relu, one after the other."""

    def loss(params: Tree, state: Tree, x: jax.Array, key: Any) -> tuple[jax.Array, Tree]:
        for layer in params:
            x = x + jax.nn.relu(apply_dense(layer, x))
        return mean_square(x), state

    return Model(lambda key: (stack_params(key, sizes.widths), ()), loss)


def residual_scan(sizes: Dense) -> Model:
    """Return the same by `jax.lax.scan` over stacked params."""

    def init(key: jax.Array) -> tuple[Tree, Tree]:
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *stack_params(key, sizes.widths)), ()

    def loss(params: Tree, state: Tree, x: jax.Array, key: Any) -> tuple[jax.Array, Tree]:
        def body(x: jax.Array, layer: Tree) -> tuple[jax.Array, None]:
            return x + jax.nn.relu(apply_dense(layer, x)), None

        return mean_square(jax.lax.scan(body, x, params)[0]), state

    return Model(init, loss)


def conv(x: jax.Array, kernel: jax.Array, strides: int = 1) -> jax.Array:
    """Return the convolution of NHWC with HWIO."""
    y: jax.Array = jax.lax.conv_general_dilated(
        x, kernel, (strides, strides), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return y


def batch_norm(params: Tree, running: Tree, x: jax.Array) -> tuple[jax.Array, Tree]:
    """Return x (batch, height, width, channels) normalised, and the next running statistics."""
    scale, bias = params
    mean = jnp.mean(x, (0, 1, 2))
    variance = jnp.mean(jnp.square(x - mean), (0, 1, 2))
    y = (x - mean) * (scale * jax.lax.rsqrt(variance + EPSILON)) + bias
    running_mean, running_variance = running
    return y, (
        MOMENTUM * running_mean + (1 - MOMENTUM) * mean,
        MOMENTUM * running_variance + (1 - MOMENTUM) * variance,
    )


def resnet(sizes: ResNet) -> Model:
    """Return a ResNet with batch normalisation."""

    def init(key: jax.Array) -> tuple[Tree, Tree]:
        keys = iter(jax.random.split(key, 3 * len(sizes.plan) + 2))
        running = jnp.zeros, jnp.ones
        first, last = sizes.channels[0], sizes.channels[-1]
        params: list[Tree] = [(initializer(next(keys), (3, 3, 3, first)), norm_params(first))]
        state: list[Tree] = [tuple(make(first) for make in running)]
        for inputs, outputs, strides in sizes.plan:
            body = (
                initializer(next(keys), (3, 3, inputs, outputs)), norm_params(outputs),
                initializer(next(keys), (3, 3, outputs, outputs)), norm_params(outputs),
            )
            shortcut = initializer(next(keys), (1, 1, inputs, outputs)) if strides > 1 else None
            params.append((body, shortcut))
            state.append([tuple(make(outputs) for make in running) for _ in range(2)])
        params.append(dense_params(next(keys), last, 10))
        return params, state

    def loss(params: Tree, state: Tree, x: jax.Array, key: Any) -> tuple[jax.Array, Tree]:
        (kernel, norm), *blocks, head = params
        x, running = batch_norm(norm, state[0], conv(x, kernel))
        x, after = jax.nn.relu(x), [running]
        for (body, shortcut), (running1, running2), (_, _, strides) in zip(
            blocks, state[1:], sizes.plan, strict=True
        ):
            kernel1, norm1, kernel2, norm2 = body
            y, running1 = batch_norm(norm1, running1, conv(x, kernel1, strides))
            y, running2 = batch_norm(norm2, running2, conv(jax.nn.relu(y), kernel2))
            x = jax.nn.relu(y + (x if shortcut is None else conv(x, shortcut, strides)))
            after.append([running1, running2])
        return mean_square(apply_dense(head, jnp.mean(x, (1, 2)))), after

    return Model(init, loss)


def lstm(sizes: Lstm) -> Model:
    """Return an lstm with a kernel of all gates for x, and one for h."""
    features = sizes.features

    def init(key: jax.Array) -> tuple[Tree, Tree]:
        kernel_key, recurrent_key = jax.random.split(key)
        kernel = initializer(kernel_key, (features, 4 * features))
        recurrent = jax.nn.initializers.orthogonal()(recurrent_key, (features, 4 * features))
        return (kernel, recurrent, jnp.zeros(4 * features)), ()

    def loss(params: Tree, state: Tree, x: jax.Array, key: Any) -> tuple[jax.Array, Tree]:
        w, u, b = params

        def step(carry: Tree, x: jax.Array) -> tuple[Tree, jax.Array]:
            h, c = carry
            i, f, g, o = jnp.split(x @ w + h @ u + b, 4, axis=-1)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            h = jax.nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        zeros = jnp.zeros((sizes.batch, features))
        _, ys = jax.lax.scan(step, (zeros, zeros), jnp.swapaxes(x, 0, 1))
        return mean_square(jnp.swapaxes(ys, 0, 1)), state

    return Model(init, loss)


def layer_norm(params: Tree, x: jax.Array) -> jax.Array:
    """Return x normalised over the last axis."""
    scale, bias = params
    mean = jnp.mean(x, -1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), -1, keepdims=True)
    y: jax.Array = (x - mean) * jax.lax.rsqrt(variance + EPSILON) * scale + bias
    return y


def dropout(x: jax.Array, key: jax.Array, rate: float) -> jax.Array:
    """Return x with elements set to 0."""
    mask = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(mask, x / (1 - rate), 0)


def attention(sizes: Encoder, params: Tree, x: jax.Array) -> jax.Array:
    """Return self-attention of x (batch, length, features), causal in a language model."""
    *projections, output = params
    q, k, v = (apply_dense(p, x).reshape(*x.shape[:2], sizes.heads, -1) for p in projections)
    logits = jnp.einsum("bqhd,bkhd->bhqk", q, k) / jnp.sqrt(q.shape[-1])
    if sizes.vocabulary:
        logits = jnp.where(jnp.tri(x.shape[1], dtype=bool), logits, -jnp.inf)
    y = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits), v)
    return apply_dense(output, y.reshape(x.shape))


def block_params(sizes: Encoder, key: jax.Array) -> Tree:
    """Return the params of an encoder block."""
    *keys, up, down = jax.random.split(key, 6)
    features, hidden = sizes.features, sizes.hidden
    projections = [dense_params(key, features, features) for key in keys]
    mlp = dense_params(up, features, hidden), dense_params(down, hidden, features)
    return norm_params(features), projections, norm_params(features), mlp


def encoder_block(sizes: Encoder, params: Tree, x: jax.Array, key: jax.Array) -> jax.Array:
    """Return the output of an encoder block."""
    norm1, projections, norm2, (up, down) = params
    key1, key2 = jax.random.split(key)
    x = x + dropout(attention(sizes, projections, layer_norm(norm1, x)), key1, sizes.rate)
    y = apply_dense(down, jax.nn.gelu(apply_dense(up, layer_norm(norm2, x))))
    return x + dropout(y, key2, sizes.rate)


def encoder(sizes: Encoder) -> Model:
    """Return encoder blocks, one after the other."""

    def init(key: jax.Array) -> tuple[Tree, Tree]:
        return [block_params(sizes, key) for key in jax.random.split(key, sizes.blocks)], ()

    def loss(params: Tree, state: Tree, x: jax.Array, key: Any) -> tuple[jax.Array, Tree]:
        for block, block_key in zip(params, jax.random.split(key, sizes.blocks), strict=True):
            x = encoder_block(sizes, block, x, block_key)
        return mean_square(x), state

    return Model(init, loss)


def scan(sizes: Encoder, params: Tree, x: jax.Array, key: jax.Array) -> jax.Array:
    """Return the output of encoder blocks with stacked params, by `jax.lax.scan`."""

    def body(x: jax.Array, block: tuple[Tree, jax.Array]) -> tuple[jax.Array, None]:
        return encoder_block(sizes, block[0], x, block[1]), None

    y: jax.Array = jax.lax.scan(body, x, (params, jax.random.split(key, sizes.blocks)))[0]
    return y


def stacked_blocks(sizes: Encoder, key: jax.Array) -> Tree:
    """Return the stacked params of encoder blocks."""
    blocks = [block_params(sizes, key) for key in jax.random.split(key, sizes.blocks)]
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)


def encoder_scan(sizes: Encoder) -> Model:
    """Return the same by `jax.lax.scan` over stacked params."""

    def loss(params: Tree, state: Tree, x: jax.Array, key: Any) -> tuple[jax.Array, Tree]:
        return mean_square(scan(sizes, params, x, key)), state

    return Model(lambda key: (stacked_blocks(sizes, key), ()), loss)


def gpt_scan(sizes: Encoder) -> Model:
    """Return a language model whose blocks are run by `jax.lax.scan`."""

    def init(key: jax.Array) -> tuple[Tree, Tree]:
        tokens, positions, body, head = jax.random.split(key, 4)
        embedding = jax.nn.initializers.normal()
        return (
            embedding(tokens, (sizes.vocabulary, sizes.features)),
            embedding(positions, (sizes.length, sizes.features)),
            stacked_blocks(sizes, body),
            norm_params(sizes.features),
            dense_params(head, sizes.features, sizes.vocabulary),
        ), ()

    def loss(params: Tree, state: Tree, x: jax.Array, key: Any) -> tuple[jax.Array, Tree]:
        embedding, positions, blocks, norm, head = params
        y = scan(sizes, blocks, embedding[x[:, :-1]] + positions, key)
        return cross_entropy(apply_dense(head, layer_norm(norm, y)), x[:, 1:]), state

    return Model(init, loss)


MODELS: dict[str, Make] = {
    "mlp": dense,
    "dense100": dense,
    "resnet": resnet,
    "lstm": lstm,
    "encoder": encoder,
    "encoder-repeat": encoder_scan,
    "gpt-repeat": gpt_scan,
    "residual100-repeat": residual_scan,
    "residual100-unrolled": residual,
    "layers300": dense,
    "module100": dense,
}
