"""What mlax costs beside hand-written JAX and other libraries: `python -m tests.benchmarks`."""
