"""Linking against the field's usual ways, on detections that were simulated from a known truth.

    python pipelines/benchmark_linking.py --data DATA -o linking

DATA holds `mr_hippocampus` (labelsTr/*.nii.gz: two structures that touch, here two objects of one class) and
`ct_vertebrae` (three vertebrae that touch); phantoms and crowded stacks are drawn. On other cases and seeds, each
baseline tunes all of `SEARCH` that it has to the best PQ, for each kind of truth by itself. The flow takes score
thresholds, gap and shortest object from the best of them and tunes, from its defaults on, only `OWN` and whether its
weights are the defaults or those that `fit_weights` (`medseg tune-linking`) fits to the same cases; besides, it is
judged as it comes.
`benchmark_linking_speed.py` has time and memory.
"""

import argparse
from collections import Counter
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from record_results import envelope

from medseg.cli import console
from medseg.io import read_instances
from medseg.io.atomic import write_json
from medseg.labels import Label, LabelTable
from medseg.linking import link
from medseg.linking.crowd import crowded_stack
from medseg.linking.simulation import DetectorNoise, Simulation, simulate_detections
from medseg.linking.tuning import Pairs, fit_weights, label_pairs
from medseg.metrics.bootstrap import case_weights, interval
from medseg.metrics.fragments import count_fragments
from medseg.phantom import make_phantom
from medseg.values.detections import Detections
from medseg.values.geometry import orientation_map, spacing_of
from medseg.values.instances import InstanceSet
from medseg.values.linking_plan import LinkingPlan
from medseg.values.pairs import PairTable

IOUS = (0.05, 0.1, 0.2, 0.3)
SEARCH = {  # score_threshold: of a detection; min_slices: as min_extent_mm; the rest as in the plan's section linking
    "link_iou": IOUS, "gap_iou": IOUS, "score_threshold": (0.2, 0.4, 0.5, 0.6),
    "min_score": (0.3, 0.4, 0.5, 0.6), "gap_mm": (6.0, 9.0), "min_slices": (1, 2),
}  # fmt: skip
OWN = {"link_iou": IOUS, "gap_iou": IOUS, "waist_ratio": (0.0, 0.4, 0.5, 0.6)}
START = {"link_iou": 0.2, "gap_iou": 0.1, "score_threshold": 0.5, "min_score": 0.4, "gap_mm": 6.0, "min_slices": 2}
BASELINES = ("greedy", "hungarian", "nms", "components")
UNUSED = {"components": ("link_iou", "gap_iou"), "nms": ("gap_iou",)}
SEED = 3000  # of everything drawn here; nothing was developed on it
COUNTS = ("objects", "predicted", "found", "fragments", "with_fragments", "mixed", "iou")

Case = tuple[InstanceSet, Simulation]
parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--data", type=Path, required=True)
parser.add_argument("-o", "--out", type=Path, required=True, help="folder for linking.json")
args = parser.parse_args()


def one_class(path: Path, name: str) -> InstanceSet:
    """Read a label map whose ids are objects of one class, slices towards the head."""
    found = read_instances(path)
    found = found.moved(orientation_map(found.geometry, "HPL"))
    table = LabelTable([Label(id=1, name=name, colour=(200, 60, 60), kind="ids")])
    return InstanceSet.build((replace(i, label=1) for i in found), found.geometry, table)


hippocampi = sorted((args.data / "mr_hippocampus" / "labelsTr").glob("*.nii.gz"))[60:]
vertebrae = args.data / "ct_vertebrae/sub-ct_seg-vert_label-22_msk.nii.gz"
CROWD = {"shape": (40, 144, 144), "spacing_mm": (2.5, 0.8, 0.8), "count": 90}
TRUTHS = {  # cases to judge, cases to tune on, the k-th truth
    "phantom": (10, 3, lambda k: make_phantom(seed=SEED + k).instances),
    "hippocampus": (40, 12, lambda k: one_class(hippocampi[k], "hippocampus")),
    "vertebrae": (24, 8, lambda k: one_class(vertebrae, "vertebra")),  # one truth, as many simulations
    "crowded": (6, 1, lambda k: crowded_stack(seed=SEED + k, **CROWD)),
}


def reported(case: Case, settings: dict) -> list[Detections]:
    """Return the detections of a case from the score threshold."""
    return [part[part.scores >= settings.get("score_threshold", 0.0)] for part in case[1].detections]


