"""When a training compiles its fake quantization, and that nothing but time depends on it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from nnicompress.errors import InputErrors
from nnicompress.evaluators.torch_evaluator import TorchEvaluator
from nnicompress.events import Event, Note
from nnicompress.quantization import kernel
from nnicompress.quantization.compilation import Compilation, elements_per_step
from nnicompress.quantization.fake_quantizer import FakeQuantizer
from nnicompress.quantization.kernel import Choice, Policy, Workload
from nnicompress.quantization.quantizer import Quantizer
from nnicompress.quantization.scheme import Scheme
from nnicompress.trace import trace

BATCH = 8


class Wide(nn.Module):
    """Its first two activations and the weight of its linear layer are large enough for the kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.narrow, self.head = nn.Conv2d(12, 2, 1), nn.Linear(2 * 32 * 32, 32)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x)).relu()
        return self.head(self.narrow(x).flatten(1))


def training(model: nn.Module, method: str, used: str) -> tuple[dict[str, Tensor], dict[str, Tensor], list[str]]:
    """Weights and scales after three steps, and what was said."""
    batch = torch.randn(BATCH, 3, 32, 32, generator=torch.Generator().manual_seed(1)), torch.arange(BATCH)
    model, notes = copy.deepcopy(model), []

    def loop(model: nn.Module, optimizer: Any, step: Any, scheduler: Any, max_steps: Any, max_epochs: Any) -> None:
        model.train()
        for _ in range(max_steps or max_epochs):
            optimizer.zero_grad()
            step(batch, model).backward()
            optimizer.step()

    def hear(event: Event) -> None:
        if isinstance(event, Note) and event.text.startswith("fake quantization by"):
            notes.append(event.text)

    evaluator = TorchEvaluator(
        loop,
        trace(torch.optim.SGD)(model.parameters(), lr=0.05, momentum=0.9),
        lambda batch, model: nn.functional.cross_entropy(model(batch[0]), batch[1]),
    )
    target = {"target_settings": {"weight": {"granularity": "tensor"}}}
    quantizer = Quantizer([target], evaluator, hear, method=method, kernel=used, calibration_steps=1)
    result = quantizer.compress(model, max_steps=3)
    return dict(model.state_dict()), {place: tensor.scale for place, tensor in result.tensors.items()}, notes


@pytest.mark.parametrize("method", ["observed", "lsq"])
def test_a_training_ends_with_the_same_bits_by_either_kernel(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = Wide()
    by_torch, own_scales, said = training(model, method, "torch")
    assert said == ["fake quantization by torch itself: compiling is switched off"]
    calls = []
    apply = kernel._Compiled.apply
    monkeypatch.setattr(kernel._Compiled, "apply", lambda *args: calls.append(args[0].shape) or apply(*args))
    compiled, scales, said = training(model, method, "compiled")
    assert said == ["fake quantization by a compiled kernel: asked for"]
    # In each of the three steps: the activation [8, 12, 32, 32] and the weight [32, 2048].
    assert calls == [(BATCH, 12, 32, 32), (32, 2048)] * 3
    for name, tensor in by_torch.items():
        assert torch.equal(tensor, compiled[name]), name
    for place, scale in own_scales.items():
        assert torch.equal(scale, scales[place]), place
    assert not kernel._active


def test_a_known_length_is_decided_on_at_once_and_an_unknown_one_as_it_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Workload] = []

    def choose(policy: Policy, workload: Workload) -> Choice:
        asked.append(workload)
        return Choice(workload.steps >= 8, "a test")

    monkeypatch.setattr(Policy, "choose", choose)
    cpu = torch.device("cpu")
    events: list[Any] = []
    with Compilation("auto", 1000, cpu, events.append).begin(100):
        assert kernel._active and asked == [Workload(1000, 100, cpu)]
    with Compilation("auto", 1000, cpu, events.append).begin(7) as short:
        for step in range(1, 20):
            short.after_step(step)
        assert not kernel._active
    asked.clear()
    with Compilation("auto", 1000, cpu, events.append).begin(None) as unknown:
        active = []
        for step in range(1, 11):
            unknown.after_step(step)
            active.append(kernel._active)
    assert active == [False] * 7 + [True] * 3 and not kernel._active
    assert [workload.steps for workload in asked] == [0, 1, 2, 4, 8, 8]  # the last one as the kernel is taken up
    compiled = "fake quantization by a compiled kernel: a test"
    waits = "fake quantization by torch itself until compiling pays: how long the training is shows as it goes on"
    assert [event.text for event in events] == [compiled, "fake quantization by torch itself: a test", waits, compiled]


def test_elements_are_those_of_large_tensors() -> None:
    large, small = FakeQuantizer(Scheme("uint8")), FakeQuantizer(Scheme("uint8"))
    model = nn.Sequential(large, nn.AvgPool1d(2), small)
    assert elements_per_step(model, [large, small], (torch.zeros(1, 4, kernel.SMALL // 4),), {}) == kernel.SMALL
    assert not large._forward_pre_hooks


def test_another_kernel_is_refused() -> None:
    with pytest.raises(InputErrors, match=r"kernel: Input should be 'auto', 'compiled' or 'torch'"):
        Quantizer([{}], TorchEvaluator(), kernel="inductor")
