"""Files made by an earlier version, which this version must read and reproduce.

For each model of `models.py` there are

- NAME.npz: params, state, input and outputs by their paths, for NumPy alone,
- NAME.pickle: params and state, with NumPy arrays as leaves,
- NAME.jaxexport: inference for any batch size, as a function of the leaves of params, state and x,

and there are jax.npz, numbers that JAX draws without mlax, and checkpoint.safetensors, which
`mlax.save` wrote. A test that fails says that parameters,
names or outputs changed for users who have a seed, a checkpoint or an exported model. If that is
meant, rewrite the files, with the oldest JAX that mlax supports:

    python -m tests.golden
"""
