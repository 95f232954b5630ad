"""A dense auxiliary task: which classes cover each pixel, learnt from the finest pyramid level.

Boxes and sampled proposals give a network trained from nothing few and sparse gradients; per-pixel labels,
which the masks contain anyway, give it dense ones. Jaeger et al. 2020, "Retina U-Net" (arXiv 1811.08661),
and the semantic branch of Chen et al. 2019, "Hybrid task cascade" (arXiv 1901.07518).
"""

import torch.nn.functional as F
from torch import Tensor, nn


class SemanticHead(nn.Module):
    """One linear map per pixel, so that the shared features themselves must tell the classes apart.

    What it finds is added to every pyramid level for the other heads, as in the hybrid task cascade.
    """

    def __init__(self, channels: int, classes: int, stride: int, min_cells: float):
        super().__init__()
        self.stride = stride
        self.min_cells = min_cells
        self.logits = nn.Conv2d(channels, classes, 1)
        self.embedding = nn.Conv2d(classes, channels, 1)
        nn.init.normal_(self.logits.weight, std=0.01)
        assert self.logits.bias is not None
        nn.init.constant_(self.logits.bias, -2.0)

    def forward(self, features: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Classify the pixels of the finest level and tell all levels.

        Args:
            features: [B, C, h, w] per level, finest first.

        Returns:
            Logits [B, K, h, w] of the finest level in float32, and the levels with what they say added.
        """
        finest = next(iter(features.values()))
        logits = self.logits(finest).float()
        chance = logits.detach().sigmoid().to(finest.dtype)
        told = {
            name: level + self.embedding(F.adaptive_avg_pool2d(chance, (level.shape[-2], level.shape[-1])))
            for name, level in features.items()
        }
        return logits, told

    def loss(self, logits: Tensor, covered: Tensor) -> Tensor:
        """Return cross-entropy plus soft Dice loss, each class and image on its own: classes may overlap.

        Args:
            logits: [B, K, h, w] float32.
            covered: [B, K, H, W] in 0..1, H and W at most h and w times the stride.
        """
        size = [n * self.stride for n in logits.shape[2:]]
        padded = F.pad(covered, (0, size[1] - covered.shape[3], 0, size[0] - covered.shape[2]))
        wanted = F.avg_pool2d(padded, self.stride)
        cells = wanted.sum(dim=(2, 3))
        entropy = F.binary_cross_entropy_with_logits(logits, wanted, reduction="none").sum(dim=(2, 3))
        chance = logits.sigmoid()
        overlap = (2 * (chance * wanted).sum(dim=(2, 3)) + 1) / (chance.sum(dim=(2, 3)) + cells + 1)
        # Per covered cell, not per cell: a lesion of twenty cells weighs as much as a liver of two thousand.
        return (entropy / (cells + self.min_cells) + (1 - overlap) * (cells > 0)).mean()
