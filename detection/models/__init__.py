"""Detectors behind one protocol: losses in training, detections in evaluation, raw outputs for export.

* `detector`: the protocol, its containers, and what all detectors share; `build`: recipe or file to detector
* `faster_rcnn`, `retinanet`, `fcos`, `ssd`: one family each
* `backbones`: classification networks and their weights; `fpn`: feature maps on them; `heads`: output layers
* `postprocess`: candidates, NMS and rescaling; `transfer`: start weights of another detector, classes by name
"""
