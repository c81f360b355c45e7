"""Official archives: addresses, download, extraction."""
