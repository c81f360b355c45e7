"""Error analysis beyond average precision: error types, thresholds, recall, hard examples, bootstrap."""
