"""What models of `mlax.models` do, beyond the numbers of test_parity.py."""

import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import mlax
from mlax import models, testing
from mlax.models import BertConfig, Gpt2Config, LlamaConfig, ResnetConfig, VitConfig
from mlax.types import AnyLayer
from tests.models.cases import BERT, BOTTLENECK, CASES, GPT_2, MISTRAL, VIT, weights

KEY = jax.random.key(0)
TOKENS = jax.ShapeDtypeStruct((1, 8), jnp.int32)
IMAGE = jax.ShapeDtypeStruct((224, 224, 3), jnp.float32)


@pytest.mark.parametrize(
    ("layer", "x", "count"),
    [
        (models.gpt2(models.GPT_2), TOKENS, 124_439_808),
        (models.gpt2(models.GPT_2_XL), TOKENS, 1_557_611_200),
        (models.llama(models.LLAMA_3_8B), TOKENS, 8_030_261_248),
        (models.llama(models.LLAMA_3_70B), TOKENS, 70_553_706_496),
        (models.llama(models.LLAMA_3_2_1B), TOKENS, 1_235_814_400),
        (models.llama(models.QWEN_3_0_6B), TOKENS, 596_049_920),
        (models.llama(models.MISTRAL_7B), TOKENS, 7_241_732_096),
        (models.bert(models.BERT_BASE), TOKENS, 109_482_240),
        (models.vit(models.VIT_B_16), IMAGE, 86_567_656),
        (models.vit(models.VIT_L_16), IMAGE, 304_326_632),
        (models.resnet(models.RESNET_18), IMAGE, 11_689_512),
        (models.resnet(models.RESNET_50), IMAGE, 25_557_032),
    ],
)
def test_published_models_have_their_number_of_parameters(
    layer: AnyLayer, x: Any, count: int
) -> None:
    params, _ = jax.eval_shape(layer.init, KEY, x)
    assert mlax.count(params) == count


def test_a_model_is_a_page() -> None:
    for path in Path(models.__file__).parent.glob("*.py"):
        assert len(path.read_text().splitlines()) <= 150, path.name


def test_presets_have_the_numbers_of_transformers() -> None:
    """As far as those are the defaults of its configs."""
    of = pytest.importorskip("transformers")
    gpt2, bert, vit = of.GPT2Config(), of.BertConfig(), of.ViTConfig()
    assert models.GPT_2.epsilon == gpt2.layer_norm_epsilon
    assert models.BERT_BASE.epsilon == bert.layer_norm_eps
    assert models.VIT_B_16.epsilon == vit.layer_norm_eps
    assert models.GPT_2.num_heads == gpt2.n_head and models.GPT_2.max_length == gpt2.n_positions
    for ours, theirs in ((models.BERT_BASE, bert), (models.VIT_B_16, vit)):
        assert ours.num_heads == theirs.num_attention_heads


def test_a_large_model_is_lowered_without_its_arrays() -> None:
    """And its program is as long as that of a small one."""

    def program(config: LlamaConfig) -> int:
        model = models.llama(config)
        shapes = jax.eval_shape(model.init, KEY, TOKENS)
        return jax.jit(model.apply).lower(*shapes, TOKENS).as_text().count("\n")

    assert program(models.LLAMA_3_70B) == program(models.LLAMA_3_70B._replace(num_layers=2))


@pytest.mark.parametrize(
    "make", [functools.partial(models.gpt2, GPT_2), functools.partial(models.llama, MISTRAL)]
)
def test_blocks_are_computed_again_on_request(make: Any) -> None:
    """The numbers are the same, and what the backward pass keeps is less."""
    tokens = jnp.zeros((1, 8), int)

    def gradient(remat: bool) -> tuple[Any, int]:
        model = make(remat=remat)
        params, state = model.init(KEY, tokens)
        y, backward = jax.vjp(lambda params: jnp.sum(model.apply(params, state, tokens)[0]), params)
        return backward(y), mlax.tree.nbytes(jax.tree.leaves(backward))

    (found, less), (wanted, more) = gradient(True), gradient(False)
    assert less < 0.7 * more
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-4, 1e-5), found, wanted)


