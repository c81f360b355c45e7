"""Timing and accuracy beside the peer; one command each, results in RESULTS.md."""
