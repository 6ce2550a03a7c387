"""Types of the arrays that every room uses."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
#: Positions in another array.
Indices = npt.NDArray[np.intp]