LANGUAGE_MODELS = {
    "gpt2": functools.partial(models.gpt2, GPT_2),
    "mistral": functools.partial(models.llama, MISTRAL),
}
for_each_language_model = pytest.mark.parametrize("name", LANGUAGE_MODELS)


@functools.cache
def made(name: str) -> Any:
    """Return params and state of the model that does not decode."""
    return weights(CASES[name])


@functools.cache
def full(name: str) -> Any:
    """Return the compiled model that does not decode."""
    return jax.jit(LANGUAGE_MODELS[name]().apply)


@for_each_language_model
def test_chunks_are_decoded_to_the_full_pass(name: str) -> None:
    params, state = made(name)
    tokens = np.random.default_rng(1).integers(50, size=(2, 9))
    wanted, _ = full(name)(params, state, tokens)
    decoder = LANGUAGE_MODELS[name](cache_length=12)
    state = mlax.init_state(decoder, params, tokens)
    step = jax.jit(functools.partial(decoder.apply, inference_mode=True))
    found = []
    for start, end in ((0, 5), (5, 7), (7, 9)):
        y, state = step(params, state, tokens[:, start:end])
        found.append(y)
    np.testing.assert_allclose(np.concatenate(found, 1), wanted, 1e-4, 1e-4)


def greedy(name: str, prompt: list[int], steps: int) -> list[int]:
    """Return the most likely tokens, each by a full pass."""
    tokens = list(prompt)
    for _ in range(steps):
        logits, _ = full(name)(*made(name), np.array([tokens + [0] * (9 - len(tokens))]))
        tokens.append(int(np.argmax(logits[0, len(tokens) - 1])))
    return tokens[len(prompt) :]


@for_each_language_model
def test_prompts_of_different_lengths_go_on_as_they_do_alone(name: str) -> None:
    params, _ = made(name)
    decoder = LANGUAGE_MODELS[name](cache_length=16)
    prompts = jnp.array([[7, 3, 1, 4], [5, 9, 0, 0]])
    state = mlax.init_state(decoder, params, (prompts, prompts))
    drawn = mlax.generate(
        decoder.apply, params, state, prompts, 5, temperature=0, lengths=jnp.array([4, 2])
    )
    wanted = [greedy(name, [7, 3, 1, 4], 5), greedy(name, [5, 9], 5)]
    np.testing.assert_array_equal(drawn.tokens, wanted)
    assert len(set(np.ravel(wanted))) > 2


def test_a_prompt_goes_on_without_positions() -> None:
    params, _ = made("gpt2")
    decoder, prompt = LANGUAGE_MODELS["gpt2"](cache_length=8), jnp.array([[7, 3, 1, 4]])
    state = mlax.init_state(decoder, params, prompt)
    drawn = mlax.generate(decoder.apply, params, state, prompt, 5, temperature=0)
    np.testing.assert_array_equal(drawn.tokens[0], greedy("gpt2", [7, 3, 1, 4], 5))


TRAINED: dict[str, AnyLayer] = {
    "gpt2": models.gpt2(GPT_2._replace(dropout_rate=0.1)),
    "qwen": CASES["qwen"].layer,
    "bert": models.bert(BERT._replace(dropout_rate=0.1)),
    "vit": mlax.batched(models.vit(VIT._replace(dropout_rate=0.1))),
    "resnet_basic": CASES["resnet_basic"].layer,
}


@pytest.mark.parametrize("name", TRAINED)
def test_a_step_of_training_is_finite_and_reaches_all_parameters(name: str) -> None:
    case = CASES[name]._replace(layer=TRAINED[name])
    params, state = weights(case)

    def loss(params: Any) -> jax.Array:
        y, _ = case.layer.apply(params, state, case.x, KEY)
        leaves = jax.tree.leaves(y)
        return sum((jnp.sum(jnp.sin(leaf + 1) ** 2) for leaf in leaves), jnp.zeros(()))

    grads = jax.tree.map(np.asarray, jax.jit(jax.grad(loss))(params))

    def check(path: str, leaf: Any) -> None:
        # A bias of keys adds the same to all logits of a query.
        is_reached = path.endswith("attention.key.bias") or leaf.any()
        assert is_reached and np.isfinite(leaf).all(), path

    mlax.map_with_path(check, grads)


