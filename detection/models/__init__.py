"""Detectors behind one protocol, their backbones, and the builder."""
