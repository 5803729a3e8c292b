"""Array types that several stages share."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Scores = Mapping[str, Floats]  # group name -> (lanes, size), larger is more important
