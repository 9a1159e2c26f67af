"""Lightning's own checkpoint as part of a training state: what it must say so that a fit goes on at the exact batch."""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nnicompress.errors import UserError


def dump(trainer: Any, epochs: int, batches: int) -> dict[str, Any]:
    """Lightning's checkpoint, placed after `epochs` full epochs and `batches` batches of the next one.

    Lightning counts a step's progress in several places, some before and some after its hooks; a fit that is restored
    from a hook would skip a validation or an epoch. So all of them are set to one place between two batches. The
    model's weights are left out, except where a callback keeps an average of them.
    """
    checkpoint: dict[str, Any] = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
    if "averaging_state" not in checkpoint:
        del checkpoint["state_dict"]
    for name in ("hyper_parameters", "datamodule_hyper_parameters", "hparams_name", "hparams_type"):
        checkpoint.pop(name, None)
    loops = checkpoint["loops"] = {"fit_loop": checkpoint["loops"]["fit_loop"]}
    begun = epochs + 1 if batches else epochs
    for counts in ("current", "total"):
        loops["fit_loop"]["epoch_progress"][counts].update(
            ready=begun, started=begun, processed=epochs, completed=epochs
        )
    progress = loops["fit_loop"]["epoch_loop.batch_progress"]
    progress["current"] = dict.fromkeys(progress["current"], batches)
    progress["is_last_batch"] = False
    return checkpoint


def as_tensor(checkpoint: Mapping[str, Any]) -> Tensor:
    """The checkpoint as bytes, shape [N] uint8: one value among those that `torch.load(weights_only=True)` reads.

    Raises:
        UserError: something in it is no plain value, such as a user's class in a callback's state.
    """
    buffer = io.BytesIO()
    torch.save(dict(checkpoint), buffer)
    _load(buffer)
    return torch.frombuffer(bytearray(buffer.getvalue()), dtype=torch.uint8)


def write(saved: Tensor, weights: Mapping[str, Tensor], folder: Path) -> Path:
    """A file for `Trainer.fit(ckpt_path=...)`, with the model's present `weights` where the checkpoint has none."""
    checkpoint = _load(io.BytesIO(saved.numpy().tobytes()))
    checkpoint.setdefault("state_dict", dict(weights))
    path = folder / "training.ckpt"
    torch.save(checkpoint, path)
    return path


def restore_between_epochs(trainer: Any) -> None:
    """Tell loops that were restored between two epochs that there is no epoch to go on with."""
    fit = trainer.fit_loop
    for loop in (fit, fit.epoch_loop, fit.epoch_loop.val_loop):
        loop._restarting = loop._resuming_from_checkpoint = loop._loaded_from_state_dict = False


def _load(buffer: io.BytesIO) -> dict[str, Any]:
    buffer.seek(0)
    try:
        found: dict[str, Any] = torch.load(buffer, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        raise UserError(
            "the training state holds an object that is no plain value, so that it can't be loaded safely; look at "
            f"state_dict() of your callbacks and schedulers, and on_save_checkpoint of your module ({error})"
        ) from error
    return found
