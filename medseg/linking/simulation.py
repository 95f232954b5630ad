"""A detector that errs as real ones do, on a truth that is known: to measure linking, and to fit its weights.

`simulate_detections` turns the objects of a volume into detections per slice. What it assumes, all of it in
`DetectorNoise` and none of it measured on a particular network:

- **Misses come in runs.** Whether an object is missed in a slice depends on whether it was missed in the slice
  before: a two-state Markov chain per object, whose stationary share is ``missed`` and whose runs have the mean
  length ``miss_run`` (geometric). Runs that are longer than the gap which linking bridges cannot be mended.
- **False positives** are blobs of the truth's own outlines, resized; half of them lie beside real objects.
  Each stays for a geometric number of slices of mean ``false_run`` (so most are seen once), drifting. Their
  scores fall off from the lowest score that is reported, as those of trained detectors do.
- **Duplicates**, a second detection of a cross-section with a sloppier box and a lower score, are what slipped
  through non-maximum suppression.
- **Split masks**: a cross-section cut in two by a straight line; both parts are reported. Independent per slice.
- **Merged masks**: two cross-sections of one label that touch in a slice are reported as one, in runs along
  the slices they touch in (mean ``merge_run``). In half of the slices the two are reported besides, the
  merged one with the lower score (`MERGED_BESIDE`): a detector that is undecided.
- **Jitter**: box edges are off by a normal share ``box_sd`` of the box side and at least `EDGE_SD` pixels;
  the mask's outline by a smooth random field.
- **Scores**: log-odds are normal about `SCORE` with a share common to the object (hard and easy ones) and one
  of the slice, lower where the cross-section is less than a quarter of the object's largest (its ends).

Every cause draws from a random stream of its own: more of one error does not change the others.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from medseg.values.detections import Detections
from medseg.values.instances import InstanceSet

#: Log-odds of the score of an undisturbed cross-section; SD between objects; SD between slices of one.
SCORE, OBJECT_SD, SLICE_SD = 2.0, 0.6, 0.6
#: Taken from the log-odds at an object's ends, from each part of a split, from a second detection.
END_PENALTY, SPLIT_PENALTY, COPY_PENALTY = 1.0, 0.7, 1.0
#: The lowest score that is reported, and the mean of the exponential log-odds of false positives above it.
LOWEST_SCORE, FALSE_SPREAD = 0.2, 1.0
#: Share of merged masks that come beside the two detections they merge.
MERGED_BESIDE = 0.5
#: Smallest SD of a box edge, pixels.
EDGE_SD = 0.3
#: SD of the smooth field that is added to the mask's probabilities, whose outline is where they are 0.5.
OUTLINE_SD = 0.12


@dataclass(frozen=True, kw_only=True)
class DetectorNoise:
    """How much goes wrong; see the module text. Shares are of cross-sections unless stated.

    Attributes:
        missed: share missed; ``miss_run``: mean slices in a row.
        false_positives: false detections per true cross-section; ``false_run``: mean slices in a row.
        duplicated: share reported twice.
        split: share reported in two parts.
        merged: share of touching pairs of one label in a slice that are reported as one; ``merge_run``: mean
            slices in a row.
        box_sd: SD of a box edge as a share of the box side.
    """

    missed: float = 0.08
    miss_run: float = 1.5
    false_positives: float = 0.2
    false_run: float = 1.4
    duplicated: float = 0.05
    split: float = 0.02
    merged: float = 0.05
    merge_run: float = 1.5
    box_sd: float = 0.03


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """What the detector reported, and what it was of.

    Attributes:
        detections: one entry per slice of the volume.
        sources: per slice [N] int64: the instance id shown, 0 for a false positive, -1 for a merged mask.
        cross_sections: how many the truth has.
        miss_runs: length in slices -> how often an object was missed for exactly so long.
    """

    detections: tuple[Detections, ...]
    sources: tuple[NDArray[np.int64], ...]
    cross_sections: int
    miss_runs: dict[int, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Section:
    """An outline in a slice: its tight bool crop, where it lies, and what it is of."""

    mask: NDArray[np.bool_]
    row: int
    column: int
    label: int
    source: int
    score: float  # log-odds


def simulate_detections(truth: InstanceSet, noise: DetectorNoise, *, seed: int, mask_size: int = 28) -> Simulation:
    """Report the objects of a volume slice by slice, with errors; the same arguments give the same detections.

    Args:
        truth: the objects; slices are the first axis of their geometry.
        noise: what goes wrong, and how often.
        seed: 0 or more.
        mask_size: side M of the masks in box coordinates.
    """
    miss, merge, scores, outlines, copies, false, splits = (
        np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(7)
    )
    depth, rows, columns = truth.geometry.spatial_shape
    sections: dict[int, list[_Section]] = {z: [] for z in range(depth)}
    runs: Counter[int] = Counter()
    count = 0
    every: list[_Section] = []
    for instance in truth:
        areas = instance.mask.sum(axis=(1, 2))
        shown = np.flatnonzero(areas)
        missed = _chain(miss, len(shown), noise.missed, noise.miss_run)
        runs.update(_run_lengths(missed))
        count += len(shown)
        level = SCORE + OBJECT_SD * scores.normal()
        odds = level + SLICE_SD * scores.normal(size=len(shown)) - END_PENALTY * (areas[shown] < areas.max() / 4)
        for k, score, out in zip(shown.tolist(), odds.tolist(), missed.tolist(), strict=True):
            section = _section(
                instance.mask[k], instance.offset[1:], label=instance.label, source=instance.id, score=score
            )
            every.append(section)
            if not out:
                sections[instance.offset[0] + k].append(section)
    sections = {z: _split(splits, found, noise.split) for z, found in sections.items()}
    _merge(merge, sections, noise)
    detections, sources = [], []
    phantoms = _false_positives(false, every, sections, round(noise.false_positives * count), noise, (rows, columns))
    for z in range(depth):
        found = sections[z] + phantoms.get(z, [])
        twice = copies.random(len(found)) < noise.duplicated
        entries = [(s, s.score, 1.0) for s in found]
        entries += [(s, s.score - COPY_PENALTY, 2.0) for s, again in zip(found, twice, strict=True) if again]
        detections.append(_report(outlines, z, entries, noise.box_sd, mask_size, (rows, columns)))
        sources.append(np.array([entry[0].source for entry in entries], np.int64))
    return Simulation(
        detections=tuple(detections), sources=tuple(sources), cross_sections=count, miss_runs=dict(sorted(runs.items()))
    )


def _chain(rng: np.random.Generator, n: int, share: float, run: float) -> NDArray[np.bool_]:
    """Return n states of a two-state chain: ``share`` of them are on, in runs of ``run`` on average."""
    if share == 0:
        return np.zeros(n, np.bool_)
    draws = rng.random(n)
    start = share / (1 - share) / run  # off -> on
    states = np.zeros(n, np.bool_)
    on = False
    for i in range(n):
        on = bool(draws[i] < (share if i == 0 else 1 - 1 / run if on else start))
        states[i] = on
    return states


def _run_lengths(states: NDArray[np.bool_]) -> list[int]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], states.astype(np.int8), [0]])))
    return (edges[1::2] - edges[::2]).tolist()


def _section(mask: NDArray[np.bool_], corner: tuple[int, int], *, label: int, source: int, score: float) -> _Section:
    """Return the tight crop of a mask that has a pixel."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return _Section(
        mask=mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1],
        row=corner[0] + int(rows[0]), column=corner[1] + int(columns[0]),
        label=label, source=source, score=score,
    )  # fmt: skip


