"""`start`: the user's trained weights in place of training."""

from __future__ import annotations

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from nnicompress.errors import ConfigError, did_you_mean
from nnicompress.pipeline.context import Context, Facts
from nnicompress.pipeline.job import StagePlan
from nnicompress.pipeline.settings import StartSettings

KEY = "stages.start.checkpoint"


def run(context: Context, plan: StagePlan) -> Facts:
    """Load the checkpoint into the freshly built model."""
    assert isinstance(plan.settings, StartSettings)
    path = Path(plan.settings.checkpoint).expanduser()
    load_weights(context.model, read_checkpoint(path))
    context.add_phase("baseline", "baseline")
    return {"checkpoint": str(path)}


def restore(context: Context, plan: StagePlan, facts: Facts) -> None:
    """The weights as they were loaded."""
    context.restore_phase("baseline", "baseline")


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, a state_dict, or a checkpoint that keeps one under `state_dict` or `model`.

    Pickled files are read with `weights_only=True`: tensors and plain containers, no code.

    Raises:
        ConfigError: no such file, or not one of these.
    """
    if not path.is_file():
        raise ConfigError(f"no file {str(path)!r}", key=KEY)
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        content: Any = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes both readers raise whatever they stumble over
        looks = "a pickled object" if isinstance(error, UnpicklingError) else "damaged, or of another format"
        hint = "; it is named .safetensors" if path.suffix == ".safetensors" else ""
        raise ConfigError(
            f"{path} is neither safetensors nor a state_dict of plain tensors: it is {looks}{hint}; "
            "save one with safetensors.torch.save_model(model, 'file.safetensors')",
            key=KEY,
        ) from error
    for name in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(name), dict):
            content = content[name]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(v, Tensor) for v in content.values()):
        raise ConfigError(f"{path} holds no state_dict (names -> tensors)", key=KEY)
    return content


def load_weights(model: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load `weights`, every name and shape of which must be the model's; a tied tensor may be given once.

    Raises:
        ConfigError: a name or shape that doesn't fit, with the nearest name.
    """
    own = model.state_dict()
    for name, tensor in weights.items():
        if name not in own:
            hint = did_you_mean(name, own)
            raise ConfigError(f"the checkpoint has {name!r}, {type(model).__name__} has not{hint}", key=KEY)
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise ConfigError(f"{name!r} of the checkpoint holds values that are not finite", key=KEY)
        if tensor.shape != own[name].shape:
            raise ConfigError(
                f"{name!r} is {list(tensor.shape)} in the checkpoint and {list(own[name].shape)} in the model", key=KEY
            )
    given = {own[name].data_ptr() for name in weights}
    missing = [name for name, tensor in own.items() if name not in weights and tensor.data_ptr() not in given]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise ConfigError(f"the checkpoint lacks {missing[0]!r}{more} of {type(model).__name__}", key=KEY)
    model.load_state_dict(weights, strict=False)
