"""A module for each contender: `MODELS` has a function from sizes to a `Model` for each name."""
