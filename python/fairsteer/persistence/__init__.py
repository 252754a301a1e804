"""Keep a fitted estimator in one file that is read without running any code.

The file is safetensors: arrays of numbers, and a header of JSON. Nothing is pickled, so a file from a stranger can do
no more than be wrong, and `load` says so. A loaded estimator does what the saved one did, bit for bit.
"""

from fairsteer.persistence._estimators import SKOPS_TYPES, load, read_extra, save
from fairsteer.persistence._file import FORMAT_VERSION

__all__ = ["FORMAT_VERSION", "SKOPS_TYPES", "load", "read_extra", "save"]
