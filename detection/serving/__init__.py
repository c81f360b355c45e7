"""HTTP server of a detector: JSON for programs, and a page for people."""
