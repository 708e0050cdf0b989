"""Tables for layers of PyTorch and flax.linen, from the name of theirs to the path of ours."""

from collections.abc import Sequence

from mlax.errors import message
from mlax.weights.rules import Rule, Table

__all__ = [
    "flax_conv", "flax_dense", "flax_gru_cell", "flax_lstm_cell", "flax_norm", "flax_rnn_cell",
    "optional", "torch_attention", "torch_conv", "torch_gru", "torch_linear", "torch_lstm",
    "torch_norm", "torch_rnn", "under",
]


def under(theirs: str, ours: str, table: Table) -> Table:
    """Return a table for what is inside something larger, on one side or both.

    Args:
        theirs: the prefix of their names, "" for none. (Names for flax are paths of all variables,
            which start with a collection: there, pass the prefix to `flax_dense` itself.)
        ours: the prefix of our paths, "" for none.
        table: the table for the smaller model or layer.

    >>> import mlax
    >>> from mlax.weights import torch_linear, under
    >>> table = under("", "encoder", mlax.models.BERT_HUGGINGFACE)
    >>> print(table[0])
    Rule('embeddings.word_embeddings.weight', 'encoder.embed.embedding')
    >>> print(under("layers.{layer}", "body", torch_linear("experts.{expert}.w1", "moe"))[0])
    Rule('layers.{layer}.experts.{expert}.w1.weight', 'body.moe.kernel', 'oi->io')
    """
    return tuple(
        rule._replace(
            theirs=" + ".join(_at(theirs, term) for term in rule.terms) or None,
            ours=None if rule.ours is None else _at(ours, rule.ours),
        )
        for rule in table
    )


def optional(table: Table) -> Table:
    """Return a table for something that both sides may lack."""
    return tuple(rule._replace(optional=True) for rule in table)


def torch_linear(theirs: str, ours: str) -> Table:
    """Return the rules that make a `torch.nn.Linear` our `dense`."""
    return (
        Rule(_at(theirs, "weight"), _at(ours, "kernel"), "oi->io"),
        *_bias(_at(theirs, "bias"), ours),
    )


def torch_conv(theirs: str, ours: str, kernel: str = "OHWI", *, bias: str | None = None) -> Table:
    """Return the rules that make a `torch.nn.Conv1d`, `Conv2d` or `Conv3d` our `conv`.

    Args:
        theirs: name of the module.
        ours: path of the `conv`.
        kernel: the spec of our kernel, with the spatial axes in the order of theirs: "OHWI" if x is
            channel_last, "OIHW" if it is channel_first, "OWI" with one spatial axis, for which
            the default does not fit.
        bias: path of the `bias` that follows; None if theirs has none.

    >>> import jax, jax.numpy as jnp, mlax, numpy as np
    >>> tensors = {"stem.weight": np.ones((4, 3, 5, 5)), "stem.bias": np.zeros(4)}
    >>> model = mlax.series(conv=mlax.conv(4, 5), bias=mlax.bias((0, 0, -1)))
    >>> like = jax.eval_shape(model.init, jax.random.key(0), jnp.ones((8, 8, 3)))
    >>> table = mlax.weights.torch_conv("stem", "conv", bias="bias")
    >>> params, state = mlax.weights.convert(tensors, table, like)
    >>> params["conv"].kernel.shape
    (4, 5, 5, 3)
    """
    axes = f"OI{_spatial('torch_conv', kernel)}->{kernel}"
    rule = Rule(_at(theirs, "weight"), _at(ours, "kernel"), axes)
    return (rule, *_bias(_at(theirs, "bias"), bias))


def torch_norm(theirs: str, ours: str) -> Table:
    """Return the rules for a normalisation, with its running statistics if it has them."""
    return optional([
        Rule(_at(theirs, "weight"), _at(ours, "scale")),
        Rule(_at(theirs, "bias"), _at(ours, "bias")),
        Rule(_at(theirs, "running_mean"), _at(ours, "mean")),
        Rule(_at(theirs, "running_var"), _at(ours, "var")),
        Rule(_at(theirs, "num_batches_tracked"), None),
    ])


