"""Official archives of VOC and COCO: addresses, download with resume, extraction."""
