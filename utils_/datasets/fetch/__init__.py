"""Public data sets brought into data/: addresses, downloads, archives, DICOM."""