@pytest.mark.parametrize("name", ["gpt2", "llama", "qwen", "bert", "vit", "resnet_basic"])
def test_half_precision_in_means_half_precision_out(name: str) -> None:
    case = CASES[name]

    def half(leaf: Any) -> Any:
        is_float = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jax.ShapeDtypeStruct(leaf.shape, jnp.bfloat16 if is_float else leaf.dtype)

    params, state = jax.eval_shape(case.layer.init, KEY, case.x)
    params, x = jax.tree.map(half, (params, case.x))
    y, after = jax.eval_shape(case.layer.apply, params, state, x)
    assert {leaf.dtype for leaf in jax.tree.leaves(y)} == {jnp.dtype(jnp.bfloat16)}
    assert jax.tree.map(lambda leaf: leaf.dtype, after) == jax.tree.map(lambda s: s.dtype, state)


def test_laws_hold_for_pairs_of_tokens_and_positions() -> None:
    """Those that take no seconds: the layers within obey the others."""
    case = CASES["gpt2_padded"]
    example = testing.Example(case.layer, jax.tree.map(jnp.asarray, case.x))
    testing.check_state(example)
    testing.check_inference(example)
    testing.check_paths(example)
    testing.check_strangers(example)


@pytest.mark.parametrize(
    ("layer", "x", "error", "text"),
    [
        (models.vit(VIT), jnp.ones((2, 8, 8, 3)), ValueError, r"vit: .*\(8, 8, channels\).*batched"),
        (models.vit(VIT), jnp.ones((12, 12, 3)), ValueError, r"vit: .*\(8, 8, channels\)"),
        (models.vit(VIT._replace(patch_size=3)), jnp.ones((8, 8, 3)), ValueError, "patch_size"),
        (models.resnet(BOTTLENECK), jnp.ones((2, 32, 32, 3)), ValueError, "resnet: .*batched"),
        (
            models.resnet(BOTTLENECK._replace(depths=(1,))), jnp.ones((32, 32, 3)), ValueError,
            "config.channels to be one for each of the 1 stages",
        ),
        (models.gpt2(GPT_2), jnp.ones((2, 4)), TypeError, "integer"),
        (models.gpt2(GPT_2), jnp.ones((1, 17), int), ValueError, "at most 16 positions"),
        (
            models.bert(BERT), models.BertInputs(jnp.ones((1, 4), int), mask=jnp.ones((1, 4))),
            TypeError, r"mask to be of dtype bool, got float32; pass mask.astype\(bool\)",
        ),
    ],
)
def test_an_input_that_does_not_fit_raises(
    layer: AnyLayer, x: Any, error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        layer.init(KEY, x)


@pytest.mark.parametrize(
    ("model", "kind"),
    [
        (models.gpt2, Gpt2Config), (models.llama, LlamaConfig), (models.bert, BertConfig),
        (models.vit, VitConfig), (models.resnet, ResnetConfig),
    ],
)
def test_a_config_of_another_model_raises(model: Any, kind: type) -> None:
    with pytest.raises(TypeError, match=f"{model.__name__}: .*config to be a {kind.__name__}"):
        model((50, 16))


def test_bert_has_types_and_no_mask_by_default() -> None:
    case = CASES["bert"]
    layer, tokens = case.layer, case.x.tokens
    params, state = layer.init(KEY, tokens)
    y, _ = layer.apply(params, state, tokens)
    full = models.BertInputs(tokens, jnp.zeros_like(tokens), jnp.ones(tokens.shape, bool))
    state = mlax.init_state(layer, params, full)
    wanted, _ = layer.apply(params, state, full)
    np.testing.assert_allclose(y.hidden, wanted.hidden, 1e-5, 1e-5)
