"""Fake quantizers at functional calls: which operands and results they see, and what errors leave behind."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.overrides import _get_current_function_mode_stack

from nnicompress.quantization.frames import Frames


def plus(amount: float) -> Callable[[Tensor], Tensor]:
    return lambda x: x + amount


class Calls(nn.Module):
    """Adds in several spellings, around a child that adds too."""

    def __init__(self, child: nn.Module | None = None) -> None:
        super().__init__()
        self.child = child

    def forward(self, x: Tensor) -> Tensor:
        y = x + 1.0
        if self.child is not None:
            y = self.child(y)
        y += x
        return torch.cat([torch.add(input=y, other=x), x], dim=0)


def run(quantizers: dict[str, dict[str, Callable[[Tensor], Tensor]]], model: nn.Module, x: float = 1.0) -> list[float]:
    handles = Frames().attach(model, quantizers)
    found = model(torch.tensor([x])).tolist()
    for handle in handles:
        handle.remove()
    assert not _get_current_function_mode_stack()
    return list(found)


def test_calls_are_numbered_by_name_in_their_own_frame() -> None:
    assert run({}, Calls()) == [4.0, 1.0]
    assert run({"": {"add_0/output_0": plus(10.0)}}, Calls()) == [14.0, 1.0]
    assert run({"": {"add_1/input_1": plus(10.0)}}, Calls()) == [14.0, 1.0]
    assert run({"": {"add_2/input_1": plus(10.0)}}, Calls()) == [14.0, 1.0]  # by keyword
    assert run({"": {"cat_0/input_1": plus(10.0)}}, Calls()) == [4.0, 11.0]
    assert run({"": {"cat_0/output_0": plus(10.0)}}, Calls()) == [14.0, 11.0]


def test_a_childs_calls_are_its_own() -> None:
    class Child(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + 0.0

    assert run({"": {"add_1/input_1": plus(10.0)}}, Calls(Child())) == [14.0, 1.0]
    assert run({"child": {"add_0/input_0": plus(10.0)}}, Calls(Child())) == [14.0, 1.0]
    assert run({"child": {"add_1/input_0": plus(10.0)}}, Calls(Child())) == [4.0, 1.0]


def test_a_module_that_runs_twice_counts_anew() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Calls()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x)[:1] + self.inner(x)[:1]

    assert run({"inner": {"add_0/output_0": plus(10.0)}}, Twice()) == [28.0]


def test_an_error_ends_its_frames_and_no_others() -> None:
    class Raises(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            raise ZeroDivisionError

    class Catches(nn.Module):
        def __init__(self, child: nn.Module) -> None:
            super().__init__()
            self.child = child

        def forward(self, x: Tensor) -> Tensor:
            x = x + 1.0
            try:
                return self.child(x)
            except ZeroDivisionError:
                return x + 1.0

    quantizers = {"": {"add_1/output_0": plus(10.0)}}
    assert run(quantizers, Catches(Raises())) == [13.0]
    child = Raises()

    def hook(module: nn.Module, args: object) -> None:
        raise ZeroDivisionError

    child.register_forward_pre_hook(hook)  # before ours: the child's frame never begins
    assert run(quantizers, Catches(child)) == [13.0]
    with pytest.raises(ZeroDivisionError):
        run(quantizers, Raises())
    assert not _get_current_function_mode_stack()


def test_without_quantizers_nothing_is_hooked() -> None:
    assert Frames().attach(Calls(), {"": {}}) == []
