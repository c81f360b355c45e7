"""Numbers that equal the official protocols: COCO through pycocotools, VOC as its devkit counts.

Imports no torch, except `inference`, which runs a detector.
"""
