"""Lend a model's forward fake tensors, and leave the model as it was."""

from __future__ import annotations

import operator
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


class Unusual(Exception):
    """A forward does something that only torch.export knows how to capture."""


@contextmanager
def swapped(model: nn.Module, fakes: Mapping[int, Tensor]) -> Iterator[None]:
    """Within the context every parameter and buffer is the tensor that `fakes` has for its id.

    `torch.func.functional_call` would do, but leaves the fake tensors in a module that has two names.
    """
    places: list[tuple[dict[str, Any], str, Tensor]] = [
        (tensors, name, tensor)
        for module in model.modules()
        for tensors in (module._parameters, module._buffers)
        for name, tensor in tensors.items()
        if tensor is not None
    ]
    try:
        for tensors, name, tensor in places:
            tensors[name] = fakes[id(tensor)]
        yield
    finally:
        for tensors, name, tensor in places:
            if tensors.get(name) is fakes[id(tensor)]:
                tensors[name] = tensor


@contextmanager
def as_it_was(model: nn.Module) -> Iterator[None]:
    """Undo what the forward writes into its modules (fake tensors, caches, counters); raise Unusual if it did."""
    before = []
    for module in model.modules():
        own = vars(module)
        before += [(own, own.copy()), *((value, value.copy()) for value in own.values() if _is_container(value))]
    try:
        yield
    finally:
        written = [(now, then) for now, then in before if not _same(now, then)]
        for now, then in written:
            now.clear()
            now.extend(then) if isinstance(now, list) else now.update(then)
    if written:
        raise Unusual("the forward writes into its modules")


def _is_container(value: Any) -> bool:
    return type(value) in (dict, OrderedDict, list, set)


def _same(now: Any, then: Any) -> bool:
    """Whether a container holds the same objects as its copy."""
    if isinstance(now, dict):
        return len(now) == len(then) and all(now.get(key, Unusual) is value for key, value in then.items())
    return len(now) == len(then) and (isinstance(now, set) or all(map(operator.is_, now, then)))
