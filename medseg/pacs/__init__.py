"""Studies from a PACS and results back to it, by DICOMweb (PS3.18): query, retrieve, store, watch."""
