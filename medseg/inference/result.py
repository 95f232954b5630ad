"""A prediction as files: masks for viewers, measurements, a picture, and how it was made."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from highdicom import Volume

import medseg
from medseg.inference.predictor import Prediction
from medseg.inference.provenance import hash_file
from medseg.io import write_instances
from medseg.io.atomic import write_json
from medseg.io.dicom_context import DicomContext
from medseg.io.dicom_seg_labels import predicted_by
from medseg.io.label_tables import write_bids_table, write_itksnap_table
from medseg.metrics.measurement import Measurement, measure
from medseg.reporting.case_report import REPORT_FILE, RUN_FILE, SR_ENDING, THUMBNAIL_ENDING, CaseReport, save_case
from medseg.reporting.overlay import save_overlay
from medseg.reporting.tables import measurement_dict, write_measurements_csv, write_measurements_json
from medseg.values.geometry import spacing_of
from medseg.values.plan import Plan


@dataclass(frozen=True, kw_only=True, eq=False)
class SavedPrediction:
    """A case that was saved; a notebook shows its pictures and objects.

    Attributes:
        files: what was written.
        lost_ml: what the flat label map lost to overlaps, ml per instance id.
        folder: where the files are.
        case: what its report shows.
        measurements: of every object.
    """

    files: tuple[Path, ...]
    lost_ml: dict[int, float]
    folder: Path
    case: CaseReport
    measurements: tuple[Measurement, ...]

    def report(self) -> Path:
        """Write report.html, one page that works without a network, and a thumbnail beside the files; return its path.

        Example:
            >>> prediction, saved = predictor.run([Path("study")], Path("results"), "case")  # doctest: +SKIP
            >>> saved.report()  # doctest: +SKIP
        """
        return save_case(self.case, self.folder)

    def _repr_html_(self) -> str:
        return self.case._repr_html_()


def save_prediction(
    folder: Path,
    name: str,
    volume: Volume,
    prediction: Prediction,
    plan: Plan,
    provenance: Mapping[str, Any],
    context: DicomContext | None = None,
    version: str = medseg.__version__,
) -> SavedPrediction:
    """Write a case to ``folder``, every file whole or not at all, run.json last.

    ``NAME_instances.nii.gz`` (uint16 ids on the input's grid, one voxel one id, higher score wins) with its
    ``.json``; ``NAME.seg.nrrd`` (3D Slicer, overlaps kept); with a context ``NAME_seg.dcm`` (DICOM SEG, overlaps
    kept, the patient and study of the series); ``NAME_dseg.tsv`` (BIDS); ``NAME_itksnap.txt``;
    ``NAME_measurements.csv`` and ``.json``; ``NAME_overlay.png``; ``run.json``.

    Args:
        folder: made where missing.
        name: prefix of the files; never from a patient's name or id.
        volume: the image predicted on.
        prediction: its objects.
        plan: for the display window.
        provenance: what else run.json should say (input by hash, model, device).
        context: the DICOM series that the volume was read from.
        version: AlgorithmVersion in the DICOM SEG.
    """
    instances = prediction.instances
    # Of a prediction before, which they would outlive.
    for stale in (REPORT_FILE, f"{name}{THUMBNAIL_ENDING}", f"{name}{SR_ENDING}"):
        (folder / stale).unlink(missing_ok=True)
    start = time.perf_counter()
    flat = write_instances(folder / f"{name}_instances.nii.gz", instances)
    segments = write_instances(folder / f"{name}.seg.nrrd", instances)
    files = [*flat.files, *segments.files]
    if context is not None and (len(instances) or len(instances.labels)):
        algorithms = [predicted_by("medseg", version)] * max(len(instances), 1)
        files += write_instances(folder / f"{name}_seg.dcm", instances, context=context, algorithms=algorithms).files
    files.append(write_bids_table(folder / f"{name}_dseg.tsv", instances))
    files.append(write_itksnap_table(folder / f"{name}_itksnap.txt", instances))
    measurements = measure(instances, volume)
    files.append(folder / f"{name}_measurements.csv")
    write_measurements_csv(measurements, files[-1])
    files.append(folder / f"{name}_measurements.json")
    write_measurements_json(measurements, files[-1])
    files.append(folder / f"{name}_overlay.png")
    written = time.perf_counter()
    save_overlay(files[-1], volume, instances, window=display_window(plan))
    prediction.seconds.update(write=written - start, overlay=time.perf_counter() - written)
    voxel_ml = float(np.prod(spacing_of(volume))) / 1000
    lost = {i: n * voxel_ml for i, n in flat.lost_voxels.items()}
    warnings = list(prediction.warnings)
    if lost:
        warnings.append(
            f"{sum(lost.values()):.2f} ml of {len(lost)} objects are covered by objects of higher score in the flat "
            f"label map; {name}.seg.nrrd keeps them"
        )
    files.append(folder / RUN_FILE)
    run = {
        **provenance,
        "case": name,
        "instances": len(instances),
        "overlap_lost_ml": lost,
        "linking": {
            "optimality_gap": prediction.optimality_gap,
            "doubtful_joins": [
                {
                    "instance": join.instance,
                    "point_lps_mm": [round(v, 2) for v in join.point_mm],
                    "log_odds": round(join.log_odds, 3),
                    "confidence": round(join.confidence, 3),
                }
                for join in prediction.doubtful_joins
            ],
        },
        "warnings": warnings,
        "display_window": display_window(plan),
        "seconds": {stage: round(s, 3) for stage, s in prediction.seconds.items()},
        "outputs": {file.name: hash_file(file) for file in files[:-1]},
        "notice": "Research use only; not for diagnosis or treatment.",
    }
    write_json(files[-1], run)
    case = CaseReport(
        name=name,
        instances=instances,
        volume=volume,
        window=display_window(plan),
        measurements=[measurement_dict(m) for m in measurements],
        run=run,
    )
    return SavedPrediction(files=tuple(files), lost_ml=lost, folder=folder, case=case, measurements=tuple(measurements))


def display_window(plan: Plan) -> tuple[float, float] | None:
    """Return the widest HU window of a plan for pictures; None (from the image) where it has none."""
    if plan.input.intensity != "window":
        return None
    return max(plan.input.windows, key=lambda window: window[1] - window[0])
