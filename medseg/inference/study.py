"""One study from its path to its files: read, predict, save."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from highdicom import Volume, VolumeGeometry

import medseg
from medseg.data.grid import check_channels, stack_channels
from medseg.errors import MedsegError
from medseg.inference.ensemble import Ensemble, load_models
from medseg.inference.passes import PassSettings
from medseg.inference.predictor import Prediction, Predictor
from medseg.inference.provenance import environment, hash_files, hash_text
from medseg.inference.result import SavedPrediction, save_prediction
from medseg.inference.run import PLAN_FILE, WEIGHTS_FILE
from medseg.io import list_series, read_volume
from medseg.io.cohort_table import stem_of
from medseg.io.dicom import keep_scans
from medseg.io.dicom_context import DicomContext
from medseg.io.export import read_image_context
from medseg.io.identity import read_patient_id
from medseg.io.nifti import NIFTI_SUFFIXES
from medseg.io.series import series_name
from medseg.io.volumes import count_channels, read_channels
from medseg.progress import Note, Track, silent, unheard
from medseg.values.geometry import describe_grid
from medseg.values.placement import lattice_map


def study_name(path: Path, series: str | None = None) -> str:
    """Return what a study's files are called: a hash of the series UID for DICOM, else the file's stem.

    DICOM folders are often named after the patient, so their names are not used.
    """
    if _is_nifti(path):  # one of several volumes is no series that could be listed
        return stem_of(path)
    images = [info for info in list_series(path) if info.is_image and series in (None, info.uid)]
    if images and images[0].uid:
        return series_name(images[0].uid)
    # A DICOM folder whose files lack the UID is named by their contents.
    return hash_files(study_files(path, series))[:10] if path.is_dir() else stem_of(path)


def _is_nifti(path: Path) -> bool:
    return path.is_file() and path.name.lower().endswith(NIFTI_SUFFIXES)


def study_files(path: Path, series: str | None = None) -> list[Path]:
    """Return the files that a study is read from: the series' own files in a folder, else the file itself."""
    if not path.is_dir():
        return [path]
    return [file for info in list_series(path) if info.is_image and series in (None, info.uid) for file in info.files]


def input_hash(study: Sequence[Path], series: str | None = None) -> str:
    """Return the hash of what is in the files of a study, all of its images together."""
    return hash_files([file for image in study for file in study_files(image, series)])


def series_context(study: Path, series: str | None, grid: VolumeGeometry) -> tuple[DicomContext | None, str]:
    """Return what a DICOM SEG of the study needs, or None and why there is none (nothing where it is no DICOM)."""
    if _is_nifti(study):
        return None, ""
    try:
        context = read_image_context(study, series)
    except MedsegError:  # the study was read, so its slices are no even stack, and what was read is not on them
        return None, "no DICOM SEG was written: the volume was resampled, its voxels are not those of the series"
    if not isinstance(context, DicomContext):
        return None, ""
    if context.missing:
        return None, f"no DICOM SEG was written: the series has no {', no '.join(context.missing)}"
    if lattice_map(grid, context.geometry) is None:
        return None, "no DICOM SEG was written: the volume was resampled, its voxels are not those of the series"
    return context, ""


