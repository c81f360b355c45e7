"""COCO and VOC protocols: overlaps, matching, accumulation."""
