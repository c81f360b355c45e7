"""What the numbers mean, in plain words."""

SCORES = {
    "AP": "COCO's main number: average precision, averaged over ten overlaps from IoU 0.50 to 0.95 and "
    "over the classes. Rewards boxes that fit tightly.",
    "AP50": "Average precision where a box counts if it overlaps the object by IoU 0.50: was it found?",
    "AP75": "The same at IoU 0.75: was it found with a box that fits?",
    "AP_small": "AP over objects smaller than 32 by 32 pixels.",
    "AP_medium": "AP over objects from 32 by 32 to 96 by 96 pixels.",
    "AP_large": "AP over objects larger than 96 by 96 pixels.",
    "AR1": "Average recall, the share of objects found over IoU 0.50 to 0.95, with one detection a picture.",
    "AR10": "Average recall with at most 10 detections a picture.",
    "AR100": "Average recall with at most 100 detections a picture: what it can find at all.",
    "AR_small": "Average recall over objects smaller than 32 by 32 pixels.",
    "AR_medium": "Average recall over objects from 32 by 32 to 96 by 96 pixels.",
    "AR_large": "Average recall over objects larger than 96 by 96 pixels.",
    "voc_ap50_11pt": "Pascal VOC 2007's average precision at IoU 0.50, read at eleven recalls.",
    "voc_ap50_area": "The same since VOC 2010: the whole area under the precision-recall curve at IoU 0.50.",
}
"""The fourteen numbers of `evaluation/metrics.json`, in its order."""

NAMES = {"voc_ap50_11pt": "VOC 11-point", "voc_ap50_area": "VOC area"}
"""How a number is called on the page, where that differs from its key."""

HEADLINES = {
    "AP": "COCO, IoU 0.50–0.95",
    "AP50": "COCO, IoU 0.50",
    "AP75": "COCO, IoU 0.75",
    "voc_ap50_11pt": "VOC 2007, IoU 0.50",
}
"""The four numbers that stand on top, and what they are in a few words."""
