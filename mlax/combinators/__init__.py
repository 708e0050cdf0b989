"""Pairs made of pairs, one file for each."""
