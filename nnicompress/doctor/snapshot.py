"""What of a model an examined object may not leave changed: classes, attributes, hooks, names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

_HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)
_GLOBAL_HOOKS = ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks")
_SPECIAL = ("__call__", "__getattr__", "__setattr__", "__delattr__", "__init__")

Parts = Mapping[str, Any]
"""What it is (in words) -> a value that compares equal where nothing was changed."""


def parts_of(model: nn.Module) -> Parts:
    """Everything about `model`, its classes and its parameters that is no value of a weight."""
    parts: dict[str, Any] = {}
    classes: set[type] = set()
    for name, module in model.named_modules():
        place = name or "the model"
        parts[f"the class of {place}"] = type(module)
        parts[f"the attributes of {place}"] = frozenset(module.__dict__)
        for attribute in _HOOKS:
            parts[f"{attribute.strip('_')} of {place}"] = tuple(map(id, getattr(module, attribute, {}).values()))
        classes |= set(type(module).__mro__) - {object}
    for cls in classes:
        own = {name: id(value) for name, value in vars(cls).items() if name[:2] != "__" or name in _SPECIAL}
        parts[f"the methods of class {cls.__name__}"] = own
    for attribute in _GLOBAL_HOOKS:
        parts[f"torch's {attribute.strip('_')}"] = len(getattr(torch_module, attribute))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        parts[f"the parameter {name}"] = (id(parameter), parameter.shape, parameter.requires_grad)
        hooks = (parameter._backward_hooks, parameter._post_accumulate_grad_hooks)
        parts[f"gradient hooks of {name}"] = tuple(len(own or ()) for own in hooks)
    parts["the keys of state_dict"] = tuple(model.state_dict())
    return parts


def differences(before: Parts, after: Parts) -> list[str]:
    """What is other than before, in words: `forward_hooks of conv1`, `the attributes of head (mask)`."""
    found = []
    for what in [*before, *(what for what in after if what not in before)]:
        old, new = before.get(what), after.get(what)
        if old != new:
            names: list[str] = []
            if isinstance(old, frozenset) and isinstance(new, frozenset):
                names = sorted(old ^ new)
            elif isinstance(old, dict) and isinstance(new, dict):
                names = sorted(key for key in {*old, *new} if old.get(key) != new.get(key))
            found.append(f"{what} ({', '.join(names)})" if names else what)
    return found


def copied(model: nn.Module) -> dict[str, Tensor]:
    """The values of all parameters and buffers, those that a state_dict lacks included."""
    tensors = (*model.named_parameters(), *model.named_buffers())
    return {name: tensor.detach().clone() for name, tensor in tensors}


def restore(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Write the values that `copied` returned, into the tensors that are there."""
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            tensor.copy_(values[name])


def changed(before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[str]:
    """The names of tensors that are not bit for bit the same; NaN equals NaN."""
    return [
        name
        for name, tensor in after.items()
        if name not in before or not torch.allclose(before[name], tensor, rtol=0, atol=0, equal_nan=True)
    ]
