"""Tests of the documented classes, beyond the laws."""
