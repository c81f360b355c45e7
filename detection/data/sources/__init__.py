"""Readers of raw datasets, and the checks of what they read."""
