"""The state inside a stage: saved between two optimizer steps, read when a killed run goes on.

`progress.pt` holds the model's tensors, the evaluator's training state (optimizers, schedulers, random states, the
place in the data), a compressor's state and the curves so far. It replaces the one before in one step, begins with a
digest of its content, and names the key of the stage that it belongs to: a changed stage does not go on from it.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Any

import torch

from nnicompress.errors import JobError
from nnicompress.pipeline.run_dir import PROGRESS, write_whole

_DIGEST = hashlib.sha256().digest_size

State = dict[str, Any]
"""Tensors, numbers, texts, and lists and dicts of those: what `torch.load(weights_only=True)` reads."""


class Checkpoint:
    """The saved state of one stage, in the stage's temporary folder."""

    def __init__(self, folder: Path, key: str) -> None:
        self.path, self.key = folder / PROGRESS, key

    def save(self, state: State) -> None:
        """Replace the saved state."""
        buffer = io.BytesIO()
        torch.save({"key": self.key, "state": state}, buffer)
        content = buffer.getbuffer()
        write_whole(self.path, hashlib.sha256(content).digest() + content)

    def load(self) -> State | None:
        """The saved state; None where there is none, or one of a stage with another key.

        Raises:
            JobError: the file is not what was written.
        """
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        digest, content = content[:_DIGEST], content[_DIGEST:]
        if hashlib.sha256(content).digest() != digest:
            raise JobError(
                f"{self.path} is damaged, so the stage can't go on from it; remove this file to begin the stage again "
                "(earlier stages are kept), or start over with --fresh"
            )
        saved: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        return saved["state"] if saved["key"] == self.key else None
