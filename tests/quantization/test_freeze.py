"""Frozen models beside the fake-quantized ones: equal bit for bit."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from nnicompress.errors import JobError, UserError
from nnicompress.evaluators.contract import ModelInput
from nnicompress.export.comparison import compare_outputs
from nnicompress.export.divergence import ROUNDING, first_divergence, layer_differences
from nnicompress.export.formats import FORMATS
from nnicompress.export.program import ProgramModel, export_program
from nnicompress.quantization.attach import simulated
from nnicompress.quantization.fake_quantize import fake_quantize
from nnicompress.quantization.fake_quantizer import FakeQuantizer
from nnicompress.quantization.freeze import freeze
from nnicompress.quantization.frozen import FrozenModel, dequantize, quantize
from nnicompress.quantization.lowering import lower
from nnicompress.quantization.scheme import Granularity, Scheme
from tests.quantization.by_hand import NETWORKS, image, network, other_inputs, quantized, simulate


def assert_equal(a: nn.Module, b: nn.Module, inputs: Any) -> None:
    args, kwargs = inputs
    with torch.no_grad():
        want, got = a(*args, **kwargs), b(*args, **kwargs)
    assert type(want) is type(got)
    for x, y in zip(tree_leaves(want), tree_leaves(got), strict=True):
        assert torch.equal(x, y), f"differs by {(x - y).abs().max()}"


SLOWER = ("mobilenet_v2", "vit", "gpt2")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in SLOWER else n for n in NETWORKS])
def test_outputs_are_equal_bit_for_bit_at_any_batch_and_length(name: str) -> None:
    model, inputs = network(name)
    before = simulate(copy.deepcopy(model), inputs)
    frozen = freeze(before, inputs)
    for batch, longer in ((1, 0), (3, 0), (4, 7)):
        assert_equal(before, frozen, other_inputs(inputs, batch, longer))
    integers = {name.removesuffix("_2"): t for name, t in frozen.named_buffers() if t.dtype == torch.int8}
    quantized = {f"{path}.weight": m for path, m in before.named_modules() if hasattr(m, "quantizers")}
    assert set(integers) == set(quantized), "names are those of the model's own weights"
    for path, module in quantized.items():
        quantizer = module.quantizers["weight"]
        axis = quantizer.scheme.granularity.axis
        back = dequantize(integers[path], quantizer.scale, quantizer.zero_point, axis)
        assert torch.equal(back, quantizer(module.weight))


METHODS: dict[str, dict[str, Any]] = {
    "calibrated": {"trains": False},
    "trained": {},
    "folded": {"fold_batch_norm": True},
    "lsq": {"method": "lsq"},
    "lsq_plus": {"method": "lsq_plus"},
    "dorefa": {"method": "dorefa"},
    "bnn": {"method": "bnn", "backend": "none"},
}


def assert_frozen_as_found(name: str, method: str) -> tuple[FrozenModel, ModelInput]:
    model, inputs = network(name)
    result = quantized(model, inputs, **METHODS[method])
    frozen = freeze(model, inputs, result)
    assert not any(isinstance(module, FakeQuantizer) for module in model.modules())
    with simulated(model, result):
        for batch, longer in ((1, 0), (3, 5)):
            assert_equal(model.eval(), frozen, other_inputs(inputs, batch, longer))
    return frozen, inputs


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_frozen_as_its_result_says(method: str) -> None:
    assert_frozen_as_found("plain", method)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_another_precision_is_refused_in_one_line(dtype: torch.dtype) -> None:
    model, inputs = network("plain")
    result = quantized(model, inputs, trains=False)
    expected = rf"stem.0.weight is {str(dtype)[6:]}, and a quantized model computes in float32 .* model.float\(\)"
    with pytest.raises(UserError, match=expected):
        freeze(model.to(dtype), inputs, result)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "residual"])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_on_every_network_down_to_the_file(name: str, method: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime")
    frozen, inputs = assert_frozen_as_found(name, method)
    file = tmp_path / "m.onnx"
    FORMATS["onnx"].export(frozen, inputs, file)
    for batch, longer in ((1, 0), (4, 3)):
        others = other_inputs(inputs, batch, longer)
        if method == "bnn":  # signs, computed in float
            compare_outputs(FORMATS["onnx"].load(file, frozen, inputs), frozen, [others], tolerance=1e-4, what="it")
            continue
        # The file computes what the lowered program does, but for the order of float sums. That of the frozen model
        # differs by rounding, which a deep network of random weights makes more of from layer to layer.
        lowered = lower(frozen, inputs)
        assert max(one.mean for one in layer_differences(frozen, file, others, beside=lowered)) < ROUNDING
        assert layer_differences(frozen, file, others)[0].mean < 0.01
        if method != "dorefa":  # one of its 15 steps, at a tie, is many of the 8 bits behind
            assert first_divergence(frozen, file, others) is None


@pytest.mark.parametrize("weight_dtype", ["int2", "int4", "int8"])
@pytest.mark.parametrize("block", [0, 3])
def test_every_width_and_blocks(weight_dtype: str, block: int) -> None:
    model, inputs = network("resnet")
    activation = Scheme("uint4") if block else Scheme("int8", symmetric=True)
    before = simulate(model, inputs, weight_dtype, activation, block)
    frozen = freeze(before, inputs)
    assert_equal(before, frozen, other_inputs(inputs, 3))
    bits = int(weight_dtype[-1])
    for tensor in frozen.buffers():
        if tensor.dtype == torch.int8:
            assert int(tensor.abs().max()) <= 2 ** (bits - 1) - 1


def test_the_arithmetic_is_that_of_torchs_fake_quantization() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        x = torch.randn(4, 4096, generator=generator) * 5
        scale, zero_point = torch.rand(4, generator=generator) / 10 + 1e-3, torch.randint(0, 255, (4,)).int()
        want = fake_quantize(x, scale, zero_point, 0, 255, 0)
        assert torch.equal(dequantize(quantize(x, scale, zero_point, 0, 255, 0), scale, zero_point, 0), want)
        want = fake_quantize(x, scale[0], zero_point[0], 0, 255)
        assert torch.equal(dequantize(quantize(x, scale[0], zero_point[0], 0, 255), scale[0], zero_point[0]), want)


def test_the_model_is_left_as_it_was() -> None:
    model, inputs = network("unet")
    before = simulate(model, inputs).train()
    state = copy.deepcopy(before.state_dict())
    classes = [type(module) for module in before.modules()]
    freeze(before, inputs)
    assert all(torch.equal(a, b) for a, b in zip(state.values(), before.state_dict().values(), strict=True))
    assert classes == [type(module) for module in before.modules()]
    assert before.training


class Twice(nn.Module):
    """One tensor quantized for two layers in the same way, and once more in another; a tied weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
        self.same, self.again, self.other = (FakeQuantizer(Scheme("uint8")) for _ in range(3))
        self.weight_quantizer = FakeQuantizer(Scheme("int8", symmetric=True, granularity=Granularity(0)), (4, 4))
        for number, quantizer in enumerate((self.same, self.again, self.other, self.weight_quantizer)):
            scale = torch.full_like(quantizer.scale, 0.05 if number < 2 else 0.02)
            quantizer.set_parameters(scale, torch.full_like(quantizer.zero_point, 128 if number < 3 else 0))
            quantizer.simulating = True

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight_quantizer(self.a.weight)
        first, again = self.same(x), self.again(self.same(x))
        other = self.other(x)
        y = nn.functional.linear(first, weight) + self.b(again) + nn.functional.linear(other, weight)
        y = y + nn.functional.linear(y, self.a.weight)
        x.relu_()
        return y + self.same(x)


