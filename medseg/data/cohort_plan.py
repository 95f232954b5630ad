"""From a cohort to its fingerprint and plan, and whether a plan fits a cohort."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from highdicom import Volume

from medseg.cluster.connect import Cluster
from medseg.data.check import measure_cases
from medseg.data.cohort import Cohort, common_labels
from medseg.data.fingerprint import CaseMeasures, Fingerprint, fingerprint, look_at, thin_outlines
from medseg.data.planning import ORIENTATIONS, best_orientation, derive_plan, scanner_orientation
from medseg.data.small_plan import small_plan
from medseg.errors import ConfigError, MedsegError
from medseg.io import list_series
from medseg.labels import LabelTable
from medseg.progress import Track, silent
from medseg.values.instances import InstanceSet
from medseg.values.plan import Plan, load_plan


def fingerprint_cohort(
    cohort: Cohort, orientation: str, track: Track = silent, cluster: Cluster | None = None
) -> Fingerprint:
    """Read and check every case and collect the cohort's facts, one after the other or on a cluster.

    Raises:
        InputError, GeometryError: of the one broken case; CasesError: of several; a label without an object.
    """
    tables: list[LabelTable] = []

    def facts() -> Iterator[CaseMeasures]:
        for table, measures in measure_cases(cohort, partial(_look_at, orientation), track, cluster):
            tables.append(table)
            yield measures

    cases = tuple(thin_outlines(facts()))
    labels = cohort.labels or common_labels(tables, "cohort")
    return fingerprint(cases, labels, cohort.channels, orientation)


def _look_at(orientation: str, volumes: tuple[Volume, ...], instances: InstanceSet) -> tuple[LabelTable, CaseMeasures]:
    return instances.labels, look_at(volumes, instances, orientation)


class Decision(NamedTuple):
    """The plan for a cohort, and the facts that it was derived from or compared with."""

    plan: Plan
    facts: Fingerprint


def decide_plan(
    cohort: Cohort,
    settings: Mapping[str, Any],
    file: Path | None = None,
    track: Track = silent,
    *,
    small: bool = False,
    cluster: Cluster | None = None,
) -> Decision:
    """Read and check every case, and decide the plan: by rule, or as a file has it.

    Args:
        cohort: from `find_cohort`.
        settings: dotted plan fields that the user decides, e.g. ``{"model.backbone": "resnet34"}``.
        file: a plan to take as it is, but for the settings; None: derive one.
        track: progress over cases.
        small: derive the `small_plan`.
        cluster: reads the cases (`medseg.cluster.connect.connected`); None: this process does.

    Raises:
        InputError, GeometryError: of the one broken case; CasesError: of several, each with its reason.
        ConfigError: a setting that is unknown or out of range, a broken plan, or one of other labels or channels.
    """
    if file is None:

        def take(orientation: str) -> Fingerprint:
            return fingerprint_cohort(cohort, orientation, track, cluster)

        facts = facts_for(settings, take, likely_orientation(cohort))
        return Decision(plan_with(facts, settings, small=small), facts)
    plan = load_plan(file).with_overrides(dict(settings))
    facts = fingerprint_cohort(cohort, plan.input.orientation, track, cluster)
    check_plan_fits(plan, facts, str(file))
    return Decision(plan, facts)


def likely_orientation(cohort: Cohort) -> str:
    """Return the orientation that suits the first case, by its header: most often that of all, which are read next."""
    for row in cohort.rows[:1]:
        try:
            found = [info for info in list_series(row.images[0]) if row.series in (None, info.uid)]
        except MedsegError:  # reading the case will tell
            continue
        grids = [(i.spacing_mm, i.shape, i.orientation) for i in found if i.spacing_mm and i.shape and i.orientation]
        if grids:
            return scanner_orientation(grids)
    return ORIENTATIONS[0]


def facts_for(
    settings: Mapping[str, Any], look: Callable[[str], Fingerprint], likely: str = ORIENTATIONS[0]
) -> Fingerprint:
    """Look at a cohort in the orientation of its plan: the one that the user decides, else the one that suits it.

    Args:
        settings: dotted plan fields that the user decides.
        look: gives the fingerprint in an orientation; called twice where the first one does not suit the cohort.
        likely: the one to look in first, unless the user decides.
    """
    chosen = settings.get("input.orientation")
    facts = look(likely if chosen is None else str(chosen))
    better = best_orientation(facts) if chosen is None else facts.orientation
    return facts if better == facts.orientation else look(better)


def plan_cohort(cohort: Cohort, settings: Mapping[str, Any], track: Track = silent) -> Plan:
    """Read and check every case, and return the plan by rule; see `decide_plan`."""
    return decide_plan(cohort, settings, track=track).plan


def plan_with(facts: Fingerprint, settings: Mapping[str, Any], *, small: bool = False) -> Plan:
    """Decide the plan of a cohort, the user's settings in it; what they do not say fits the pixel that they say.

    Raises:
        ConfigError: a setting that is unknown or out of range.
    """
    spacing = settings.get("input.spacing_mm")
    sound = isinstance(spacing, (list, tuple)) and all(isinstance(s, (int, float)) and s > 0 for s in spacing)
    pixel = min(spacing) if spacing and sound else None  # with_overrides tells what is wrong with another
    plan = derive_plan(facts, pixel_mm=pixel)
    plan = small_plan(plan) if small else plan
    windowed = {"input.intensity": "window"} if "input.windows" in settings else {}
    return plan.with_overrides({**windowed, **settings})


def check_plan_fits(plan: Plan, facts: Fingerprint, source: str) -> None:
    """Refuse (ConfigError) a plan for other labels or channels than the cohort has; ``source`` names its file."""
    for what, planned, found in (
        ("labels", _named(plan.labels), _named(facts.labels)),
        ("channels", ", ".join(plan.input.channel_names), ", ".join(facts.channels)),
    ):
        if planned != found:
            raise ConfigError(
                f"{source}: the plan is for the {what} {planned}, the cohort has {found}; make a plan of this cohort "
                "with medseg plan"
            )


def _named(labels: LabelTable) -> str:
    return ", ".join(f"{label.id} {label.name!r} ({label.kind})" for label in labels)
