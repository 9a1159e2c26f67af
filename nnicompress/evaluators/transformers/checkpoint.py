"""A Trainer's own checkpoint, as values in a training state, and back as the folder that a Trainer resumes from."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers.trainer import OPTIMIZER_NAME, SCALER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME, Trainer
from transformers.trainer_callback import ExportableState
from transformers.utils import SAFE_WEIGHTS_NAME, WEIGHTS_NAME

from nnicompress.errors import UserError


def read(trainer: Trainer) -> dict[str, Any]:
    """Optimizer, scheduler, gradient scaler, the Trainer's state and its best weights, where it keeps them."""
    scaler = getattr(trainer.accelerator, "scaler", None)
    assert trainer.optimizer is not None and trainer.lr_scheduler is not None
    return {
        "optimizer": trainer.optimizer.state_dict(),
        "scheduler": trainer.lr_scheduler.state_dict(),
        "scaler": None if scaler is None else scaler.state_dict(),
        "trainer": json.dumps(_state_of(trainer)),
        "best": _best_weights(trainer),
    }


def write(state: Mapping[str, Any], trainer: Trainer, folder: str) -> str:
    """Write what `read` returned into `folder`, with the weights of the Trainer's model; returns the path to resume.

    Raises:
        UserError: the Trainer's optimizer has other groups.
    """
    assert trainer.optimizer is not None
    saved, built = (len(one["param_groups"]) for one in (state["optimizer"], trainer.optimizer.state_dict()))
    if saved != built:
        raise UserError(f"the training state has {saved} parameter groups, and the Trainer's optimizer {built}")
    path = Path(folder) / "resume"
    path.mkdir()
    assert trainer.model is not None and trainer.args.output_dir is not None
    torch.save(trainer.model.state_dict(), path / WEIGHTS_NAME)
    torch.save(state["optimizer"], path / OPTIMIZER_NAME)
    torch.save(state["scheduler"], path / SCHEDULER_NAME)
    if state["scaler"] is not None:
        torch.save(state["scaler"], path / SCALER_NAME)
    values = json.loads(state["trainer"])
    if state["best"] is not None:
        name, content = state["best"]
        best = Path(trainer.args.output_dir) / f"checkpoint-{values['best_global_step']}"
        best.mkdir(parents=True, exist_ok=True)
        (best / name).write_bytes(content.numpy().tobytes())
        values["best_model_checkpoint"] = str(best)
    (path / TRAINER_STATE_NAME).write_text(json.dumps(values))
    return str(path)


def _state_of(trainer: Trainer) -> dict[str, Any]:
    """The TrainerState as a checkpoint has it, with the callbacks that can tell where they are."""
    state: Any = copy.deepcopy(trainer.state)
    told: dict[str, Any] = {}
    for one in (*trainer.callback_handler.callbacks, trainer.control):
        if isinstance(one, ExportableState):
            told.setdefault(type(one).__name__, []).append(one.state())
    state.stateful_callbacks = {name: found[0] if len(found) == 1 else found for name, found in told.items()}
    values: dict[str, Any] = dataclasses.asdict(state)
    return values


def _best_weights(trainer: Trainer) -> list[Any] | None:
    """Name and content of the weights' file that `load_best_model_at_end` would load by now."""
    where = trainer.state.best_model_checkpoint
    if not trainer.args.load_best_model_at_end or where is None:
        return None
    for name in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME):
        if (file := Path(where) / name).is_file():
            content: Tensor = torch.frombuffer(bytearray(file.read_bytes()), dtype=torch.uint8)
            return [name, content]
    return None