def test_a_copy_shares_the_structure_of_the_output_without_a_warning() -> None:
    model, inputs = network("bert")
    frozen = freeze(simulate(model, inputs), inputs)
    assert_equal(frozen, copy.deepcopy(frozen), inputs)


def test_equal_quantizers_of_one_tensor_are_one_and_writing_into_it_ends_that() -> None:
    model = Twice().eval()
    frozen = freeze(model, ((torch.randn(2, 4),), {}))
    x = torch.randn(5, 4)
    with torch.no_grad():
        assert torch.equal(model(x.clone()), frozen(x.clone()))
    operators = [step[1] for step in frozen.frozen_program["steps"]]
    assert operators.count("quantize") == 3
    names = dict(frozen.named_buffers())
    assert names["a.weight"].dtype == torch.int8 and torch.equal(names["a.weight_2"], model.a.weight)


def test_what_cannot_be_frozen_says_why() -> None:
    model, inputs = network("residual")
    with pytest.raises(UserError, match="nothing in Residual simulates quantization"):
        freeze(model, inputs)

    class Random(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = FakeQuantizer(Scheme("uint8"))
            self.q.simulating = True

        def forward(self, x: Tensor) -> Tensor:
            return self.q(x) + torch.rand_like(x)

    with pytest.raises(JobError, match="Random can't be frozen: output 0 isn't that of the simulation"):
        freeze(Random().eval(), image(3))


def test_wrong_arguments_of_a_frozen_model_are_named() -> None:
    class Gain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q = FakeQuantizer(Scheme("uint8"))
            self.q.simulating = True

        def forward(self, x: Tensor, shift: Tensor | None = None, *, gain: float = 1.0) -> Tensor:
            return self.q(x) * gain

    x = torch.randn(2, 3)
    frozen = freeze(Gain().eval(), ((x,), {"gain": 2.0}))
    assert torch.equal(frozen(x, gain=2.0), frozen(x=x, shift=None, gain=2.0))
    for args, kwargs, message in (
        ((x,), {"gain": 3.0}, "frozen with gain=2.0"),
        ((x,), {}, "frozen with gain=2.0"),
        ((x, x), {"gain": 2.0}, "takes gain, x, not shift"),
        ((), {"gain": 2.0}, "takes a tensor as x, not None"),
        ((x,), {"gain": 2.0, "gian": 2.0}, "not gian"),
    ):
        with pytest.raises(TypeError, match=message):
            frozen(*args, **kwargs)


def test_the_program_is_plain_data_and_torch_export_takes_it(tmp_path: Path) -> None:
    model, inputs = network("bert")
    before = simulate(model, inputs)
    frozen = freeze(before, inputs)
    program = json.loads(json.dumps(frozen.frozen_program))
    again = FrozenModel(program, dict(frozen.named_buffers()))
    other = other_inputs(inputs, 3, 5)
    with torch.no_grad():
        want = before(**other[1])
        assert torch.equal(again(**other[1])["logits"], want.logits)
        plain = FrozenModel(program, dict(frozen.named_buffers()))
        export_program(plain, inputs, tmp_path / "m.pt2")
        assert torch.equal(ProgramModel(tmp_path / "m.pt2")(**other[1])["logits"], want.logits)