def _split(rng: np.random.Generator, sections: list[_Section], share: float) -> list[_Section]:
    """Cut some cross-sections in two by a line near their centre."""
    result = []
    for section, cut, angle, offset in zip(
        sections, rng.random(len(sections)) < share, rng.uniform(0, np.pi, len(sections)),
        rng.uniform(-0.15, 0.15, len(sections)), strict=True,
    ):  # fmt: skip
        h, w = section.mask.shape
        across = np.cos(angle) * (np.arange(h)[:, None] - (h - 1) / 2) + np.sin(angle) * (np.arange(w) - (w - 1) / 2)
        side = across > offset * min(h, w)
        parts = [section.mask & side, section.mask & ~side]
        if not cut or not all(part.any() for part in parts):
            result.append(section)
            continue
        for part in parts:
            corner, score = (section.row, section.column), section.score - SPLIT_PENALTY
            result.append(_section(part, corner, label=section.label, source=section.source, score=score))
    return result


def _merge(rng: np.random.Generator, sections: dict[int, list[_Section]], noise: DetectorNoise) -> None:
    """Replace some touching pairs by one mask, or add it to them; the lists are changed."""
    touching: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for z, found in sections.items():
        for i, j in _touching(found):
            touching.setdefault((found[i].source, found[j].source), []).append((z, i, j))
    replaced: dict[int, set[int]] = {}
    added: dict[int, list[_Section]] = {}
    for _, places in sorted(touching.items()):
        states = _chain(rng, len(places), noise.merged, noise.merge_run)
        beside = rng.random(len(places)) < MERGED_BESIDE
        for (z, i, j), on, keep in zip(places, states.tolist(), beside.tolist(), strict=True):
            gone = replaced.setdefault(z, set())
            if not on or i in gone or j in gone:
                continue
            a, b = sections[z][i], sections[z][j]
            row, column = min(a.row, b.row), min(a.column, b.column)
            mask = np.zeros(
                (
                    max(s.row + s.mask.shape[0] for s in (a, b)) - row,
                    max(s.column + s.mask.shape[1] for s in (a, b)) - column,
                ),
                np.bool_,
            )
            for s in (a, b):
                h, w = s.mask.shape
                mask[s.row - row : s.row - row + h, s.column - column : s.column - column + w] |= s.mask
            score = min(a.score, b.score) - (SPLIT_PENALTY if keep else 0.0)
            added.setdefault(z, []).append(
                _Section(mask=mask, row=row, column=column, label=a.label, source=-1, score=score)
            )
            if not keep:
                gone.update((i, j))
    for z, found in sections.items():
        gone = replaced.get(z, set())
        sections[z] = [s for k, s in enumerate(found) if k not in gone] + added.get(z, [])


