"""The second stage of Faster R-CNN: classify and refine proposals (Girshick 2015, arXiv:1504.08083).

Letters: B images, P proposals of an image, M padded ground-truth boxes, S samples, C channels, K classes.
Boxes are float32 `x1, y1, x2, y2` in pixels of the batch. The outputs have K + 1 classes, 0 the background.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detection import distributed
from detection.models.detector import (
    Detections,
    ImageSizes,
    Targets,
    matched_boxes,
    matched_labels,
    mean_box_loss,
)
from detection.models.postprocess import batched_gather, nms_and_rescale, topk_of_proposals, valid_width
from detection.models.train_meters import ConfusionMeter
from detection.ops.box_coder import Weights, decode
from detection.ops.losses import box_loss
from detection.ops.matcher import BACKGROUND, balanced_sample, match
from detection.params.recipe import FasterRCNNRecipe

WEIGHTS: Weights = (10.0, 10.0, 5.0, 5.0)  # one over the deltas' standard deviations

Pool = Callable[[list[Tensor], Tensor, int], Tensor]


class RoIHead(nn.Module):
    """Pools each proposal's features and predicts its class and one box per class.

    Args:
        recipe: Thresholds, sampling and losses.
        pool: Pooling of proposals, e.g. `PyramidRoIAlign`.
        box_head: From pooled features [B * P, C, p, p] to vectors.
        box_predictor: From vectors to class logits [B * P, K + 1] and deltas [B * P, 4 (K + 1)].
        classes: K.
    """

    def __init__(
        self,
        recipe: FasterRCNNRecipe,
        pool: Pool,
        box_head: nn.Module,
        box_predictor: nn.Module,
        classes: int,
    ) -> None:
        super().__init__()
        self.recipe, self.pool = recipe, pool
        self.box_head, self.box_predictor = box_head, box_predictor
        self.confusion = ConfusionMeter("roi", classes + 1)

    def forward(self, features: list[Tensor], boxes: Tensor, height: int) -> tuple[Tensor, Tensor]:
        """Predict classes and boxes.

        Args:
            features: Feature maps to pool from.
            boxes: Tensor[B, P, 4].
            height: Height of the padded batch.

        Returns:
            Class logits Tensor[B, P, K + 1] and deltas Tensor[B, P, K + 1, 4], float32.
        """
        batch, count = boxes.shape[:2]
        logits, deltas = self.box_predictor(self.box_head(self.pool(features, boxes, height)))
        return logits.float().view(batch, count, -1), deltas.float().view(batch, count, -1, 4)

    def losses(
        self, features: list[Tensor], proposals: Tensor, mask: Tensor, targets: Targets, height: int
    ) -> dict[str, Tensor]:
        """Cross-entropy of the classes and smooth L1 of the boxes, over a sample of the proposals.

        Args:
            features: Feature maps to pool from.
            proposals: Tensor[B, P, 4].
            mask: Tensor[B, P], bool, false for padding.
            targets: Ground truth with M of at least 1; its boxes are added to the proposals.
            height: Height of the padded batch.
        """
        recipe = self.recipe
        boxes, matches, valid = self._sample(proposals, mask, targets)  # [B, S, 4], [B, S], [B, S]
        labels = torch.where(matches >= 0, matched_labels(targets, matches) + 1, 0)
        logits, deltas = self(features, boxes, height)
        self.confusion.add(labels, logits.argmax(dim=2), valid)
        entropy = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        own = labels[..., None, None].expand(-1, -1, 1, 4)
        deltas = deltas.gather(2, own)[:, :, 0]  # [B, S, 4], those of the true class
        positive = (labels > 0) & valid
        targets_of_sample = matched_boxes(targets, matches, boxes)
        loss = box_loss(
            "smooth_l1", deltas, targets_of_sample, boxes, positive, WEIGHTS, recipe.roi.smooth_l1_beta
        )
        return {
            "roi_class": (entropy * valid).sum() / distributed.normalizer(valid.sum()),
            "roi_box": mean_box_loss(loss, positive, valid, recipe.roi.box_loss_normalizer),
        }

    @torch.no_grad()
    def _sample(self, proposals: Tensor, mask: Tensor, targets: Targets) -> tuple[Tensor, Tensor, Tensor]:
        """Sampled boxes [B, S, 4], their matches [B, S], and a mask [B, S], false for padding.

        An image with fewer samples is padded by repeating them, so that BatchNorm in the head sees only real
        proposals.
        """
        recipe = self.recipe
        boxes = torch.cat([proposals, targets.boxes], dim=1)
        ignore = ~torch.cat([mask, targets.mask], dim=1)
        matches = match(
            targets.boxes, targets.mask, boxes, recipe.roi.fg_iou, recipe.roi.bg_iou, ignore=ignore
        )
        sample = balanced_sample(
            matches >= 0, matches == BACKGROUND, recipe.roi.batch_size_per_image, recipe.roi.positive_fraction
        )
        valid = sample.valid[:, : valid_width(sample.valid)]
        position = torch.arange(valid.shape[1], device=mask.device)[None]
        index = batched_gather(sample.index, position % valid.sum(dim=1, keepdim=True).clamp(min=1))
        return batched_gather(boxes, index), batched_gather(matches, index), valid

    def detect(
        self, features: list[Tensor], proposals: Tensor, mask: Tensor, sizes: ImageSizes, height: int
    ) -> list[Detections]:
        """Score every class of every proposal, and keep the best after NMS by class.

        Args:
            features: Feature maps to pool from.
            proposals: Tensor[B, P, 4].
            mask: Tensor[B, P], bool, false for padding.
            sizes: Size of each image in the padded batch, and its original size.
            height: Height of the padded batch.
        """
        recipe, coder = self.recipe, partial(decode, weights=WEIGHTS)
        logits, deltas = self(features, proposals, height)
        scores = logits.softmax(dim=2)[..., 1:] * mask[..., None]  # [B, P, K]
        candidates = topk_of_proposals(scores, deltas, proposals, coder, sizes, recipe.score_threshold)
        return nms_and_rescale(
            candidates, sizes, recipe.nms_threshold, recipe.detections_per_image, scores.shape[2]
        )
