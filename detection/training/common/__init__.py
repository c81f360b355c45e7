"""What every training needs: checkpoints, environment, history, launch of ranks, optimizers, signals."""
