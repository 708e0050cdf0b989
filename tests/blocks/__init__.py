"""Tests of the ready-made blocks."""
