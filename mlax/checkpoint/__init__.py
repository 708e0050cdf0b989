"""Saving and loading trees of arrays: `mlax.save(path, tree)`, `mlax.load(path, like)`.

A file has the safetensors format (mlax/safetensors.py), the name of a tensor is the path of its
leaf (mlax/tree.py), and these leaves are encoded:

- A PRNG key is the uint32 data of the key; the metadata "keys" has its implementation.
- A Python bool, int or float is a scalar tensor of dtype bool, int64 or float64.

The metadata "hyperparameters" holds those of the models in the tree (mlax/fingerprint.py).

Only NumPy is needed. If you prefer orbax, it takes the same trees:

    with ocp.StandardCheckpointer() as orbax: orbax.save(directory, tree)
    with ocp.StandardCheckpointer() as orbax: tree = orbax.restore(directory, like)
"""

from mlax.checkpoint.loading import LoadRule, load
from mlax.checkpoint.saving import save

__all__ = ["LoadRule", "load", "save"]
