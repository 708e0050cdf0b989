"""The same models of `transformers`, which has no types."""

import importlib
from pathlib import Path
from typing import Any

import numpy as np

from mlax import models
from tests.models.cases import BASIC, BERT, BOTTLENECK, CASES, GPT_2, LLAMA, MISTRAL, QWEN, VIT
from tests.models.cases import Array


def _gpt2(of: Any, c: models.Gpt2Config) -> Any:
    return of.GPT2LMHeadModel, of.GPT2Config(
        vocab_size=c.vocab_size, n_positions=c.max_length, n_embd=c.features, n_layer=c.num_layers,
        n_head=c.num_heads, layer_norm_epsilon=c.epsilon, bos_token_id=0, eos_token_id=0,
    )


def _llama(of: Any, c: models.LlamaConfig, kind: str = "Llama") -> Any:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": c.rotary_base}
    if c.rotary_scaling is not None:
        rope |= {
            "rope_type": "llama3", "factor": c.rotary_scaling.factor,
            "low_freq_factor": c.rotary_scaling.low_frequency_factor,
            "high_freq_factor": c.rotary_scaling.high_frequency_factor,
            "original_max_position_embeddings": c.rotary_scaling.original_length,
        }
    more = {"sliding_window": c.window} if kind == "Mistral" else {}
    return getattr(of, f"{kind}ForCausalLM"), getattr(of, f"{kind}Config")(
        vocab_size=c.vocab_size, hidden_size=c.features, num_hidden_layers=c.num_layers,
        num_attention_heads=c.num_heads, num_key_value_heads=c.num_kv_heads,
        intermediate_size=c.hidden_features, head_dim=c.head_dim or c.features // c.num_heads,
        rope_parameters=rope, tie_word_embeddings=c.tied_embeddings, rms_norm_eps=c.epsilon,
        bos_token_id=0, eos_token_id=0, **more,
    )


def _bert(of: Any, c: models.BertConfig) -> Any:
    return of.BertModel, of.BertConfig(
        vocab_size=c.vocab_size, max_position_embeddings=c.max_length, hidden_size=c.features,
        num_hidden_layers=c.num_layers, num_attention_heads=c.num_heads,
        intermediate_size=c.hidden_features, layer_norm_eps=c.epsilon,
    )


def _vit(of: Any, c: models.VitConfig) -> Any:
    return of.ViTForImageClassification, of.ViTConfig(
        image_size=c.image_size, patch_size=c.patch_size, hidden_size=c.features,
        num_hidden_layers=c.num_layers, num_attention_heads=c.num_heads,
        intermediate_size=c.hidden_features, num_labels=c.num_classes,
        layer_norm_eps=c.epsilon,
    )


def _resnet(of: Any, c: models.ResnetConfig) -> Any:
    return of.ResNetForImageClassification, of.ResNetConfig(
        embedding_size=c.stem_channels, hidden_sizes=list(c.channels), depths=list(c.depths),
        layer_type="bottleneck" if c.bottleneck else "basic", num_labels=c.num_classes,
    )


def _class_and_config(of: Any, name: str) -> Any:
    match name.split("_"):
        case ["gpt2", *_]:
            return _gpt2(of, GPT_2)
        case ["llama", *_]:
            return _llama(of, LLAMA)
        case ["qwen"]:
            return _llama(of, QWEN, "Qwen3")
        case ["mistral"]:
            return _llama(of, MISTRAL, "Mistral")
        case ["bert"]:
            return _bert(of, BERT)
        case ["vit"]:
            return _vit(of, VIT)
    return _resnet(of, BASIC if name == "resnet_basic" else BOTTLENECK)


def _arguments(x: Any) -> dict[str, Any]:
    """Return the arguments of the model for an input of ours."""
    torch = importlib.import_module("torch")
    if isinstance(x, models.BertInputs):
        arrays = {"input_ids": x.tokens, "token_type_ids": x.types, "attention_mask": x.mask * 1}
    elif isinstance(x, tuple):
        tokens, positions = x
        arrays = {
            "input_ids": tokens, "attention_mask": (positions >= 0) * 1,
            "position_ids": np.maximum(positions, 0),
        }
    elif x.ndim == 2:
        arrays = {"input_ids": x}
    else:
        arrays = {"pixel_values": np.moveaxis(x, -1, 1)}
    return {name: torch.tensor(array) for name, array in arrays.items()}


def computed(name: str, tensors: dict[str, Array], folder: Path) -> tuple[Any, dict[str, Array]]:
    """Return the output of the model with these tensors, and the tensors as it saves them."""
    torch, transformers, safetensors = map(
        importlib.import_module, ("torch", "transformers", "safetensors.numpy")
    )

    kind, config = _class_and_config(transformers, name)
    config.save_pretrained(folder)
    arrays = {key: np.ascontiguousarray(array) for key, array in tensors.items()}
    safetensors.save_file(arrays, folder / "model.safetensors", {"format": "pt"})
    model, found = kind.from_pretrained(folder, output_loading_info=True)
    wrong = {name for names in found.values() for name in names}
    assert not {name for name in wrong if not name.endswith(".num_batches_tracked")}
    with torch.no_grad():
        out = model.eval()(**_arguments(CASES[name].x))
    y = (out[0].numpy(), out[1].numpy()) if name == "bert" else out.logits.numpy()
    model.save_pretrained(folder / "saved")
    return y, safetensors.load_file(folder / "saved" / "model.safetensors")
