"""Models from papers: each a function of a frozen config that returns a layer.

| model | x | y |
| --- | --- | --- |
| `gpt2`, `llama` | tokens (..., length) or (tokens, positions) | logits (..., length, vocab_size) |
| `bert` | tokens (..., length) or `BertInputs` | `BertOutputs` |
| `vit`, `resnet` | one image (height, width, channels) | logits (num_classes,) |
Configs of published models are constants, such as `LLAMA_3_8B`; `LLAMA_3_8B._replace(...)` gives
another. The tables called `*_HUGGINGFACE` are for `mlax.weights.convert`, and have the names of the
files that `save_pretrained` writes. The config must be that of the file: if its num_layers or
tied_embeddings differ, `convert` says which tensors have no place, or which parameters no tensor.
"""

from mlax.models.bert import BERT_BASE, BERT_HUGGINGFACE, BertConfig, BertInputs, BertOutputs, bert
from mlax.models.gpt2 import GPT_2, GPT_2_HUGGINGFACE, GPT_2_XL, Gpt2Config, gpt2
from mlax.models.llama import (
    LLAMA_3_2_1B, LLAMA_3_8B, LLAMA_3_70B, LLAMA_HUGGINGFACE, MISTRAL_7B, QWEN_3_0_6B, LlamaConfig,
    llama,
)
from mlax.models.resnet import RESNET_18, RESNET_50, RESNET_HUGGINGFACE, ResnetConfig, resnet
from mlax.models.vit import VIT_B_16, VIT_HUGGINGFACE, VIT_L_16, VitConfig, vit

# fmt: off
__all__ = [
    "BERT_BASE", "BERT_HUGGINGFACE", "BertConfig", "BertInputs", "BertOutputs", "GPT_2",
    "GPT_2_HUGGINGFACE", "GPT_2_XL", "Gpt2Config", "LLAMA_3_2_1B", "LLAMA_3_70B", "LLAMA_3_8B",
    "LLAMA_HUGGINGFACE", "LlamaConfig", "MISTRAL_7B", "QWEN_3_0_6B", "RESNET_18", "RESNET_50",
    "RESNET_HUGGINGFACE", "ResnetConfig", "VIT_B_16", "VIT_HUGGINGFACE", "VIT_L_16", "VitConfig",
    "bert", "gpt2", "llama", "resnet", "vit",
]