class StudyPredictor:
    """A trained run, or several as an ensemble, opened once and applied to studies.

    Args:
        runs: folder of a training run; or of several of the same labels, channels and orientation.
        device: where to compute.
        passes: how often each model looks at a study; None: once.
        settings: see `load_models`.

    Raises:
        ModelError, ConfigError: see `load_models` and `Ensemble`.
    """

    def __init__(
        self,
        runs: Path | Sequence[Path],
        device: torch.device,
        passes: PassSettings | None = None,
        settings: Mapping[str, Any] | None = None,
    ):
        folders = (runs,) if isinstance(runs, Path) else tuple(runs)
        models = load_models(folders, device, settings)
        looks = passes or PassSettings()
        alone = len(models) == 1 and looks == PassSettings()
        self.predictor: Predictor | Ensemble = models[0] if alone else Ensemble(models, looks)
        self.plan = self.predictor.plan
        self.device = device
        self.model_hashes = [hash_files([folder / PLAN_FILE, folder / WEIGHTS_FILE]) for folder in folders]
        self._plans = hash_text("".join(model.plan.to_yaml() for model in models))
        given = [*sorted(self.model_hashes), *([] if looks == PassSettings() else [repr(looks)])]
        #: The AlgorithmVersion of a DICOM SEG: of medseg, and what tells models apart, their passes included.
        self.version = f"{medseg.__version__} model {hash_text(' '.join(given))[:12]}"

    @property
    def model_sha256(self) -> str | list[str]:
        """Plan and weights of the run, or of each of several, as run.json has it."""
        return self.model_hashes[0] if len(self.model_hashes) == 1 else self.model_hashes

    def settings_sha256(
        self, *, resample_uneven: bool, resample_tilt: bool, nifti_form: str | None, keep_identity: bool
    ) -> str:
        """Return a hash of what decides a result beside model and study; see `run` for the arguments.

        That is the version of medseg, the plans with what was set in place of theirs, the passes, and how the study is
        read.
        """
        passes = self.predictor.describe() if isinstance(self.predictor, Ensemble) else None
        reading = (resample_uneven, resample_tilt, nifti_form, keep_identity)
        return hash_text(json.dumps([medseg.__version__, self._plans, passes, reading]))

    @keep_scans()  # who names, reads, hashes and writes a DICOM series wants its headers
    def run(
        self,
        study: Sequence[Path],
        out: Path,
        name: str,
        series: str | None = None,
        track: Track = silent,
        *,
        resample_uneven: bool = False,
        resample_tilt: bool = False,
        nifti_form: str | None = None,
        keep_identity: bool = False,
        note: Note = unheard,
        tell: Note = unheard,
        stage: Note = unheard,
    ) -> tuple[Prediction, SavedPrediction]:
        """Read a study, find its objects, and write them to ``out / name``, on the grid of its first image.

        Args:
            study: its images, one per channel of the plan and in its order, all on one grid; or one 4-D NIfTI file,
                each volume of it a channel.
            out: folder of the results.
            name: of the case.
            series, resample_uneven, resample_tilt, nifti_form: see `read_volume`; for every image.
            track: progress.
            keep_identity: run.json says the PatientID; otherwise nothing that is written names the patient.
            note: told what is amiss in a file.
            tell: told what several passes will cost, before the first.
            stage: told what begins: read, predict, write.

        Raises:
            InputError: another number of images than the plan's, or one that cannot be read.
            GeometryError: images on different grids.
        """
        stage("read")
        several = len(study) == 1 and len(self.plan.input.channel_names) > 1 and _is_nifti(study[0])
        check_channels(count_channels(study[0]) if several else len(study), self.plan.input)
        patient = {"patient_id": read_patient_id(study[0], series)} if keep_identity else {}
        start = time.perf_counter()
        volumes: Sequence[Volume]
        if several:
            volumes, names = read_channels(study[0], nifti_form=nifti_form, note=note), self.plan.input.channel_names
        else:
            names = tuple(str(image) for image in study)
            volumes = [
                read_volume(
                    image,
                    series=series,
                    resample_uneven=resample_uneven,
                    resample_tilt=resample_tilt,
                    nifti_form=nifti_form,
                    track=track,
                    note=note,
                )
                for image in study
            ]
        volume = volumes[0]
        stacked = stack_channels(volumes, names)
        seconds = {"read": time.perf_counter() - start}
        stage("predict")
        passes = {}
        if isinstance(self.predictor, Ensemble):
            cost = self.predictor.cost(stacked)
            tell(f"{name}: {cost}")
            passes = {
                "passes": {**self.predictor.describe(), "count": cost.passes, "cost_factor": round(cost.factor, 3)}
            }
        prediction = self.predictor.predict(stacked, track)
        stage("write")
        start = time.perf_counter()
        context, problem = series_context(study[0], series, volume.get_geometry())
        if problem:
            prediction = replace(prediction, warnings=(*prediction.warnings, problem))
        provenance = {
            **patient,
            "environment": environment(self.device),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "input_sha256": input_hash(study, series),
            "input_grid": describe_grid(volume),
            "model_sha256": self.model_sha256,
            "settings_sha256": self.settings_sha256(
                resample_uneven=resample_uneven,
                resample_tilt=resample_tilt,
                nifti_form=nifti_form,
                keep_identity=keep_identity,
            ),
            "seed": self.plan.training.seed,
            **passes,
        }
        prediction.seconds.update(seconds, record=time.perf_counter() - start)
        return prediction, save_prediction(
            out / name, name, volume, prediction, self.plan, provenance, context, version=self.version
        )
