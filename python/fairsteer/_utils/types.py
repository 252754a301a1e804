"""Names of the array types that cross the borders between modules."""

from __future__ import annotations

import os
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

#: Statistics and solutions.
Doubles = npt.NDArray[np.float64]
#: Rows, in the precision they came in.
Floats = npt.NDArray[np.floating[Any]]
#: Positions of labels.
Codes = npt.NDArray[np.intp]
CovarianceModel = Literal["tied", "full", "diagonal"]
#: What a row of no known group gets: an error, the mean of the groups' maps by probability, or the likeliest group's.
UnknownGroup = Literal["error", "infer", "infer_hard"]
#: What happens to subgroups with few rows.
SmallSubgroups = Literal["error", "pool", "merge"]
PathLike = str | os.PathLike[str]
