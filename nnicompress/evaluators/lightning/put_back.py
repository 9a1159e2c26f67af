"""What a fit writes on the user's objects, taken off again."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_HYPER_PARAMETERS = {"_hparams", "_hparams_initial", "_hparams_name"}
"""Attributes that appear on a LightningModule or a LightningDataModule when somebody asks for its `hparams`."""


@contextmanager
def replaced(owner: object, **replacements: Callable[..., Any]) -> Iterator[None]:
    """Methods of this one instance are replaced inside the block; nothing is left in `vars(owner)` afterwards."""
    attributes = vars(owner)
    before = {name: attributes[name] for name in replacements if name in attributes}
    attributes.update(replacements)
    try:
        yield
    finally:
        for name in replacements:
            attributes.pop(name, None)
        attributes.update(before)


@contextmanager
def same_attributes(*objects: Any) -> Iterator[None]:
    """The objects' attributes, and what plain containers and tensors among them hold, are as before afterwards."""
    before = [(owner, {name: _copied(value) for name, value in vars(owner).items()}) for owner in objects]
    try:
        yield
    finally:
        for owner, attributes in before:
            vars(owner).clear()
            vars(owner).update(attributes)


@contextmanager
def no_engine_left(module: nn.Module, lightning_module: type[nn.Module], *, everything: bool) -> Iterator[None]:
    """What Lightning writes on a LightningModule (the trainer, the device, what is logged ...) is off it afterwards.

    `everything`: all attributes are put back, those that the user's hooks set, too; parameters and buffers stay.
    """
    engines_own = (vars(lightning_module()).keys() - vars(nn.Module()).keys()) | _HYPER_PARAMETERS
    before = [(part, dict(vars(part))) for part in module.modules() if everything or isinstance(part, lightning_module)]
    flags = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    device = next(module.parameters(), torch.empty(0)).device
    try:
        yield
    finally:
        if next(module.parameters(), torch.empty(0)).device != device:
            module.to(device)
        for parameter, flag in flags:  # left toggled where a fit ends inside `toggle_optimizer`
            parameter.requires_grad_(flag)
        for part, attributes in before:
            names = vars(part).keys() | attributes.keys() if everything else engines_own
            for name in names:
                vars(part).pop(name, None)
                if name in attributes:
                    vars(part)[name] = attributes[name]


@contextmanager
def no_trainer_left(datamodule: object) -> Iterator[None]:
    """A LightningDataModule has the trainer afterwards that it had; what its own hooks set up stays."""
    attributes, names = vars(datamodule), {"trainer", *_HYPER_PARAMETERS}
    before = {name: attributes[name] for name in names if name in attributes}
    try:
        yield
    finally:
        for name in names:
            attributes.pop(name, None)
        attributes.update(before)


@contextmanager
def same_devices(parameters: Iterable[nn.Parameter]) -> Iterator[None]:
    """Each parameter is on the device afterwards that it was on before."""
    before = [(parameter, parameter.device) for parameter in parameters]
    try:
        yield
    finally:
        for parameter, device in before:
            parameter.data = parameter.data.to(device)


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        return value.detach().clone()
    if type(value) in (list, tuple, set):
        return type(value)(_copied(item) for item in value)
    if isinstance(value, dict):
        copied = value.copy()
        for key, item in value.items():
            copied[key] = _copied(item)
        return copied
    return value
