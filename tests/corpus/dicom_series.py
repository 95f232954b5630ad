"""Corpus: folders of CT files: order, grouping, what counts as a slice, damaged files, uneven and tilted stacks."""

import os
import shutil
from pathlib import Path

import numpy as np
import pydicom
from dicom_fixtures import SERIES, ct_dataset, save, write_series
from highdicom import VolumeGeometry
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian, generate_uid

from corpus import Exact, Refused, case
from corpus.grids import HU, OBLIQUE, STORED, slice_name, write_ct

ORDER = "ordered by position along the slice normal"
GROUPS = "grouped by series"
ASIDE = "localizers, scouts, dose reports, secondary captures set aside by name"
RULE = "what counts as a slice"
DAMAGE = "an unreadable, truncated or zero-byte slice is refused by name"
PLACES = "missing, duplicate, uneven, two phases, another matrix, orientation or spacing, no or NaN positions"


def shifted(ds: Dataset, vector: np.ndarray) -> None:
    """Move a slice by a vector (mm)."""
    ds.ImagePositionPatient = [f"{v:.9f}" for v in np.array(ds.ImagePositionPatient, float) + vector]


NORMAL = OBLIQUE.affine[:3, 0] / np.linalg.norm(OBLIQUE.affine[:3, 0])
DOWN = OBLIQUE.affine[:3, 1] / np.linalg.norm(OBLIQUE.affine[:3, 1])


@case(ORDER)
def names_and_instance_numbers_shuffled(folder: Path) -> Exact:
    """File names run against the positions, InstanceNumber is shuffled, repeated or absent."""

    def edit(ds: Dataset, index: int) -> None:
        if index == 2:
            del ds.InstanceNumber
        else:
            ds.InstanceNumber = (4, 4, 0, 1, 9)[index]

    return write_ct(folder, edit=edit)


@case(ORDER)
def slices_towards_the_feet(folder: Path) -> Exact:
    """Stored from head to feet: the volume ascends along the normal all the same."""
    affine = OBLIQUE.affine.copy()
    affine[:3, 3] += affine[:3, 0] * 4
    affine[:3, 0] *= -1
    write_ct(folder, VolumeGeometry(affine, OBLIQUE.spatial_shape, "PATIENT"))
    return Exact(source=folder, array=HU[::-1], affine=OBLIQUE.affine)


@case(ORDER)
def a_sagittal_stack(folder: Path) -> Exact:
    """The normal runs along x, and no position differs in z."""
    affine = np.array([[-2.5, 0, 0, -31.0], [0, 0, 0.6, -12.5], [0, -0.9, 0, 77.0], [0, 0, 0, 1]])
    return write_ct(folder, VolumeGeometry(affine, (5, 7, 11), "PATIENT"))


@case(ORDER)
def slices_in_subfolders_and_odd_names(folder: Path) -> Exact:
    """One series spread over folders with spaces and other alphabets, one of them behind a link."""
    write_ct(folder / "flat")
    for index in range(5):
        place = folder / "study" / ("Ärzte 病院 1" if index % 2 else "b")
        place.mkdir(parents=True, exist_ok=True)
        shutil.move(folder / "flat" / slice_name(index), place / f"Schnitt ü {index}.dcm")
    shutil.move(folder / "study" / "b", folder / "elsewhere")
    (folder / "study" / "b").symlink_to(folder / "elsewhere")
    return Exact(source=folder / "study", array=HU, affine=OBLIQUE.affine)


@case(ORDER)
def a_list_of_files(folder: Path) -> Exact:
    """Some files of a folder, named one by one."""
    write_ct(folder)
    files = tuple(folder / slice_name(index) for index in (3, 1, 2))
    affine = OBLIQUE.affine.copy()
    affine[:3, 3] += affine[:3, 0]
    return Exact(source=files, array=HU[1:4], affine=affine)  # type: ignore[arg-type]


