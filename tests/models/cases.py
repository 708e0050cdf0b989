"""A tiny model of each kind, its weights and its input."""

import zlib
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

import mlax
from mlax import models
from mlax.positions import LlamaScaling
from mlax.types import AnyLayer
from mlax.weights import Table

OUTPUTS = Path(__file__).parent / "outputs.npz"
"""The outputs of `transformers`."""

Array = np.ndarray[Any, np.dtype[Any]]


class Case(NamedTuple):
    """A model."""

    layer: AnyLayer
    """Ours."""
    x: Any
    """Its input, of NumPy arrays."""
    table: Table
    """From the names of `transformers` to ours."""


def _tokens(*shape: int) -> Array:
    return np.random.default_rng(0).integers(50, size=shape).astype(np.int32)


def _padded(tokens: Array, padding: int) -> tuple[Array, Array]:
    """Return tokens and positions, with padding on the left of the first sequence."""
    counted = np.arange(tokens.shape[-1], dtype=np.int32)
    return tokens, np.maximum(np.stack([counted - padding, counted]), -1)


def _images(side: int) -> Array:
    return np.random.default_rng(0).normal(size=(2, side, side, 3)).astype(np.float32)


MASK = np.arange(6) < np.array([[4], [6]])
LLAMA = models.LlamaConfig(
    50, 32, 2, 4, 2, 48, rotary_base=100.0, rotary_scaling=LlamaScaling(original_length=16),
    epsilon=0.1,
)
QWEN = models.LlamaConfig(
    50, 32, 2, 4, 2, 48, head_dim=16, rotary_base=1e6, qk_norm=True, tied_embeddings=True,
    epsilon=0.1,
)
MISTRAL = models.LlamaConfig(50, 32, 2, 4, 1, 48, rotary_base=1e4, window=4, epsilon=0.1)
GPT_2 = models.Gpt2Config(50, 16, 32, 2, 4, epsilon=0.1)
BERT = models.BertConfig(50, 16, 2, 32, 2, 4, 48, epsilon=0.1)
VIT = models.VitConfig(8, 4, 32, 2, 4, 48, 5, epsilon=0.1)
BASIC = models.ResnetConfig((1, 2), (8, 16), False, 8, 5)
BOTTLENECK = models.ResnetConfig((2, 1), (16, 32), True, 8, 5)
CASES = {
    "gpt2": Case(models.gpt2(GPT_2), _tokens(2, 6), models.GPT_2_HUGGINGFACE),
    "gpt2_padded": Case(
        models.gpt2(GPT_2), _padded(_tokens(2, 6), 2), models.GPT_2_HUGGINGFACE
    ),
    "llama": Case(models.llama(LLAMA), _tokens(2, 12), models.LLAMA_HUGGINGFACE),
    "llama_padded": Case(
        models.llama(LLAMA), _padded(_tokens(2, 12), 5), models.LLAMA_HUGGINGFACE
    ),
    "qwen": Case(models.llama(QWEN), _tokens(2, 12), models.LLAMA_HUGGINGFACE),
    "mistral": Case(models.llama(MISTRAL), _tokens(2, 12), models.LLAMA_HUGGINGFACE),
    "bert": Case(
        models.bert(BERT), models.BertInputs(_tokens(2, 6), _tokens(2, 6) % 2, MASK),
        models.BERT_HUGGINGFACE,
    ),
    "vit": Case(mlax.batched(models.vit(VIT)), _images(8), models.VIT_HUGGINGFACE),
    "resnet_basic": Case(
        mlax.batched(models.resnet(BASIC)), _images(32), models.RESNET_HUGGINGFACE
    ),
    "resnet_bottleneck": Case(
        mlax.batched(models.resnet(BOTTLENECK)), _images(32), models.RESNET_HUGGINGFACE
    ),
}


def like(case: Case) -> tuple[Any, Any]:
    """Return the shapes of params and state."""
    shapes: tuple[Any, Any] = jax.eval_shape(case.layer.init, jax.random.key(0), case.x)
    return shapes


def weights(case: Case) -> tuple[Any, Any]:
    """Return params and state with numbers that depend on their paths alone."""

    def draw(path: str, leaf: Any) -> Array:
        normal = np.random.default_rng(zlib.crc32(path.encode())).normal(size=leaf.shape)
        kind = path.rpartition(".")[-1]
        about = {"scale": 1 + 0.2 * normal, "var": np.exp(0.2 * normal)}
        numbers: Array = np.asarray(about.get(kind, 0.2 * normal), np.float32)
        return numbers

    params, state = like(case)
    return mlax.map_with_path(draw, params), mlax.map_with_path(draw, state)


def outputs(name: str, y: Any) -> dict[str, Array]:
    """Return the arrays of an output by name; those of padding are 0."""
    case = CASES[name]
    named = {name: y}
    if isinstance(case.x, models.BertInputs):
        named = {f"{name}.hidden": y[0] * MASK[..., None], f"{name}.pooled": y[1]}
    elif isinstance(case.x, tuple):
        named = {name: y * (case.x[1] >= 0)[..., None]}
    return {path: np.asarray(array, np.float32) for path, array in named.items()}
