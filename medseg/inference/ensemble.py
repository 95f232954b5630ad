"""Several passes over a study, of one model or of several, fused slice by slice before linking.

Models of several directions (axial and coronal, say) are fused and linked direction by direction, and their objects
meet in the volume (`medseg.linking.directions`).

models = load_models(["folds/0", "folds/1", "folds/2"], torch.device("cpu"))
ensemble = Ensemble(models, PassSettings(flips=True, scales=(0.9, 1.1)))
study = [read_volume("study/")]
print(ensemble.cost(study))  # 12 network passes, about 12 times the time of one
prediction = ensemble.predict(study)
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from highdicom import Volume

from medseg.data.grid import GridPlace, NetworkGrid, place_grid, stack_channels, to_network_grid
from medseg.errors import ConfigError, ModelError
from medseg.inference.fusion import fuse
from medseg.inference.passes import Look, PassSettings
from medseg.inference.predictor import Prediction, Predictor, link_study, place_prediction
from medseg.inference.run import load_run
from medseg.inference.views import VIEW_WEIGHT, CrossView, cross_views
from medseg.linking import Join, link_in_detail
from medseg.linking.directions import SoftObject, agree, linking_of_each, soften
from medseg.progress import Track, silent
from medseg.values.detections import Detections
from medseg.values.geometry import ACQUISITION, Orientation, orientation_map
from medseg.values.plan import InputPlan, Plan


@dataclass(frozen=True, kw_only=True)
class PassCost:
    """What the passes over a study cost.

    Attributes:
        passes: how often a network goes through the study.
        factor: pixels that it sees in all of them, over those of one plain pass of the first model. The network's time
            goes about with them where the models are alike.
    """

    passes: int
    factor: float

    def __str__(self) -> str:
        return f"{self.passes} network passes, about {self.factor:.3g} times the time of one"


class Ensemble:
    """Applies one or several models to studies, each in one or several passes.

    What the passes find in a slice is fused (`medseg.inference.fusion`) before slices are linked, by the score
    threshold and the linking of the first model's plan. One model in one plain pass finds what `Predictor` finds.

    Args:
        models: at least one, for the same labels and channels.
        settings: the passes of each.

    Raises:
        ModelError: models that do not go together.
        ConfigError: flips that a model's training did not make; views with models of several directions.
    """

    def __init__(self, models: Sequence[Predictor], settings: PassSettings | None = None):
        settings = settings or PassSettings()
        plan = models[0].plan
        names = [f"model {n}" for n in range(1, len(models) + 1)] if len(models) > 1 else ["the model"]
        check_alike([model.plan for model in models], names)
        if settings.views and not plan.linking.weights.view:
            plan = plan.with_overrides({"linking.weights.view": VIEW_WEIGHT})
        self.plan = plan
        self.models = tuple(models)
        self.settings = settings
        named = zip(models, names, strict=True)
        self._passes = [(model, look) for model, name in named for look in settings.looks(model.plan, name)]
        #: Directions of slices, that of the first model first.
        self.orientations = tuple(dict.fromkeys(model.plan.input.orientation for model in models))
        if settings.views and len(self.orientations) > 1:
            raise ConfigError(
                f"views: models of several directions ({', '.join(self.orientations)}) see a study across its slices "
                "as it is; leave the option out"
            )

    def cost(self, volumes: Sequence[Volume]) -> PassCost:
        """Return what `predict` will cost for a study; the network does not look at it yet.

        Raises:
            InputError, GeometryError: see `predict`.
        """
        place = place_grid(volumes, self.plan.input)
        stacks = [(tuple(volumes), own, own) for own in self.orientations]
        if self.settings.views:
            stacks += [(view.volumes, self.plan.input.orientation, ACQUISITION) for view in self._views(volumes, place)]
        passes = pixels = 0
        for stack, own, lying in stacks:
            for plan, times in Counter(plan for _, _, plan in self._inputs(own, lying)).items():
                passes += times
                pixels += times * _pixels(place_grid(stack, plan))
        return PassCost(passes=passes, factor=pixels / _pixels(place))

    def predict(self, volumes: Sequence[Volume], track: Track = silent) -> Prediction:
        """Find the objects of a study, as `Predictor.predict` does with one pass.

        Args:
            volumes: one per channel of the plan, in its order, all on one grid up to axis order and flips.
            track: progress over batches of slices, pass after pass.

        Raises:
            InputError: another number of images than the plan's.
            GeometryError: images on different grids, or too few or too thick slices for views across them.
        """
        seconds = dict.fromkeys(("grid", "network", "fusion"), 0.0)
        place = place_grid(volumes, self.plan.input)
        # Before any work is done: a study that is not fit for them is refused.
        views = self._views(volumes, place) if self.settings.views else ()
        if len(self.orientations) > 1:
            return self._predict_directions(volumes, place, seconds, track)
        own = self.plan.input.orientation
        detections = self._detect(volumes, own, own, seconds, track)
        across = [
            (view.spread(self._detect(view.volumes, own, ACQUISITION, seconds, track)), view.geometry) for view in views
        ]
        return link_study(detections, place, volumes[0], self.plan, seconds, across)

    def _predict_directions(
        self, volumes: Sequence[Volume], place: GridPlace, seconds: dict[str, float], track: Track
    ) -> Prediction:
        """Link the passes of each direction, then let their objects meet."""
        labels, linking = self.plan.labels, self.plan.linking
        geometry = volumes[0].get_geometry()
        objects: list[list[SoftObject]] = []
        joins: list[Join] = []
        gap = linked = 0.0
        for number, orientation in enumerate(self.orientations):
            detections = self._detect(volumes, orientation, orientation, seconds, track)
            start = time.perf_counter()
            axis_map = orientation_map(geometry, orientation)
            grid = axis_map.geometry(geometry)
            found = link_in_detail(detections, grid, labels, linking_of_each(linking))
            back = axis_map.inverse()
            soft = soften(found.instances, detections, linking.mask_threshold)
            objects.append([obj.moved(back, grid.spatial_shape) for obj in soft])
            gap = max(gap, found.optimality_gap)
            joins += found.doubtful_joins(linking.doubtful_join) if number == 0 else ()
            linked += time.perf_counter() - start
        start = time.perf_counter() - linked
        together = agree(objects, geometry, labels, linking)
        # Joins are told by slices of the first direction, and by the numbers that the objects have now.
        number_of = {members[0]: i for i, members in enumerate(together.members, start=1) if 0 in members}
        kept = tuple(replace(j, instance=number_of[j.instance]) for j in joins if j.instance in number_of)
        return place_prediction(together.instances, place, volumes[0], self.plan, seconds, start, kept, gap)

    def describe(self) -> dict[str, Any]:
        """Return how the network looks at a study, for run.json; ``view_weight`` is what the views count in linking."""
        weight = self.plan.linking.weights.view if self.settings.views else None
        return {"models": len(self.models), **asdict(self.settings), "view_weight": weight}

    def _inputs(self, own: Orientation, lying: Orientation) -> Iterator[tuple[Predictor, Look, InputPlan]]:
        """Give the passes of the models of an orientation over images that lie in another or it, and the input."""
        for model, look in self._passes:
            if model.plan.input.orientation == own:
                yield model, look, look.input_plan(model.plan.input.model_copy(update={"orientation": lying}))

    def _views(self, volumes: Sequence[Volume], place: GridPlace) -> tuple[CrossView, ...]:
        oriented = [place.axis_map.volume(v) for v in stack_channels(volumes, self.plan.input.channel_names)]
        return cross_views(oriented, place, self.plan.input)

    def _detect(
        self,
        volumes: Sequence[Volume],
        own: Orientation,
        lying: Orientation,
        seconds: dict[str, float],
        track: Track,
    ) -> list[Detections]:
        """Return what the passes of the models of an orientation find together in images that lie in another or it.

        Slice by slice, in pixels of these images.
        """
        found: list[list[Detections]] = []
        grid: NetworkGrid | None = None
        made: InputPlan | None = None
        for model, look, plan in self._inputs(own, lying):
            start = time.perf_counter()
            if grid is None or plan != made:
                grid, made = to_network_grid(volumes, plan), plan
            gridded = time.perf_counter()
            detections = model.detect(look.mirror(grid), track)
            seconds["grid"] += gridded - start
            seconds["network"] += time.perf_counter() - gridded
            found.append([grid.to_source(look.unmirror(d, grid)) for d in detections])
        start = time.perf_counter()
        limits = self.plan.inference
        fused = [
            fuse(slices, score_threshold=limits.score_threshold, limit=limits.detections_per_slice)
            for slices in zip(*found, strict=True)
        ]
        seconds["fusion"] += time.perf_counter() - start
        return fused


def _pixels(place: GridPlace) -> int:
    return place.geometry.spatial_shape[0] * place.size[0] * place.size[1]


def check_alike(plans: Sequence[Plan], names: Sequence[str]) -> None:
    """Refuse (ModelError) models that cannot be put together: other labels or channels.

    Args:
        plans: of the models.
        names: what each is called in errors, for example its folder.
    """
    first = plans[0]
    for plan, name in zip(plans[1:], names[1:], strict=True):
        for what, ours, theirs in (
            ("labels", _labels(first), _labels(plan)),
            ("channels", ", ".join(first.input.channel_names), ", ".join(plan.input.channel_names)),
        ):
            if ours != theirs:
                raise ModelError(
                    f"{name}: the model's {what} {theirs}, expected those of {names[0]} ({ours}); put models of one "
                    "cohort together"
                )


def _labels(plan: Plan) -> str:
    return ", ".join(f"{label.id} {label.name} ({label.kind})" for label in plan.labels)


def load_models(
    runs: Sequence[Path | str], device: torch.device, settings: Mapping[str, Any] | None = None
) -> list[Predictor]:
    """Load training runs that are to be put together, for example the folds of one cohort.

    Args:
        runs: their folders.
        device: where to compute.
        settings: ``inference.precision`` and ``inference.batch_size`` where they are to be other than in the plans (the
            limits of detection are built into the networks).

    Raises:
        ModelError: no run there, weights that do not fit their plan, or models that do not go together.
        ConfigError: a plan that cannot be read, or a setting out of range.
    """
    loaded = [load_run(run, device) for run in runs]
    models = [Predictor(plan.with_overrides(dict(settings or {})), model, device) for plan, model in loaded]
    check_alike([model.plan for model in models], [str(run) for run in runs])
    return models
