"""Evaluation of detections: COCO and VOC protocols, error analysis, external files. Imports no torch."""
