"""A convolution of images over unrolled columns, beside the convolution itself."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from nnicompress.export.formats import FORMATS
from nnicompress.quantization.fake_quantizer import FakeQuantizer
from nnicompress.quantization.freeze import freeze
from nnicompress.quantization.frozen import FrozenModel
from nnicompress.quantization.lowering import lower
from nnicompress.quantization.scheme import Scheme
from tests.quantization.by_hand import calibrate, image


class Stem(nn.Module):
    """A convolution with its input and weight quantized; the image's quantizer has a zero point of its own."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        self.convolution = convolution
        self.x, self.weight = FakeQuantizer(Scheme("uint8")), FakeQuantizer(Scheme("int8", symmetric=True))

    def forward(self, image: Tensor) -> Tensor:
        whole = self.convolution
        return whole._conv_forward(self.x(image), self.weight(whole.weight), whole.bias)


def frozen_stem(convolution: nn.Conv2d, height: int, width: int) -> tuple[FrozenModel, Tensor, float]:
    """The frozen layer, two images, and the unit that a bias is rounded to: the input's scale times the weight's."""
    torch.manual_seed(0)
    model, x = Stem(convolution).eval(), torch.randn(2, convolution.in_channels, height, width) + 0.7
    calibrate(model, ((x,), {}))
    return freeze(model, ((x,), {})), x, float(model.x.scale * model.weight.scale.max())


def kernel_shapes(model: FrozenModel) -> list[tuple[int, ...]]:
    buffers = dict(model.named_buffers())
    return [tuple(t.shape) for t in buffers.values() if t.dim() == 4]


@pytest.mark.parametrize(
    ("convolution", "height", "width", "unrolled"),
    [
        (nn.Conv2d(3, 8, 7, stride=2, padding=3, bias=False), 70, 64, (8, 24, 7, 1)),
        (nn.Conv2d(3, 8, 7, stride=2, padding=3), 33, 65, (8, 24, 7, 1)),
        (nn.Conv2d(3, 8, 3, padding=1), 20, 67, (8, 12, 3, 1)),
        (nn.Conv2d(1, 5, (5, 3), stride=(1, 2), padding=(2, 0)), 12, 71, (5, 4, 5, 1)),
        (nn.Conv2d(3, 6, 4, stride=4), 64, 66, (6, 12, 4, 1)),
        (nn.Conv2d(3, 6, 11, stride=4, padding=2), 64, 64, (6, 36, 11, 1)),
        (nn.Conv2d(2, 6, 3, stride=5, padding=1), 30, 64, (6, 12, 3, 1)),
    ],
)
def test_the_sums_are_the_same(convolution: nn.Conv2d, height: int, width: int, unrolled: tuple[int, ...]) -> None:
    frozen, x, unit = frozen_stem(convolution, height, width)
    lowered = lower(frozen, ((x,), {}))
    assert kernel_shapes(lowered) == [unrolled]
    for batch in (x, torch.randn(5, *x.shape[1:])):
        torch.testing.assert_close(lowered(batch), frozen(batch), rtol=1e-5, atol=unit / 2 + 2e-6)


@pytest.mark.parametrize(
    ("convolution", "width"),
    [
        (nn.Conv2d(3, 8, 7, stride=2), 63),
        (nn.Conv2d(4, 8, 7), 64),
        (nn.Conv2d(3, 8, 2), 64),
        (nn.Conv2d(3, 9, 5, groups=3), 64),
        (nn.Conv2d(3, 8, 5, dilation=2), 64),
        (nn.Conv2d(3, 8, 5, padding="same"), 64),
    ],
)
def test_what_would_gain_nothing_or_is_another_sum_stays(convolution: nn.Conv2d, width: int) -> None:
    frozen, x, _ = frozen_stem(convolution, 30, width)
    assert kernel_shapes(lower(frozen, ((x,), {}))) == [tuple(convolution.weight.shape)]


def test_onnxruntime_runs_it_in_integers(tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from nnicompress.export.integer_coverage import integer_coverage

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.out = Stem(nn.Conv2d(3, 8, 7, stride=2, padding=3)), FakeQuantizer(Scheme("uint8"))

        def forward(self, image: Tensor) -> Tensor:
            return self.out(self.stem(image).relu())

    model, inputs = Network().eval(), image(3, 64, 64)
    calibrate(model, inputs)
    frozen = freeze(model, inputs)
    FORMATS["onnx"].export(frozen, inputs, tmp_path / "m.onnx")
    assert integer_coverage(tmp_path / "m.onnx").integer == {"QLinearConv": 1}
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(3, 3, 64, 64)
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        want = frozen(x)
    scale = float(model.out.scale)
    off = (torch.from_numpy(got) - want).abs() / scale
    assert float(off.max()) < 1.01 and float((off > 0.5).float().mean()) < 1e-3, "one step, at rounding ties alone"