def torch_rnn(
    theirs: str, ours: str, layer: int | str | None = 0, *, reverse: bool = False
) -> Table:
    """Return the rules that make one layer of a `torch.nn.RNN` our `rnn_cell`.

    Theirs has two biases, and ours is their sum: they come back as ours and -0.0.

    Args:
        theirs: name of the module.
        ours: path of the cell, which is that of a `recurrent` or `carried` around it.
        layer: which of their layers; "{layer}" if ours are in a `repeat`; None for a
            `torch.nn.RNNCell`.
        reverse: whether it is the backward half of a bidirectional layer.

    >>> import jax, jax.numpy as jnp, mlax
    >>> model = mlax.bidirectional(mlax.rnn_cell(4), mlax.rnn_cell(4))
    >>> made = model.init(jax.random.key(0), (jnp.ones((7, 3)), (None, None)))
    >>> torch_rnn = mlax.weights.torch_rnn
    >>> table = [*torch_rnn("rnn", "forward"), *torch_rnn("rnn", "backward", reverse=True)]
    >>> mlax.weights.revert(made, table)["rnn.weight_ih_l0_reverse"].shape
    (4, 3)
    """
    suffix = _suffix(layer, reverse)
    biases = [_at(theirs, f"bias_{kind}{suffix}") for kind in ("ih", "hh")]
    return (*_torch_kernels(theirs, ours, suffix), *_bias(" + ".join(biases), ours))


def torch_lstm(
    theirs: str, ours: str, layer: int | str | None = 0, *, reverse: bool = False
) -> Table:
    """Return the rules that make one layer of a `torch.nn.LSTM` our `lstm_cell`.

    Both have the gates in the order i, f, g, o. Arguments and biases are as in `torch_rnn`.

    >>> import jax, jax.numpy as jnp, mlax
    >>> model = mlax.series(body=mlax.carried(mlax.recurrent(mlax.lstm_cell(4))))
    >>> made = model.init(jax.random.key(0), jnp.ones((7, 3)))
    >>> tensors = mlax.weights.revert(made, mlax.weights.torch_lstm("lstm", "body"))
    >>> tensors["lstm.weight_ih_l0"].shape, tensors["lstm.bias_hh_l0"].shape
    ((16, 3), (16,))
    """
    return torch_rnn(theirs, ours, layer, reverse=reverse)


def torch_gru(
    theirs: str, ours: str, layer: int | str | None = 0, *, reverse: bool = False
) -> Table:
    """Return the rules that make one layer of a `torch.nn.GRU` our `gru_cell`.

    Both have the gates in the order r, z, n. Arguments are as in `torch_rnn`. For r and z our bias
    is the sum of their two, which come back as ours and -0.0; for n, ours has two as well.
    """
    suffix = _suffix(layer, reverse)
    of_x, of_h = (_at(theirs, f"bias_{kind}{suffix}") for kind in ("ih", "hh"))
    bias = _at(ours, "bias")
    biases = (
        Rule(f"{of_x}[0 of 3] + {of_h}[0 of 3]", f"{bias}[0 of 3]"),
        Rule(f"{of_x}[1 of 3] + {of_h}[1 of 3]", f"{bias}[1 of 3]"),
        Rule(f"{of_x}[2 of 3]", f"{bias}[2 of 3]"),
        Rule(f"{of_h}[2 of 3]", _at(ours, "recurrent_bias")),
    )
    return (*_torch_kernels(theirs, ours, suffix), *optional(biases))


def torch_attention(theirs: str, ours: str, *, separate: bool = False) -> Table:
    """Return the rules that make a `torch.nn.MultiheadAttention` our `attention`, fused or not.

    Args:
        theirs: name of the module.
        ours: path of the `attention`.
        separate: whether theirs has separate weights for queries, keys and values, as it does if
            its kdim or vdim is not its embed_dim.
    """
    weight, bias = _at(theirs, "in_proj_weight"), _at(theirs, "in_proj_bias")
    rules = [Rule(weight, _at(ours, "fused.kernel"), "oi->io"), Rule(bias, _at(ours, "fused.bias"))]
    for i, name in enumerate(("query", "key", "value")):
        part = _at(theirs, f"{name[0]}_proj_weight") if separate else f"{weight}[{i} of 3]"
        rules.append(Rule(part, _at(ours, f"{name}.kernel"), "oi->io"))
        rules.append(Rule(f"{bias}[{i} of 3]", _at(ours, f"{name}.bias")))
    output = torch_linear(_at(theirs, "out_proj"), _at(ours, "output"))
    return (*optional(rules), *output)


