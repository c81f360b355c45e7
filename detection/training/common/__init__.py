"""Parts of every training: checkpoints, environment, history, launch of ranks, optimizers, signals."""
