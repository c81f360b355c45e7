"""Numbers that equal the official protocols, COCO's and VOC's, from one sparse comparison of boxes.

Imports no torch, except `inference`, which runs a detector.
"""
