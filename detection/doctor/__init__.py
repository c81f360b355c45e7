"""Diagnosis of a dataset: labels, anchors, sample size. Decides nothing of a result."""
