"""The fault corpus: inputs built in code, each with the outcome that `medseg convert IN OUT.nii.gz` must have.

A case is a function that writes its input below a folder and returns what must come of it: `Exact` (this volume at
this place) or `Refused` (an error that names the reason). Variants of one fault are one case.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Exact:
    """The voxels (slice, row, column) and their place (index to LPS mm) that must come out.

    ``inside`` restricts the comparison of voxels to where the source says something (resampled volumes only), and
    ``within`` is how far a voxel may be off.
    """

    source: Path
    array: NDArray
    affine: NDArray
    options: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    within: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Refused:
    """What the one line of the error must say: every pattern of ``says``."""

    source: Path
    says: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)


Build = Callable[[Path], Exact | Refused | list[Exact | Refused]]
#: Sentence of the requirements -> name of the case -> its builder.
CASES: dict[str, dict[str, Build]] = {}


def case(sentence: str) -> Callable[[Build], Build]:
    """Enter a builder under the sentence that it tests."""

    def enter(build: Build) -> Build:
        cases = CASES.setdefault(sentence, {})
        assert build.__name__ not in cases
        cases[build.__name__] = build
        return build

    return enter
