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


class InPlace(nn.Module):
    """Reads what a call wrote into, not what it returned."""

    def forward(self, x: Tensor) -> Tensor:
        y = 2.0 * x
        y.relu_()
        view = y.view(-1)
        y.add_(x)  # returned as it is
        return torch.cat([view * y, y], dim=0)


def test_what_a_call_wrote_into_is_read_as_the_call_returned_it() -> None:
    assert run({}, InPlace()) == [9.0, 3.0]
    assert run({"": {"add_0/output_0": plus(10.0)}}, InPlace()) == [39.0, 13.0]
    # A view of what is quantized: y is 12, and then 13 in both.
    assert run({"": {"relu_0/output_0": plus(10.0)}}, InPlace()) == [169.0, 13.0]
    both = {"": {"relu_0/output_0": plus(10.0), "add_0/output_0": plus(10.0)}}
    assert run(both, InPlace()) == [13.0 * 23.0, 23.0]

    class Returned(nn.Module):
        def forward(self, x: Tensor) -> dict[str, Tensor]:
            torch.nn.functional.relu(x, True)
            return {"x": x}

    handles = Frames().attach(model := Returned(), {"": {"relu_0/output_0": plus(10.0)}})
    assert model(torch.tensor([-1.0, 1.0]))["x"].tolist() == [10.0, 11.0]
    assert len(handles) == 2


def test_gradients_pass_what_was_written_into() -> None:
    class Squares(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            y = 2.0 * x
            y.relu_()  # whose backward reads its own result, which must be as it left it
            return y * y

    Frames().attach(model := Squares(), {"": {"relu_0/output_0": lambda x: 3.0 * x}})
    x = torch.tensor([-1.0, 2.0], requires_grad=True)
    model(x).sum().backward()  # (3 * 2 x)^2 where x is positive
    assert x.grad is not None and x.grad.tolist() == [0.0, 144.0]


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
