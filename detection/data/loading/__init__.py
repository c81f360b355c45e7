"""From the packed index to training batches: image decoding, cache, augmentation, sampler, loader."""