@case(GROUPS)
def several_series_listed_and_picked(folder: Path) -> list[Exact | Refused]:
    """Two series in one folder: refused with both UIDs, read when one is named."""
    write_ct(folder)
    write_series(folder, OBLIQUE, series=SERIES + ".7", name="other{:d}.dcm",
                 edit=lambda ds, i: setattr(ds, "RescaleIntercept", 0))  # fmt: skip
    return [
        Refused(source=folder, says=("2 image series", rf"{SERIES} ", rf"{SERIES}\.7 ", "--series")),
        Exact(source=folder, array=HU, affine=OBLIQUE.affine, options={"series": SERIES}),
        Exact(source=folder, array=HU + 1024, affine=OBLIQUE.affine, options={"series": SERIES + ".7"}),
        Refused(source=folder, says=("no image series 1.2.3",), options={"series": "1.2.3"}),
    ]


@case(GROUPS)
def two_studies_under_one_series_uid(folder: Path) -> Refused:
    """Careless anonymisation gave two patients one SeriesInstanceUID; the positions happen to fit."""
    write_ct(folder, edit=lambda ds, i: setattr(ds, "StudyInstanceUID", SERIES + (".9" if i < 3 else ".10")))
    return Refused(source=folder, says=("StudyInstanceUID",))


@case(GROUPS)
def two_slices_of_two_studies(folder: Path) -> Refused:
    """The same with a slice of each: two files are too few to tell made-up study UIDs from two patients."""

    def edit(ds: Dataset, i: int) -> None:
        ds.StudyInstanceUID = f"{SERIES}.{9 + i}"

    write_ct(folder, edit=edit)
    for file in sorted(folder.iterdir())[2:]:
        file.unlink()
    return Refused(source=folder, says=("StudyInstanceUID",))


@case(GROUPS)
def another_modality_in_the_series(folder: Path) -> Refused:
    """A PET slice carries the CT's series UID."""
    write_ct(folder, edit=lambda ds, i: setattr(ds, "Modality", "PT" if i == 4 else "CT"))
    return Refused(source=folder, says=("Modality", slice_name(4)))


@case(GROUPS)
def two_frames_of_reference(folder: Path) -> Refused:
    """Positions of another frame of reference cannot be compared."""
    write_ct(folder, edit=lambda ds, i: setattr(ds, "FrameOfReferenceUID", SERIES + (".3" if i == 4 else ".2")))
    return Refused(source=folder, says=("FrameOfReferenceUID", slice_name(4)))


@case(ASIDE)
def localizer_in_the_series(folder: Path) -> Exact:
    """A localizer of another matrix and plane under the same series UID."""
    write_ct(folder)
    odd = ct_dataset(OBLIQUE, 0, np.zeros((3, 3), np.uint16))
    odd.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    odd.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    save(odd, folder / "topogram.dcm")
    return Exact(source=folder, array=HU, affine=OBLIQUE.affine, notes=(r"topogram\.dcm.*localizer",))


@case(ASIDE)
def scout_series_beside(folder: Path) -> Exact:
    """A scout in a series of its own does not make two series."""
    write_ct(folder)
    odd = ct_dataset(OBLIQUE, 0, np.zeros((9, 4), np.uint16), SERIES + ".5")
    odd.ImageType = ["ORIGINAL", "PRIMARY", "SCOUT"]
    save(odd, folder / "scout.dcm")
    return Exact(source=folder, array=HU, affine=OBLIQUE.affine, notes=(r"scout\.dcm.*localizer",))


@case(ASIDE)
def structured_dose_report(folder: Path) -> Exact:
    """A dose SR, which some scanners file under the images' series."""
    write_ct(folder)
    report = Dataset()
    report.SOPClassUID, report.Modality = "1.2.840.10008.5.1.4.1.1.88.67", "SR"
    report.SeriesInstanceUID, report.SOPInstanceUID = SERIES, SERIES + ".88"
    save(report, folder / "dose.dcm")
    report.Modality = "CT"
    save(report, folder / "dose2.dcm")
    return Exact(source=folder, array=HU, affine=OBLIQUE.affine, notes=(r"dose\.dcm.*report", r"dose2\.dcm.*report"))


