"""Ways in which the network looks at the same slices: mirrored, enlarged, reduced (test-time augmentation)."""

from dataclasses import dataclass, replace

from medseg.data.grid import NetworkGrid
from medseg.errors import ConfigError
from medseg.values.detections import Detections
from medseg.values.plan import InputPlan, Plan

#: Factors between which slices may be enlarged or reduced.
SCALES = (0.5, 2.0)


@dataclass(frozen=True, kw_only=True)
class Look:
    """One way to look at slices.

    Attributes:
        flip_rows, flip_columns: mirrored, rows or columns running backwards.
        scale: as many times the plan's pixels along rows and columns.
    """

    flip_rows: bool = False
    flip_columns: bool = False
    scale: float = 1.0

    def input_plan(self, plan: InputPlan) -> InputPlan:
        """Return the input whose pixels are as small or large as this look wants them; context and slices stay."""
        if self.scale == 1:
            return plan
        row_mm, column_mm = plan.spacing_mm
        return plan.model_copy(update={"spacing_mm": (row_mm / self.scale, column_mm / self.scale)})

    def mirror(self, grid: NetworkGrid) -> NetworkGrid:
        """Return a grid as the network sees it, its slices mirrored (a view; where it lies is not told any more)."""
        if not (self.flip_rows or self.flip_columns):
            return grid
        rows, columns = (slice(None, None, -1 if flip else 1) for flip in (self.flip_rows, self.flip_columns))
        return replace(grid, array=grid.array[:, :, rows, columns])

    def unmirror(self, detections: Detections, grid: NetworkGrid) -> Detections:
        """Return detections in the mirrored grid as they lie in the grid itself."""
        if not (self.flip_rows or self.flip_columns):
            return detections
        return detections.mirrored(grid.size, rows=self.flip_rows, columns=self.flip_columns)


@dataclass(frozen=True, kw_only=True)
class PassSettings:
    """How often the network looks at a study, beside once as it is.

    Attributes:
        flips: mirrored as well, in every way that training mirrored (``training.flip_rows``, ``flip_columns``).
        scales: enlarged or reduced by these factors as well; each times every flip.
        views: across the slices as well (coronal and sagittal for an axial model), to tell linking what belongs
            together; see `medseg.inference.views`.
    """

    flips: bool = False
    scales: tuple[float, ...] = ()
    views: bool = False

    def __post_init__(self) -> None:
        low, high = SCALES
        if len({1.0, *self.scales}) != len(self.scales) + 1 or not all(low <= scale <= high for scale in self.scales):
            raise ConfigError(
                f"scales {list(self.scales)}: expected different factors of {low:g} to {high:g} other than 1, which is "
                "always looked at"
            )

    def looks(self, plan: Plan, name: str = "the model") -> tuple[Look, ...]:
        """Return the ways to look at slices with the model of a plan, the plain one first.

        Args:
            plan: of the model.
            name: what the model is called in errors.

        Raises:
            ConfigError: mirroring, where training mirrored nothing: a mirrored patient has the liver on the left, and
                the network has never seen one.
        """
        training = plan.training
        rows, columns = (
            (False, True) if self.flips and trained else (False,)
            for trained in (training.flip_rows, training.flip_columns)
        )
        if self.flips and len(rows) * len(columns) == 1:
            raise ConfigError(
                f"flips: {name} was trained without mirroring (training.flip_rows and training.flip_columns of its "
                "plan.yaml are false), expected a model that was; leave the option out"
            )
        scales = (1.0, *self.scales)
        return tuple(Look(flip_rows=r, flip_columns=c, scale=s) for s in scales for r in rows for c in columns)
