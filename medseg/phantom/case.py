"""One synthetic patient: image, truth, and what was drawn."""

from dataclasses import dataclass

import numpy as np
from highdicom import Volume

from medseg.errors import ConfigError
from medseg.labels import Code, Label, LabelTable, palette_colour
from medseg.phantom import ct
from medseg.phantom.anatomy import paint_torso
from medseg.phantom.lesions import Lesion, add_lesions
from medseg.phantom.shapes import make_frame
from medseg.values.geometry import make_volume
from medseg.values.instances import Instance, InstanceSet, crop_to_object

SHAPE = (96, 128, 128)
SPACING_MM = (3.0, 2.8, 2.8)


def _sct(value: str, meaning: str) -> Code:
    return Code(value=value, scheme="SCT", meaning=meaning)


_ORGAN = _sct("123037004", "Anatomical Structure")
_ALTERED = _sct("49755003", "Morphologically Altered Structure")
_LEFT, _RIGHT = _sct("7771000", "Left"), _sct("24028007", "Right")
_ORGANS = (
    ("liver", "10200004", "Liver", None),
    ("spleen", "78961009", "Spleen", None),
    ("kidney_left", "64033007", "Kidney", _LEFT),
    ("kidney_right", "64033007", "Kidney", _RIGHT),
    ("aorta", "15825003", "Aorta", None),
    ("spine", "421060004", "Vertebral column", None),
)


def phantom_labels() -> LabelTable:
    """Return the phantom's labels: six organs (single), ``lesion`` and ``necrosis`` (ids).

    The spine is the whole vertebral column with discs and canal; a necrosis is the core of a lesion of
    more than 20 mm, so its voxels are also the lesion's and the organ's.
    """
    rows = [
        Label(
            id=i + 1, name=name, colour=palette_colour(i), kind="single",
            category=_ORGAN, type=_sct(value, meaning), laterality=side,
        )
        for i, (name, value, meaning, side) in enumerate(_ORGANS)
    ]  # fmt: skip
    for name, value, meaning in (("lesion", "52988006", "Lesion"), ("necrosis", "6574001", "Necrosis")):
        i = len(rows)
        code = _sct(value, meaning)
        rows.append(Label(id=i + 1, name=name, colour=palette_colour(i), kind="ids", category=_ALTERED, type=code))
    return LabelTable(rows)


@dataclass(frozen=True, kw_only=True)
class Phantom:
    """One synthetic CT with its truth.

    Attributes:
        volume: int16 HU, slices towards the head, rows towards posterior, columns towards the patient's left.
        instances: organs, then lesions, then necroses; lesions overlap their organ, necroses their lesion.
        noise_free: float32 HU on the same grid before noise was added.
        lesions: what was drawn, in the order of the lesions in ``instances``.
        noise_sd_hu: SD of the noise inside the body.
        seed: what the case was made from.
    """

    volume: Volume
    instances: InstanceSet
    noise_free: Volume
    lesions: tuple[Lesion, ...]
    noise_sd_hu: float
    seed: int

    @property
    def lesion_ids(self) -> tuple[int, ...]:
        """Instance ids of the lesions, in the order of ``lesions``."""
        label = self.instances.labels.by_name("lesion").id
        return tuple(i.id for i in self.instances if i.label == label)


def check_grid(seed: int, shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> None:
    """Refuse what `make_phantom` cannot draw; ConfigError says which argument and what is expected."""
    if seed < 0:
        raise ConfigError(f"seed {seed}: expected 0 or more")
    if len(shape) != 3 or min(shape) < 8:
        raise ConfigError(f"shape {tuple(shape)}: expected three axes (slices, rows, columns) of at least 8")
    if len(spacing_mm) != 3 or not all(0.2 <= s <= 20 for s in spacing_mm):
        raise ConfigError(f"spacing_mm {tuple(spacing_mm)}: expected (slice, row, column), each 0.2 to 20 mm")


def make_phantom(
    *,
    seed: int,
    shape: tuple[int, int, int] = SHAPE,
    spacing_mm: tuple[float, float, float] = SPACING_MM,
) -> Phantom:
    """Draw one patient; the same arguments give the same voxels.

    Args:
        seed: 0 or more.
        shape: (slices, rows, columns), at least 8 each. The patient keeps its size in mm: a smaller field of
            view cuts it around the upper abdomen, and organs outside it are absent.
        spacing_mm: (slice, row, column).

    Raises:
        ConfigError: an argument out of range.
    """
    check_grid(seed, shape, spacing_mm)
    # One stream per purpose: more of one thing does not change the others.
    pose, body, spots, grain = (np.random.default_rng(s) for s in np.random.SeedSequence(seed).spawn(4))
    table = phantom_labels()
    ids = {label.name: label.id for label in table}
    frame = make_frame(pose, shape, spacing_mm)
    corner = np.array([float(axis[0]) for axis in frame.axes])[::-1]
    table_mm = np.round(pose.uniform((-12, -190, -600), (12, -120, -150)), 1)
    affine = np.eye(4)
    affine[:3, :3] = np.diag(spacing_mm)[::-1]
    affine[:3, 3] = corner + table_mm
    noise_sd = float(grain.uniform(10, 16))
    torso = paint_torso(body, frame, ids)
    sharp, lesions = add_lesions(spots, frame, torso, ids, noise_sd=noise_sd)
    clean = ct.blur(sharp, spacing_mm)
    stored = ct.store(clean + ct.noise(grain, torso.inside, spacing_mm, noise_sd))
    source = f"phantom {seed}"
    volume = make_volume(stored, affine, source)
    found = []
    for name in ids:
        crop = crop_to_object(torso.owner == ids[name]) if name not in ("lesion", "necrosis") else None
        if crop is not None:
            found.append(Instance(id=1, label=ids[name], mask=crop[0], offset=crop[1]))
    found += [_instance(ids["lesion"], lesion.mask, lesion.offset) for lesion in lesions]
    found += [_instance(ids["necrosis"], lesion.core, lesion.offset) for lesion in lesions if lesion.core is not None]
    return Phantom(
        volume=volume, instances=InstanceSet.build(found, volume, table),
        noise_free=make_volume(clean, affine, source), lesions=lesions, noise_sd_hu=noise_sd, seed=seed,
    )  # fmt: skip


def _instance(label: int, mask: np.ndarray, offset: tuple[int, int, int]) -> Instance:
    crop = crop_to_object(mask)
    assert crop is not None
    a, b, c = (o + s for o, s in zip(offset, crop[1], strict=True))
    return Instance(id=1, label=label, mask=crop[0], offset=(a, b, c))