@case(ASIDE)
def dose_page_as_secondary_capture(folder: Path) -> Exact:
    """Screens of the scanner: a secondary capture in grey, one in colour, and GE's screen save."""
    write_ct(folder)
    page = ct_dataset(OBLIQUE, 0, np.zeros((7, 11), np.uint16))
    page.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    del page.ImagePositionPatient
    save(page, folder / "page.dcm")
    screen = ct_dataset(OBLIQUE, 0, np.zeros((7, 11), np.uint16))
    screen.ImageType = ["DERIVED", "SECONDARY", "SCREEN SAVE"]
    save(screen, folder / "screen.dcm")
    colour = ct_dataset(OBLIQUE, 0, np.zeros((7, 11), np.uint16))
    colour.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7.4"
    colour.SamplesPerPixel, colour.PhotometricInterpretation, colour.PlanarConfiguration = 3, "RGB", 0
    colour.BitsAllocated, colour.BitsStored, colour.HighBit = 8, 8, 7
    colour.PixelData = bytes(7 * 11 * 3 + 1)
    save(colour, folder / "colour.dcm")
    notes = (r"page\.dcm.*secondary capture", r"screen\.dcm.*screen save", r"colour\.dcm.*secondary capture")
    return Exact(source=folder, array=HU, affine=OBLIQUE.affine, notes=notes)


@case(ASIDE)
def only_a_secondary_capture(folder: Path) -> Refused:
    """Nothing but a colour screen: there is no volume."""
    colour = ct_dataset(OBLIQUE, 0, np.zeros((7, 11), np.uint16))
    colour.SamplesPerPixel, colour.PhotometricInterpretation, colour.PlanarConfiguration = 3, "RGB", 0
    colour.BitsAllocated, colour.BitsStored, colour.HighBit = 8, 8, 7
    colour.PixelData = bytes(7 * 11 * 3 + 1)
    save(colour, folder / "colour.dcm")
    return Refused(source=folder, says=("no DICOM image series", "1 colour image"))


@case(ASIDE)
def documents_segmentations_and_presentation_states(folder: Path) -> Exact:
    """A PDF, a segmentation with pixels, a presentation state and a registration among the slices."""
    write_ct(folder)
    for name, modality, sop_class in (
        ("letter", "DOC", "1.2.840.10008.5.1.4.1.1.104.1"),
        ("letter2", "OT", "1.2.840.10008.5.1.4.1.1.104.1"),
        ("state", "PR", "1.2.840.10008.5.1.4.1.1.11.1"),
        ("registration", "REG", "1.2.840.10008.5.1.4.1.1.66.1"),
    ):
        ds = Dataset()
        ds.SOPClassUID, ds.Modality, ds.SOPInstanceUID = sop_class, modality, generate_uid()
        ds.SeriesInstanceUID = SERIES + ".77"
        save(ds, folder / f"{name}.dcm")
    private = Dataset()
    private.SOPClassUID, private.Modality, private.SOPInstanceUID = "1.3.12.2.1107.5.9.1", "CT", generate_uid()
    private.SeriesInstanceUID = SERIES + ".78"
    save(private, folder / "private.dcm")
    seg = ct_dataset(OBLIQUE, 0, np.zeros((7, 11), np.uint16), SERIES + ".66")
    seg.SOPClassUID, seg.Modality = "1.2.840.10008.5.1.4.1.1.66.4", "SEG"
    save(seg, folder / "seg.dcm")
    notes = (r"letter\.dcm.*document", r"state\.dcm.*presentation", r"seg\.dcm.*segmentation")
    return Exact(source=folder, array=HU, affine=OBLIQUE.affine, notes=notes)


@case(ASIDE)
def dicomdir_beside_the_slices(folder: Path) -> list[Exact | Refused]:
    """A DICOMDIR on the medium is no slice; alone it is no image."""
    write_ct(folder / "IMAGES")
    ds = Dataset()
    ds.FileSetID = "DISC"
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.1.3.10", generate_uid()
    save(ds, folder / "plain")
    ds = pydicom.dcmread(folder / "plain")
    del ds.SOPClassUID, ds.SOPInstanceUID
    ds.save_as(folder / "DICOMDIR", enforce_file_format=False)
    (folder / "plain").unlink()
    return [
        Exact(source=folder, array=HU, affine=OBLIQUE.affine, notes=("DICOMDIR.*DICOM directory",)),
        Refused(source=folder / "DICOMDIR", says=("DICOMDIR", "directory")),
    ]


