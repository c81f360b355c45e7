"""Datasets: readers of raw data, packed index, prepared data, statistics, loading."""
