"""How much memory a training sample takes: what is kept of it for the gradients, in float32.

Counted once, on the tensors that autograd saves (`torch.autograd.graph.saved_tensors_hooks`) for the networks that the
planner chooses, with 256 pyramid channels and GroupNorm. They grow with the pixels of the crop and with the proposals.
"""

from medseg.values.plan import ModelPlan

#: What the samples of a step may take together: a GPU of 8 GB, weights, optimiser and gradients apart.
ASSUMED_GIB = 5
#: Bytes per pixel of the crop by backbone, with the finest level at stride 4 and the coarsest at 32.
BYTES_PER_PIXEL = {"resnet18": 960, "resnet34": 1160, "resnet50": 2230, "resnet101": 3050}
#: What a finest level of stride 2 and the deep stem add.
FINE_BYTES_PER_PIXEL = 1960
#: MiB per sampled proposal, a quarter of which have a mask, by side of the masks.
MIB_PER_PROPOSAL = {28: 0.49, 56: 1.26, 112: 4.34}


def sample_bytes(model: ModelPlan, crop_size: tuple[int, int], proposals: int) -> int:
    """Return about how many bytes one training sample of ``crop_size`` (rows, columns) pixels takes."""
    each = BYTES_PER_PIXEL[model.backbone] + (FINE_BYTES_PER_PIXEL if model.finest_stride == 2 else 0)
    return crop_size[0] * crop_size[1] * each + int(proposals * MIB_PER_PROPOSAL[model.mask_size] * 2**20)
