"""Tests of blocks of transformers, against their formulas and against PyTorch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import AttentionInputs

KEY = jax.random.key(0)
X = jax.random.normal(jax.random.key(1), (5, 8))
MEMORY = jax.random.normal(jax.random.key(2), (3, 8))


@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize("use_bias", [False, True])
def test_mlp(gated: bool, use_bias: bool) -> None:
    init, apply = mlax.mlp(16, jax.nn.silu, gated=gated, use_bias=use_bias)
    params, state = init(KEY, X)
    y, _ = apply(params, state, X)

    def dense(name: str, x: Any) -> Any:
        return x @ params[name].kernel + (params[name].bias if use_bias else 0)

    hidden = jax.nn.silu(dense("gate", X)) * dense("up", X) if gated else jax.nn.silu(dense("up", X))
    np.testing.assert_allclose(y, dense("down", hidden), rtol=1e-5, atol=1e-5)
    assert (params["up"].bias is None) is not use_bias


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("crosses", [False, True])
def test_the_block_is_its_layers(norm_first: bool, crosses: bool) -> None:
    attend = mlax.attention(2, causal=True)
    cross = mlax.attention(4) if crosses else None
    layer = mlax.transformer_block(
        attend, mlax.mlp(16), cross_attention=cross, norm=mlax.rms_norm(), norm_first=norm_first
    )
    x: Any = AttentionInputs(X, MEMORY, lengths=jnp.array(2)) if crosses else X
    params, state = layer.init(KEY, x)
    y, _ = layer.apply(params, state, x)

    def run(layer: Any, name: str, x: Any) -> Any:
        return layer.apply(params[name], layer.init(KEY, x)[1], x)[0]

    def add(norm: str, x: Any, run_layer: Any) -> Any:
        if norm_first:
            return x + run_layer(run(mlax.rms_norm(), norm, x))
        return run(mlax.rms_norm(), norm, x + run_layer(x))

    expected = add("attention_norm", X, lambda x: run(attend, "attention", x))
    if crosses:
        expected = add(
            "cross_norm", expected,
            lambda x: run(cross, "cross_attention", AttentionInputs(x, MEMORY[:2])),
        )
    expected = add("mlp_norm", expected, lambda x: run(mlax.mlp(16), "mlp", x))
    np.testing.assert_allclose(y.x if crosses else y, expected, rtol=1e-5, atol=1e-5)
    if crosses:
        np.testing.assert_array_equal(y.memory, MEMORY)


def test_layer_scale_is_a_factor_for_each_feature_of_what_is_added() -> None:
    layers = mlax.attention(2), mlax.mlp(16)
    plain = mlax.transformer_block(*layers)
    layer = mlax.transformer_block(*layers, layer_scale=0.25)
    x = jnp.stack([X, -X])
    params, state = layer.init(KEY, x)
    np.testing.assert_array_equal(params["attention_scale"].scale, np.full(8, 0.25))
    output, down = params["attention"].output, params["mlp"]["down"]
    quarter = {name: params[name] for name in plain.init(KEY, x)[0]} | {
        "attention": params["attention"]._replace(output=jax.tree.map(lambda a: a / 4, output)),
        "mlp": params["mlp"] | {"down": jax.tree.map(lambda a: a / 4, down)},
    }
    expected, _ = plain.apply(quarter, plain.init(KEY, x)[1], x)
    np.testing.assert_allclose(layer.apply(params, state, x)[0], expected, rtol=1e-5, atol=1e-5)


def test_blocks_repeat_with_their_inputs() -> None:
    block = mlax.transformer_block(
        mlax.attention(2, causal=True, rotary=mlax.positions.rotary), mlax.mlp(16)
    )
    init, apply = mlax.repeat(block, 3)
    padded = AttentionInputs(jnp.pad(X, ((2, 0), (0, 0))), positions=jnp.arange(7) - 2)
    params, state = init(KEY, padded)
    y, _ = apply(params, state, padded)
    expected, _ = apply(params, init(KEY, X)[1], X)
    np.testing.assert_allclose(y.x[2:], expected, rtol=1e-4, atol=1e-4)


def test_dropout_is_of_what_is_added() -> None:
    layer = mlax.transformer_block(mlax.attention(2), mlax.mlp(16), dropout_rate=0.5)
    assert layer.needs_rng
    params, state = layer.init(KEY, X)
    keys = jax.random.split(KEY, 500)
    ys = jax.vmap(lambda key: layer.apply(params, state, X, key)[0])(keys)
    kept = (ys == X).all(-1).mean()
    assert (ys == X).mean() == pytest.approx(0.25, abs=0.02)
    assert kept < 0.01
    y, _ = layer.apply(params, state, X, inference_mode=True)
    assert (y != X).all()


def test_a_memory_is_for_cross_attention_alone() -> None:
    plain = mlax.transformer_block(mlax.attention(2), mlax.mlp(16))
    crossed = mlax.transformer_block(
        mlax.attention(2), mlax.mlp(16), cross_attention=mlax.attention(2)
    )
    with pytest.raises(ValueError, match="expected x to be with a memory, got none"):
        crossed.init(KEY, X)
    with pytest.raises(ValueError, match="without a memory, as there is no cross_attention, got"):
        plain.init(KEY, AttentionInputs(X, MEMORY))


# Against PyTorch.


def weights_of(params: Any, norms: list[str], attentions: list[str]) -> dict[str, np.ndarray]:
    """Return params by the names of PyTorch."""
    tensors: dict[str, Any] = {}
    for i, name in enumerate(norms, 1):
        tensors[f"norm{i}.weight"], tensors[f"norm{i}.bias"] = params[name]
    for i, layer in ((1, params["mlp"]["up"]), (2, params["mlp"]["down"])):
        tensors[f"linear{i}.weight"], tensors[f"linear{i}.bias"] = layer.kernel.T, layer.bias
    for theirs, name in zip(("self_attn", "multihead_attn"), attentions, strict=False):
        parts = params[name].query, params[name].key, params[name].value
        tensors[f"{theirs}.in_proj_weight"] = jnp.concatenate([p.kernel.T for p in parts])
        tensors[f"{theirs}.in_proj_bias"] = jnp.concatenate([p.bias for p in parts])
        tensors[f"{theirs}.out_proj.weight"] = params[name].output.kernel.T
        tensors[f"{theirs}.out_proj.bias"] = params[name].output.bias
    return {name: np.asarray(tensor) for name, tensor in tensors.items()}


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("crosses", [False, True])
def test_blocks_and_their_gradients_are_those_of_pytorch(norm_first: bool, crosses: bool) -> None:
    torch = pytest.importorskip("torch")
    kind = torch.nn.TransformerDecoderLayer if crosses else torch.nn.TransformerEncoderLayer
    theirs = kind(8, 2, 16, 0.0, "gelu", norm_first=norm_first)
    draw = jax.nn.initializers.normal(0.3)
    attention = mlax.attention(2, causal=crosses, bias_initializer=draw)
    layer = mlax.transformer_block(
        attention, mlax.mlp(16, lambda x: jax.nn.gelu(x, approximate=False)),
        cross_attention=mlax.attention(2, bias_initializer=draw) if crosses else None,
        norm=mlax.layer_norm(epsilon=1e-5), norm_first=norm_first,
    )
    x: Any = AttentionInputs(X, MEMORY) if crosses else X
    params, state = layer.init(KEY, x)
    norms = ["attention_norm", *(["cross_norm"] if crosses else []), "mlp_norm"]
    tensors = weights_of(params, norms, ["attention", "cross_attention"][: 1 + crosses])
    theirs.load_state_dict({name: torch.tensor(tensor) for name, tensor in tensors.items()})
    others: Any = ()
    if crosses:
        causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
        others = torch.tensor(np.asarray(MEMORY)), causal

    def value(params: Any) -> Any:
        y, _ = layer.apply(params, state, x)
        return jnp.sin(y.x if crosses else y).sum()

    expected = theirs(torch.tensor(np.asarray(X)), *others)
    y, _ = layer.apply(params, state, x)
    y = y.x if crosses else y
    np.testing.assert_allclose(y, expected.detach().numpy(), rtol=1e-4, atol=1e-5)
    torch.sin(expected).sum().backward()
    gradients = jax.grad(value)(params)
    found = weights_of(gradients, norms, ["attention", "cross_attention"][: 1 + crosses])
    for name, parameter in theirs.named_parameters():
        np.testing.assert_allclose(
            found[name], parameter.grad.numpy(), rtol=1e-3, atol=1e-4, err_msg=name
        )


def test_the_state_of_another_block_raises_with_the_hyperparameter_and_both_values() -> None:
    def model(activation: Any, norm_first: bool) -> Any:
        layers = mlax.attention(2), mlax.mlp(4, activation)
        return mlax.series(body=mlax.transformer_block(*layers, norm_first=norm_first))

    params, state = model(jax.nn.gelu, True).init(KEY, X)
    for other, wanted in (
        (model(jax.nn.gelu, False), "norm_first to be False, as in this layer, got True"),
        (model(jax.nn.relu, True), "activation to be relu, as in this layer, got gelu"),
    ):
        with pytest.raises(ValueError, match=rf"^block: expected state\.config\.\S+\.{wanted}"):
            other.apply(params, state, X)


def test_an_input_that_is_no_array_raises() -> None:
    block: Any = mlax.transformer_block(mlax.attention(2), mlax.mlp(4))
    layer: Any
    for layer in (mlax.mlp(4), block, mlax.mamba_block()):
        wrong: Any
        for wrong in ((X, X), {"a": X}, None):
            with pytest.raises(TypeError, match=r"^\w+: expected x to be an array, got "):
                layer.init(KEY, wrong)
    with pytest.raises(ValueError, match=r"^mlp: expected x with at least 1 axis, got shape \(\)"):
        mlax.mlp(4).init(KEY, jnp.ones(()))
