"""The selective scan on any device: public names."""

from anomseg.functional.scan.backends import BackendReport, ScanBackend, scan_backend, use_scan_backend
from anomseg.functional.scan.cross import cross_merge, cross_scan, cross_selective_scan, cross_sequences, merge_sequences
from anomseg.functional.scan.selective import selective_scan

__all__ = [
    "BackendReport",
    "ScanBackend",
    "cross_merge",
    "cross_scan",
    "cross_selective_scan",
    "cross_sequences",
    "merge_sequences",
    "scan_backend",
    "selective_scan",
    "use_scan_backend",
]
