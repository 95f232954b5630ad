"""From the images of a study to its objects: windows through the network, detections through the linker."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from highdicom import Volume

from medseg.data.grid import GridPlace, NetworkGrid, to_network_grid
from medseg.data.planning import MOST_UPSAMPLING
from medseg.inference.feeding import feed
from medseg.inference.fetching import fetch
from medseg.linking import Join, link_in_detail
from medseg.linking.linker import Pass
from medseg.models.inference_form import choose_precision, exact_float32, for_inference
from medseg.models.mask_rcnn import MaskRCNN
from medseg.progress import Track, silent
from medseg.reporting.html import amount, number, render
from medseg.values.detections import Detections
from medseg.values.geometry import spacing_of
from medseg.values.instances import InstanceSet
from medseg.values.plan import Plan

#: Pixels of slices that a CPU takes at once: more gain nothing (ResNet-50, 512 x 512: four at once are 7 % slower than
#: one by one) and take 120 MB each.
CPU_PIXELS = 512 * 512
#: Slices so many times closer or wider apart than any of training are told: lesions span other numbers of them.
FAR = 1.5


@dataclass(frozen=True, kw_only=True, eq=False)
class Prediction:
    """The objects found in a study, on the grid of its first image.

    Attributes:
        instances: the objects.
        warnings: what a reader of the result should know, one line each.
        seconds: time per stage (grid, network, linking); whoever reads and saves the study adds its own
            (`medseg.inference.profile`).
        doubtful_joins: where linking was least sure that two slices show one object; worth a look.
        optimality_gap: of linking; 0 where the optimum was found (`medseg.linking.LinkingResult`).
    """

    instances: InstanceSet
    warnings: tuple[str, ...]
    seconds: dict[str, float]
    doubtful_joins: tuple[Join, ...] = ()
    optimality_gap: float = 0.0

    def _repr_html_(self) -> str:
        """Show the warnings and a table of the objects in a notebook (`SavedPrediction` has pictures too)."""
        found = self.instances
        rows = [
            {"name": name, "colour": colour, "score": number(i.score, 2), "volume": amount(found.volume_ml(i.id))}
            for i, name, colour in zip(found, found.names(), found.colours(), strict=True)
        ]
        title = f"Prediction: {len(rows)} object{'' if len(rows) == 1 else 's'}"
        return render("notebook.html", title=title, warnings=self.warnings, pictures=(), rows=rows)


def link_study(
    detections: Sequence[Detections],
    place: GridPlace,
    first: Volume,
    plan: Plan,
    seconds: Mapping[str, float],
    views: Sequence[Pass] = (),
) -> Prediction:
    """Link what was detected in the slices of a study, and put the objects on the grid of its first image.

    Args:
        detections: slice by slice, in pixels of ``place.geometry``.
        place: where the network's grid lies in the study.
        first: the first image.
        plan: of the labels and of linking.
        seconds: time per stage so far.
        views: detections across the slices, see `medseg.linking.link`.
    """
    start = time.perf_counter()
    found = link_in_detail(detections, place.geometry, plan.labels, plan.linking, views)
    instances = found.instances.moved(place.axis_map.inverse())
    doubtful = found.doubtful_joins(plan.linking.doubtful_join)
    return place_prediction(instances, place, first, plan, seconds, start, doubtful, found.optimality_gap)


def place_prediction(
    instances: InstanceSet,
    place: GridPlace,
    first: Volume,
    plan: Plan,
    seconds: Mapping[str, float],
    start: float,
    doubtful_joins: tuple[Join, ...],
    optimality_gap: float,
) -> Prediction:
    """Return linked objects in the axes of the first image as a prediction; linking began at ``start``."""
    # The same grid, its affine to the last bit that of the source.
    exact = InstanceSet(instances=instances.instances, geometry=first.get_geometry(), labels=instances.labels)
    return Prediction(
        instances=exact,
        warnings=tuple(_warnings(place, instances, plan)),
        seconds={**seconds, "linking": time.perf_counter() - start},
        doubtful_joins=doubtful_joins,
        optimality_gap=optimality_gap,
    )


class Predictor:
    """Applies one trained model to studies.

    Args:
        plan: of the model; ``inference`` says how many slices go through the network at once and in what precision.
        model: stays as it is but moves to the device; later changes to its weights are not seen here.
        device: where to compute.

    Attributes:
        dtype: what convolutions and linear layers compute in.
    """

    def __init__(self, plan: Plan, model: MaskRCNN, device: torch.device):
        self.plan = plan
        self.model = model.to(device).eval()
        self.device = device
        self.dtype = choose_precision(plan.inference.precision, device)
        self._network = for_inference(self.model, self.dtype)
        self._ids = np.array((0, *plan.labels.ids), np.int64)

    def predict(self, volumes: Sequence[Volume], track: Track = silent) -> Prediction:
        """Find the objects of a study: bring it to the plan's grid, detect in its slices, link.

        The result does not depend on how the images are stored: they are brought into the plan's orientation
        first, and the masks go back to the first image's own grid without resampling (boxes are scaled to the
        source's pixels and masks pasted there).

        Args:
            volumes: one per channel of the plan, in its order, all on one grid up to axis order and flips.
            track: progress over batches of slices.

        Raises:
            InputError: another number of images than the plan's.
            GeometryError: images on different grids.
        """
        start = time.perf_counter()
        grid = to_network_grid(volumes, self.plan.input)
        gridded = time.perf_counter()
        on_source = [grid.to_source(found) for found in self.detect(grid, track)]
        seconds = {"grid": gridded - start, "network": time.perf_counter() - gridded}
        return link_study(on_source, grid, volumes[0], self.plan, seconds)

    def detect(self, grid: NetworkGrid, track: Track = silent) -> list[Detections]:
        """Run the network over every slice of a grid; boxes in pixels of ``grid.array``."""
        depth, batch = grid.array.shape[1], self._batch_size(grid)
        batches = [range(start, min(start + batch, depth)) for start in range(0, depth, batch)]
        detections: list[Detections] = []
        before: Iterable[Detections] = ()
        with torch.inference_mode(), exact_float32(self.dtype):
            inputs = feed(grid.array, batches, grid.slice_spacing_mm, self.plan.input, self.device)
            for indices, images in zip(track(batches, "network", len(batches)), inputs, strict=True):
                found = fetch(self._network(images), indices, self._ids)
                detections += before  # those of the last batch arrived while this one was computed
                before = found
            detections += before
        return detections

    def _batch_size(self, grid: NetworkGrid) -> int:
        """Return how many slices go through the network at once."""
        if self.device.type == "cuda":
            return self.plan.inference.batch_size
        rows, columns = grid.array.shape[2:]
        return max(1, min(self.plan.inference.batch_size, CPU_PIXELS // (rows * columns)))


def _warnings(place: GridPlace, instances: InstanceSet, plan: Plan) -> Iterator[str]:
    if not len(instances):
        yield "nothing found"
    pixel = max(spacing_of(place.geometry)[1:])
    trained = max(plan.input.spacing_mm)
    if pixel > 1.01 * MOST_UPSAMPLING * trained:  # so far the plan of a cohort of such pixels goes
        yield f"pixels of {pixel:.3g} mm are much coarser than the {trained:.3g} mm of training"
    slices = place.slice_spacing_mm
    if plan.training.slice_spacing_mm is not None and place.geometry.spatial_shape[0] > 1:
        least, largest = plan.training.slice_spacing_mm
        if not least / FAR <= slices <= largest * FAR:
            seen = f"{least:.3g} mm" if least == largest else f"{least:.3g} to {largest:.3g} mm"
            yield f"slices {slices:.3g} mm apart are far from the {seen} of training"
