"""Tests of `mlax.combinators`."""
