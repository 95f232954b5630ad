"""Where the time of a prediction went, stage by stage."""

from collections.abc import Mapping
from typing import NamedTuple

#: Stages in their order, and what each is called in tables.
STAGES = {
    "read": "read the images",
    "grid": "bring them to the network's grid",
    "network": "network",
    "fusion": "put several passes together",
    "linking": "link, and paste on the images' grid",
    "record": "headers for DICOM SEG, hashes",
    "write": "write masks and measurements",
    "overlay": "draw the overlay",
    "report": "write the report",
}


class Stage(NamedTuple):
    """One stage: its key in run.json, what it is called, seconds, and the share of the whole."""

    name: str
    title: str
    seconds: float
    share: float


def profile(seconds: Mapping[str, float]) -> tuple[Stage, ...]:
    """Return the stages that took part, in their order; shares add up to 1 (of nothing they are 0)."""
    total = sum(seconds.values())
    known = [name for name in STAGES if name in seconds]
    return tuple(
        Stage(name, STAGES.get(name, name), seconds[name], seconds[name] / total if total else 0.0)
        for name in [*known, *sorted(set(seconds) - set(known))]
    )


def profile_dict(seconds: Mapping[str, float]) -> dict[str, object]:
    """Return a profile as plain data, for profile.json: seconds and shares, and the share outside of the network."""
    stages = profile(seconds)
    return {
        "stages": {s.name: {"seconds": round(s.seconds, 3), "share": round(s.share, 4)} for s in stages},
        "seconds": round(sum(seconds.values()), 3),
        "share_outside_network": round(sum(s.share for s in stages if s.name != "network"), 4),
    }
