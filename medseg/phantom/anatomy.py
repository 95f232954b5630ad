"""The upper abdomen of one patient: body wall, organs and look-alikes, painted in an order that lets them touch."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from medseg.phantom.shapes import (
    Array,
    Frame,
    Point,
    Window,
    capsule,
    ellipsoid,
    occupancy,
    rotation,
    smooth_field,
    smooth_intersection,
    smooth_union,
)

FAT_HU, GAS_HU, AIR_HU = -103.0, -950.0, -1000.0
#: HU without contrast medium and at full portal-venous enhancement.
_PHASES = {
    "liver": (58.0, 106.0),
    "spleen": (48.0, 116.0),
    "kidney": (33.0, 158.0),
    "blood": (42.0, 152.0),
    "muscle": (53.0, 63.0),
    "gut": (34.0, 88.0),
    "pancreas": (42.0, 98.0),
}


@dataclass(frozen=True, kw_only=True)
class Torso:
    """What was painted.

    Attributes:
        hu: float32 (slice, row, column), sharp, without noise.
        owner: uint8, the label id of the organ that each voxel centre lies in, 0 = none.
        inside: bool, within the skin.
        organ_hu: HU of each labelled organ, by label id.
    """

    hu: Array
    owner: NDArray[np.uint8]
    inside: NDArray[np.bool_]
    organ_hu: dict[int, float]


class _Canvas:
    """HU and owner of each voxel; what is painted later covers what was there."""

    def __init__(self, frame: Frame):
        self.frame = frame
        self.hu = np.full(frame.shape, AIR_HU, np.float32)
        self.owner = np.zeros(frame.shape, np.uint8)

    def paint(self, window: Window, f: Array, hu: float | Array, label: int = 0) -> None:
        share = occupancy(f)
        target = self.hu[window]
        target += share * (hu - target)
        self.owner[window][f < 0] = label

    def window(self, centre: Point, reach: float) -> Window:
        return self.frame.box(
            (centre[0] - reach, centre[1] - reach, centre[2] - reach),
            (centre[0] + reach, centre[1] + reach, centre[2] + reach),
        )


class Painter:
    """Draws one patient; every random choice comes from ``rng``, in the order of the methods in `paint_torso`."""

    def __init__(self, rng: np.random.Generator, frame: Frame, labels: dict[str, int]):
        self.rng = rng
        self.frame = frame
        self.labels = labels
        self.canvas = _Canvas(frame)
        self.organ_hu: dict[int, float] = {}
        phase = rng.uniform(0.35, 1.0)
        self.hu = {
            name: native + phase * (full - native) + rng.normal(0, 4.0) for name, (native, full) in _PHASES.items()
        }

    def around(self, point: Point, sd_mm: float) -> Point:
        """Return a point near another, at most two SD off along each axis."""
        x, y, z = (p + s for p, s in zip(point, self.rng.normal(0, sd_mm, 3).clip(-2 * sd_mm, 2 * sd_mm), strict=True))
        return float(x), float(y), float(z)

    def scaled(self, radii: Point, sd: float = 0.06) -> Point:
        """Return radii that vary together and a little one by one."""
        common = 1 + self.rng.normal(0, sd)
        a, b, c = (r * common * (1 + e) for r, e in zip(radii, self.rng.normal(0, sd / 2, 3), strict=True))
        return float(a), float(b), float(c)

    def turned(self, degrees: Point, sd: float = 5.0) -> NDArray[np.float32]:
        """Return a rotation near the given angles."""
        a, b, c = np.add(degrees, self.rng.normal(0, sd, 3))
        return rotation(a, b, c)

    def blob(self, centre: Point, radii: Point, hu: float, label: int = 0, inside: bool = True) -> None:
        """Paint one ellipsoid, inside the abdominal cavity unless told otherwise."""
        window = self.canvas.window(centre, max(radii) + 3)
        at = self.frame.crop(window)
        if at.x.size == 0:
            return
        f = ellipsoid(at, centre, radii)
        if inside:
            f = np.maximum(f, self.cavity[window] + 1)
        self.canvas.paint(window, f, hu, label)

    def tube(self, points: list[Point], radii: list[float], hu: float, within: int | None = None) -> None:
        """Paint a vessel or gut along a polyline; ``within`` keeps it inside one label, whose owner stays."""
        for a, b, ra, rb in zip(points[:-1], points[1:], radii[:-1], radii[1:], strict=True):
            reach = max(ra, rb) + 3
            window = self.frame.box(
                (min(a[0], b[0]) - reach, min(a[1], b[1]) - reach, min(a[2], b[2]) - reach),
                (max(a[0], b[0]) + reach, max(a[1], b[1]) + reach, max(a[2], b[2]) + reach),
            )
            at = self.frame.crop(window)
            if at.x.size == 0:
                continue
            f = capsule(at, a, b, ra, rb)
            if within is None:
                self.canvas.paint(window, f, hu)
            else:
                share = occupancy(f) * (self.canvas.owner[window] == within)
                target = self.canvas.hu[window]
                target += share * (np.float32(hu) - target)

    def body(self) -> NDArray[np.bool_]:
        """Paint skin, fat, muscle wall, cavity and ribs; set ``cavity``, the distance to the cavity's wall."""
        rng, at, canvas = self.rng, self.frame, self.canvas
        everything = (slice(None),) * 3
        a, b, power = rng.uniform(145, 165), rng.uniform(104, 120), rng.uniform(2.15, 2.5)
        waist = 1 - rng.uniform(0.0, 0.06) * np.exp(-np.square((at.z + 60) / 60))
        radius = np.hypot(at.x, at.y) + np.float32(1e-3)
        rho = (np.abs(at.x / (a * waist)) ** power + np.abs(at.y / (b * waist)) ** power) ** (1 / power)
        skin = (radius * (1 - 1 / rho)).astype(np.float32)
        sine, cosine = at.x / radius, at.y / radius  # +1: patient's left; +1: posterior
        fat = rng.uniform(9, 26)
        wall = skin + np.float32(fat) * (1 + 0.25 * np.abs(sine) - 0.15 * cosine)
        muscle_hu = self.hu["muscle"]
        fat_hu = FAT_HU + rng.normal(0, 4)
        self.fat_hu = fat_hu
        canvas.paint(everything, skin, muscle_hu - 40)
        canvas.paint(everything, skin + 2.5, fat_hu)
        canvas.paint(everything, wall, muscle_hu)
        self.cavity = wall + np.float32(rng.uniform(11, 15)) + 5 * np.clip(cosine, 0, 1)
        canvas.paint(everything, self.cavity, fat_hu)
        # Ribs run down from the spine to the front; below the costal arch there are none.
        pitch = rng.uniform(27, 32)
        drop = np.float32(rng.uniform(35, 55)) * (0.5 - 0.5 * cosine)
        height = np.mod(at.z + drop + rng.uniform(0, pitch), pitch) - pitch / 2
        rib = np.hypot(height / 5.5, (wall + 7.5) / 3.2) - 1
        arch = (-75 + 120 * np.clip(-cosine, 0, 1) ** 2) - at.z
        ribs = np.maximum(rib * 4, arch)
        canvas.paint(everything, ribs, rng.uniform(280, 420))
        canvas.paint(everything, ribs + 2.2, rng.uniform(120, 200))
        return skin < 0

    def back_muscles(self) -> None:
        """Paint erector spinae and psoas."""
        hu = self.hu["muscle"]
        at = self.frame
        for side in (-1, 1):
            self_window = at.box((side * 35 - 40, 40, -400), (side * 35 + 40, 125, 400))
            near = at.crop(self_window)
            erector = (np.hypot((near.x - side * 34) / 25, (near.y - 90) / 14) - 1) * 14
            self.canvas.paint(self_window, erector.astype(np.float32), hu)
            size = np.clip((40 - near.z) / 110, 0.25, 1.15)
            psoas = (np.hypot((near.x - side * (24 + 14 * size)) / (17 * size), (near.y - 56) / (20 * size)) - 1) * 14
            self.canvas.paint(self_window, np.maximum(psoas, near.z - 30).astype(np.float32), hu)

    def chest(self) -> None:
        """Paint lungs above two diaphragm domes, and the heart; set ``dome``, its height minus z in mm."""
        rng, at = self.rng, self.frame
        top = rng.uniform(88, 108)
        low = rng.uniform(8, 28)
        right = np.exp(-(np.square((at.x + 72) / 62) + np.square((at.y + 5) / 70)) / 1.3)
        left = rng.uniform(0.84, 0.96) * np.exp(-(np.square((at.x - 72) / 60) + np.square((at.y + 5) / 70)) / 1.3)
        self.dome = (low + (top - low) * np.maximum(right, left) - at.z).astype(np.float32)
        everything = (slice(None),) * 3
        middle = (np.hypot((at.x - 4) / 34, (at.y - 10) / 110) - 1) * 34
        lungs = np.maximum(np.maximum(self.cavity + 2, self.dome), -middle).astype(np.float32)
        self.canvas.paint(everything, lungs, -835.0 + 28 * smooth_field(rng, at.axes, 14.0))
        heart = self.around((22, -38, 128), 5)
        self.blob(heart, self.scaled((58, 46, 42)), self.hu["blood"] - 8)

    def bowel(self) -> None:
        """Paint small-bowel loops and the colon, with stool, fluid and gas."""
        rng = self.rng
        for _ in range(int(rng.integers(55, 85))):
            centre = (rng.uniform(-75, 75), rng.uniform(-85, 12), rng.uniform(-170, -18))
            radius = rng.uniform(9, 15)
            radii = (radius * rng.uniform(1, 1.9), radius, radius * rng.uniform(0.9, 1.4))
            self.blob(centre, radii, self.hu["gut"] + rng.normal(0, 6))
            lumen = rng.uniform(8, 75) if rng.random() > 0.18 else GAS_HU
            self.blob(centre, (radii[0] - 3.2, radii[1] - 3.2, radii[2] - 3.2), lumen)
        colon: list[list[Point]] = [
            [(-88, 20, -150), (-92, 15, -100), (-84, 5, -62), (-62, -45, -48)],
            [(-62, -45, -48), (-15, -72, -42), (38, -68, -30), (84, -22, -5)],
            [(84, -22, -5), (100, 25, -40), (98, 30, -100), (92, 25, -150)],
        ]
        for piece in colon:
            points = [self.around(p, 5) for p in piece]
            calibres = rng.uniform(13, 21, len(points)).tolist()
            self.tube(points, calibres, self.hu["gut"])
            self.tube(points, [calibre - 3 for calibre in calibres], rng.uniform(5, 60))
            for point, radius in zip(points, calibres, strict=True):
                if rng.random() < 0.6:  # gas rises to the front
                    gas = (point[0], point[1] - radius * 0.3, point[2])
                    self.blob(gas, (radius * 0.75, radius * 0.55, radius * rng.uniform(0.8, 1.6)), GAS_HU)

    def stomach(self) -> None:
        """Paint the stomach: wall, content of soft-tissue density, gas in front. It touches liver and spleen."""
        rng = self.rng
        centre = self.around((56, -22, 50), 5)
        radii = self.scaled((40, 40, 46), 0.1)
        window = self.canvas.window(centre, max(radii) + 5)
        at = self.frame.crop(window)
        if at.x.size == 0:
            return
        f = ellipsoid(at, centre, radii, self.turned((10, -20, 15)))
        f = np.maximum(np.maximum(f, self.cavity[window] + 2), 4 - self.dome[window])
        self.canvas.paint(window, f, self.hu["gut"] + 10)
        self.canvas.paint(window, f + 4.5, rng.uniform(15, 85))
        level = centre[1] - radii[1] * rng.uniform(0.25, 0.8)
        self.canvas.paint(window, np.maximum(f + 4.5, at.y - np.float32(level)), GAS_HU)

    def liver(self) -> None:
        """Paint the liver with its fissure, vessels and the gall bladder."""
        rng, canvas = self.rng, self.canvas
        label = self.labels["liver"]
        window = self.frame.box((-150, -120, -110), (100, 110, 130))
        at = self.frame.crop(window)
        right = ellipsoid(at, self.around((-72, -2, 26), 4), self.scaled((66, 78, 88)), self.turned((0, 0, 0)))
        left = ellipsoid(
            at, self.around((-4, -46, 50), 5), self.scaled((rng.uniform(58, 78), 34, 36)), self.turned((-15, -8, 8))
        )
        f = smooth_union(right, left, 28)
        edge = self.around((-12, 2, 12), 4)
        plane = (at.x - edge[0]) * 0.60 + (at.y - edge[1]) * 0.36 - (at.z - edge[2]) * 0.71
        f = smooth_intersection(f, plane, 22)
        f = np.maximum(np.maximum(f, self.cavity[window] + 1.5), 3 - self.dome[window])
        hu = self.hu["liver"]
        canvas.paint(window, f, hu + 2.0 * smooth_field(rng, at.axes, 16.0), label)
        self.organ_hu[label] = hu
        # The fissure of the ligamentum teres: a wedge of fat, open to the front and below.
        middle = np.abs(at.x - rng.uniform(-30, -18) - 0.25 * (at.y + 50))
        wedge = middle - np.clip((rng.uniform(35, 50) - at.z) * 0.12, 0, 5)
        canvas.paint(window, np.maximum(np.maximum(wedge, f), at.y + 25).astype(np.float32), self.fat_hu + 8)
        bladder = self.around((-48, -44, 0), 4)
        radii = self.scaled((13, 15, 25), 0.12)
        self.blob(bladder, (radii[0] + 2, radii[1] + 2, radii[2] + 2), self.hu["gut"])
        self.blob(bladder, radii, rng.uniform(0, 22))
        self.liver_vessels(label)

    def liver_vessels(self, label: int) -> None:
        """Paint hepatic veins towards the vena cava and branches of the portal vein."""
        rng = self.rng
        blood = self.hu["blood"] * 0.96
        for end in ((-115, 10, 45), (-80, -45, 50), (-5, -55, 62), (-95, 45, 40)):
            tip = self.around(end, 8)
            bend = tuple(0.5 * a + 0.5 * b for a, b in zip(tip, (-22, 26, 82), strict=True))
            points = [(-22.0, 26.0, 84.0), self.around((bend[0], bend[1], bend[2] + 6), 4), tip]
            self.tube(points, [6.0, rng.uniform(3.2, 4.6), 1.4], blood, label)
        hilum = (-28.0, -8.0, 22.0)
        for end in ((-100, -25, 15), (-105, 30, 8), (-70, 20, -20), (-20, -48, 40), (-95, 0, 60)):
            tip = self.around(end, 8)
            bend = tuple(0.55 * a + 0.45 * b for a, b in zip(tip, hilum, strict=True))
            points = [hilum, self.around((bend[0], bend[1], bend[2]), 5), tip]
            self.tube(points, [6.0, rng.uniform(3.2, 4.8), 1.4], blood, label)

    def middle(self) -> None:
        """Paint pancreas, vena cava, portal vein and mesenteric vessels, none of them labelled."""
        rng = self.rng
        pancreas = [self.around(p, 4) for p in ((-32, -5, -5), (0, -14, 12), (40, 5, 26), (72, 22, 36))]
        self.tube(pancreas, [15.0, 11.0, 11.0, 9.0], self.hu["pancreas"])
        blood = self.hu["blood"]
        cava = rng.uniform(9, 12)
        self.tube([(-24, 34, -170), (-22, 32, -20), (-24, 26, 60), (-20, 24, 105)], [cava] * 4, blood - 12)
        self.tube([(8, -6, -14), (-28, -8, 24)], [7.0, 7.0], blood * 0.97)
        for _ in range(9):
            end = (rng.uniform(-60, 60), rng.uniform(-60, -10), rng.uniform(-130, -40))
            self.tube([(8, 2, -12), self.around((end[0] / 2, end[1] / 2, end[2] / 2), 8), end], [5, 3.4, 1.8], blood)

    def spleen(self) -> None:
        """Paint the spleen under the left dome, hollowed by the stomach."""
        label = self.labels["spleen"]
        centre = self.around((92, 34, 46), 4)
        window = self.canvas.window(centre, 75)
        at = self.frame.crop(window)
        if at.x.size == 0:
            return
        f = ellipsoid(at, centre, self.scaled((38, 50, 55), 0.09), self.turned((-20, 10, -15), 6))
        hollow = ellipsoid(at, (centre[0] - 50, centre[1] - 28, centre[2]), (34, 34, 60))
        f = smooth_intersection(f, -hollow, 10)
        f = np.maximum(np.maximum(f, self.cavity[window] + 1.5), 3 - self.dome[window])
        self.canvas.paint(window, f, self.hu["spleen"] + 2.0 * smooth_field(self.rng, at.axes, 16.0), label)
        self.organ_hu[label] = self.hu["spleen"]

    def kidneys(self) -> None:
        """Paint both kidneys; in half of the patients no fat parts them from liver and spleen."""
        rng = self.rng
        base = self.hu["kidney"]
        medulla = rng.uniform(4, 24)
        for name, usual, side in (("kidney_right", (-60, 42, -26), -1), ("kidney_left", (63, 42, -8), 1)):
            label = self.labels[name]
            centre = self.around(usual, 5)
            window = self.canvas.window(centre, 75)
            at = self.frame.crop(window)
            if at.x.size == 0:
                continue
            turn = self.turned((-12, side * -12, side * 25), 5)
            f = ellipsoid(at, centre, self.scaled((34, 27, 57), 0.07), turn)
            inward = turn @ np.array([-side, 0, 0], np.float32)
            sinus = (centre[0] + 26 * inward[0], centre[1] + 26 * inward[1], centre[2] + 26 * inward[2])
            hollow = ellipsoid(at, sinus, (17, 11, 19), turn)
            f = smooth_intersection(f, -hollow, 8)
            f = np.maximum(f, self.cavity[window] + 2)
            gap = rng.uniform(-3, 3)
            if gap > 0:
                self.canvas.paint(window, f - np.float32(gap), self.fat_hu)
            self.canvas.paint(window, f, base, label)
            rays = 0.5 + 0.5 * np.cos(5 * np.arctan2(at.z - centre[2], at.x - centre[0]))
            inner = occupancy(f + 8.5) * (0.35 + 0.65 * rays) * np.float32(medulla)
            self.canvas.hu[window] -= inner
            self.organ_hu[label] = base

    def aorta_and_spine(self) -> None:
        """Paint the aorta and the vertebral column (bodies, discs, arches, canal)."""
        rng = self.rng
        window = self.frame.box((-55, 0, -400), (65, 130, 400))
        at = self.frame.crop(window)
        label = self.labels["spine"]
        pitch = rng.uniform(31, 37)
        level = np.mod(at.z + rng.uniform(0, pitch), pitch) / pitch  # 0..1 from disc to disc
        bulge = 1 - 0.09 * np.sin(np.pi * level)
        spine_y = rng.uniform(54, 60)
        body = (np.hypot(at.x / (23 * bulge), (at.y - spine_y) / (17 * bulge)) - 1) * 17
        arch = ellipsoid(at, (0, spine_y + 23, 0), (17, 12, 4000))
        process = np.maximum(np.abs(at.x) - 4, np.maximum(spine_y + 26 - at.y, at.y - spine_y - 45 - 4 * level))
        wings = np.maximum(np.hypot((at.y - spine_y - 20) / 5, (level - 0.55) * pitch / 7) - 1, 0) * 6
        wings = np.maximum(wings - 0.5, np.abs(at.x) - 38)
        column = np.minimum(np.minimum(body, arch), np.minimum(process, wings)).astype(np.float32)
        disc = np.abs(level - 0.5) > 0.5 - 4.0 / pitch
        inner = np.where(disc, 85.0, rng.uniform(150, 210)).astype(np.float32)
        self.canvas.paint(window, column, np.where(disc, 95.0, rng.uniform(320, 430)).astype(np.float32), label)
        core = np.minimum(body, arch).astype(np.float32)
        share = occupancy(core + 3)
        self.canvas.hu[window] += share * (inner - self.canvas.hu[window])
        canal = (np.hypot(at.x / 9, (at.y - spine_y - 23) / 7.5) - 1) * 7.5
        self.canvas.hu[window] += occupancy(canal.astype(np.float32)) * (28 - self.canvas.hu[window])
        self.organ_hu[label] = 180.0
        label = self.labels["aorta"]
        radius, bend = rng.uniform(9.5, 13), rng.uniform(-4, 6)
        x = 13 + bend * np.sin(at.z / 70)
        y = spine_y - 29 + 0.0009 * np.square(at.z - 20) * np.sign(at.z - 20)
        tube = np.hypot(at.x - x, at.y - np.clip(y, 14, 40)) - (radius + 0.012 * at.z)
        self.canvas.paint(window, tube.astype(np.float32), self.hu["blood"], label)
        self.organ_hu[label] = self.hu["blood"]


def paint_torso(rng: np.random.Generator, frame: Frame, labels: dict[str, int]) -> Torso:
    """Paint one patient.

    Args:
        rng: the source of all variation.
        frame: where the voxels lie in the patient.
        labels: label id of each organ by name.
    """
    painter = Painter(rng, frame, labels)
    inside = painter.body()
    painter.back_muscles()
    painter.bowel()
    painter.chest()
    painter.stomach()
    painter.middle()
    painter.liver()
    painter.spleen()
    painter.kidneys()
    painter.aorta_and_spine()
    return Torso(hu=painter.canvas.hu, owner=painter.canvas.owner, inside=inside, organ_hu=painter.organ_hu)
