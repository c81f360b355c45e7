"""Error analysis of a detector beyond its average precision."""
