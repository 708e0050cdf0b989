"""Tests of `mlax.weights`."""
