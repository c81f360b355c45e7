"""Readers of raw datasets, the packed index, transforms and the loader."""
