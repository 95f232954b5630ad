"""How a result of ours is recognised in an archive, by standard attributes alone.

A segmentation is the result of a model version for a series if, in its own study, it

- has Modality SEG (0008,0060),
- refers to the series: ReferencedSeriesSequence (0008,1115) > SeriesInstanceUID (0020,000E), and
- names the algorithm in one of its segments: SegmentSequence (0062,0002) > SegmentationAlgorithmIdentificationSequence
  (0062,0007) > AlgorithmName (0066,0036) ``medseg`` and AlgorithmVersion (0066,0031) that version.

See PS3.3 C.8.20.2, C.7.6.16.2.6 and 10.16.
"""

from collections.abc import Iterator

from medseg.pacs.connection import Archive
from medseg.pacs.search import SeriesEntry, find_series, text_of, values_of

ALGORITHM_NAME = "medseg"


def find_result(archive: Archive, series: SeriesEntry, version: str) -> SeriesEntry | None:
    """Return the segmentation that a model version made of a series, None where the archive has none.

    Args:
        archive: that has the series.
        series: the images.
        version: AlgorithmVersion, as `medseg.inference.study.StudyPredictor.version` says it.

    Raises:
        ArchiveError: the archive refuses, or does not answer.
    """
    for entry in find_series(archive, series.study_uid):
        if entry.modality != "SEG":
            continue
        rows = archive.metadata(entry.study_uid, entry.uid)
        if any(_refers_to(row, series.uid) and version in _versions(row) for row in rows):
            return entry
    return None


def _refers_to(row: dict, series_uid: str) -> bool:
    return any(text_of(item, "0020000E") == series_uid for item in _items(row, "00081115"))


def _versions(row: dict) -> set[str]:
    """Return the versions of medseg's algorithms that the segments name."""
    return {
        text_of(algorithm, "00660031")
        for segment in _items(row, "00620002")
        for algorithm in _items(segment, "00620007")
        if text_of(algorithm, "00660036") == ALGORITHM_NAME
    }


def _items(row: dict, tag: str) -> Iterator[dict]:
    yield from (item for item in values_of(row, tag) if isinstance(item, dict))
