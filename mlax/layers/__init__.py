"""The layers with parameters or hyperparameters of their own, one file for each pair."""
