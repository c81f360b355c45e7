"""The second stage: classify proposals and refine them (Girshick 2015, arXiv:1504.08083), over a whole batch.

Letters: B pictures, P proposals and M objects of a picture, S samples of a picture, K classes, N candidates.
Boxes are float32 `x1, y1, x2, y2` in pixels of the batch. The outputs have K + 1 classes, 0 the background.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from detection import distributed
from detection.data.loading.batch import ImageSizes, Targets
from detection.models.detector import Detections
from detection.models.postprocess import (
    Candidates,
    batched_gather,
    clip,
    nms_and_rescale,
    topk_scores,
    valid_width,
)
from detection.models.rpn import box_loss
from detection.models.train_meters import ConfusionMeter
from detection.ops.box_coder import Weights, decode, encode
from detection.ops.matcher import BACKGROUND, match, sample
from detection.params.recipe import FasterRCNNRecipe

WEIGHTS: Weights = (10.0, 10.0, 5.0, 5.0)  # one over the deltas' standard deviations
SMALLEST = 1e-2  # side of a detection in pixels

Pool = Callable[[list[Tensor], Tensor, int], Tensor]


class RoIHead(nn.Module):
    """Pools each proposal's features, and answers with its class and a box a class.

    Args:
        recipe: Thresholds, sampling and losses.
        pool: Features of proposals, e.g. `PyramidRoIAlign`.
        box_head: From pooled features [R, C, p, p] to vectors.
        box_predictor: From vectors to class logits [R, K + 1] and deltas [R, 4 (K + 1)].
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

    def forward(self, maps: list[Tensor], boxes: Tensor, height: int) -> tuple[Tensor, Tensor]:
        """Answer.

        Args:
            maps: Feature maps that are pooled from.
            boxes: Tensor[B, P, 4].
            height: Of the batch's pictures.

        Returns:
            Class logits Tensor[B, P, K + 1] and deltas Tensor[B, P, K + 1, 4], float32.
        """
        batch, count = boxes.shape[:2]
        logits, deltas = self.box_predictor(self.box_head(self.pool(maps, boxes, height)))
        return logits.float().view(batch, count, -1), deltas.float().view(batch, count, -1, 4)

    def losses(
        self, maps: list[Tensor], proposals: Tensor, mask: Tensor, targets: Targets, height: int
    ) -> dict[str, Tensor]:
        """Classification (cross-entropy) and box (smooth L1) of a sample of the proposals.

        Args:
            maps: Feature maps that are pooled from.
            proposals: Tensor[B, P, 4].
            mask: Tensor[B, P]: which are there.
            targets: The ground truth, with room for at least one object a picture; it is proposed as well.
            height: Of the batch's pictures.
        """
        recipe = self.recipe
        boxes, labels, wanted, valid = self._sample(proposals, mask, targets)
        logits, deltas = self(maps, boxes, height)
        self.confusion.add(labels, logits.argmax(dim=2), valid)
        each = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), reduction="none").view_as(labels)
        own = labels[..., None, None].expand(-1, -1, 1, 4)
        of_class = deltas.gather(2, own)[:, :, 0]  # [B, S, 4]
        positive = (labels > 0) & valid
        return {
            "roi_class": (each * valid).sum() / distributed.normalizer(valid.sum()),
            "roi_box": box_loss(
                of_class, wanted, positive, valid, recipe.roi.smooth_l1_beta, recipe.roi.box_loss_normalizer
            ),
        }

    @torch.no_grad()
    def _sample(
        self, proposals: Tensor, mask: Tensor, targets: Targets
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes [B, S, 4], labels [B, S] (0: background), deltas [B, S, 4], and which are samples [B, S].

        A picture with fewer samples repeats them, so that BatchNorm in the head sees nothing strange.
        """
        recipe = self.recipe
        candidates = torch.cat([proposals, targets.boxes], dim=1)
        there = torch.cat([mask, targets.mask], dim=1)
        matches = match(
            targets.boxes,
            targets.mask,
            candidates,
            recipe.roi.fg_iou,
            recipe.roi.bg_iou,
            best="none",
            allowed=there,
        )
        drawn = sample(
            matches >= 0, matches == BACKGROUND, recipe.roi.batch_size_per_image, recipe.roi.positive_fraction
        )
        valid = drawn.valid[:, : valid_width(drawn.valid)]
        place = torch.arange(valid.shape[1], device=mask.device)[None]
        index = batched_gather(drawn.index, place % valid.sum(dim=1, keepdim=True).clamp(min=1))
        boxes, matches = batched_gather(candidates, index), batched_gather(matches, index)
        labels = torch.where(matches >= 0, batched_gather(targets.labels, matches.clamp(min=0)) + 1, 0)
        wanted = encode(batched_gather(targets.boxes, matches.clamp(min=0)), boxes, WEIGHTS)
        return boxes, labels, wanted, valid

    def detect(
        self, maps: list[Tensor], proposals: Tensor, mask: Tensor, sizes: ImageSizes, height: int
    ) -> list[Detections]:
        """Score every class of every proposal, and keep the best after NMS class by class.

        Args:
            maps: Feature maps that are pooled from.
            proposals: Tensor[B, P, 4].
            mask: Tensor[B, P]: which are there.
            sizes: What part of the batch each picture fills, and its original size.
            height: Of the batch's pictures.
        """
        logits, deltas = self(maps, proposals, height)
        scores = logits.softmax(dim=2)[..., 1:] * mask[..., None]  # [B, P, K]
        recipe, (_, count, classes) = self.recipe, scores.shape

        def candidates(wanted: int) -> Candidates:
            values, rows, labels = topk_scores(scores, min(wanted + 1, count * classes))
            # equal scores in the order of their proposals, which come best first
            _, order = (rows * classes + labels).sort(dim=1)
            values, ranked = batched_gather(values, order).sort(dim=1, descending=True, stable=True)
            rows, labels = (batched_gather(batched_gather(each, order), ranked) for each in (rows, labels))
            good = values > recipe.score_threshold
            more = good[:, wanted:].any(dim=1)
            values, rows, labels = values[:, :wanted], rows[:, :wanted], labels[:, :wanted]
            own = rows * (classes + 1) + labels + 1  # the deltas of this class
            boxes = decode(
                batched_gather(deltas.flatten(1, 2), own), batched_gather(proposals, rows), WEIGHTS
            )
            boxes = clip(boxes, sizes.resized)
            good = good[:, :wanted] & (boxes[..., 2:] - boxes[..., :2] >= SMALLEST).all(dim=2)
            return Candidates(boxes, torch.where(good, values, -1.0), labels, more)

        return nms_and_rescale(candidates, sizes, recipe.nms_threshold, recipe.detections_per_image, classes)
