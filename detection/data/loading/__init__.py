"""From a packed index to training batches: image I/O, cache, augmentation, loader."""
