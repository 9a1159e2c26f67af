"""What an analysis needs of a way to compress: the layers, the levels, and the model with some of them compressed."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Subject:
    """What is compressed as one: a layer, or the layers that share a width; `name` is that of the first."""

    name: str
    modules: tuple[str, ...]
    """The modules to name under `exclude_op_names` to leave it alone."""
    tensors: tuple[str, ...]
    """Their parameters: what the subject holds of the model."""


class Probe(Protocol):
    """A way to compress a model for one evaluation."""

    @property
    def subjects(self) -> Sequence[Subject]:
        """All that can be compressed, in the model's order."""

    @property
    def levels(self) -> Sequence[str]:
        """From mild to strong, as they are shown: `0.25`, `0.5`; `int8`, `int4`."""

    def applied(self, subjects: Sequence[Subject], level: str) -> AbstractContextManager[bool]:
        """In the block the model has these subjects compressed; afterwards every bit of it is as before.

        Yields False where that changes nothing, so that there is nothing to measure.
        """
