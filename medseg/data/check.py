"""Checks of a whole cohort: every case for itself, and the cases against each other.

Errors stop `medseg train`, warnings do not. `check_cohort` reports everything; `measure_cases` is what training looks
at its cases through, and holds them to the same errors.
"""

import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from highdicom import Volume

from medseg.cluster.connect import Cluster
from medseg.cluster.run import in_order
from medseg.data.check_case import CaseFacts, case_facts, image_errors, image_hash
from medseg.data.cohort import broken_errors, raise_broken, read_cohort_case
from medseg.data.layouts import Cohort
from medseg.data.rows import run_rows
from medseg.errors import InputError, MedsegError
from medseg.io.cohort_table import CohortRow
from medseg.io.failures import Failure
from medseg.progress import Track, silent
from medseg.values.instances import InstanceSet

T = TypeVar("T")
#: An intensity range this many times as wide, or as narrow, as the median of the cohort's is odd.
WILD = 10.0
#: Comparing cases takes at least this many.
COMPARED = 3


@dataclass(frozen=True, kw_only=True)
class CohortReport:
    """What a check found.

    Attributes:
        cases: the cases that could be read, in the order of the cohort.
        errors, warnings: all of them, in words, a line each; those of a case begin with ``case NAME: ``.
    """

    cases: tuple[CaseFacts, ...]
    errors: tuple[str, ...]
    warnings: tuple[str, ...]


def check_cohort(cohort: Cohort, track: Track = silent, cluster: Cluster | None = None) -> CohortReport:
    """Read and check every case; a broken one is an error in the report and stops nothing.

    Args:
        cohort: from `find_cohort`.
        track: progress over cases.
        cluster: reads the cases (`medseg.cluster.connect.connected`); None: this process does.
    """
    errors = [str(error) for error in broken_errors(cohort)]
    cases: list[CaseFacts] = []
    found = run_rows(_check_case, cohort, cohort.rows, cluster, stage="check")
    outcomes = dict(track(found, "checking cases", len(cohort.rows)))
    for row in cohort.rows:
        outcome = outcomes[row.name]
        if isinstance(outcome, Failure):
            errors.append(outcome.reason if outcome.stage == "read" else f"case {row.name}: {outcome.reason}")
        else:
            cases.append(outcome)
    errors += [f"case {case.name}: {error}" for case in cases for error in case.errors]
    prints = [Print(name=c.name, patient=c.patient, images=tuple(i.sha256 for i in c.images)) for c in cases]
    errors += duplicated_images(prints)
    warnings = [f"case {case.name}: {warning}" for case in cases for warning in case.warnings]
    warnings += [*_same_patient(prints), *_duplicated_labels(cases), *_wild_intensities(cases, cohort.channels)]
    warnings += _label_warnings(cases, cohort)
    return CohortReport(cases=tuple(cases), errors=tuple(errors), warnings=tuple(warnings))


def _check_case(cohort: Cohort, row: CohortRow) -> CaseFacts | Failure:
    remarks: list[str] = []
    try:
        volumes, instances = read_cohort_case(row, cohort, remarks.append)
    except MedsegError as error:  # names the case
        return Failure(stage="read", reason=str(error))
    return case_facts(row.name, row.patient, volumes, instances, cohort.channels, remarks)


def measure_cases(
    cohort: Cohort,
    measure: Callable[[tuple[Volume, ...], InstanceSet], T],
    track: Track = silent,
    cluster: Cluster | None = None,
) -> Iterator[T]:
    """Yield what a function makes of each case, in order; what `check_cohort` calls an error is raised at the end.

    Args:
        cohort: from `find_cohort`.
        measure: of the images and the label of a case; what it returns is small.
        track: progress over cases.
        cluster: see `check_cohort`.

    Raises:
        InputError, GeometryError: of the one broken case.
        CasesError: several errors.
    """
    errors = broken_errors(cohort)
    prints: list[Print] = []
    found: Iterator[tuple[str, tuple[Print, T] | list[MedsegError] | Failure]]
    found = run_rows(partial(_measure_case, measure), cohort, cohort.rows, cluster, stage="measure")
    outcomes = in_order(found, [row.name for row in cohort.rows])
    for row, outcome in zip(cohort.rows, track(outcomes, "reading cases", len(cohort.rows)), strict=True):
        if isinstance(outcome, Failure):
            errors.append(InputError(f"case {row.name}: {outcome.reason}"))
        elif isinstance(outcome, tuple):
            prints.append(outcome[0])
            yield outcome[1]
        else:
            errors += outcome
    errors += [InputError(text) for text in duplicated_images(prints)]
    raise_broken(errors, cohort)


