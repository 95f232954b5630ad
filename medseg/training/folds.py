"""Which cases train and which validate: folds seeded as nnU-Net's, no patient on both sides."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from medseg.errors import ConfigError, InputError
from medseg.io.cohort_table import CohortRow

#: nnU-Net's seed: where every case is a patient of its own, the folds are those of nnU-Net's splits_final.json.
SEED = 12345
#: What ``auto`` stands for where there are enough patients.
AUTO_FOLDS = 5


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Fold ``number`` (from 0) of ``count``: its cases validate, all others train."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if self.count < 2 or not 0 <= self.number < self.count:
            raise ConfigError(
                f"fold {self.number}/{self.count}: expected k/n with n at least 2 and k from 0 to n - 1, "
                "for example 0/5"
            )

    def __str__(self) -> str:
        return f"{self.number}/{self.count}"


def parse_fold(text: str) -> Fold | Literal["auto", "all"]:
    """Read ``k/n``, ``auto`` or ``all`` as `medseg train --fold` takes it.

    Raises:
        ConfigError: anything else, or a k that is not among n folds.
    """
    word = text.strip().lower()
    if word == "auto":
        return "auto"
    if word == "all":
        return "all"
    match = re.fullmatch(r"(\d+)/(\d+)", word)
    if match is None:
        raise ConfigError(f"--fold {text!r}: expected k/n (for example 0/5), auto, or all (no validation)")
    return Fold(number=int(match[1]), count=int(match[2]))


def patients_of(rows: Iterable[CohortRow]) -> int:
    """Count the patients of cases."""
    return len({row.patient for row in rows})


def choose_fold(wanted: Fold | Literal["auto", "all"], rows: Sequence[CohortRow]) -> Fold | None:
    """Return the fold to train; None for training on everything.

    ``auto`` is 0/5 where there are at least five patients, else None: fewer say too little about others, and
    every one is needed to train on.
    """
    if isinstance(wanted, Fold):
        return wanted
    enough = wanted == "auto" and patients_of(rows) >= AUTO_FOLDS
    return Fold(number=0, count=AUTO_FOLDS) if enough else None


def split_folds(
    rows: Sequence[CohortRow], fold: int, folds: int, seed: int = SEED
) -> tuple[tuple[CohortRow, ...], tuple[CohortRow, ...]]:
    """Split cases into those that train and those that validate.

    Patients, in the order of the first of their case names, are shuffled by numpy's legacy generator and cut into
    folds of nearly equal size, the larger ones first. This is scikit-learn's ``KFold(folds, shuffle=True,
    random_state=seed)`` on sorted identifiers, as nnU-Net calls it (Isensee et al., Nature Methods 18, 2021;
    ``generate_crossval_split``), carried over to patients. The folds are disjoint and cover all cases; the order of
    ``rows`` does not matter.

    Args:
        rows: cases with unique names.
        fold: which one validates, 0..folds - 1.
        folds: how many there are.
        seed: of the shuffle.

    Returns:
        Training and validation cases, each ordered by name.

    Raises:
        ConfigError: a fold that does not exist.
        InputError: fewer patients than folds.
    """
    Fold(number=fold, count=folds)
    ordered = sorted(rows, key=lambda row: row.name)
    patients = list(dict.fromkeys(row.patient for row in ordered))
    if len(patients) < folds:
        raise InputError(
            f"the cohort has {len(patients)} patients, expected at least {folds} for {folds} folds; ask for fewer "
            "folds (--fold k/n), or train on everything (--fold all)"
        )
    shuffled = np.arange(len(patients))
    np.random.RandomState(seed).shuffle(shuffled)
    held_out = {patients[i] for i in np.array_split(shuffled, folds)[fold]}
    training = tuple(row for row in ordered if row.patient not in held_out)
    return training, tuple(row for row in ordered if row.patient in held_out)
