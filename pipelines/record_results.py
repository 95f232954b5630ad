"""Keep the figures of a command in docs/results, with what is needed to see them again; `make results` shows them.

    medseg evaluate -r REFERENCE -p PREDICTIONS -o scores
    python pipelines/record_results.py my_cohort scores/summary.json --seed 0 \
        --command 'medseg train COHORT -o RUN --fold 0/5' \
        --command 'medseg evaluate -r REFERENCE -p PREDICTIONS -o scores' \
        --keep mean_dice --keep 'classes.*.voxels.dice' --keep 'classes.*.objects'

writes docs/results/my_cohort.json: command, seed, commit, hardware, date, and the figures, which are the whole JSON
file or what --keep names of it (`*` is any key). Other pipelines put the same around their figures (`write_record`).
Commit and hardware are those of this checkout and machine, the date is the file's: record where and when you measure,
or name them.
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from medseg.errors import InputError, MedsegError
from medseg.io.atomic import write_json

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "results"
NUMBERS = ("no", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")


def envelope(
    figures: Any,
    *,
    seed: int | Sequence[int] | None,
    command: str | Sequence[str] | None = None,
    commit: str | None = None,
    hardware: str | None = None,
    day: str | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Return figures with the command, seed, commit, hardware and date that they come from.

    Args:
        figures: what JSON can hold.
        seed: of everything drawn; several for several runs; None where nothing is drawn.
        command: one or several; by default that of this process, without the folders of this machine.
        commit: by default what is checked out here, and whether medseg or pipelines differ from it.
        hardware: by default this machine's.
        day: ISO date; by default today.
        device: ``cuda`` names the GPU as well.
    """
    return {
        "command": command or own_command(),
        "seed": seed,
        "commit": commit or checked_out(),
        "hardware": hardware or describe_hardware(device),
        "date": day or date.today().isoformat(),
        "figures": figures,
    }


def write_record(out: Path | None, figures: Any, *, seed: int | Sequence[int] | None, device: str = "cpu") -> None:
    """Print the figures of a pipeline in their `envelope`, and write them where a file is named."""
    record = envelope(figures, seed=seed, device=device)
    if out is not None:
        write_json(out, record)
    print(json.dumps(record, indent=2, ensure_ascii=False))


def own_command() -> str:
    """Return the command line of this process; absolute paths (a user's folders) are shortened."""
    return " ".join(["python", f"pipelines/{Path(sys.argv[0]).name}", *(shlex.quote(_short(w)) for w in sys.argv[1:])])


def _short(word: str) -> str:
    """Return a path below the data as DATA/..., one below the current folder as that, of others the last part."""
    path, data = Path(word), os.environ.get("MEDSEG_DATA")
    if not path.is_absolute():
        return word
    if data and path.is_relative_to(data):
        return str("DATA" / path.relative_to(data))
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name


def checked_out() -> str | None:
    """Return the commit of this checkout, and whether medseg or pipelines differ from it; None without git."""
    try:
        commit = _git("rev-parse", "--short", "HEAD")
        changed = _git("status", "--porcelain", "--untracked-files=no", "--", "medseg", "pipelines")
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit} with changes" if changed else commit


def _git(*words: str) -> str:
    return subprocess.run(["git", "-C", str(ROOT), *words], check=True, capture_output=True, text=True).stdout.strip()


def describe_hardware(device: str) -> str:
    """Return processor and GPU in words: two cores of an AMD EPYC (AVX-512 with bfloat16), no GPU."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())
    flags = next((line.split() for line in lines if line.startswith("flags")), [])
    units = ["bfloat16"] * ("avx512_bf16" in flags) + ["AMX"] * ("amx_bf16" in flags)
    units = [f"AVX-512{' with ' * bool(units)}{' and '.join(units)}"] if "avx512f" in flags else []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    count = NUMBERS[cores] if cores < len(NUMBERS) else str(cores)
    gpu = "no GPU"
    if device.startswith("cuda"):
        import torch  # late: some benchmarks measure what a process holds without it

        gpu = f"one {torch.cuda.get_device_name(device)}"
    article = "an" if name[0] in "AEIOUaeiou" else "a"
    return f"{count} core{'s' * (cores > 1)} of {article} {name}{''.join(f' ({u})' for u in units)}, {gpu}"


def select(data: Any, paths: Sequence[str]) -> Any:
    """Return what the paths name (``classes.*.objects``), in the shape and order of the data.

    Raises:
        InputError: a path leads nowhere.
    """
    kept: dict[str, Any] = {}
    for path in paths:
        first, _, rest = path.partition(".")
        keys = [key for key in data if first in ("*", key)] if isinstance(data, dict) else []
        if not keys:
            there = ", ".join(data) if isinstance(data, dict) else "no key"
            raise InputError(f"--keep: {first!r} is not in the file; at that place there is {there}")
        for key in keys:
            kept.setdefault(key, []).append(rest)
    return {key: data[key] if "" in kept[key] else select(data[key], kept[key]) for key in data if key in kept}


def main(words: list[str]) -> None:
    """Write docs/results/NAME.json."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help="of the record: letters, digits, _")
    parser.add_argument("file", type=Path, help="JSON that a command wrote")
    parser.add_argument("--command", action="append", required=True, help="that made it; several times for several")
    parser.add_argument("--seed", type=int, action="append", help="of that command; several times for several runs")
    parser.add_argument("--keep", action="append", metavar="KEY.KEY", help="part of the figures; several times")
    parser.add_argument("--commit", help="where another one was measured than is checked out")
    parser.add_argument("--hardware", help="where another machine measured than this")
    parser.add_argument("--date", type=date.fromisoformat, help="where another day measured than the file is of")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    args = parser.parse_args(words)
    if not args.name.isidentifier():
        raise InputError(f"{args.name!r}: expected a name of letters, digits and _ for docs/results/NAME.json")
    try:
        figures = json.loads(args.file.read_text(encoding="utf-8"))
        day = args.date or date.fromtimestamp(args.file.stat().st_mtime)
    except (OSError, ValueError) as error:
        raise InputError(f"{args.file}: is no JSON file ({error}); name what the command wrote") from None
    record = envelope(
        select(figures, args.keep) if args.keep else figures,
        seed=args.seed[0] if args.seed and len(args.seed) == 1 else args.seed,
        command=args.command[0] if len(args.command) == 1 else args.command,
        commit=args.commit, hardware=args.hardware, day=day.isoformat(), device=args.device,
    )  # fmt: skip
    write_json(FOLDER / f"{args.name}.json", record)
    print(f"wrote docs/results/{args.name}.json; make results shows it")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except MedsegError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
