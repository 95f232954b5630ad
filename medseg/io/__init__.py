"""Files in, files out: the only place that imports pydicom, nibabel, SimpleITK and pynrrd."""