def run(case: Case, method: str, settings: dict) -> InstanceSet:
    """Link one case."""
    plan = {key: value for key, value in settings.items() if key not in ("score_threshold", "min_slices")}
    extent = (settings.get("min_slices", 1) - 0.5) * spacing_of(case[0].geometry)[0]
    config = LinkingPlan.model_validate({"method": method, "min_extent_mm": extent, **plan})
    return link(reported(case, settings), case[0].geometry, case[0].labels, config)


def judge(cases: list[Case], method: str, settings: dict) -> NDArray[np.float64]:
    """Return [C, 7] `COUNTS` of each case."""
    rows = []
    for pairs in (PairTable.between(case[0], run(case, method, settings)) for case in cases):
        matched = pairs.matching(0.5)
        sizes = len(pairs.reference_voxels), len(pairs.prediction_voxels), len(matched)
        rows.append((*sizes, *count_fragments(pairs), pairs.iou()[matched].sum()))
    return np.array(rows, np.float64)


def pq(table: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the panoptic quality of counts [..., 7]."""
    return 2 * table[..., 6] / (table[..., 0] + table[..., 1])


def tune(cases: list[Case], method: str, start: dict, search: dict[str, tuple]) -> tuple[float, dict]:
    """Change one setting at a time as long as the PQ of all cases together grows; return it and the settings."""
    known: dict[str, float] = {}

    def quality(settings: dict) -> float:
        key = str(sorted(settings.items()))
        if key not in known:
            known[key] = float(pq(judge(cases, method, settings).sum(axis=0)))
        return known[key]

    settings, before = start, -1.0
    while quality(settings) > before:
        before = quality(settings)
        for key in (k for k in search if k not in UNUSED.get(method, ())):
            settings = max([settings, *({**settings, key: value} for value in search[key])], key=quality)
    return before, settings


noise, results, tables, weights = DetectorNoise(), {}, {}, {}
for name, (test, other, truth_of) in TRUTHS.items():
    truths = enumerate(truth_of(k) for k in range(test + other))
    cases = [(truth, simulate_detections(truth, noise, seed=SEED + k)) for k, truth in truths]
    runs = dict(sorted(sum((Counter(simulation.miss_runs) for _, simulation in cases), Counter()).items()))
    console.out.print(f"{name}: {test} cases, tuned on {other}; runs of missed slices: {runs}")
    tuned = {method: tune(cases[test:], method, START, SEARCH) for method in BASELINES}
    best = max(tuned, key=lambda method: tuned[method][0])
    own = {key: getattr(LinkingPlan(), key) for key in OWN}
    start = {**tuned[best][1], **own, "weights": {}}
    config = LinkingPlan(gap_mm=start["gap_mm"], link_iou=start["link_iou"], gap_iou=start["gap_iou"])
    pairs = Pairs.join([label_pairs(reported(case, start), case[0], config) for case in cases[test:]])
    search = {"weights": ({}, fit_weights(pairs, config).weights.model_dump()), **OWN}
    chosen = {method: settings for method, (_, settings) in tuned.items()}
    chosen |= {"flow": tune(cases[test:], "flow", start, search)[1], "flow, defaults": {}}
    tables[name], results[name] = {}, {"cases": test, "tuned_on": other, "miss_runs": runs}
    weights[name] = case_weights(test, resamples=2000, seed=len(weights))
    for way, settings in chosen.items():
        tables[name][way] = judge(cases[:test], way.split(",")[0], settings)
        total = tables[name][way].sum(axis=0)
        row = dict(zip(COUNTS, total.tolist(), strict=True))
        row |= {"pq": float(pq(total)), "fragments_per_object": float(total[3] / max(1, total[4]))}
        console.out.print(f"{way}: {', '.join(f'{key} {value:.3g}' for key, value in row.items())}; {settings}")
        results[name][way] = {**row, "settings": settings}

draws = {way: [weights[name] @ table[way] for name, table in tables.items()] for way in chosen}  # [W, 7] of each kind
values = {f"{name} alone": {w: pq(draws[w][i]) for w in chosen} for i, name in enumerate(tables)}
values["mean of the kinds"] = {way: np.mean([pq(draw) for draw in draws[way]], axis=0) for way in chosen}
values["all objects"] = {way: pq(sum(draws[way])) for way in chosen}
margins = {}
for kind, of_way in values.items():
    rival = max(BASELINES, key=lambda method: of_way[method][0])
    for way in ("flow", "flow, defaults"):
        margin = of_way[way] - of_way[rival]
        margins[f"{kind}: {way} - {rival}"] = [float(margin[0]), *interval(margin)]
console.out.print(margins)
figures = {"noise": asdict(noise), "results": results, "margins": margins}
write_json(args.out / "linking.json", envelope(figures, seed=SEED))
console.wrote(args.out / "linking.json")