def _touching(sections: list[_Section]) -> Iterator[tuple[int, int]]:
    """Yield the pairs of one label and different objects whose masks share a pixel or an edge of one."""
    if len(sections) < 2:
        return
    low = np.array([(s.row, s.column) for s in sections])
    high = low + [s.mask.shape for s in sections]
    labels, sources = np.array([s.label for s in sections]), np.array([s.source for s in sections])
    near = (np.minimum(high[:, None], high[None]) >= np.maximum(low[:, None], low[None])).all(axis=-1)
    near &= (labels[:, None] == labels[None]) & (sources[:, None] != sources[None])
    for i, j in zip(*np.nonzero(np.triu(near, k=1)), strict=True):
        a, b = sections[i], sections[j]
        grown = ndimage.binary_dilation(np.pad(a.mask, 1))
        r0, c0 = np.maximum(low[i] - 1, low[j])
        r1, c1 = np.minimum(high[i] + 1, high[j])
        u = grown[r0 - a.row + 1 : r1 - a.row + 1, c0 - a.column + 1 : c1 - a.column + 1]
        if (u & b.mask[r0 - b.row : r1 - b.row, c0 - b.column : c1 - b.column]).any():
            yield int(i), int(j)


def _false_positives(
    rng: np.random.Generator,
    outlines: list[_Section],
    sections: dict[int, list[_Section]],
    count: int,
    noise: DetectorNoise,
    shape: tuple[int, int],
) -> dict[int, list[_Section]]:
    """Return ``count`` false detections by slice: resized outlines of the truth that stay for a while and drift."""
    result: dict[int, list[_Section]] = {}
    if not outlines:
        return result
    depth = len(sections)
    left = count
    while left > 0:
        model = outlines[int(rng.integers(len(outlines)))]
        zoom = rng.uniform(0.4, 1.0)
        mask = ndimage.zoom(model.mask, zoom, order=0) if min(model.mask.shape) * zoom >= 2 else model.mask
        mask = mask[tuple(slice(0, n) for n in shape)]
        h, w = mask.shape
        z = int(rng.integers(depth))
        if sections[z] and rng.random() < 0.5:
            beside = sections[z][int(rng.integers(len(sections[z])))]
            angle = rng.uniform(0, 2 * np.pi)
            reach = (np.array(beside.mask.shape) + (h, w)) / 2 * rng.uniform(0.7, 1.3)
            centre = np.array([beside.row, beside.column]) + np.array(beside.mask.shape) / 2
            centre += reach * (np.cos(angle), np.sin(angle))
        else:
            centre = rng.uniform((0, 0), shape)
        for step in range(min(int(rng.geometric(1 / noise.false_run)), left, depth - z)):
            corner = np.clip(np.round(centre - (h / 2, w / 2)), 0, np.array(shape) - (h, w)).astype(int)
            score = np.log(LOWEST_SCORE / (1 - LOWEST_SCORE)) + FALSE_SPREAD * rng.exponential()
            if mask.any():
                false = _section(mask, (corner[0], corner[1]), label=model.label, source=0, score=float(score))
                result.setdefault(z + step, []).append(false)
            left -= 1
            centre = centre + rng.normal(0, 0.1, 2) * (h, w)
    return result


