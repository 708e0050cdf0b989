"""Tests of `mlax.testing`."""
