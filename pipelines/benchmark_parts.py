"""What the benchmarks of inference and training share: clocks, memory, stages, counted work, measured ceilings."""

import argparse
import ctypes
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from medseg.cli import console
from medseg.models import fused

#: Stages by the class of a module, of torchvision and of medseg; what has mask logits ends the mask head.
STAGES = {
    "GeneralizedRCNNTransform": "resize",
    "IntermediateLayerGetter": "backbone",
    "FeaturePyramidNetwork": "pyramid",
    "Pyramid": "pyramid",
    "RegionProposalNetwork": "proposals",
    "DenseProposals": "proposals",
    "MultiScaleRoIAlign": "roi_align",
    "PyramidPooler": "roi_align",
    "TwoMLPHead": "box_head",
    "FastRCNNPredictor": "box_head",
    "MaskRCNNHeads": "mask_head",
    "Pasting": "paste",
}


class Spent(NamedTuple):
    """Seconds by the wall clock and of the processor, all threads together."""

    wall: float
    processor: float


def arguments(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with what the benchmarks of networks have in common."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="run of train_benchmark_model.py")
    parser.add_argument("-o", "--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: torch chooses")
    return parser


def synchronise(device: torch.device) -> None:
    """Wait for what a GPU was told to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(action: Callable[[], Any], device: torch.device) -> tuple[Any, Spent]:
    """Return what an action returns, and what it took until the device was done."""
    synchronise(device)
    wall, processor = time.perf_counter(), time.process_time()
    result = action()
    synchronise(device)
    return result, Spent(time.perf_counter() - wall, time.process_time() - processor)


def peak_mib(action: Callable[[], Any], device: torch.device) -> float:
    """Return the most memory above what was held before: of a GPU its tensors, else anonymous memory of the process."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        action()
        synchronise(device)
        return round((torch.cuda.max_memory_allocated(device) - before) / 2**20, 1)
    ctypes.CDLL(None).malloc_trim(0)  # what earlier actions freed would count as held before
    before, most, done = _anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, _anonymous())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        action()
    finally:
        done.set()
        watcher.join()
    return round((most - before) / 2**20, 1)


def _anonymous() -> int:
    return int(Path("/proc/self/status").read_text().split("RssAnon:")[1].split()[0]) * 1024


@contextmanager
def staged(device: torch.device, clock: Callable[[], float]) -> Iterator[Counter[str]]:
    """Give the seconds that forward calls spend per stage while this is open (a GPU waits at each border)."""
    seconds: Counter[str] = Counter()
    starts: dict[int, float] = {}

    def stage_of(module: nn.Module) -> str | None:
        return "mask_head" if hasattr(module, "mask_fcn_logits") else STAGES.get(type(module).__name__)

    def begin(module: nn.Module, _: Any) -> None:
        if stage_of(module):
            synchronise(device)
            starts[id(module)] = clock()

    def end(module: nn.Module, _: Any, __: Any) -> None:
        stage = stage_of(module)
        if stage:
            synchronise(device)
            seconds[stage] += clock() - starts.pop(id(module))

    handles = [register_module_forward_pre_hook(begin), register_module_forward_hook(end)]
    try:
        yield seconds
    finally:
        for handle in handles:
            handle.remove()


class ByteCounter(TorchDispatchMode):
    """Adds up what operations read and write, as if nothing stayed in a cache; views cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and count its tensors."""
        result = func(*args, **(kwargs or {}))
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        written = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        in_place = func._schema.name.endswith("_")
        if in_place or not {t.data_ptr() for t in read} & {t.data_ptr() for t in written}:
            self.bytes += sum(t.numel() * t.element_size() for t in read + written)
        return result


def _flops(image: Any, weight: Any, *_: Any, out_shape: Any, **__: Any) -> int:
    return conv_flop_count(image, weight, out_shape)


def _flops_with_residual(_: Any, image: Any, weight: Any, *__: Any, out_shape: Any, **___: Any) -> int:
    return conv_flop_count(image, weight, out_shape)


def counted(action: Callable[[], Any]) -> tuple[int, int]:
    """Return the floating-point operations (two for a multiplication with an addition) and bytes of an action.

    Convolutions count as the plain sum, by whatever way they are computed; torch's counter passes NNPACK's and oneDNN's
    fused ones by.
    """
    passed_by = {torch.ops.aten._nnpack_spatial_convolution: _flops}
    if fused.is_available():
        passed_by[torch.ops.mkldnn._convolution_pointwise] = _flops
        passed_by[torch.ops.mkldnn._convolution_pointwise_] = _flops_with_residual
    with FlopCounterMode(display=False, custom_mapping=passed_by) as flops, ByteCounter() as moved:
        action()
    return flops.get_total_flops(), moved.bytes


