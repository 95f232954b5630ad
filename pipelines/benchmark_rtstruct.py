"""Time of RTSTRUCT: 30 objects of 150,000 voxels in 300 oblique slices of 512 x 512, written and read back exactly.

    python pipelines/benchmark_rtstruct.py

Every second object is a ball, the others wind through all slices. Processor and wall seconds, one thread. Prints JSON,
-o FILE keeps it.
"""

import argparse
import os
import resource
import tempfile
import time
from pathlib import Path

os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE")  # before numpy is imported

import numpy as np
from highdicom import VolumeGeometry
from pydicom.dataset import Dataset
from record_results import write_record

from medseg.io.dicom_context import DicomContext, ImageReference
from medseg.io.rtstruct import read_rtstruct
from medseg.io.rtstruct_writer import write_rtstruct
from medseg.labels import LabelTable
from medseg.values.instances import Instance, InstanceSet, crop_to_object

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("-o", "--out", type=Path, help="JSON file to write")
args = parser.parse_args()

SHAPE = (300, 512, 512)
STUDY, SERIES, FRAME, CT = "2.25.1", "2.25.2", "2.25.3", "1.2.840.10008.5.1.4.1.1.2"

# a series turned by 10 degrees, of which only the header matters here
turn = np.deg2rad(10)
affine = np.eye(4)
affine[:3, 0] = (0, 0, 1.0)
affine[:3, 1] = (-np.sin(turn) * 0.7, np.cos(turn) * 0.7, 0)
affine[:3, 2] = (np.cos(turn) * 0.7, np.sin(turn) * 0.7, 0)
affine[:3, 3] = (-180.3, -170.1, -800.7)
geometry = VolumeGeometry(affine, SHAPE, "PATIENT", frame_of_reference_uid=FRAME)
header = Dataset()
header.StudyInstanceUID, header.SeriesInstanceUID, header.FrameOfReferenceUID = STUDY, SERIES, FRAME
images = tuple(ImageReference(sop_class_uid=CT, sop_instance_uid=f"{SERIES}.{z}") for z in range(SHAPE[0]))
context = DicomContext(source="benchmark", geometry=geometry, header=header, images=images)

rng = np.random.default_rng(0)
z, y, x = np.mgrid[:67, :67, :67] - 33
ball = z**2 + y**2 + x**2 < 33**2
z, y, x = np.mgrid[:300, :40, :40]
winding = (y - 20 - 5 * np.sin(z / 20)) ** 2 + (x - 20 - 5 * np.cos(z / 20)) ** 2 < 12.6**2
found = []
for number in range(30):
    mask, offset = crop_to_object(ball if number % 2 else winding) or (ball, (0, 0, 0))
    free = [n - m + 1 for n, m in zip(SHAPE, mask.shape, strict=True)]
    place = tuple(int(rng.integers(0, n)) for n in free)
    found.append(Instance(id=1, label=number + 1, mask=mask, offset=(place[0], place[1], place[2])))
objects = InstanceSet.build(found, geometry, LabelTable.from_names([f"object {n}" for n in range(1, 31)]))

result: dict[str, object] = {"voxels": [objects[1].voxels, objects[2].voxels]}
with tempfile.TemporaryDirectory() as folder:
    path = Path(folder) / "rt.dcm"
    for name, step in (
        ("write", lambda: write_rtstruct(path, objects, context)),
        ("read", lambda: read_rtstruct(path, context)),
    ):
        wall, processor = time.perf_counter(), time.process_time()
        back = step()
        result[name] = {
            "wall_s": round(time.perf_counter() - wall, 2),
            "processor_s": round(time.process_time() - processor, 2),
        }
    result["file_mb"] = round(path.stat().st_size / 1e6, 1)
assert back is not None
identical = all(
    a.offset == b.offset and np.array_equal(a.mask, b.mask) for a, b in zip(objects, back.instances, strict=True)
)
result |= {"identical": identical, "peak_gib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, 2)}
write_record(args.out, result, seed=0)
