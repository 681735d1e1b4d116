"""Loading ITK: late, because it takes seconds; all at once, because its wrappers are fragile."""

from __future__ import annotations

import threading
import warnings
from functools import cache
from typing import Any

USED = ("NrrdImageIO", "MetaImageIO", "GDCMImageIO", "Image", "ImageFileReader", "PyBuffer")
LOCK = threading.Lock()  # cases are read by several threads


def load_itk() -> Any:
    """Return the module `itk` with everything that this project uses loaded (5 s at first).

    ITK's modules are created on first use, by SWIG wrappers that raise a DeprecationWarning; where
    warnings are errors, that ends the process with a segmentation fault. So all of them are created
    here, with that warning ignored, and none later.
    """
    with LOCK:
        return _load()


@cache
def _load() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import itk

        for name in USED:
            getattr(itk, name)
    itk.Object.GlobalWarningDisplayOff()  # it prints paths; what matters is in our errors
    return itk
