"""Programs that train with mlax, each run as `python -m mlax.examples.NAME`."""
