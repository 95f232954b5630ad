"""The fault corpus through `medseg convert`: the exact volume, or a refusal that names the reason."""

import re
from pathlib import Path

import corpus.dicom_series
import corpus.dicom_values
import corpus.files
import nibabel as nib
import numpy as np
import pytest
from corpus import CASES, Exact, Refused

from medseg.cli import convert
from medseg.errors import MedsegError

ALL = [(sentence, name) for sentence, cases in CASES.items() for name in cases]


@pytest.mark.parametrize(("sentence", "name"), ALL, ids=[name for _, name in ALL])
def test_corpus(sentence: str, name: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    made = CASES[sentence][name](tmp_path / "in")
    for index, outcome in enumerate(made if isinstance(made, list) else [made]):
        target = tmp_path / f"out{index}.nii.gz"
        if isinstance(outcome, Refused):
            with pytest.raises(MedsegError) as caught:
                run_convert(outcome, target)
            message = str(caught.value)
            assert "\n" not in message and not target.exists(), message
            missing = [pattern for pattern in outcome.says if not re.search(pattern, message)]
            assert not missing, f"outcome {index}: {missing} not in: {message}"
        else:
            run_convert(outcome, target)
            check_exact(outcome, target)
            said = capsys.readouterr().err
            assert not [note for note in outcome.notes if not re.search(note, said)], said


def run_convert(outcome: Exact | Refused, target: Path) -> None:
    sources = outcome.source if isinstance(outcome.source, tuple) else (outcome.source,)
    convert.run(list(sources), target, **outcome.options)


def check_exact(outcome: Exact, target: Path) -> None:
    """Compare with nibabel: every voxel, and the place of the corners (NIfTI keeps float32)."""
    image = nib.load(target)
    got = np.asarray(image.dataobj).transpose(2, 1, 0)
    assert got.shape == outcome.array.shape
    np.testing.assert_allclose(got, outcome.array, rtol=0, atol=outcome.within)
    affine = np.diag([-1, -1, 1, 1]) @ image.affine[:, [2, 1, 0, 3]]
    last = np.array([*outcome.array.shape, 2]) - 1
    for index in ([0, 0, 0, 1], last, [last[0], 0, 0, 1], [0, last[1], 0, 1]):
        np.testing.assert_allclose(affine @ index, outcome.affine @ index, atol=2e-3)


def test_the_corpus_is_large_enough() -> None:
    assert len(ALL) >= 45 and corpus.dicom_series and corpus.dicom_values and corpus.files
