"""Imports torchmetrics without transformers, which two of its text metrics pull in with it: 1.2 s in every run.

torchmetrics asks lightning_utilities whether transformers is installed, while it is imported. It is told no, in this
one block; afterwards `torchmetrics.text` lacks BERTScore and InfoLM in this process. Who names one of these, or has
imported transformers already, gets torchmetrics as it is.
"""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import PackageNotFoundError
from typing import Any

NEED_TRANSFORMERS = ("torchmetrics.text", "torchmetrics.multimodal", "torchmetrics.functional")


def import_torchmetrics(target: str) -> None:
    """Import torchmetrics, for the object of this dotted name."""
    if "transformers" in sys.modules or "torchmetrics" in sys.modules or target.startswith(NEED_TRANSFORMERS):
        return
    try:
        asked: Any = importlib.import_module("lightning_utilities.core.imports")
        version = asked._version
    except (ImportError, AttributeError):  # another version of it: torchmetrics is then imported as it is
        return

    def without_transformers(name: str) -> Any:
        if name == "transformers":
            raise PackageNotFoundError(name)
        return version(name)

    asked._version = without_transformers
    try:
        importlib.import_module("torchmetrics")
    finally:
        asked._version = version
