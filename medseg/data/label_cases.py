"""Which label file belongs to which case of a reference or a prediction, whatever they lie in.

A cohort in any layout that training takes (`medseg.data.cohort`), one label file, or a folder of label files such as
`medseg predict` writes (`medseg.io.case_files`).
"""

from collections.abc import Mapping
from pathlib import Path

from medseg.data.cohort import EXPECTED, find_cases, find_patients, lists_cases, with_kinds, with_labels, with_names
from medseg.data.layouts import ONE_CHANNEL, Cohort
from medseg.errors import InputError
from medseg.io.case_files import label_files
from medseg.io.cohort_table import CohortRow, read_cohort_labels
from medseg.io.instances import DICOM_SUFFIX
from medseg.labels import Kind, LabelTable
from medseg.progress import Track, silent


def find_label_cases(
    path: Path, *, labels: LabelTable | None = None, kinds: Mapping[str, Kind] | None = None, track: Track = silent
) -> Cohort:
    """Find the label files of a reference or a prediction; no voxel is read.

    Args:
        path: a label file, a folder of label files, a folder that `medseg predict` wrote, or a cohort.
        labels: label table, which wins over the ``labels.json`` beside the files and over ``dataset.json``.
        kinds: label name -> kind, which wins over the label table's.
        track: progress over folders of DICOM.

    Returns:
        A row per case; its images, where the layout names any, need not be there. Without ``labels`` each file has its
        own. ``layout`` is empty where this is no cohort.

    Raises:
        InputError: nothing there, no label files, or a broken table.
        ConfigError: a kind for a label that is not there.
    """
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; expected label files or a cohort")
    cohort = _find_cohort(path, track) or _find_files(path)
    own = labels if labels is not None else read_cohort_labels(path)
    if own is not None:
        cohort = with_labels(cohort, own, path)
    elif kinds and cohort.labels is None:
        cohort = with_names(cohort, path)
    return with_kinds(cohort, kinds or {}, path)


def _find_cohort(path: Path, track: Track) -> Cohort | None:
    """Return the cohort that a path means; None for label files."""
    if lists_cases(path):
        return find_cases(path, track, images=False)
    if path.is_file():
        return None
    # What `medseg predict` wrote has other files than DICOM; patients' folders may have a p1/p1_seg.dcm as well.
    files = label_files(path)
    if not all(file.name.lower().endswith(DICOM_SUFFIX) for file in files.values()):
        return None
    found = find_patients(path, track)
    return None if found is not None and files and not found.rows else found


def _find_files(path: Path) -> Cohort:
    files = label_files(path)
    if not files:
        for inner in (path / "raw_splitted" / "labelsTr", path / "labelsTr"):
            if inner.is_dir():  # of a cohort whose dataset.json is elsewhere; its label files name no labels
                raise InputError(
                    f"{path}: no label files found in it, but in {inner}; name that folder, and give --labels a JSON "
                    'with the names of its labels, such as [{"id": 1, "name": "liver"}]'
                )
        raise InputError(
            f"{path}: no label files found; expected <case>/<case>.seg.nrrd, <case>/<case>_instances.nii.gz, label "
            f"files such as <case>.nii.gz, or a cohort: {EXPECTED}"
        )
    rows = tuple(CohortRow(name=name, images=(), label=file, patient=name) for name, file in files.items())
    return Cohort(rows=rows, channels=ONE_CHANNEL, labels=None)
