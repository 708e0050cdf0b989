"""Models against those of `transformers`, with the same weights.

Where `transformers` and torch are installed (`pip install -e ".[parity]"`), both compute. Elsewhere
outputs are compared with those in outputs.npz, which `python -m tests.models` writes.
"""
