"""Folds: nnU-Net's own where every case is a patient, and no patient on both sides."""

from pathlib import Path

import pytest

from medseg.errors import ConfigError, InputError
from medseg.io.cohort_table import CohortRow
from medseg.training.folds import Fold, choose_fold, parse_fold, patients_of, split_folds


def row(name: str, patient: str) -> CohortRow:
    return CohortRow(name=name, images=(Path("/a") / f"{name}.nii.gz",), label=Path("/b") / name, patient=patient)


def alone(count: int) -> list[CohortRow]:
    """Cases in no order; patients' names sort against those of the cases."""
    rows = [row(f"case_{i:03d}", f"p{count - i:03d}") for i in range(count)]
    return rows[1::2] + rows[::2]


@pytest.mark.parametrize(
    ("count", "folds", "expected"),
    [
        # printed by scikit-learn 1.9.1: KFold(folds, shuffle=True, random_state=12345).split(range(count))
        (5, 5, [[0], [4], [3], [1], [2]]),
        (13, 5, [[0, 7, 9], [3, 6, 10], [8, 11, 12], [1, 4], [2, 5]]),
        (7, 3, [[3, 4, 6], [0, 1], [2, 5]]),
    ],
)
def test_the_folds_are_those_of_nnunet(count: int, folds: int, expected: list[list[int]]) -> None:
    rows = alone(count)
    for fold, held_out in enumerate(expected):
        training, validation = split_folds(rows, fold, folds)
        assert [r.name for r in validation] == [f"case_{i:03d}" for i in held_out]
        assert [r.name for r in training] == [f"case_{i:03d}" for i in range(count) if i not in held_out]


def test_a_large_cohort_begins_as_nnunet_s() -> None:
    _, validation = split_folds(alone(260), 0, 5)
    assert [int(r.name[-3:]) for r in validation[:6]] == [9, 10, 16, 18, 20, 30] and len(validation) == 52


def test_no_patient_is_on_both_sides() -> None:
    """Eleven cases of seven patients: every fold keeps patients whole, each case validates exactly once."""
    rows = [row(f"c{i:02d}", f"patient {i * 5 % 7}") for i in range(11)]
    seen: list[str] = []
    for fold in range(3):
        training, validation = split_folds(rows, fold, 3)
        assert not {r.patient for r in training} & {r.patient for r in validation}
        assert sorted([*training, *validation], key=lambda r: r.name) == rows
        seen += [r.name for r in validation]
        assert split_folds(rows[::-1], fold, 3) == (training, validation)
    assert sorted(seen) == [r.name for r in rows]
    assert patients_of(rows) == 7


def test_another_seed_is_another_split() -> None:
    assert split_folds(alone(13), 0, 5, seed=1) != split_folds(alone(13), 0, 5)


def test_too_few_patients_are_one_line() -> None:
    rows = [row("a", "1"), row("b", "1"), row("c", "2")]
    with pytest.raises(InputError, match=r"has 2 patients, expected at least 3 for 3 folds; .*\(--fold all\)"):
        split_folds(rows, 0, 3)
    with pytest.raises(ConfigError, match="fold 2/2: expected k/n"):
        split_folds(rows, 2, 2)


def test_what_fold_means() -> None:
    assert parse_fold("3/5") == Fold(number=3, count=5) and str(parse_fold(" 3/5 ")) == "3/5"
    assert (parse_fold("auto"), parse_fold("ALL")) == ("auto", "all")
    for text in ("5/5", "0/1", "0/0"):
        with pytest.raises(ConfigError, match=r"expected k/n with n at least 2"):
            parse_fold(text)
    for text in ("", "1", "-1/5", "1/5/2", "none", "0.5/5"):
        with pytest.raises(ConfigError, match=r"--fold .*: expected k/n .*, auto, or all"):
            parse_fold(text)


def test_auto_needs_five_patients() -> None:
    assert choose_fold("auto", alone(5)) == Fold(number=0, count=5)
    assert choose_fold("auto", alone(4)) is None
    assert choose_fold("auto", [row(f"c{i}", f"p{i % 4}") for i in range(9)]) is None
    assert choose_fold("all", alone(9)) is None
    assert choose_fold(Fold(number=1, count=2), alone(2)) == Fold(number=1, count=2)
