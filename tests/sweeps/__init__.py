"""Sweeps over dtypes, hyperparameters and compositions, against layers written out in NumPy."""
