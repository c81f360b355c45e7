"""Charts, images, HTML page and model card, from the files under `reports/`; imports no torch."""
