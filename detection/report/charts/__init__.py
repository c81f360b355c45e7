"""Vega-Lite charts of an experiment and of a dataset."""
