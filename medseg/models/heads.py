"""The second stage: box head and mask head, their targets, losses and results.

Module and parameter names are those of torchvision's ``roi_heads``, so that its state dicts load key by key.
"""

from collections import OrderedDict
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection._utils import BoxCoder, Matcher
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads
from torchvision.ops import clip_boxes_to_image, roi_align

from medseg.models.backbones import norm_layer
from medseg.models.box_iou import box_iou
from medseg.models.layout import channels_last
from medseg.models.roi import PyramidPooler, mask_targets
from medseg.models.suppression import by_image, grouped_nms
from medseg.values.plan import ModelPlan, Plan, TrainingPlan


class Target(NamedTuple):
    """The objects of one training slice.

    boxes [G, 4] float32 in pixels with x1 < x2 and y1 < y2; classes [G] int64 in 1..K; masks [G, H, W] 0 or 1;
    covered [K, H, W]: the share of each pixel that objects of each class cover, for the semantic head;
    seed: decides which proposals are drawn for the losses.
    """

    boxes: Tensor
    classes: Tensor
    masks: Tensor
    covered: Tensor
    seed: int = 0


class Result(NamedTuple):
    """What was found in one slice.

    boxes [N, 4]: windows of the masks, i.e. what the box head found plus the plan's margin; scores [N];
    classes [N] in 1..K; masks [N, M, M] probabilities.
    """

    boxes: Tensor
    scores: Tensor
    classes: Tensor
    masks: Tensor


class _Samples(NamedTuple):
    """Proposals chosen for the losses.

    boxes [N, 4], classes [N] (0 background), objects [N] into the target, close [N] whether a mask is learnt from it.
    """

    boxes: Tensor
    classes: Tensor
    objects: Tensor
    close: Tensor


#: Class of a proposal that overlaps an object too little to be it and too much to be background.
_NEITHER = -1


def _box_head(model: ModelPlan) -> nn.Module:
    """Return the layers from pooled features to a vector per box."""
    channels, size = model.fpn_channels, model.box_roi_size
    if not model.box_head_convolutions:
        return TwoMLPHead(channels * size**2, model.box_head_channels)
    layers = [channels] * model.box_head_convolutions
    return FastRCNNConvFCHead((channels, size, size), layers, [model.box_head_channels], norm_layer(model.head_norm))


def _mask_predictor(channels: int, classes: int, doublings: int) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for i in range(doublings):
        layers[f"conv{5 + i}_mask"] = nn.ConvTranspose2d(channels, channels, 2, 2)
        layers[f"relu{i}" if i else "relu"] = nn.ReLU(inplace=True)
    layers["mask_fcn_logits"] = nn.Conv2d(channels, classes, 1)
    predictor = nn.Sequential(layers)
    for name, parameter in predictor.named_parameters():
        if "weight" in name:
            nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu")
    return predictor


def _jittered(boxes: Tensor, settings: TrainingPlan, generator: torch.Generator) -> Tensor:
    """Return [copies * G, 4] boxes of about the same place and size as [G, 4] boxes."""
    size = boxes[:, 2:] - boxes[:, :2]
    centre = boxes[:, :2] + size / 2
    noise = torch.randn((settings.jittered_boxes, 2, len(boxes), 2), generator=generator).to(boxes)
    centres = centre + settings.jitter_shift * size * noise[:, 0]
    halves = size * torch.exp(settings.jitter_scale * noise[:, 1]) / 2
    return torch.cat([centres - halves, centres + halves], dim=2).reshape(-1, 4)


def with_margin(boxes: Tensor, margin: float) -> Tensor:
    """Return boxes [N, 4] that are larger by this share of their size on every side; they may leave the slice."""
    rim = margin * (boxes[:, 2:] - boxes[:, :2])
    return torch.cat([boxes[:, :2] - rim, boxes[:, 2:] + rim], dim=1)


def _draw(classes: Tensor, number: int, share: float, generator: torch.Generator) -> Tensor:
    """Return up to ``number`` positions of proposals: at most ``share`` of them positive, the rest background."""
    order = torch.randperm(len(classes), generator=generator).to(classes.device)
    positive, negative = order[classes[order] > 0], order[classes[order] == 0]
    positive = positive[: int(number * share)]
    return torch.cat([positive, negative[: number - len(positive)]])


