"""Tensor operations of detection: anchors, box coder, matcher, NMS, RoIAlign, losses."""