def flax_dense(theirs: str, ours: str) -> Table:
    """Return the rules that make a `flax.linen.Dense` our `dense`.

    The tables for flax take all variables, and name them by their path. `revert` returns them by
    name; `flax.traverse_util.unflatten_dict(tensors, sep=".")` nests them again.

    >>> import flax, jax, jax.numpy as jnp, mlax
    >>> theirs = flax.linen.Sequential([flax.linen.Dense(4), jnp.tanh, flax.linen.Dense(2)])
    >>> variables = theirs.init(jax.random.key(0), jnp.ones(3))
    >>> model = mlax.series(mlax.dense(4), mlax.f(jnp.tanh), mlax.dense(2))
    >>> like = jax.eval_shape(model.init, jax.random.key(0), jnp.ones(3))
    >>> flax_dense = mlax.weights.flax_dense
    >>> table = [*flax_dense("layers_0", "0"), *flax_dense("layers_2", "2")]
    >>> params, state = mlax.weights.convert(variables, table, like)
    >>> y, _ = model.apply(params, state, jnp.ones(3))
    >>> jnp.allclose(y, theirs.apply(variables, jnp.ones(3)), atol=1e-5)
    Array(True, dtype=bool)
    >>> tensors = mlax.weights.revert((params, state), table)
    >>> flax.traverse_util.unflatten_dict(tensors, sep=".")["params"]["layers_2"]["kernel"].shape
    (4, 2)
    """
    return (
        Rule(_at("params", theirs, "kernel"), _at(ours, "kernel")),
        *_bias(_at("params", theirs, "bias"), ours),
    )


def flax_conv(theirs: str, ours: str, kernel: str = "OHWI", *, bias: str | None = None) -> Table:
    """Return the rules that make a `flax.linen.Conv` our `conv`: arguments as in `torch_conv`."""
    axes = f"{_spatial('flax_conv', kernel)}IO->{kernel}"
    rule = Rule(_at("params", theirs, "kernel"), _at(ours, "kernel"), axes)
    return (rule, *_bias(_at("params", theirs, "bias"), bias))


def flax_norm(theirs: str, ours: str) -> Table:
    """Return the rules for a normalisation, with its running statistics if it has them."""
    return optional([
        Rule(_at("params", theirs, "scale"), _at(ours, "scale")),
        Rule(_at("params", theirs, "bias"), _at(ours, "bias")),
        Rule(_at("batch_stats", theirs, "mean"), _at(ours, "mean")),
        Rule(_at("batch_stats", theirs, "var"), _at(ours, "var")),
    ])


def flax_rnn_cell(theirs: str, ours: str) -> Table:
    """Return the rules that make a `flax.linen.SimpleCell` our `rnn_cell`."""
    return _flax_cell(theirs, ours, [""], "i")


def flax_lstm_cell(theirs: str, ours: str) -> Table:
    """Return the rules that make an `LSTMCell` or `OptimizedLSTMCell` of flax our `lstm_cell`."""
    return _flax_cell(theirs, ours, "ifgo", "h")


def flax_gru_cell(theirs: str, ours: str) -> Table:
    """Return the rules that make a `flax.linen.GRUCell` our `gru_cell`."""
    bias = Rule(_at("params", theirs, "hn", "bias"), _at(ours, "recurrent_bias"))
    return (*_flax_cell(theirs, ours, "rzn", "i"), bias)


def _flax_cell(theirs: str, ours: str, gates: Sequence[str], biased: str) -> Table:
    """Return the rules for the kernels of each gate, and for the biases of x or of h."""
    of_gate = (
        ("i", "kernel", "kernel"), ("h", "kernel", "recurrent_kernel"), (biased, "bias", "bias")
    )
    return [
        Rule(_at("params", theirs, side + gate, kind), f"{_at(ours, name)}[{i} of {len(gates)}]")
        for i, gate in enumerate(gates)
        for side, kind, name in of_gate
    ]


def _torch_kernels(theirs: str, ours: str, suffix: str) -> Table:
    return (
        Rule(_at(theirs, f"weight_ih{suffix}"), _at(ours, "kernel"), "oi->io"),
        Rule(_at(theirs, f"weight_hh{suffix}"), _at(ours, "recurrent_kernel"), "oi->io"),
    )


def _suffix(layer: int | str | None, reverse: bool) -> str:
    return ("" if layer is None else f"_l{layer}") + ("_reverse" if reverse else "")


def _bias(theirs: str, ours: str | None) -> Table:
    return () if ours is None else (Rule(theirs, _at(ours, "bias"), optional=True),)


def _spatial(owner: str, kernel: str) -> str:
    """Return the letters of the spatial axes in the spec of a kernel."""
    if not kernel.isalpha() or len(set(kernel)) != len(kernel) or not set("OI") <= set(kernel):
        wanted = 'distinct letters with O and I, such as "OHWI"'
        raise ValueError(message(owner, "kernel", wanted, repr(kernel)))
    return kernel.replace("O", "").replace("I", "")


def _at(*names: str) -> str:
    """Return the names joined by dots, without those that are empty."""
    return ".".join(filter(None, names))
