"""The training loop and what it stands on: optimisation, checkpoints, pretraining."""
