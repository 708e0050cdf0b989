"""The primitive layers, one file for each pair or family of pairs."""
