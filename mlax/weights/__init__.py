"""Weights from elsewhere, and back: `convert` and `revert` by one table of rules, bit for bit.

    Rule("h.{layer}.mlp.up.weight", "body.mlp.up.kernel", "oi->io")

says that tensors of such names make up the leaf of params at `body.mlp.up.kernel`. Braces match
any text without a dot. If ours has the same braces, they match the same text; if not, the text is a
number, an index along a leading axis of the leaf, as in `mlax.repeat`. The letters are the axes of
a tensor and of the leaf; 1 is an axis of length 1, which the other side may lack.

    Rule("h.{layer}.experts.{expert}.w1.weight", "body.moe.experts.gate.kernel", "oi->io")

indexes two: the leaf is (layers, experts, i, o), in the order of the braces.

    Rule("in_proj_weight[1 of 3]", "key.kernel", "oi->io")
    Rule("hf.kernel", "recurrent_kernel[1 of 4]")

split a tensor, and join parts into a leaf: parts count from 0, so [1 of 3] is the second of three
equal ones, along the last axis of the leaf.

    Rule("bias_ih + bias_hh", "bias")

adds tensors. A sum can't be undone: on the way back, the first one is the leaf and the others are
-0.0, which can be added to any number without changing its bits. So `convert(revert(made))` is
`made`, bit for bit, with every table, and `revert(convert(tensors))` is `tensors`, except for those
that were added or left out.

No tensor and no leaf is left out, unless a rule with None on the other side says so:

    Rule("cls.*", None)         a head in the file: we have no place for it
    Rule(None, "head.*")        a head of ours: it stays as it is in `like`

(On the way back, the second leaves out what no other rule matches.) `torch_linear` and the like
return the rules for a layer of PyTorch, `flax_dense` and the like for one of flax.linen, and
`under` puts a table under a name of theirs, a path of ours, or both:

    table = [*torch_linear("model.fc", "body.0"), *torch_norm("model.ln", "body.1")]
    table = [*under("", "encoder", mlax.models.BERT_HUGGINGFACE), Rule(None, "head.*")]

An empty name or path stands for a module or layer that is not inside another. A rule that matches
nothing on either side is taken for a typo, unless it is `optional`, as those for the biases of
`torch_linear` are. Tables hold arrays, not hyperparameters: an epsilon that differs still differs
after `convert`. Those of `mlax.models` have the names of the files that `save_pretrained` writes,
and of those on the hub; `state_dict()` of a module in memory may have others, in some versions.
"""

from mlax.weights.rules import Rule, Table, convert, revert
from mlax.weights.tables import (
    flax_conv, flax_dense, flax_gru_cell, flax_lstm_cell, flax_norm, flax_rnn_cell, optional,
    torch_attention, torch_conv, torch_gru, torch_linear, torch_lstm, torch_norm, torch_rnn, under,
)

__all__ = [
    "Rule", "Table", "convert", "flax_conv", "flax_dense", "flax_gru_cell", "flax_lstm_cell",
    "flax_norm", "flax_rnn_cell", "optional", "revert", "torch_attention", "torch_conv",
    "torch_gru", "torch_linear", "torch_lstm", "torch_norm", "torch_rnn", "under",
]
