"""Device and threads for the verbs that compute."""

from typing import TYPE_CHECKING

from medseg.errors import ConfigError

if TYPE_CHECKING:
    import torch

DEVICE_HELP = "auto, cpu, cuda or cuda:N. An unusable device is an error."
THREADS_HELP = "CPU threads; 0 lets torch choose."


def set_up(device: str, threads: int) -> "torch.device":
    """Set the thread count and return the device, or refuse it."""
    import torch

    from medseg.models.mask_rcnn import choose_device

    if threads < 0:
        raise ConfigError(f"--threads {threads}: expected 0 (torch chooses) or more")
    if threads:
        torch.set_num_threads(threads)
    return choose_device(device)