@case(RULE)
def neither_suffix_nor_preamble(folder: Path) -> Exact:
    """Bare data sets, implicit VR, without file meta, as old archives give them."""
    made = write_ct(folder, name="IM{:04d}", syntax=ImplicitVRLittleEndian)
    for path in folder.iterdir():
        ds = pydicom.dcmread(path)
        del ds.file_meta
        ds.preamble = None
        ds.save_as(path, implicit_vr=True, little_endian=True, enforce_file_format=False)
        assert path.read_bytes()[128:132] != b"DICM"
    return made


@case(RULE)
def no_preamble_but_explicit(folder: Path) -> Exact:
    """Bare data sets, explicit VR; and with file meta at byte 0."""
    made = write_ct(folder, name="IM{:04d}")
    for index, path in enumerate(sorted(folder.iterdir())):
        data = path.read_bytes()
        if index % 2:
            path.write_bytes(data[132:])
        else:
            ds = pydicom.dcmread(path)
            del ds.file_meta
            ds.preamble = None
            ds.save_as(path, implicit_vr=False, little_endian=True, enforce_file_format=False)
    return made


@case(RULE)
def strangers_are_set_aside(folder: Path) -> Exact:
    """Notes, pictures, empty files and spreadsheets without the mark, under suffixes that no slice has."""
    made = write_ct(folder)
    (folder / "notes.txt").write_text("not an image")
    (folder / "empty.txt").write_bytes(b"")
    (folder / "picture.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(300))
    (folder / "LIESMICH").write_text("no suffix, and most slices have one")
    (folder / ".DS_Store").write_bytes(b"\0" * 300)
    (folder / "__MACOSX").mkdir()
    (folder / "__MACOSX" / "._IM0000.dcm").write_bytes(b"\0\5\x16\7" + bytes(300))
    return Exact(
        source=folder, array=made.array, affine=made.affine,
        notes=(r"notes\.txt", r"empty\.txt", r"picture\.png", "LIESMICH", r"\.DS_Store"),
    )  # fmt: skip


@case(RULE)
def numbers_are_no_suffix(folder: Path) -> list[Exact | Refused]:
    """Names such as CT.1.2.840.7 have no suffix; an empty one among them is a slice."""
    made = write_ct(folder, name="CT.1.2.840.{:d}")
    other = folder.with_name(folder.name + "-broken")
    shutil.copytree(folder, other)
    (other / "CT.1.2.840.77").write_bytes(b"")
    return [made, Refused(source=other, says=(r"CT\.1\.2\.840\.77", "empty"))]


@case(RULE)
def an_unusual_suffix(folder: Path) -> list[Exact | Refused]:
    """Slices named .img: an unreadable .img is a slice, and so is an unreadable .dcm."""
    made = write_ct(folder, name="a{:d}.img")
    outcomes: list[Exact | Refused] = [made]
    for name in ("x.img", "x.dcm", "X.IMA"):
        other = folder.with_name(folder.name + name)
        shutil.copytree(folder, other)
        (other / name).write_text("no image at all, but named like one")
        outcomes.append(Refused(source=other, says=(name.replace(".", r"\."), "not a DICOM file")))
    return outcomes


@case(RULE)
def the_mark_alone_makes_a_slice(folder: Path) -> Refused:
    """A file of a foreign suffix has the DICM mark and is broken behind it."""
    write_ct(folder)
    whole = (folder / slice_name(0)).read_bytes()
    (folder / "copy.bak").write_bytes(whole[:150])
    return Refused(source=folder, says=(r"copy\.bak",))


@case(DAMAGE)
def a_zero_byte_slice(folder: Path) -> Refused:
    """The last slice is empty: every reader on the market drops it."""
    write_ct(folder)
    (folder / slice_name(4)).write_bytes(b"")
    return Refused(source=folder, says=(slice_name(4), "empty"))


@case(DAMAGE)
def truncated_pixels(folder: Path) -> Refused:
    """The last slice ends within its pixels."""
    write_ct(folder)
    path = folder / slice_name(4)
    path.write_bytes(path.read_bytes()[:-60])
    return Refused(source=folder, says=(slice_name(4), "truncated"))


@case(DAMAGE)
def truncated_header(folder: Path) -> list[Exact | Refused]:
    """The last slice ends within its header, at any byte of it."""
    made = write_ct(folder)
    path = folder / slice_name(4)
    whole = path.read_bytes()
    outcomes: list[Exact | Refused] = []
    for end in (100, 131, 140, 200, 332, 420, 500, 640, len(whole) - 2 * 7 * 11 - 12, len(whole) - 2 * 7 * 11):
        other = folder.with_name(f"{folder.name}-{end}")
        shutil.copytree(folder, other)
        (other / path.name).write_bytes(whole[:end])
        outcomes.append(Refused(source=other, says=(path.name,)))
    return [*outcomes, made]


@case(DAMAGE)
def garbage_within_the_header(folder: Path) -> Refused:
    """Elements overwritten by noise."""
    write_ct(folder)
    path = folder / slice_name(4)
    whole = bytearray(path.read_bytes())
    whole[340:520] = b"\xff" * 180
    path.write_bytes(whole)
    return Refused(source=folder, says=(path.name,))


@case(DAMAGE)
def a_slice_that_lost_its_size(folder: Path) -> list[Exact | Refused]:
    """The last slice has no Rows, or a SOP class that is none: damage, not an object without an image."""
    outcomes: list[Exact | Refused] = []
    for name in ("rows", "class", "both"):
        write_ct(folder / name)
        path = folder / name / slice_name(4)
        ds = pydicom.dcmread(path)
        if name != "class":
            del ds.Rows
        if name != "rows":
            ds["SOPClassUID"] = pydicom.DataElement(0x00080016, "LO", "9x2.840.10008.5.1.4.1.1.2")
        ds.save_as(path, enforce_file_format=False)
        outcomes.append(Refused(source=folder / name, says=(path.name,)))
    return outcomes


@case(DAMAGE)
def a_slice_that_cannot_be_opened(folder: Path) -> Refused:
    """A link that leads nowhere stands for a file that cannot be opened (root may open any other)."""
    write_ct(folder)
    (folder / slice_name(4)).unlink()
    (folder / slice_name(4)).symlink_to(folder / "gone" / "away.dcm")
    return Refused(source=folder, says=(slice_name(4), "No such file"))


@case(DAMAGE)
def more_pixels_than_the_header_says(folder: Path) -> list[Exact | Refused]:
    """The header asks for fewer rows or columns than there are pixels: a cut or sheared image."""
    outcomes: list[Exact | Refused] = []
    for keyword, value in (("Rows", 5), ("Columns", 10)):
        place = folder / keyword
        write_ct(place, edit=lambda ds, i, k=keyword, v=value: setattr(ds, k, v))
        outcomes.append(Refused(source=place, says=("154 bytes of pixel data",)))
    return outcomes


@case(DAMAGE)
def a_little_padding(folder: Path) -> Exact:
    """Some writers pad pixels to a multiple of their own: less than a row or column is none."""
    return write_ct(folder, edit=lambda ds, i: setattr(ds, "PixelData", ds.PixelData + bytes(6)))


@case(DAMAGE)
def a_broken_file_of_another_series(folder: Path) -> Exact:
    """A truncated slice in the folder of a series that is not asked for."""
    write_ct(folder / "a")
    write_series(folder / "b", OBLIQUE, series=SERIES + ".7")
    (folder / "b" / "IM0000.dcm").write_bytes(b"")
    notes = (r"set aside: IM0000\.dcm \(the file is empty.*another series",)
    return Exact(source=folder, array=HU, affine=OBLIQUE.affine, options={"series": SERIES}, notes=notes)


@case(DAMAGE)
def a_broken_slice_beside_a_localizer(folder: Path) -> Refused:
    """The last slice, cut within its header, lies in the folder above, with nothing but a localizer."""
    write_ct(folder / "study")
    last = (folder / "study" / slice_name(4)).rename(folder / "last.dcm")
    last.write_bytes(last.read_bytes()[:300])
    odd = ct_dataset(OBLIQUE, 0, np.zeros((3, 3), np.uint16))
    odd.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    save(odd, folder / "topogram.dcm")
    return Refused(source=folder, says=(r"last\.dcm", "remove it"))


@case(PLACES)
def a_missing_slice(folder: Path) -> list[Exact | Refused]:
    """Refused with the gap and its neighbours; resampled on request."""
    write_ct(folder)
    (folder / slice_name(2)).unlink()
    expected = HU.astype(float)
    expected[2] = (expected[1] + expected[3]) / 2
    return [
        Refused(source=folder, says=("6.00 mm", slice_name(1), slice_name(3), "1 slice", "--resample-uneven")),
        Exact(source=folder, array=expected, affine=OBLIQUE.affine, options={"resample_uneven": True}, within=0.51),
    ]


@case(PLACES)
def uneven_slices(folder: Path) -> list[Exact | Refused]:
    """Distances of 1 to 4 mm: refused; resampled on the true positions, a linear ramp stays one."""
    places = np.array([0.0, 3.0, 6.0, 10.0, 11.0])

    def edit(ds: Dataset, index: int) -> None:
        shifted(ds, (places[index] - 3.0 * index) * NORMAL)
        ds.PixelData = np.full((7, 11), 100 + 20 * places[index], "<u2").tobytes()

    write_ct(folder, edit=edit)
    affine = OBLIQUE.affine.copy()
    affine[:3, 0] = NORMAL
    ramp = np.broadcast_to((100 + 20 * np.arange(12.0) - 1024)[:, None, None], (12, 7, 11))
    return [
        Refused(source=folder, says=("1.00 to 4.00 mm", "--resample-uneven")),
        Exact(source=folder, array=ramp, affine=affine, options={"resample_uneven": True}, within=0.51),
    ]


@case(PLACES)
def tolerance_is_in_mm(folder: Path) -> list[Exact | Refused]:
    """Half a degree of tilt is 0.1 mm over 12 mm and refused; 0.03 mm of noise in a position is not."""
    tilt = np.tan(np.deg2rad(0.5)) * 3.0
    write_ct(folder / "tilt", edit=lambda ds, i: shifted(ds, tilt * i * DOWN))
    noisy = write_ct(folder / "noise", edit=lambda ds, i: shifted(ds, 0.03 * NORMAL) if i == 2 else None)
    return [Refused(source=folder / "tilt", says=("0.5 degrees",)), noisy]


@case(PLACES)
def drift_at_the_far_end(folder: Path) -> Refused:
    """A hundredth of a mm a slice is nothing between neighbours and 0.6 mm at the end."""
    grid = VolumeGeometry(OBLIQUE.affine, (61, 3, 4), "PATIENT")
    write_series(folder, grid, edit=lambda ds, i: shifted(ds, 0.01 * i * DOWN))
    return Refused(source=folder, says=("tilted", "0.6 mm"))


@case(PLACES)
def an_orientation_that_drifts(folder: Path) -> Refused:
    """Each slice is turned a little further: the far corner tells, no angle would."""
    grid = VolumeGeometry(OBLIQUE.affine, (5, 512, 512), "PATIENT")

    def edit(ds: Dataset, index: int) -> None:
        row, column = np.reshape(np.array(ds.ImageOrientationPatient, float), (2, 3))
        turn = 0.0001 * index
        turned = row * np.cos(turn) + column * np.sin(turn), column * np.cos(turn) - row * np.sin(turn)
        ds.ImageOrientationPatient = [f"{v:.9f}" for v in np.concatenate(turned)]

    write_series(folder, grid, edit=edit)
    return Refused(source=folder, says=("orientation",))


@case(PLACES)
def the_same_file_twice(folder: Path) -> Exact:
    """Copies in another folder, and a compressed one: read once."""
    made = write_ct(folder)
    (folder / "backup").mkdir()
    for index in range(5):
        shutil.copy(folder / slice_name(index), folder / "backup" / f"copy{index}.dcm")
    ds = pydicom.dcmread(folder / slice_name(1))
    ds.compress("1.2.840.10008.1.2.5")
    ds.save_as(folder / "packed.dcm")
    return made


@case(PLACES)
def two_images_in_one_place(folder: Path) -> Refused:
    """One slice twice with different content."""
    write_ct(folder)
    ds = pydicom.dcmread(folder / slice_name(3))
    ds.PixelData = bytes(len(ds.PixelData))
    ds.save_as(folder / "other.dcm")
    return Refused(source=folder, says=(slice_name(3), r"other\.dcm", "same place", "mm"))


@case(PLACES)
def two_phases(folder: Path) -> Refused:
    """Arterial and venous in one series: every place twice."""
    write_ct(folder)
    write_series(folder, OBLIQUE, name="venous{:d}.dcm",
                 edit=lambda ds, i: setattr(ds, "RescaleIntercept", -1000))  # fmt: skip
    return Refused(source=folder, says=("same place", "phases"))


@case(PLACES)
def two_phases_that_interleave(folder: Path) -> Refused:
    """The second phase lies half a slice off: together they look like one even stack."""
    write_ct(folder, edit=lambda ds, i: setattr(ds, "AcquisitionNumber", 1 + i % 2))
    return Refused(source=folder, says=("AcquisitionNumber", "interleave"))


@case(PLACES)
def acquisitions_one_after_the_other(folder: Path) -> Exact:
    """A scan in two blocks, and one acquisition a slice, are one volume."""
    return write_ct(folder, edit=lambda ds, i: setattr(ds, "AcquisitionNumber", 1 + i // 3))


@case(PLACES)
def another_matrix(folder: Path) -> Refused:
    """One slice has fewer rows."""

    def edit(ds: Dataset, index: int) -> None:
        if index == 3:
            ds.Rows, ds.PixelData = 6, ds.PixelData[: 6 * 11 * 2]

    write_ct(folder, edit=edit)
    return Refused(source=folder, says=(slice_name(3), "matrix", "6 x 11"))


@case(PLACES)
def another_orientation(folder: Path) -> list[Exact | Refused]:
    """The patient axes flip midway, or one reformatted slice carries the series' UID."""

    def flip(ds: Dataset, index: int) -> None:
        if index > 2:
            ds.ImageOrientationPatient = [-float(v) for v in ds.ImageOrientationPatient]

    def reformat(ds: Dataset, index: int) -> None:
        if index == 4:
            ds.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]

    write_ct(folder / "flip", edit=flip)
    write_ct(folder / "mpr", edit=reformat)
    return [
        Refused(source=folder / "flip", says=("orientation", "2 of 5")),
        Refused(source=folder / "mpr", says=("orientation", slice_name(4))),
    ]


@case(PLACES)
def another_pixel_spacing(folder: Path) -> Refused:
    """One slice was reconstructed with another field of view."""
    write_ct(folder, edit=lambda ds, i: setattr(ds, "PixelSpacing", [0.8, 0.75]) if i == 1 else None)
    return Refused(source=folder, says=(slice_name(1), "PixelSpacing", "0.75"))


@case(PLACES)
def no_positions(folder: Path) -> list[Exact | Refused]:
    """Absent or empty positions, of one slice or of all."""
    outcomes: list[Exact | Refused] = []
    for which in ((2,), range(5)):
        for value in (None, ""):
            place = folder / f"{len(which)}{value is None}"

            def edit(ds: Dataset, index: int, which: object = which, value: str | None = value) -> None:
                if index in which:  # type: ignore[operator]
                    ds.ImagePositionPatient = value
                    if value is None:
                        del ds.ImagePositionPatient

            write_ct(place, edit=edit)
            outcomes.append(Refused(source=place, says=("ImagePositionPatient",)))
    return outcomes


@case(PLACES)
def positions_that_are_no_numbers(folder: Path) -> list[Exact | Refused]:
    """NaN, infinity, two numbers, or letters."""
    outcomes: list[Exact | Refused] = []
    for text in (b"NaN\\0\\0 ", b"0\\inf\\0 ", b"1.5\\2.5 ", b"a\\b\\c "):
        place = folder / str(len(outcomes))
        write_ct(place, edit=lambda ds, i: setattr(ds, "ImagePositionPatient", ["11111.5", "22222.5", "33333.5"]))
        path = place / slice_name(2)
        data = path.read_bytes()
        old = b"11111.5\\22222.5\\33333.5 "
        assert old in data
        path.write_bytes(data.replace(old, text.ljust(len(old))))
        outcomes.append(Refused(source=place, says=(slice_name(2),)))
    return outcomes


@case(PLACES)
def spacing_that_is_none(folder: Path) -> list[Exact | Refused]:
    """PixelSpacing absent (ImagerPixelSpacing is measured at the detector), zero, negative or NaN."""

    def imager(ds: Dataset, index: int) -> None:
        ds.ImagerPixelSpacing = ds.PixelSpacing
        del ds.PixelSpacing

    edits = {
        "none": imager,
        "zero": lambda ds, i: setattr(ds, "PixelSpacing", [0, 0.7]),
        "negative": lambda ds, i: setattr(ds, "PixelSpacing", [-0.8, 0.7]),
        "nan": lambda ds, i: setattr(ds, "PixelSpacing", ["nan", "0.7"]),
        "one": lambda ds, i: setattr(ds, "PixelSpacing", 0.7),
    }
    for name, edit in edits.items():
        write_ct(folder / name, edit=edit)
    return [Refused(source=folder / name, says=("PixelSpacing",)) for name in edits]


@case(PLACES)
def directions_that_are_no_frame(folder: Path) -> list[Exact | Refused]:
    """Cosines of another length than 1, not at right angles, all zero, or parallel."""
    values = {
        "long": [2, 0, 0, 0, 1, 0], "sheared": [1, 0, 0, 0.3, 0.954, 0],
        "zero": [0, 0, 0, 0, 0, 0], "parallel": [1, 0, 0, 1, 0, 0],
    }  # fmt: skip
    for name, value in values.items():
        write_ct(folder / name, edit=lambda ds, i, v=value: setattr(ds, "ImageOrientationPatient", v))
    return [Refused(source=folder / name, says=("ImageOrientationPatient",)) for name in values]


@case(PLACES)
def a_single_slice(folder: Path) -> list[Exact | Refused]:
    """One slice takes its thickness from the header, or is refused without one."""
    write_ct(folder)
    (folder / "one").mkdir()
    shutil.move(folder / slice_name(0), folder / "one" / "a.dcm")
    (folder / "bare").mkdir()
    ds = pydicom.dcmread(folder / "one" / "a.dcm")
    del ds.SliceThickness
    ds.save_as(folder / "bare" / "a.dcm")
    return [
        Exact(source=folder / "one", array=HU[:1], affine=OBLIQUE.affine),
        Refused(source=folder / "bare", says=("SliceThickness",)),
    ]


@case(PLACES)
def a_slice_moved_sideways(folder: Path) -> Refused:
    """One slice lies half a pixel off the others: no tilt, no unevenness."""
    write_ct(folder, edit=lambda ds, i: shifted(ds, 0.4 * DOWN) if i == 3 else None)
    return Refused(source=folder, says=("sideways", slice_name(3)))


@case("unicode paths, bad character sets")
def bad_character_sets(folder: Path) -> list[Exact | Refused]:
    """Character sets that are unknown, wrong, or not what the text is in."""
    outcomes: list[Exact | Refused] = []
    for text in (b"ISO_IR 999", b"ISO 2022 IR 87\\nonsense", b"ISO_IR 192", b"\\\\"):
        place = folder / str(len(outcomes))

        def edit(ds: Dataset, index: int, text: bytes = text) -> None:
            ds.SpecificCharacterSet = "X" * (len(text) + len(text) % 2)
            ds.SeriesDescription = "Y" * 8

        made = write_ct(place, edit=edit)
        for path in place.iterdir():
            data = path.read_bytes()
            data = data.replace(b"X" * (len(text) + len(text) % 2), text.ljust(len(text) + len(text) % 2))
            path.write_bytes(data.replace(b"Y" * 8, b"\xff\xfe\xe9\x1b$B\xc3\x28"))
        outcomes.append(made)
    return outcomes


@case("unicode paths, bad character sets")
def unicode_paths(folder: Path) -> list[Exact | Refused]:
    """Folders and files with accents, blanks, emoji, and bytes that are no UTF-8."""
    made = write_ct(folder / "Über 患者 🫁", name="schnitt é {:d}.dcm")
    latin = Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9"))
    write_ct(latin)
    return [made, Exact(source=latin, array=HU, affine=OBLIQUE.affine)]


assert STORED.shape == (5, 7, 11) and ExplicitVRLittleEndian
