"""Tests of mlax, laid out as the package is."""
