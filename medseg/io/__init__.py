"""Files in, files out: the only place that imports pydicom, nibabel and SimpleITK."""

from medseg.io.dicom_writer import write_ct_series as write_ct_series
from medseg.io.instances import WrittenInstances as WrittenInstances
from medseg.io.instances import read_instances as read_instances
from medseg.io.instances import write_instances as write_instances
from medseg.io.volumes import list_series as list_series
from medseg.io.volumes import read_volume as read_volume
from medseg.io.volumes import write_volume as write_volume
