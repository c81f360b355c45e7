"""Diagnosis of a dataset: labels, anchors, sample size."""