def _shares(counts: list[int], like: Tensor) -> Tensor:
    """Return how much each box counts in a mean over the boxes of an image and then over the images, [sum of counts].

    A mean over all boxes of the batch would make a box count by which images it shares a batch with.
    """
    return torch.cat([like.new_full((n,), 1 / (n * len(counts))) for n in counts if n] or [like.new_zeros(0)])


class RoiHeads(nn.Module):
    """Box head (class and box refinement) and mask head (one mask per class) over pooled features."""

    def __init__(self, plan: Plan):
        super().__init__()
        model, training = plan.model, plan.training
        self.classes = len(plan.labels)
        self.box_roi_pool = PyramidPooler(model.box_roi_size, model)
        self.box_head = _box_head(model)
        self.box_predictor = FastRCNNPredictor(model.box_head_channels, self.classes + 1)
        self.mask_roi_pool = PyramidPooler(model.mask_roi_size, model)
        self.mask_head = MaskRCNNHeads(
            model.fpn_channels,
            (model.mask_head_channels,) * model.mask_head_convolutions,
            1,
            norm_layer=norm_layer(model.head_norm),
        )
        self.agnostic = model.mask_head == "class_agnostic"
        self.softmax = model.mask_loss == "softmax"
        self.mask_size = model.mask_size
        self.mask_margin = model.mask_margin
        doublings = (model.mask_size // model.mask_roi_size).bit_length() - 1
        # torchvision counts the background as a mask of its own; it is never trained, and kept for its keys.
        self.mask_predictor = _mask_predictor(
            model.mask_head_channels, 1 if self.agnostic else self.classes + 1, doublings
        )
        self.coder = BoxCoder((10.0, 10.0, 5.0, 5.0))
        self.matcher = Matcher(training.box_positive_iou, training.box_negative_iou, allow_low_quality_matches=False)
        self.training_plan = training
        self.limits = plan.inference
        # Of which classes the semantic head's probability is that of the one object there is; background first.
        self.alone = [False, *(label.kind == "single" for label in plan.labels)]

    # -- training -----------------------------------------------------------------------------------------

    def losses(self, features: list[Tensor], proposals: list[Tensor], targets: list[Target]) -> dict[str, Tensor]:
        """Return the classification, box and mask loss, each averaged per image and then over the images."""
        samples = self._sample(proposals, targets)
        logits, deltas = self._boxes(features, [s.boxes for s in samples])
        classes = torch.cat([s.classes for s in samples])
        wanted = torch.cat(
            [
                self.coder.encode_single(t.boxes[s.objects], s.boxes) if len(t.boxes) else torch.zeros_like(s.boxes)
                for s, t in zip(samples, targets, strict=True)
            ]
        )
        positive = torch.nonzero(classes > 0)[:, 0]
        chosen = deltas.reshape(len(deltas), self.classes + 1, 4)[positive, classes[positive]]
        share = _shares([len(s.classes) for s in samples], logits)
        box = F.smooth_l1_loss(chosen, wanted[positive], beta=1 / 9, reduction="none").sum(dim=1)
        return {
            "class": (F.cross_entropy(logits, classes, reduction="none") * share).sum(),
            "box": (box * share[positive]).sum(),
            "mask": self._mask_loss(features, samples, targets),
        }

    def _sample(self, proposals: list[Tensor], targets: list[Target]) -> list[_Samples]:
        return [self._sample_one(boxes, target) for boxes, target in zip(proposals, targets, strict=True)]

    def _sample_one(self, proposals: Tensor, target: Target) -> _Samples:
        settings, generator = self.training_plan, torch.Generator().manual_seed(target.seed)
        boxes = torch.cat([proposals, target.boxes, _jittered(target.boxes, settings, generator)])
        if len(target.boxes):
            iou = box_iou(target.boxes, boxes)
            best, close = self.matcher(iou), iou.amax(dim=0) >= settings.mask_positive_iou
            objects = best.clamp(min=0)
            classes = torch.where(best >= 0, target.classes[objects], 0)
            classes[best == Matcher.BETWEEN_THRESHOLDS] = _NEITHER
        else:
            objects = classes = torch.zeros(len(boxes), dtype=torch.int64, device=boxes.device)
            close = classes > 0
        drawn = _draw(classes, settings.box_samples, settings.box_positive_fraction, generator)
        return _Samples(boxes[drawn], classes[drawn], objects[drawn], close[drawn])

    def _mask_loss(self, features: list[Tensor], samples: list[_Samples], targets: list[Target]) -> Tensor:
        positive = [torch.nonzero((s.classes > 0) & s.close)[:, 0] for s in samples]
        boxes = [with_margin(s.boxes[p], self.mask_margin) for s, p in zip(samples, positive, strict=True)]
        if not sum(len(b) for b in boxes):
            return features[0].new_zeros(())
        classes = torch.cat([s.classes[p] for s, p in zip(samples, positive, strict=True)])
        wanted = torch.cat(
            [
                mask_targets(t.masks, b, s.objects[p], self.mask_size, sampling=self.training_plan.mask_target_sampling)
                for t, b, s, p in zip(targets, boxes, samples, positive, strict=True)
                if len(b)
            ]
        )
        logits = self._masks(features, boxes)
        share = _shares([len(b) for b in boxes], logits)
        if self.softmax:
            # Classes compete per cell: background is everything that is not the box's own object.
            chance = F.log_softmax(logits, dim=1)
            own = chance[torch.arange(len(classes), device=chance.device), classes]
            return -((wanted * own + (1 - wanted) * chance[:, 0]).mean(dim=(1, 2)) * share).sum()
        own = logits[:, 0] if self.agnostic else logits[torch.arange(len(classes), device=logits.device), classes]
        return (F.binary_cross_entropy_with_logits(own, wanted, reduction="none").mean(dim=(1, 2)) * share).sum()

    # -- inference ----------------------------------------------------------------------------------------

    def results(
        self, features: list[Tensor], proposals: list[Tensor], size: tuple[int, int], dense: Tensor | None = None
    ) -> list[Result]:
        """Return what was found per image, best first.

        Args:
            features: pyramid levels.
            proposals: per image [N, 4] boxes.
            size: (H, W) of the input.
            dense: [B, K, h, w] float32, the probability of each class at each cell of the finest level, if a semantic
                head told it; masks of labels with one object take a share of it (``inference.semantic_share``).
        """
        features = [level.float() for level in features[: len(self.box_roi_pool.strides)]]  # pooled from twice
        if features[0].device.type == "cpu":
            features = [channels_last(level) for level in features]  # else turned by each pooling
        boxes, scores, classes, image = self._select(*self._boxes(features, proposals), proposals, size)
        for _ in range(self.limits.box_refinements):
            boxes, scores, classes, image = self._refine(features, boxes, scores, classes, image, size)
        boxes = with_margin(boxes, self.mask_margin)
        counts = torch.bincount(image, minlength=len(proposals)).tolist()
        masks = self._chances(features, list(boxes.split(counts)), classes)
        if dense is not None and any(self.alone):
            masks = self._with_dense(masks, dense, boxes, classes, image)
        parts = zip(*(part.split(counts) for part in (boxes, scores, classes, masks)), strict=True)
        return [Result(*part) for part in parts]

    def _select(
        self, logits: Tensor, deltas: Tensor, proposals: list[Tensor], size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return boxes [N, 4], scores, classes and image [N] of what is found, image by image and best first."""
        images = torch.cat([torch.full_like(p[:, 0], i, dtype=torch.int64) for i, p in enumerate(proposals)])
        chances = F.softmax(logits, dim=1)
        row, column = torch.nonzero(chances[:, 1:] > self.limits.score_threshold, as_tuple=True)
        scores, classes, image = chances[row, column + 1], column + 1, images[row]
        boxes = self._moved(deltas[row], torch.cat(proposals)[row], classes, size)
        return self._best(boxes, scores, classes, image, len(proposals))

    def _refine(
        self,
        features: list[Tensor],
        boxes: Tensor,
        scores: Tensor,
        classes: Tensor,
        image: Tensor,
        size: tuple[int, int],
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Look at what `_select` found once more: edges are moved again, and the lower of both scores counts.

        Gidaris and Komodakis 2015, "Object detection via a multi-region and semantic segmentation-aware CNN model"
        (arXiv 1505.01749), section 3; they score the moved boxes anew, and so does this.
        """
        if not len(classes):
            return boxes, scores, classes, image
        number = features[0].shape[0]
        logits, deltas = self._boxes(features, list(boxes.split(torch.bincount(image, minlength=number).tolist())))
        again = F.softmax(logits, dim=1)[torch.arange(len(classes), device=classes.device), classes]
        lower = torch.minimum(scores, again)
        kept = lower > self.limits.score_threshold
        classes, image = classes[kept], image[kept]
        moved = self._moved(deltas[kept], boxes[kept], classes, size)
        return self._best(moved, lower[kept], classes, image, number)

    def _moved(self, deltas: Tensor, boxes: Tensor, classes: Tensor, size: tuple[int, int]) -> Tensor:
        """Return boxes [N, 4] moved as the box head says for their classes; deltas [N, (K + 1) * 4]."""
        own = torch.arange(len(deltas), device=deltas.device)
        codes = deltas.reshape(len(deltas), self.classes + 1, 4)[own, classes]
        return clip_boxes_to_image(self.coder.decode_single(codes, boxes), size)

    def _best(
        self, boxes: Tensor, scores: Tensor, classes: Tensor, image: Tensor, number: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Leave out what has no area or shows the same as a better box, and what is beyond the limit of an image."""
        sound = ((boxes[:, 2:] - boxes[:, :2]) > 1e-2).all(dim=1)
        boxes, scores, classes, image = boxes[sound], scores[sound], classes[sound], image[sound]
        kept = grouped_nms(boxes, scores, image * (self.classes + 1) + classes, self.limits.nms_iou)
        kept = torch.cat(by_image(kept, image, number, self.limits.detections_per_slice))
        return boxes[kept], scores[kept], classes[kept], image[kept]

    def _chances(self, features: list[Tensor], boxes: list[Tensor], classes: Tensor) -> Tensor:
        """Return [N, M, M], the mask of each box for its class; no other box costs anything."""
        if not len(classes):
            return features[0].new_zeros((0, self.mask_size, self.mask_size), dtype=torch.float32)
        logits = self._masks(features, boxes)
        own = torch.arange(len(classes), device=classes.device)
        if self.softmax:
            return F.softmax(logits, dim=1)[own, classes]
        return (logits[:, 0] if self.agnostic else logits[own, classes]).sigmoid()

    def _with_dense(self, masks: Tensor, dense: Tensor, boxes: Tensor, classes: Tensor, image: Tensor) -> Tensor:
        """Return masks [N, M, M], those of classes with one object mixed with the semantic head's probabilities."""
        chosen = torch.nonzero(torch.tensor(self.alone, device=classes.device)[classes])[:, 0]
        maps = image[chosen] * dense.shape[1] + classes[chosen] - 1  # of one class of one image
        rois = torch.cat([maps[:, None].to(boxes.dtype), boxes[chosen]], dim=1)
        scale = 1 / self.mask_roi_pool.strides[0]
        # One sample in the middle of each cell of the mask, linear between the cells of the finest level.
        told = roi_align(dense.flatten(0, 1)[:, None], rois, self.mask_size, scale, 1, aligned=True)[:, 0]
        share = self.limits.semantic_share
        return masks.index_put((chosen,), (1 - share) * masks[chosen] + share * told)

    # -- shared -------------------------------------------------------------------------------------------

    def _boxes(self, features: list[Tensor], boxes: list[Tensor]) -> tuple[Tensor, Tensor]:
        logits, deltas = self.box_predictor(self.box_head(self.box_roi_pool(features, boxes)))
        return logits.float(), deltas.float()

    def _masks(self, features: list[Tensor], boxes: list[Tensor]) -> Tensor:
        masks: Tensor = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes)))
        return masks.float()
