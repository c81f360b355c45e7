"""Training: the loop, its setup, checkpoints, several devices, and backbone pretraining."""