def _measure_case(
    measure: Callable[[tuple[Volume, ...], InstanceSet], T], cohort: Cohort, row: CohortRow
) -> "tuple[Print, T] | list[MedsegError]":
    """Return a case's print and what is measured of it, or what is wrong with it."""
    try:
        volumes, instances = read_cohort_case(row, cohort)
    except MedsegError as error:
        return [error]
    blank = image_errors(volumes, cohort.channels)
    if blank:
        return [InputError(f"case {row.name}: {text}") for text in blank]
    hashes = tuple(image_hash(volume.array) for volume in volumes)
    return Print(name=row.name, patient=row.patient, images=hashes), measure(volumes, instances)


@dataclass(frozen=True, kw_only=True)
class Print:
    """What tells a case's images from others: name, patient, and a hash of each image."""

    name: str
    patient: str
    images: tuple[str, ...]


def duplicated_images(prints: Sequence[Print]) -> list[str]:
    """Return an error for every image that cases of different patients share: one would validate the other."""
    return [
        f"case {first.name}: its image is that of case {second.name}, voxel by voxel, and they count as two patients; "
        "take one out, or give both one patient in a cohort.csv"
        for first, second in _pairs(prints)
        if first.patient != second.patient
    ]


def _same_patient(prints: Sequence[Print]) -> list[str]:
    return [
        f"case {first.name}: its image is that of case {second.name}, voxel by voxel; it counts twice"
        for first, second in _pairs(prints)
        if first.patient == second.patient
    ]


def _pairs(prints: Sequence[Print]) -> Iterator[tuple[Print, Print]]:
    """Yield each case with the first one before it that has its images."""
    seen: dict[tuple[str, ...], Print] = {}
    for item in prints:
        first = seen.setdefault(item.images, item)
        if first is not item:
            yield item, first


def _duplicated_labels(cases: Sequence[CaseFacts]) -> Iterator[str]:
    seen: dict[tuple, CaseFacts] = {}
    for case in cases:
        first = seen.setdefault((case.shape, case.label_sha256), case)
        if first is not case and first.images != case.images:
            yield (
                f"case {case.name}: its label is that of case {first.name}, voxel by voxel, on another image; was a "
                "file copied under the wrong name?"
            )


def _wild_intensities(cases: Sequence[CaseFacts], channels: Sequence[str]) -> Iterator[str]:
    """Compare the range between the 0.5 and the 99.5 percentile with the median of the cohort's."""
    if len(cases) < COMPARED:
        return
    for number, channel in enumerate(channels):
        images = [case.images[number] for case in cases]
        low, high = (statistics.median(values) for values in zip(*((i.low, i.high) for i in images), strict=True))
        width = statistics.median(i.high - i.low for i in images)
        for case, image in zip(cases, images, strict=True):
            own = image.high - image.low
            if own > WILD * width or own * WILD < width or image.low > high or image.high < low:
                yield (
                    f"case {case.name}: channel {channel}: values from {image.low:g} to {image.high:g} (0.5 to 99.5 "
                    f"percentile), the median of the cohort is {low:g} to {high:g}; another unit or sequence?"
                )


def _label_warnings(cases: Sequence[CaseFacts], cohort: Cohort) -> Iterator[str]:
    if not cases or cohort.labels is None:
        return
    unread = len(cohort.rows) + len(cohort.broken) - len(cases)
    for label in cohort.labels:
        own = [facts for case in cases for facts in case.labels if facts.name == label.name and facts.objects]
        if not own and unread:
            yield f"label {label.name}: in no case that can be read; {unread} of {unread + len(cases)} cannot"
        elif not own:
            yield f"label {label.name}: in no case; is the name or number right?"
        elif len(own) == 1 and len(cases) > COMPARED:
            yield f"label {label.name}: in one case of {len(cases)}; is it a misspelling of another?"
        if label.kind == "single" and own and statistics.median(_parts(own)) > 1:
            most = max(_parts(own))
            yield (
                f"label {label.name}: one object per case (kind single), but most cases have it in several separate "
                f"parts, up to {most}; if each is an object, say --kind '{label.name}=components'"
            )


def _parts(facts: Iterable) -> list[int]:
    return [item.parts for item in facts]
