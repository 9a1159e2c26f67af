"""The probe that quantizes, beside a loop that does the same by hand."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.sensitivity.analysis import Values, measure
from nnicompress.sensitivity.quantized import QuantizedProbe
from nnicompress.sensitivity.settings import SensitivitySettings
from nnicompress.trace import trace

LAYERS = ("first", "second", "third")
BATCHES = [torch.randn(5, 4, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
SEEN = torch.cat(BATCHES)
HELD_OUT = torch.randn(7, 4, generator=torch.Generator().manual_seed(9))


class Net(nn.Module):
    """Three linear layers, and a ReLU whose output the second one reads."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first, self.second, self.third = nn.Linear(4, 8, False), nn.Linear(8, 8, False), nn.Linear(8, 2, False)

    def forward(self, x: Tensor) -> Tensor:
        return self.third(self.second(self.first(x).relu()))


def evaluator_of(model: nn.Module) -> TorchEvaluator:
    """Its metric is the sum of squared outputs on data that are not the calibration's."""

    def loop(model: nn.Module, optimizer: Any, step: Any, scheduler: Any, max_steps: int, max_epochs: None) -> None:
        for batch in BATCHES[:max_steps]:
            optimizer.zero_grad()
            step(batch, model).backward()
            optimizer.step()

    return TorchEvaluator(
        loop,
        trace(torch.optim.SGD)(model.parameters(), lr=0.1),
        lambda batch, model: model(batch).square().sum(),
        evaluating_func=lambda model: float(model(HELD_OUT).detach().square().sum()),
        dummy_input=BATCHES[0],
    )


def by_hand(net: Net, quantized: set[str], bits: int) -> float:
    """Jacob et al. 2018: affine values in [0, 2^b - 1], weights within +-(2^(b-1) - 1) with a scale a row."""

    def values(x: Tensor, seen: Tensor) -> Tensor:
        low, high = min(float(seen.min()), 0.0), max(float(seen.max()), 0.0)
        scale = (torch.tensor(high) - low) / (2**bits - 1)
        zero = -torch.round(low / scale)
        return ((torch.round(x * (1 / scale)) + zero).clamp(0, 2**bits - 1) - zero) * scale

    def weight(w: Tensor) -> Tensor:
        top = 2 ** (bits - 1) - 1
        scale = w.abs().amax(dim=1, keepdim=True) / top
        return torch.round(w * (1 / scale)).clamp(-top, top) * scale

    x, seen = HELD_OUT, SEEN
    for name in LAYERS:
        w = net.get_submodule(name).weight.detach()
        x = values(x, seen) @ weight(w).T if name in quantized else x @ w.T
        seen = seen @ w.T  # the calibration runs in float
        if name == "first":
            x, seen = x.relu(), seen.relu()
    return float(x.square().sum())


@pytest.mark.parametrize("mode", ["one", "all_but_one"])
def test_every_measurement_is_that_of_a_loop_by_hand(mode: str) -> None:
    net = Net()
    before = copy.deepcopy(net.state_dict())
    evaluator = evaluator_of(net)
    values: Values = {}
    probe = QuantizedProbe.of(evaluator, net, ["int8", "int4"], len(BATCHES))
    assert [(subject.name, subject.tensors) for subject in probe.subjects] == [(n, (f"{n}.weight",)) for n in LAYERS]
    with evaluator.bound(net):
        measure(evaluator, probe, mode, values, measured=lambda point: None)
    expected = {("", ""): by_hand(net, set(), 8)}
    for level, bits in {"int8": 8, "int4": 4}.items():
        if mode == "all_but_one":
            expected["", level] = by_hand(net, set(LAYERS), bits)
        for name in LAYERS:
            quantized = {name} if mode == "one" else set(LAYERS) - {name}
            expected[name, level] = by_hand(net, quantized, bits)
    assert values.keys() == expected.keys()
    for point, value in expected.items():
        assert values[point] == pytest.approx(value, rel=1e-6), point
    assert len({round(value, 6) for value in values.values()}) == len(values), "no two measurements are of one model"
    assert type(net.first) is nn.Linear
    for name, tensor in net.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kind": "quantised"}, "'pruned' or 'quantized'"),
        ({"kind": "quantized", "levels": ["int9"]}, "no level 'int9'; did you mean 'int"),
        ({"kind": "quantized", "levels": "uint8"}, "no level 'uint8'; did you mean 'int8'"),
        ({"kind": "quantized", "levels": []}, "at least one level is needed"),
        ({"kind": "quantized", "levels": ["int8", "int8"]}, "a level stands in the list twice"),
        ({"kind": "quantized", "ratios": [0.5]}, "ratios is for kind: pruned, and the kind is quantized"),
        ({"levels": ["int8"]}, "levels is for kind: quantized, and the kind is pruned"),
        ({"kind": "quantized", "calibration_steps": 0}, "greater than or equal to 1"),
    ],
)
def test_wrong_settings(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SensitivitySettings.model_validate(given)


def test_levels_go_from_mild_to_strong() -> None:
    assert SensitivitySettings(kind="quantized", levels=("int3", "int8", "int4")).levels == ("int8", "int4", "int3")
