"""What ways of finding objects are compared on: touching lesions in an organ, phantoms, and overlapping segments."""

from pathlib import Path

import numpy as np
from highdicom import Volume
from numpy.typing import NDArray
from scipy import ndimage

from medseg.io import read_instances, read_volume
from medseg.labels import Label, LabelTable
from medseg.phantom import make_phantom
from medseg.values.geometry import make_volume
from medseg.values.instances import InstanceSet

LABELS = LabelTable(
    [
        Label(id=1, name="organ", colour=(200, 160, 90), kind="single"),
        Label(id=2, name="lesion", colour=(200, 60, 60), kind="ids"),
    ]
)
SHAPE, SPACING_MM = (16, 96, 96), (5.0, 2.0, 2.0)
#: Radii of lesions, and how many of them besides the pair that touches.
RADIUS_MM, MORE = (10.0, 18.0), (2, 4)
#: HU of surroundings and organ, SD of the noise; lesions are so much darker than the organ, touching ones differ so.
AROUND_HU, ORGAN_HU, NOISE_HU, CONTRAST_HU, APART_HU = 30.0, 100.0, 12.0, (35.0, 55.0), (6.0, 14.0)
Case = tuple[Volume, InstanceSet]


def draw_touching(seed: int) -> Case:
    """Draw an organ with lesions, two of which touch face to face; lesions are the organ's voxels as well.

    Bodies are ellipsoids; where two of them would overlap, a voxel is of the one whose middle is nearer in units of its
    size. Simple enough to be learnt within a minute of a processor, which the phantoms' lesions are not.
    """
    rng = np.random.default_rng(seed)
    at = np.stack([(np.arange(n) - (n - 1) / 2) * s for n, s in zip(SHAPE, SPACING_MM, strict=True)][:1])[0]
    z, y, x = np.meshgrid(
        at, *((np.arange(n) - (n - 1) / 2) * s for n, s in zip(SHAPE[1:], SPACING_MM[1:], strict=True)), indexing="ij"
    )
    grid = np.stack([z, y, x])
    radii = np.array([36.0, 66.0, 72.0]) * rng.uniform(0.9, 1.1, 3)
    organ = _distance(grid, rng.normal(0, 4, 3), radii) < 1
    bodies = _place(rng, radii * 0.85)
    distances = np.stack([_distance(grid, centre, sides) for centre, sides, _ in bodies])
    nearest = distances.argmin(axis=0)
    hu = np.where(organ, ORGAN_HU, AROUND_HU)
    masks = []
    for number, (_, _, contrast) in enumerate(bodies):
        mask = (distances[number] < 1) & (nearest == number) & organ
        hu[mask] = ORGAN_HU - contrast
        masks.append((2, mask))
    hu = ndimage.gaussian_filter(hu, (0.3, 0.5, 0.5)) + rng.normal(0, NOISE_HU, SHAPE)
    affine = np.eye(4)
    affine[:3, :3] = np.diag(SPACING_MM)[::-1]
    volume = make_volume(np.rint(hu).astype(np.int16), affine, f"touching {seed}")
    return volume, InstanceSet.from_masks([(1, organ), *masks], volume, LABELS)


def _distance(grid: NDArray, centre: NDArray, radii: NDArray) -> NDArray:
    """Return the distance from the middle in units of the ellipsoid's size."""
    return np.sqrt((np.square((grid - centre[:, None, None, None]) / radii[:, None, None, None])).sum(axis=0))


def _place(rng: np.random.Generator, room_mm: NDArray) -> list[tuple[NDArray, NDArray, float]]:
    """Return middle, radii and contrast of two bodies that touch and of some that stand alone."""
    bodies: list[tuple[NDArray, NDArray, float]] = []
    wanted = 2 + int(rng.integers(MORE[0], MORE[1] + 1))
    for _ in range(2000):
        if len(bodies) == wanted:
            break
        radius, contrast = rng.uniform(*RADIUS_MM), rng.uniform(*CONTRAST_HU)
        centre = rng.uniform(-1, 1, 3) * room_mm
        if len(bodies) == 1:  # beside the first
            way = rng.normal(size=3) * [0.3, 1, 1]
            centre = bodies[0][0] + way / np.linalg.norm(way) * 0.85 * (radius + bodies[0][1].mean())
            contrast = bodies[0][2] + rng.choice([-1, 1]) * rng.uniform(*APART_HU)
        gaps = [np.linalg.norm(centre - other) - radius - sides.mean() for other, sides, _ in bodies]
        inside = np.linalg.norm(centre / room_mm) < 0.8
        if inside and (len(bodies) == 1 or min(gaps, default=99) > 8):
            bodies.append((centre, radius * rng.uniform(0.9, 1.1, 3), contrast))
    return bodies


def draw_phantom(seed: int) -> Case:
    """Draw one of medseg's phantoms: organs, lesions in them, two of which touch, and necroses in these."""
    phantom = make_phantom(seed=seed)
    return phantom.volume, phantom.instances


def read_overlaps(data: Path) -> Case | None:
    """Return dcmqi's CT of three slices with five segments that overlap in part; None where it is not there."""
    folder = data / "dicom_seg" / "dcmqi"
    if not (folder / "partial_overlaps.dcm").is_file():
        return None
    return read_volume(folder / "ct-3slice"), read_instances(folder / "partial_overlaps.dcm")


def as_one_label(truth: InstanceSet) -> InstanceSet:
    """Return the same objects as objects of one label."""
    labels = LabelTable([Label(id=1, name="object", colour=(60, 160, 60), kind="ids")])
    return InstanceSet.from_masks([(1, truth.full_mask(i.id)) for i in truth], truth.geometry, labels)