def _report(
    rng: np.random.Generator,
    z: int,
    entries: list[tuple[_Section, float, float]],
    box_sd: float,
    size: int,
    shape: tuple[int, int],
) -> Detections:
    """Encode outlines as a network reports them; ``entries`` hold outline, log-odds and a factor of the jitter."""
    n = len(entries)
    boxes, masks, scores = np.zeros((n, 4)), np.zeros((n, size, size), np.float32), np.zeros(n)
    smooth = _spread(5, size)
    for k, (section, odds, factor) in enumerate(entries):
        h, w = section.mask.shape
        sd = factor * np.maximum(box_sd * np.array([w, h, w, h]), min(EDGE_SD, 0.1 * min(h, w)))
        box = np.array([0, 0, w, h]) + np.array([section.column, section.row] * 2) + sd * rng.normal(size=4)
        box = np.clip(box, 0, [shape[1], shape[0]] * 2)
        centre, half = (box[:2] + box[2:]) / 2, np.maximum((box[2:] - box[:2]) / 2, 0.25)  # never turned inside out
        boxes[k] = np.concatenate([centre - half, centre + half])
        field = smooth @ rng.normal(0, OUTLINE_SD, (5, 5)) @ smooth.T
        masks[k] = np.clip(_averages(h, size) @ section.mask @ _averages(w, size).T + field, 0, 1)
        scores[k] = np.clip(1 / (1 + np.exp(-odds)), LOWEST_SCORE, 0.99)
    return Detections(
        slice_index=z,
        boxes=boxes.astype(np.float32),
        scores=scores.astype(np.float32),
        labels=np.array([entry[0].label for entry in entries], np.int64),
        masks=masks,
    )


def _averages(pixels: int, cells: int) -> NDArray[np.float32]:
    """Return [cells, pixels]: how much of each cell each pixel covers, cells dividing the pixels evenly."""
    edges = np.linspace(0, pixels, cells + 1)
    low, high = np.maximum(edges[:-1, None], np.arange(pixels)), np.minimum(edges[1:, None], np.arange(1, pixels + 1))
    return (np.maximum(high - low, 0) * (cells / pixels)).astype(np.float32)


def _spread(knots: int, cells: int) -> NDArray[np.float64]:
    """Return [cells, knots]: linear interpolation of values at evenly spaced knots."""
    at = np.linspace(0, knots - 1, cells)
    return np.maximum(0.0, 1 - np.abs(at[:, None] - np.arange(knots)))
