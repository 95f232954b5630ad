"""Write synthetic patients as a cohort: DICOM series and NIfTI, truth with overlaps, what was drawn."""

import csv
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from medseg.errors import ConfigError, InputError
from medseg.io import write_ct_series, write_instances, write_volume
from medseg.io.atomic import atomic_folder, write_json, write_text
from medseg.io.cohort_table import CASE_COLUMN, COLUMNS, LABELS_NAME, TABLE_NAME
from medseg.phantom.case import SHAPE, SPACING_MM, Phantom, check_grid, make_phantom, phantom_labels
from medseg.progress import Track, silent

#: Cases drawn at the same time, mostly in code that runs beside other threads; two take two thirds of the time of one.
AT_ONCE = 2
#: Ranges of (slice distance, pixel size) in mm with ``vary_spacing``.
VARIED_MM = ((2.5, 5.0), (2.5, 3.0))


def case_seed(seed: int, case: int) -> int:
    """Return the seed of one case; it depends on nothing but these two numbers."""
    return int(np.random.SeedSequence([seed, case]).generate_state(1)[0])


def write_cohort(
    folder: Path | str,
    *,
    cases: int,
    seed: int,
    shape: tuple[int, int, int] = SHAPE,
    spacing_mm: tuple[float, float, float] = SPACING_MM,
    vary_spacing: bool = False,
    track: Track = silent,
) -> Path:
    """Write a cohort of synthetic CTs, all of it or nothing.

    The folder gets ``cohort.csv``, ``labels.json`` and per case ``case_000/dicom/*.dcm``,
    ``case_000/case_000.nii.gz`` (the same image), ``case_000/case_000_labels.seg.nrrd`` (overlaps kept) and
    ``case_000/phantom.json`` (what was drawn). A case is the same whatever the number of cases.

    Args:
        folder: new or empty.
        cases: how many, at least 1.
        seed: 0 or more.
        shape: (slices, rows, columns).
        spacing_mm: (slice, row, column).
        vary_spacing: draw slice distance (2.5 to 5 mm) and pixel size (2.5 to 3 mm) for each case, the field of
            view staying as ``shape`` and ``spacing_mm`` have it.
        track: reports progress.

    Returns:
        The folder, absolute.

    Raises:
        ConfigError: an argument out of range.
        InputError: the folder holds something already, or cannot be written.
    """
    if cases < 1:
        raise ConfigError(f"cases {cases}: expected 1 or more")
    check_grid(seed, shape, spacing_mm)
    target = Path(folder).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target}: exists and is not an empty folder; name a new or an empty one")

    def write(case: int) -> str:
        name, own_seed = f"case_{case:03d}", case_seed(seed, case)
        grid = _varied(own_seed, shape, spacing_mm) if vary_spacing else (shape, spacing_mm)
        _write_case(temporary / name, make_phantom(seed=own_seed, shape=grid[0], spacing_mm=grid[1]))
        return _csv_row(f"{name}/dicom", f"{name}/{name}_labels.seg.nrrd", name, name)

    with atomic_folder(target) as temporary, ThreadPoolExecutor(AT_ONCE) as pool:
        try:
            written = list(track(pool.map(write, range(cases)), "drawing phantoms", cases))
        except BaseException:
            pool.shutdown(cancel_futures=True)  # or all cases would be drawn before an error or Ctrl-C is told
            raise
        rows = [",".join((*COLUMNS, CASE_COLUMN)), *written]
        write_json(temporary / LABELS_NAME, phantom_labels().to_dict())
        write_text(temporary / TABLE_NAME, "\n".join(rows) + "\n")
    return target


def _csv_row(*cells: str) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="").writerow(cells)
    return text.getvalue()


def _varied(
    seed: int, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]
) -> tuple[tuple[int, int, int], tuple[float, float, float]]:
    """Draw a spacing, and the shape that keeps the field of view."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, 1]))
    between, pixel = (round(float(rng.uniform(*limits)), 2) for limits in VARIED_MM)
    spacing = between, pixel, pixel
    a, b, c = (max(8, round(n * old / new)) for n, old, new in zip(shape, spacing_mm, spacing, strict=True))
    return (a, b, c), spacing


def _write_case(folder: Path, phantom: Phantom) -> None:
    name = folder.name
    folder.mkdir(parents=True)
    write_ct_series(folder / "dicom", phantom.volume, seed=phantom.seed, description="Synthetic abdomen")
    write_volume(folder / f"{name}.nii.gz", phantom.volume)
    write_instances(folder / f"{name}_labels.seg.nrrd", phantom.instances)
    write_json(folder / "phantom.json", describe(phantom))


def describe(phantom: Phantom) -> dict[str, Any]:
    """Return what was drawn, in plain lists and dicts; lesions by their instance id."""
    ids = phantom.lesion_ids
    pairs = {tuple(sorted((ids[i], ids[j]))) for i, lesion in enumerate(phantom.lesions) for j in lesion.touches}
    return {
        "seed": phantom.seed,
        "noise_sd_hu": round(phantom.noise_sd_hu, 2),
        "lesions": [
            {
                "instance": instance,
                "host": lesion.host,
                "diameter_mm": round(lesion.diameter_mm, 2),
                "contrast_hu": round(lesion.contrast_hu, 2),
                "cnr": round(lesion.cnr, 3),
                "voxels": int(np.count_nonzero(lesion.mask)),
                "necrosis": lesion.core is not None,
            }
            for instance, lesion in zip(ids, phantom.lesions, strict=True)
        ],
        "touching": [list(pair) for pair in sorted(pairs)],
    }
