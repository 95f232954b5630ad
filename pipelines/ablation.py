"""What a choice is worth: train every combination of settings under several seeds, one table at the end.

    python pipelines/ablation.py COHORT -o ablation --fold 0/5 --seeds 0,1,2 \
        --grid model.roi_op=align,pool --grid model.mask_loss=sigmoid,softmax --set training.steps=3000

Every run is a folder of its own, as `medseg train` writes it. Started again, the command keeps finished runs (those of
the same plan and fold), goes on with stopped ones, and trains the rest; a run that fails is named and left out.
``ablation.csv`` and ``ablation.md`` hold per setting and class the F1 of objects and the Dice of voxels on the held-out
cases: mean, standard deviation and number over seeds, and the difference from the first setting, seed by seed, with its
95 % interval: where that holds 0, the difference is inside the noise. ``ablation.json`` is the same as a record of
results.
"""

import argparse
import itertools
import json
import math
import os
import re
import sys
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

from ablation_parts import COLUMNS, Figures, spread, tabulate
from record_results import envelope

from medseg.cli import console
from medseg.cli.compute import set_up
from medseg.data.cohort import find_cohort
from medseg.data.cohort_plan import facts_for, fingerprint_cohort, plan_with
from medseg.data.fingerprint import Fingerprint
from medseg.errors import ConfigError, MedsegError
from medseg.inference.provenance import hash_text
from medseg.io.atomic import write_csv, write_json, write_text
from medseg.training.cohort import train_cohort
from medseg.training.folds import Fold, choose_fold, parse_fold
from medseg.values.plan import check_fields, parse_setting


def parse_grid(texts: list[str]) -> dict[str, dict[str, Any]]:
    """Return all combinations by name; the values are YAML: ``input.context_mm=[0],[-2,0,2]``."""
    axes = []
    for text in texts:
        key, values = parse_setting(f"{text.partition('=')[0]}=[{text.partition('=')[2]}]")
        if not values:
            raise ConfigError(f"--grid {text!r}: expected section.field=value,value, e.g. model.roi_op=align,pool")
        axes.append([(key, value) for value in values])
    combinations = [dict(chosen) for chosen in itertools.product(*axes)]
    return {", ".join(f"{key.split('.')[-1]}={value}" for key, value in c.items()): c for c in combinations}


def finished(run: Path, facts: Fingerprint, settings: dict[str, Any], fold: Fold) -> bool:
    """Tell whether a run is there and done; ConfigError where it is another run than is wanted here."""
    if not (run / "run.json").is_file():
        return False
    record = json.loads((run / "run.json").read_text(encoding="utf-8"))
    wanted = hash_text(plan_with(facts, settings).to_yaml())
    if record["plan_sha256"] != wanted or record["fold"] != asdict(fold):
        raise ConfigError(f"{run}: was trained by another plan or fold; delete it, or give another -o")
    return bool(record["status"] == "finished")


def figures(run: Path) -> Figures:
    """Return F1 and Dice per class of a finished run, and their means over the classes, NaN where undefined."""
    validation = json.loads((run / "run.json").read_text(encoding="utf-8"))["validation"] or {}
    found = {
        (name, figure): math.nan if entry[figure] is None else float(entry[figure])
        for name, entry in validation.get("classes", {}).items()
        for figure in ("f1", "dice")
    }
    means = {figure: spread([v for (_, kind), v in found.items() if kind == figure])[0] for figure in ("f1", "dice")}
    return found | {("mean of classes", figure): mean for figure, mean in means.items()}


def markdown(rows: list[dict[str, Any]]) -> str:
    """Return the rows as a markdown table."""
    lines = ["| setting | class | figure | mean ± SD (n) | difference ± SD (pairs), 95 % |", "|---|---|---|---|---|"]
    for r in rows:
        apart = "" if r["pairs"] is None else f"{r['difference']:+.3f} ± {r['difference_sd']:.3f} ({r['pairs']})"
        apart += f", {r['low']:+.3f} to {r['high']:+.3f}" if (r["pairs"] or 0) > 1 else ""
        mean = f"{r['mean']:.3f} ± {r['sd']:.3f} ({r['n']})"
        lines.append(f"| {r['setting']} | {r['class']} | {r['figure']} | {mean} | {apart} |")
    return "\n".join(lines) + "\n"


def main(words: list[str]) -> int:
    """Run the grid; return the exit code: 1 where a run failed, 130 where one was stopped."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cohort", type=Path)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of the runs and the table")
    parser.add_argument("--grid", action="append", required=True, metavar="FIELD=VALUE,VALUE")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="the same in every run")
    parser.add_argument("--seeds", default=[0, 1, 2], type=lambda text: [int(seed) for seed in text.split(",")])
    parser.add_argument("--fold", default="auto")
    parser.add_argument("--device", default="auto")
    args = parser.parse_args(words)
    device, grid, fixed = set_up(args.device, 0), parse_grid(args.grid), dict(map(parse_setting, args.set))
    check_fields([*fixed, *itertools.chain.from_iterable(grid.values())])
    cohort = find_cohort(args.cohort)
    fold = choose_fold(parse_fold(args.fold), cohort.rows)
    if fold is None:
        raise ConfigError("a comparison needs held-out cases; give --fold k/n")
    facts = cache(lambda orientation: fingerprint_cohort(cohort, orientation, console.track))
    train = partial(train_cohort, args.cohort, device=device, fold=fold, track=console.track)
    results, failures = {setting: {} for setting in grid}, []
    for seed, (setting, chosen) in itertools.product(args.seeds, grid.items()):
        run = args.out / f"{re.sub(r'[^A-Za-z0-9.=+-]+', '_', setting)}_seed{seed}"
        settings = {**fixed, **chosen, "training.seed": seed}
        try:
            done = finished(run, facts_for(settings, facts), settings, fold)
            if not done and train(run, settings=settings, resume=(run / "run.json").is_file()).interrupted:
                return 130
            results[setting][seed] = figures(run)
        except (ValueError, KeyError, OSError, RuntimeError, MemoryError) as error:
            failures.append(f"{setting}, seed {seed}: {' '.join(str(error).split())[:300]}")
            console.err.print(f"failed: {failures[-1]}", style="red", markup=False)
    write_csv(args.out / "ablation.csv", COLUMNS, rows := tabulate(results))
    record = envelope({"rows": rows, "failures": failures}, seed=args.seeds, device=device.type)
    write_json(args.out / "ablation.json", record)
    text = markdown(rows) + "".join(f"\nfailed: {line}\n" for line in failures)
    write_text(args.out / "ablation.md", text)
    console.out.print(text, markup=False)
    return 1 if failures else 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except MedsegError as error:
        console.err.print(f"error: {error}", style="red", markup=False)
        sys.exit(2)
