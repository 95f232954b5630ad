"""Which label file belongs to which case, where no table lists them.

- one label file;
- a folder as `medseg predict` writes it: ``<case>/<case>.seg.nrrd`` (preferred, it keeps overlaps),
  ``<case>/<case>_seg.dcm`` or ``<case>/<case>_instances.nii.gz``;
- a folder of label files: ``<case>.seg.nrrd``, ``<case>_seg.dcm``, ``<case>_instances.nii.gz``, ``<case>.nii.gz`` ...
"""

from pathlib import Path

from medseg.io.cohort_table import stem_of

#: Endings of label files in the order of preference: the first keep overlaps.
ENDINGS = (
    ".seg.nrrd", "_seg.dcm", "_instances.nii.gz", "_rtstruct.dcm", ".dcm",
    ".nii.gz", ".nii", ".nrrd", ".nhdr", ".mha", ".mhd",
)  # fmt: skip
#: Endings that are no part of the case's name, beside the suffix.
_OWN_ENDINGS = ("_seg.dcm", "_instances.nii.gz", "_rtstruct.dcm")
#: Endings of what `medseg predict` writes beside the instances, which is no label file.
_NOT_LABELS = ("_semantic.nii.gz", "_probabilities.nii.gz")


def label_files(path: Path) -> dict[str, Path]:
    """Return the label file of each case in one of the layouts of the module text, by case name.

    A folder without label files has no cases.
    """
    if path.is_file():
        return {_case_of(path): path}
    found: dict[str, tuple[int, Path]] = {}
    for file in sorted(path.iterdir()):
        name = file.name
        # In a case's own folder only files named after the case count; overlays and other outputs lie there too.
        inside = [file / f"{name}{ending}" for ending in ENDINGS] if file.is_dir() else [file]
        for candidate in inside:
            rank = _rank(candidate)
            if rank is None or not candidate.is_file():
                continue
            case = name if file.is_dir() else _case_of(candidate)
            if case not in found or rank < found[case][0]:
                found[case] = (rank, candidate)
    return {name: file for name, (_, file) in found.items()}


def _rank(file: Path) -> int | None:
    """Return how much a file is preferred as its case's label file (0 most), None where it is no label file."""
    name = file.name.lower()
    if name.startswith(".") or name.endswith(_NOT_LABELS):
        return None
    return next((rank for rank, ending in enumerate(ENDINGS) if name.endswith(ending)), None)


def _case_of(file: Path) -> str:
    ending = next((e for e in _OWN_ENDINGS if file.name.lower().endswith(e)), None)
    return stem_of(file) if ending is None else file.name[: -len(ending)]
