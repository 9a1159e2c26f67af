"""What a capture leaves behind: nothing."""

import copy
import inspect

import pytest
import torch
from torch import Tensor, nn

from nnicompress.errors import JobError
from nnicompress.graph.capture import capture
from tests.zoo import ZOO


@pytest.mark.parametrize("name", ["coincidence", "resnet_basic", "tied_weights"])
def test_the_model_is_as_it_was(name: str) -> None:
    model, (args, kwargs) = ZOO[name]()
    model.train()
    before = copy.deepcopy({path: vars(module) for path, module in model.named_modules()})
    capture(model, args, kwargs)
    for path, module in model.named_modules():
        own = {key: value for key, value in vars(module).items() if not key.startswith("_")}
        assert own == {key: value for key, value in before[path].items() if not key.startswith("_")}
        assert all(type(value) is type(before[path][key]) for key, value in own.items())
        assert not module._forward_hooks and not module._forward_pre_hooks


class Branches(nn.Module):
    """Control flow on values, which no graph holds."""

    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


class Numbers(nn.Module):
    """Leaves torch, where nothing can be followed."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.from_numpy(x.numpy())


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (Branches(), "its forward branches on the values of a tensor ({place}: return x if x.sum() > 0 else -x)"),
        (Numbers(), ".numpy() is not supported for tensor subclasses. ({place}: return torch.from_numpy(x.numpy()))"),
    ],
)
def test_a_forward_that_cannot_be_captured_is_one_line_with_its_place(
    model: nn.Module, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(JobError) as caught:
        capture(nn.Sequential(model), (torch.randn(3),))
    _, line = inspect.getsourcelines(type(model).forward)
    place = f"{__file__}:{line + 1}"
    assert str(caught.value) == f"Sequential can't be captured by torch.export: {reason.format(place=place)}"
    assert capfd.readouterr() == ("", ""), "torch.export prints the graph that it had so far"


def test_tied_parameters_have_one_name() -> None:
    model, (args, kwargs) = ZOO["tied_weights"]()
    captured = capture(model, args, kwargs)
    assert "embedding.weight" in captured.tensors.values()
    assert "head.weight" not in captured.tensors.values()