def measure_ceilings(device: torch.device) -> dict[str, float]:
    """Measure what the device reaches: operations a second in a product and a convolution, bytes a second in a copy."""
    large = 8192 if device.type == "cuda" else 2048
    batch = 64 if device.type == "cuda" else 1
    found = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        a, b = (torch.randn(large, large, device=device, dtype=dtype) for _ in range(2))
        seconds = _least(lambda a=a, b=b: a @ b, device)
        found[f"matmul_{name}_flops"] = 2 * large**3 / seconds
        image = torch.randn(batch, 256, 128, 128, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        layer = nn.Conv2d(256, 256, 3, padding=1, device=device, dtype=dtype).to(memory_format=torch.channels_last)
        with torch.inference_mode():
            seconds = _least(lambda image=image, layer=layer: layer(image), device)
        found[f"conv_{name}_flops"] = 2 * batch * 128 * 128 * 256 * 256 * 9 / seconds
    block = torch.zeros(2**30 if device.type == "cuda" else 2**26, device=device)
    target = torch.empty_like(block)
    found["copy_bytes"] = 2 * block.numel() * 4 / _least(lambda: target.copy_(block), device)
    return found


def _least(action: Callable[[], Any], device: torch.device) -> float:
    """Return the fewest processor seconds (a GPU: seconds) of four calls."""
    spent = [timed(action, device)[1] for _ in range(4)]
    return min(s.wall if device.type == "cuda" else s.processor for s in spent)


def floor_seconds(flops: float, moved: float, ceilings: dict[str, float], dtype: str) -> float:
    """Return the least seconds that work can take at the ceilings: of computing, or of moving where that is more."""
    fastest = max(ceilings[f"matmul_{dtype}_flops"], ceilings[f"conv_{dtype}_flops"])
    return max(flops / fastest, moved / ceilings["copy_bytes"])


def median_ratio(numerator: list[Spent], denominator: list[Spent]) -> dict[str, float]:
    """Return the median over pairs of runs that took turns."""
    pairs = list(zip(numerator, denominator, strict=True))
    return {
        "wall": round(statistics.median(a.wall / b.wall for a, b in pairs), 2),
        "processor": round(statistics.median(a.processor / max(b.processor, 1e-9) for a, b in pairs), 2),
    }


def in_turns(systems: dict[str, Callable[[range], Any]], chunks: list[range], device: torch.device) -> dict[str, Any]:
    """Run every system on every chunk, one after the other; return per system what came out and what it took."""
    out: dict[str, Any] = {name: ([], []) for name in systems}
    for number, chunk in enumerate(chunks):
        console.out.print(f"slices {chunk[0]} to {chunk[-1]}, {number + 1} of {len(chunks)}")
        for name, system in systems.items():
            result, spent = timed(partial(system, chunk), device)
            out[name][0].append(result)
            out[name][1].append(Spent(spent.wall / len(chunk), spent.processor / len(chunk)))
    return out


def medians(spent: list[Spent]) -> dict[str, Any]:
    """Return the median seconds of a slice, by both clocks."""
    return {"seconds_per_slice": {f: round(statistics.median(getattr(s, f) for s in spent), 4) for f in Spent._fields}}


def describe(
    name: str, action: Callable[[], Any], spent: list[Spent], slices: int, ceilings: dict[str, float],
    device: torch.device, dtype: str = "float32",
) -> dict[str, Any]:  # fmt: skip
    """Run a system again on so many slices: its memory, its stages, its work; with its times, all per slice."""
    console.out.print(f"memory, stages and work of {name}")
    own = medians(spent)["seconds_per_slice"]["wall" if device.type == "cuda" else "processor"]
    memory = peak_mib(action, device)
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    with staged(device, clock) as stages:
        _, once = timed(action, device)
    total = once.wall if device.type == "cuda" else once.processor
    shares = {stage: round(seconds / total, 3) for stage, seconds in stages.most_common()}
    flops, moved = (amount / slices for amount in counted(action))
    floor = floor_seconds(flops, moved, ceilings, dtype)
    return {
        **medians(spent),
        "slices_per_second": round(1 / own, 3),
        "peak_mib": memory,
        "share_of_stages": {**shares, "other": round(1 - sum(shares.values()), 3)},
        "gflop_per_slice": round(flops / 1e9, 1),
        "gib_moved_per_slice": round(moved / 2**30, 2),
        "times_the_floor": round(own / floor, 2),
        "precision": dtype,
    }
