"""The colours of the classes, the same in every picture and in every viewer."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

# Okabe and Ito's colours, which colour-blind people tell apart; the row is the class index.
CLASS_COLOURS = np.array(
    [[0, 0, 0], [0, 114, 178], [0, 158, 115], [230, 159, 0], [204, 121, 167]], dtype=np.uint8
)

# Two more of theirs, which no class has: what only the truth holds, and what only the prediction.
ERROR_COLOURS = {"missed": (213, 94, 0), "false": (86, 180, 233)}
# Of lines, in turn: those of theirs that stand out from paper and from a dark page alike.
LINE_COLOURS = ((0, 158, 115), (0, 114, 178), (213, 94, 0), (204, 121, 167))


def colours_of(classes: ArrayLike) -> np.ndarray:
    """Return the colours (..., 3) uint8 of class indices; further classes share the last one."""
    return CLASS_COLOURS[np.minimum(classes, len(CLASS_COLOURS) - 1)]
