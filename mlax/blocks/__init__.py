"""Recipes: a few lines of composition each, one file for each kind."""
