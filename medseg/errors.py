"""The errors medseg raises on purpose.

    ValueError
     +-- MedsegError            exit code 2
          +-- InputError        a file, folder or array that cannot be used
          |    +-- GeometryError  its position in the patient cannot be trusted
          |    +-- CasesError   several cases of a cohort that cannot be used
          +-- ConfigError       a setting, plan or label table that makes no sense
          +-- ModelError        weights, runs or devices that cannot be used
          +-- ClusterError      a Dask scheduler or its workers that cannot be reached
          +-- ArchiveError      an archive (PACS) that refuses what is asked, or answers what cannot be used
               +-- UnreachableError  it does not answer, or not now; later it may

Every message is one line (`CasesError`: and one per case): which file or argument, what was found, what was expected,
what to do.
Anything else that escapes (an AssertionError, say) is a fault of medseg and keeps its traceback.
"""

from collections.abc import Sequence


class MedsegError(ValueError):
    """Base of everything a user can put right; the command line prints it as one line."""


class InputError(MedsegError):
    """A file, folder or array that cannot be read or does not hold what it should."""


class GeometryError(InputError):
    """An affine, spacing or grid that is broken, ambiguous, or does not fit its partner."""


class CasesError(InputError):
    """Several cases of a cohort that cannot be used: how many in the first line, then the reason of each in a line."""

    def __init__(self, headline: str, reasons: Sequence[str]):
        super().__init__("\n".join([headline, *reasons]))
        self.headline = headline
        self.reasons = tuple(reasons)


class ConfigError(MedsegError):
    """A setting, plan or label table that is unknown, out of range or contradictory."""


class ModelError(MedsegError):
    """Weights, a training run or a device that cannot be used as asked."""


class ArchiveError(MedsegError):
    """An archive (PACS) that refuses what is asked of it, or answers with what cannot be used."""


class UnreachableError(ArchiveError):
    """An archive that does not answer, or not now, however often it was asked; later it may."""


class ClusterError(MedsegError):
    """A Dask scheduler, or a system that starts its workers, that is not there, refuses, or is lost on the way."""
