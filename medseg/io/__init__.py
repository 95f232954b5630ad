"""Files in, files out: the only place that imports pydicom, nibabel, SimpleITK and pynrrd."""

from medseg.io.dicom_writer import write_ct_series as write_ct_series
