"""Tensor operations of detection: tensors in, tensors out, batched and without host synchronization.

* `anchors`: anchors of a feature pyramid, and SSD's default boxes
* `box_coder`: boxes as deltas or edge distances relative to anchors
* `matcher`: anchors to ground truth, and balanced sampling of positives and negatives
* `losses`: focal, box and GIoU losses per anchor
* `nms`, `roi_align`: non-maximum suppression by group, RoIAlign and RoIPool
"""
