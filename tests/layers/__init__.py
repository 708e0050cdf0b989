"""Tests of `mlax.layers`."""
