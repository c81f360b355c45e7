"""Charts of an experiment."""
